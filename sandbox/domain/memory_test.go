package domain

import "testing"

func TestOverhead(t *testing.T) {
	const gib = 1 << 30
	tests := []struct {
		name   string
		domain Domain
		want   int64
	}{
		{"tcg_small", Domain{Accel: TCG, CPUs: 1, MemoryBytes: 128 * mib}, 170 * mib},
		{"tcg_vcpus", Domain{Accel: TCG, CPUs: 4, MemoryBytes: 128 * mib}, 194 * mib},
		{"tcg_own_cache", Domain{Accel: TCG, CPUs: 1, MemoryBytes: 128 * mib, TBSizeMiB: 256}, 362 * mib},
		{"kvm_small", Domain{Accel: KVM, CPUs: 1, MemoryBytes: 128 * mib}, 104*mib + mib/2},
		{"kvm_has_no_cache", Domain{Accel: KVM, CPUs: 1, MemoryBytes: 128 * mib, TBSizeMiB: 256}, 104*mib + mib/2},
		{"kvm_large", Domain{Accel: KVM, CPUs: 8, MemoryBytes: 64 * gib}, 416 * mib},
		{"cpus_not_set_yet", Domain{Accel: KVM, MemoryBytes: 256 * mib}, 105 * mib},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if got := Overhead(tc.domain); got != tc.want {
				t.Errorf("%d bytes (%d MiB), want %d MiB", got, got/mib, tc.want/mib)
			}
		})
	}
}
