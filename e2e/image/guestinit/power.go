package main

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"syscall"
	"time"
	"unsafe"
)

const (
	sysFinitModule = 313 // amd64
	evKey          = 1
	keyPower       = 116
)

func bytesPointer(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }

// watchPowerButton reads every input device: the ACPI power button is one of them.
func (g *guest) watchPowerButton() {
	devices, _ := filepath.Glob("/sys/class/input/event*")
	for _, d := range devices {
		f, err := os.Open("/dev/input/" + filepath.Base(d))
		if err != nil {
			continue
		}
		go func() {
			defer f.Close()
			event := make([]byte, 24) // struct input_event: two words of time, type, code, value
			for {
				if _, err := f.Read(event); err != nil {
					return
				}
				kind, code := binary.LittleEndian.Uint16(event[16:]), binary.LittleEndian.Uint16(event[18:])
				value := binary.LittleEndian.Uint32(event[20:])
				if kind == evKey && code == keyPower && value == 1 {
					g.powerButton()
				}
			}
		}()
	}
}

func (g *guest) powerButton() {
	if ignoresPowerButton() {
		g.say("power button pressed, ignored")
		return
	}
	g.say("power button pressed, powering down")
	g.end(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}

// end leaves a clean file system and ends the machine without init's pauses.
func (g *guest) end(how int) {
	syscall.Sync()
	// Fails while files are open for writing; then sync and the journal must do.
	if err := syscall.Mount("", "/", "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		syscall.Sync()
	}
	if err := syscall.Reboot(how); err != nil {
		g.say("ending the machine: %v", err)
	}
}

// endSoon lets the HTTP answer go out first.
func (g *guest) endSoon(how int) {
	time.AfterFunc(100*time.Millisecond, func() { g.end(how) })
}
