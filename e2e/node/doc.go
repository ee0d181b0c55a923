// Package node runs a whole Debian node in a virtual machine, so that what needs systemd, cgroup v2, KVM or a power cut
// can be tested on a machine that has none of them. Build makes the node's disk image and caches it; Start boots it, and
// a Node runs scripts inside, moves files in and out, and can lose its power. Under `-cpu max` QEMU's TCG gives the node
// svm, so /dev/kvm works there.
package node
