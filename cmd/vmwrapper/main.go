// Command vmwrapper keeps one virtual machine: it is started by virtlet with its job on a file descriptor, starts QEMU,
// and keeps the VM's console, log, DHCP answers and exit record. It is not for running by hand. The work is done in
// package sandbox/wrapper.
package main

import (
	"os"

	"github.com/virtlet/virtlet/sandbox/wrapper"
)

func main() {
	os.Exit(wrapper.Main())
}
