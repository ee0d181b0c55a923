package domain

const mib = 1 << 20

// MinMemory is the least guest RAM, in bytes, that is accepted: below it no Linux guest of use boots. It is not a
// promise: Debian's cloud kernel of 2023 runs out of memory during its boot with 72 MiB and comes up with 80.
const MinMemory = 64 * mib

// DefaultTBSizeMiB is the bound of TCG's cache of translated code where the Domain sets none. A boot of Debian's kernel
// fills about 30 MiB of it and takes as long with a cache of 16 MiB as with one of a GiB, QEMU's own bound; 64 MiB
// leave room for a guest that runs systemd.
const DefaultTBSizeMiB = 64

// MaxCPUs is the largest number of virtual CPUs.
const MaxCPUs = 255

// Overhead is the memory, in bytes, that QEMU and vmwrapper may need beside the guest's RAM: what a cgroup limit must
// allow on top of it. It is an upper bound with a margin, not an estimate of what is used:
//
//	96 MiB            QEMU's code and heap (measured: 23 and 12 MiB), vmwrapper, device and qcow2 caches
//	 8 MiB per vCPU   stack, TCG's per-thread regions
//	RAM/256 (KVM)     the host's and the guest's page tables for the RAM
//	RAM/64 (TCG)      QEMU's tables of guest pages, soft TLBs
//	the code cache    under TCG
//
// Measured under TCG with every page of the RAM written (cgroup's peak less RAM): 98 MiB for 128 MiB and 1 vCPU, 104
// for 4 vCPUs, 105 for 512 MiB and 2 vCPUs; the bound is 170, 194 and 184. make bench holds it to that.
func Overhead(d Domain) int64 {
	bytes := 96*mib + int64(max(d.CPUs, 1))*8*mib
	if d.Accel == KVM {
		return bytes + d.MemoryBytes/256
	}
	cache := int64(d.TBSizeMiB)
	if cache == 0 {
		cache = DefaultTBSizeMiB
	}
	return bytes + cache*mib + d.MemoryBytes/64
}
