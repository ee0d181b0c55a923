package domain

import "strconv"

// process is QEMU as a process: its name, no display, nothing from configuration files, started stopped.
type process struct{ name, uuid string }

func (p process) argv() []string {
	return []string{
		"-name", option("", prop{"guest", p.name}, prop{"debug-threads", "on"}),
		"-uuid", p.uuid,
		"-no-user-config", "-nodefaults",
		"-display", "none",
		"-S",
	}
}

// sandbox is QEMU's seccomp filter with every group denied: it needs neither to fork nor to change its user,
// and its affinity is set from outside.
type sandbox struct{}

func (sandbox) argv() []string {
	return []string{"-sandbox", option("on",
		prop{"obsolete", "deny"}, prop{"elevateprivileges", "deny"},
		prop{"spawn", "deny"}, prop{"resourcecontrol", "deny"})}
}

// machine is the board. Guest memory stays out of core dumps and is never merged with another guest's.
type machine struct{ memory string }

func (m machine) argv() []string {
	return []string{"-machine", option("q35",
		prop{"usb", "off"}, prop{"smm", "off"}, prop{"vmport", "off"},
		prop{"dump-guest-core", "off"}, prop{"mem-merge", "off"},
		prop{"memory-backend", m.memory})}
}

type accelerator struct {
	accel     Accel
	tbSizeMiB int
}

func (a accelerator) argv() []string {
	if a.accel == KVM {
		return []string{"-accel", "kvm"}
	}
	if a.tbSizeMiB == 0 {
		a.tbSizeMiB = DefaultTBSizeMiB
	}
	return []string{"-accel", option("tcg", prop{"thread", "multi"}, prop{"tb-size", strconv.Itoa(a.tbSizeMiB)})}
}

type processors struct {
	model string
	accel Accel
	count int
}

func (p processors) argv() []string {
	model := p.model
	if model == "" {
		// Everything that TCG has but 57-bit addresses: a fifth level of page tables to walk in software costs a boot
		// a tenth of its time.
		model = "max,la57=off"
		if p.accel == KVM {
			model = "host"
		}
	}
	n := strconv.Itoa(p.count)
	return []string{
		"-cpu", model,
		"-smp", option(n, prop{"sockets", "1"}, prop{"cores", n}, prop{"threads", "1"}),
	}
}

const ramID = "ram"

// memory is the guest's RAM: private pages of QEMU, so that the guest can give them back by the balloon.
type memory struct {
	id  string
	mib int64
}

func (m memory) argv() []string {
	size := strconv.FormatInt(m.mib, 10) + "M"
	return []string{
		"-m", option("", prop{"size", size}),
		"-object", option("memory-backend-ram", prop{"id", m.id}, prop{"size", size}),
	}
}

// firmware boots what has a boot index and nothing else, without a menu; the clock is UTC.
type firmware struct{}

func (firmware) argv() []string {
	return []string{
		"-boot", option("", prop{"menu", "off"}, prop{"strict", "on"}),
		"-rtc", option("", prop{"base", "utc"}),
	}
}
