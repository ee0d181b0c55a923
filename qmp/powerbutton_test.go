package qmp

import (
	"fmt"
	"testing"
	"testing/synctest"
)

func TestPressPowerButton(t *testing.T) {
	for state, commands := range map[RunState][]string{
		RunStateRunning:       {"system_powerdown"},
		RunStatePaused:        {"cont", "system_powerdown"},
		RunStateIOError:       {"cont", "system_powerdown"},
		RunStateSuspended:     {"system_wakeup", "system_powerdown"},
		RunStatePrelaunch:     {"quit"},
		RunStateShutdown:      {"quit"},
		RunStateGuestPanicked: {"quit"},
	} {
		t.Run(string(state), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				script := []step{negotiate(), expect("query-status"), answer("query-status", fmt.Sprintf(`{"status": %q, "running": %t}`, state, state == RunStateRunning))}
				for _, command := range commands {
					script = append(script, expect(command), answer(command, "{}"))
				}
				c := connect(t, script...)
				if err := c.PressPowerButton(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
