package main

import (
	"net"
	"os"
	"os/exec"
	"sync"
	"time"
)

const (
	hostKeyPath = "/etc/dropbear/host_ed25519"
	// A second key, because this dropbear offers RSA even without such a key and then fails; clients that prefer RSA to
	// Ed25519, as Go's, prefer ECDSA to both.
	ecdsaKeyPath = "/etc/dropbear/host_ecdsa"
)

// serveSSH listens itself and gives each connection a dropbear of its own, so that ssh is there as early as HTTP and
// costs nothing until it is used. Sessions need a key of the seed's; passwords are off.
func (g *guest) serveSSH() {
	listener, err := net.Listen("tcp", ":22")
	for err != nil {
		g.say("listening for ssh: %v", err)
		time.Sleep(time.Second)
		listener, err = net.Listen("tcp", ":22")
	}
	makeKeys := sync.OnceFunc(g.makeHostKeys)
	for {
		conn, err := listener.Accept()
		if err != nil {
			g.say("accepting ssh: %v", err)
			time.Sleep(time.Second)
			continue
		}
		go func() {
			makeKeys()
			defer conn.Close()
			file, err := conn.(*net.TCPConn).File()
			if err != nil {
				return
			}
			defer file.Close()
			cmd := exec.Command("dropbear", "-i", "-s", "-r", hostKeyPath, "-r", ecdsaKeyPath)
			cmd.Stdin, cmd.Stdout = file, file // errors go to the log of the system, which is not there
			_ = cmd.Run()                      // how a session ended is the client's to know
		}()
	}
}

// makeHostKeys takes the seed's host key; those that are missing are made at the first connection and kept on disk.
func (g *guest) makeHostKeys() {
	g.check("making /etc/dropbear", os.MkdirAll("/etc/dropbear", 0o700))
	if g.seed.HostKey != "" {
		const openssh = "/run/host_ed25519"
		g.check("writing the host key", os.WriteFile(openssh, []byte(g.seed.HostKey), 0o600))
		defer os.Remove(openssh)
		os.Remove(hostKeyPath)
		if out, err := exec.Command("dropbearconvert", "openssh", "dropbear", openssh, hostKeyPath).CombinedOutput(); err != nil {
			g.say("host key of the seed: %v: %s", err, out)
		}
	}
	for _, k := range []struct{ kind, path string }{{"ed25519", hostKeyPath}, {"ecdsa", ecdsaKeyPath}} {
		if _, err := os.Stat(k.path); err == nil {
			continue
		}
		if out, err := exec.Command("dropbearkey", "-t", k.kind, "-f", k.path).CombinedOutput(); err != nil {
			g.say("making a host key: %v: %s", err, out)
		}
	}
}
