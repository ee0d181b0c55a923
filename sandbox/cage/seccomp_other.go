//go:build !amd64

package cage

// oldCalls are those that only an older architecture has.
var oldCalls []uint32
