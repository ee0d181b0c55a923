package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMessage is kubelet's limit for CRI messages, in bytes.
const maxMessage = 16 << 20

// Server is a program on the rig that answers CRI on a unix socket: the daemon, containerd or criproxy. It is started
// and ended any number of times; client and log last.
type Server struct {
	Name string
	// Socket is its CRI socket.
	Socket  string
	Runtime runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient

	rig *Rig
	// command makes the command anew for each start.
	command func() (*exec.Cmd, error)
	conn    *grpc.ClientConn

	cmd  *exec.Cmd     // nil when it does not run
	done chan struct{} // closed when it has ended
	err  error         // how it ended; read after done
}

// addServer adds a server, which is not started yet.
func (r *Rig) addServer(name, socket string, command func() (*exec.Cmd, error)) *Server {
	s := &Server{Name: name, Socket: filepath.Join(r.Dir, socket), rig: r, command: command}
	r.servers = append(r.servers, s)
	return s
}

// Endpoint is Socket as crictl wants it.
func (s *Server) Endpoint() string { return "unix://" + s.Socket }

// Log is what the server wrote, over restarts.
func (s *Server) Log() string {
	b, _ := os.ReadFile(s.logPath())
	return string(b)
}

func (s *Server) logPath() string { return filepath.Join(s.rig.Dir, s.Name+".log") }

// PID is the server's process id, 0 when it does not run.
func (s *Server) PID() int {
	if s.cmd == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// is tells whether a process with these arguments is the server, or one that it has forked and that is still to become
// another program: on a busy machine that takes a while.
func (s *Server) is(pid int, argv []byte) bool {
	if s.PID() == 0 || s.PID() == pid {
		return s.PID() == pid
	}
	own, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.PID()))
	if err != nil || !bytes.Equal(argv, own) {
		return false
	}
	st, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err != nil || bytes.Contains(st, fmt.Appendf(nil, "\nPPid:\t%d\n", s.PID())) // without status it has ended
}

// Start starts the server and returns when it serves.
func (s *Server) Start(ctx context.Context) error {
	if err := s.Launch(); err != nil {
		return err
	}
	return s.AwaitReady(ctx)
}

// Launch starts the server and does not wait until it serves.
func (s *Server) Launch() error {
	if err := s.launch(); err != nil {
		return fmt.Errorf("starting %s: %w", s.Name, err)
	}
	return s.connect()
}

func (s *Server) launch() error {
	cmd, err := s.command()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(s.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.rig.Start(cmd); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.err = cmd.Wait()
	}()
	s.cmd, s.done = cmd, done
	return nil
}

func (s *Server) connect() error {
	if s.conn != nil {
		return nil
	}
	conn, err := grpc.NewClient(s.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return err
	}
	s.conn = conn
	s.Runtime, s.Images = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	s.rig.Later(conn.Close)
	return nil
}

// AwaitReady returns when the server answers Status with runtime and network ready or not ready, that is, when its
// recovery is over; or when it has died.
func (s *Server) AwaitReady(ctx context.Context) error {
	return s.await(ctx, func() error {
		_, err := s.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
		return err
	})
}

// AwaitConnection returns when the server's client is connected, whatever the server then answers; or when it has died.
func (s *Server) AwaitConnection(ctx context.Context) error {
	return s.await(ctx, func() error {
		if state := s.conn.GetState(); state != connectivity.Ready {
			return fmt.Errorf("the connection is %s", state)
		}
		return nil
	})
}

func (s *Server) await(ctx context.Context, ready func() error) error {
	tick := time.NewTicker(20 * time.Millisecond) // a socket that is not there yet gives no event
	defer tick.Stop()
	for {
		s.conn.ResetConnectBackoff()
		s.conn.Connect()
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-s.done:
			return fmt.Errorf("%s ended (%w); its log:\n%s", s.Name, s.err, s.Log())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w; its log:\n%s", s.Name, err, s.Log())
		case <-tick.C:
		}
	}
}

// Stop stops the server as systemd does it and returns when it has ended. What it runs goes on.
func (s *Server) Stop(ctx context.Context) error { return s.signal(ctx, syscall.SIGTERM) }

// Kill kills the server by SIGKILL and returns when it has ended. What it runs goes on.
func (s *Server) Kill(ctx context.Context) error { return s.signal(ctx, syscall.SIGKILL) }

func (s *Server) signal(ctx context.Context, sig syscall.Signal) error {
	if s.cmd == nil {
		return nil
	}
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return s.AwaitEnd(ctx)
}

// AwaitEnd returns when the server has ended and its client knows.
func (s *Server) AwaitEnd(ctx context.Context) error {
	select {
	case <-s.done:
		s.cmd = nil
		for s.conn.GetState() == connectivity.Ready && s.conn.WaitForStateChange(ctx, connectivity.Ready) {
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s does not end: %w", s.Name, ctx.Err())
	}
}
