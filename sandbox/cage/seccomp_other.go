//go:build !amd64

package cage

// processCalls are the calls that only older architectures have.
var processCalls []uint32
