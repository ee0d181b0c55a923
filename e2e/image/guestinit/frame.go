package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
)

// maxFrame is the largest frame that is sent, in bytes.
const maxFrame = 1 << 16

// sendFrame puts the body on the wire of the NIC dev as it is: a whole Ethernet frame, honest or not.
func sendFrame(w http.ResponseWriter, r *http.Request) {
	frame, err := io.ReadAll(io.LimitReader(r.Body, maxFrame))
	if err == nil {
		err = transmit(r.URL.Query().Get("dev"), frame)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, "sent")
}

func transmit(dev string, frame []byte) error {
	nic, err := net.InterfaceByName(dev)
	if err != nil {
		return fmt.Errorf("NIC %s: %w", dev, err)
	}
	fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a packet socket: %w", err)
	}
	defer syscall.Close(fd)
	if err := syscall.Sendto(fd, frame, 0, &syscall.SockaddrLinklayer{Ifindex: nic.Index}); err != nil {
		return fmt.Errorf("sending %d bytes on %s: %w", len(frame), dev, err)
	}
	return nil
}
