package domain

// MinMemory is the least guest RAM, in bytes, in which a Linux guest boots.
const MinMemory = 48 << 20

// DefaultTBSizeMiB is the bound of TCG's code cache where the Domain sets none.
const DefaultTBSizeMiB = 64

// MaxCPUs is the largest number of virtual CPUs.
const MaxCPUs = 255

// Overhead is the memory, in bytes, that QEMU needs beside the guest's RAM: what a cgroup limit must allow on top.
func Overhead(d Domain) int64 {
	return 256 << 20
}
