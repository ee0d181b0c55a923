package rig

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/virtlet/virtlet/netns"
)

// Sniffer keeps the frames that pass through the rig's host network, whichever link they come in or go out by.
type Sniffer struct {
	file   *os.File
	done   chan struct{}
	mu     sync.Mutex
	frames [][]byte
	err    error
	news   chan struct{} // holds one element when frames came since Await last looked
}

// allProtocols is ETH_P_ALL in network byte order.
const allProtocols = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8

// Sniff listens from its return on, until Close.
func (r *Rig) Sniff() (*Sniffer, error) {
	var fd int
	err := netns.Do(r.Host, func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, allProtocols)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listening to the frames in the host network: %w", err)
	}
	s := &Sniffer{file: os.NewFile(uintptr(fd), "packet socket"), done: make(chan struct{}), news: make(chan struct{}, 1)}
	go s.listen()
	return s, nil
}

func (s *Sniffer) listen() {
	defer close(s.done)
	buf := make([]byte, 1<<16)
	for {
		n, err := s.file.Read(buf)
		s.mu.Lock()
		if err == nil {
			s.frames = append(s.frames, append([]byte(nil), buf[:n]...))
		} else if !errors.Is(err, os.ErrClosed) && !errors.Is(err, unix.ENETDOWN) { // a link that goes is no fault
			s.err = err
		}
		s.mu.Unlock()
		select {
		case s.news <- struct{}{}:
		default:
		}
		if err != nil && !errors.Is(err, unix.ENETDOWN) {
			return
		}
	}
}

// Frames are the frames so far for which match is true.
func (s *Sniffer) Frames(match func(frame []byte) bool) [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found [][]byte
	for _, f := range s.frames {
		if match(f) {
			found = append(found, f)
		}
	}
	return found
}

// Await returns when a frame has come for which match is true.
func (s *Sniffer) Await(ctx context.Context, match func(frame []byte) bool) error {
	for len(s.Frames(match)) == 0 {
		select {
		case <-s.news:
		case <-ctx.Done():
			return fmt.Errorf("waiting for a frame: %w", ctx.Err())
		}
	}
	return nil
}

// Close ends the listening; its error tells that frames may have been missed.
func (s *Sniffer) Close() error {
	err := s.file.Close()
	<-s.done
	return errors.Join(err, s.err)
}

// Serve serves HTTP at an address of the rig's host network, until ctx ends, and returns the URL.
func (r *Rig) Serve(ctx context.Context, address string, h http.Handler) (string, error) {
	l, err := r.Listen(address)
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: h}
	go func() { _ = server.Serve(l) }()
	context.AfterFunc(ctx, func() { _ = server.Close() })
	return "http://" + l.Addr().String(), nil
}
