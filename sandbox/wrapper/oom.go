package wrapper

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
)

// wrapperOOMScore makes vmwrapper the last to be killed for memory: who dies of its guest's hunger is QEMU, and
// somebody must tell.
const wrapperOOMScore = -1000

func lowerOOMScore() error {
	return os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(wrapperOOMScore)), 0)
}

// oomKills reads the count of OOM kills from a cgroup file (v2 memory.events, v1 memory.oom_control); 0 where it does
// not say.
func oomKills(path string) int64 {
	if path == "" {
		return 0
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		if count, ok := bytes.CutPrefix(lines.Bytes(), []byte("oom_kill ")); ok {
			n, _ := strconv.ParseInt(string(bytes.TrimSpace(count)), 10, 64)
			return n
		}
	}
	return 0
}
