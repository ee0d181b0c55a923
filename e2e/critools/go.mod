// The tools of the Kubernetes project that test CRI runtimes, pinned, in a module of their own, so that Virtlet's has
// none of their requirements. Built by e2e/rig.
module github.com/virtlet/virtlet/e2e/critools

go 1.26.2

require sigs.k8s.io/cri-tools v1.36.0
