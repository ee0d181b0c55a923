// Command qemu stands in for QEMU on a node that is under attack: it answers the daemon's questions like QEMU, and when it
// is run as a machine it makes every attempt of package attack, tells the results on the guest's console, and ends.
// What it is after is linked in.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/virtlet/virtlet/e2e/attack"
)

// Set by -ldflags -X.
var root, netns, tcp, abstract string

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "-version":
			fmt.Println("QEMU emulator version 10.0.0")
			return
		case "-L":
			return
		}
	}
	line := strings.Join(os.Args, "\n")
	report, err := json.Marshal(attack.Run(targets(line)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	console := os.Stdout
	if m := regexp.MustCompile(`id=console,fd=(\d+)`).FindStringSubmatch(line); m != nil {
		fd, _ := strconv.Atoi(m[1])
		console = os.NewFile(uintptr(fd), "console")
	}
	fmt.Fprintf(console, "%s\n", report)
	fmt.Fprintln(os.Stderr, "the attacker has finished")
	os.Exit(3)
}

var (
	descriptor = regexp.MustCompile(`(?m)(?:^|,)(?:fd|fds|vhostfds)=([0-9:]+)`)
	// The root disk's own file is the first set, the base image below it the second.
	base = regexp.MustCompile(`(?m)^fd=(\d+),set=2$`)
)

func targets(line string) attack.Targets {
	t := attack.Targets{Root: root, Netns: netns, TCP: tcp, Abstract: abstract, ReadOnly: -1}
	for _, m := range descriptor.FindAllStringSubmatch(line, -1) {
		for number := range strings.SplitSeq(m[1], ":") {
			if fd, err := strconv.Atoi(number); err == nil {
				t.Given = append(t.Given, fd)
			}
		}
	}
	if m := base.FindStringSubmatch(line); m != nil {
		t.ReadOnly, _ = strconv.Atoi(m[1])
	}
	return t
}
