package cgroups

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"
)

func TestWaitEmpty(t *testing.T) {
	waits := map[string]func(*Group, context.Context) error{
		"as_this_host_can": (*Group).WaitEmpty,
		"by_pidfds":        (*Group).waitPidfds,
	}
	for name, wait := range waits {
		t.Run(name, func(t *testing.T) {
			forDrivers(t, func(t *testing.T, d Driver, parent string) {
				p := sh(t, "sleep 60 & read stay")
				g := newGroup(t, d, parent, p, Limits{})
				p.release()
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				if err := wait(g, ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("with a process alive: %v", err)
				}
				done := make(chan error, 1)
				go func() { done <- wait(g, t.Context()) }()
				if err := g.Kill(); err != nil {
					t.Fatal(err)
				}
				select {
				case err := <-done:
					if err != nil {
						t.Error(err)
					}
				case <-time.After(20 * time.Second):
					t.Fatal("killed, but the wait does not end")
				}
				if pids, _ := g.Pids(); len(pids) != 0 {
					t.Errorf("pids %v after the wait", pids)
				}
				if err := g.Remove(); err != nil {
					t.Error(err)
				}
				if err := wait(g, t.Context()); err != nil {
					t.Errorf("on a group that is gone: %v", err)
				}
			})
		})
	}
}

func TestKill(t *testing.T) {
	kills := map[string]func(*Group) error{"as_this_host_can": (*Group).Kill, "one_by_one": (*Group).killEach}
	for name, kill := range kills {
		t.Run(name+"/while_they_fork", func(t *testing.T) {
			forDrivers(t, func(t *testing.T, d Driver, parent string) {
				p := sh(t, "sleep 60 & echo begun; while :; do sleep 0.01; done & while :; do sleep 0.01; done")
				g := newGroup(t, d, parent, p, Limits{PidsMax: 50})
				outside := sh(t, "echo alive")
				p.release()
				p.line()
				if err := kill(g); err != nil {
					t.Fatal(err)
				}
				if s := p.wait(); s.Signal() != syscall.SIGKILL {
					t.Errorf("ended with %v", s)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				if err := g.WaitEmpty(ctx); err != nil {
					t.Error(err)
				}
				outside.release()
				if l := outside.line(); l != "alive" {
					t.Errorf("a process outside of the group says %q", l)
				}
			})
		})
	}
	t.Run("group_gone", func(t *testing.T) {
		forDrivers(t, func(t *testing.T, d Driver, parent string) {
			if err := named(t, d, parent, "none").Kill(); err != nil {
				t.Error(err)
			}
		})
	})
}

func TestRemove(t *testing.T) {
	forDrivers(t, func(t *testing.T, d Driver, parent string) {
		g := newGroup(t, d, parent, sh(t, ""), Limits{})
		if err := g.Remove(); !errors.Is(err, ErrBusy) {
			t.Errorf("with a process: %v; want ErrBusy", err)
		}
		destroy(t, g)
		for range 2 {
			if err := g.Remove(); err != nil {
				t.Errorf("again: %v", err)
			}
		}
		if err := named(t, d, parent, "never-made").Remove(); err != nil {
			t.Errorf("a group that never was: %v", err)
		}
	})
}
