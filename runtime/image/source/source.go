// Package source is what all origins of images share: the faults that a pull can have, a caller's credential, and a
// download over HTTP that begins where an earlier one broke off. It knows neither names nor the store; packages
// translate and registry tell it where to go. Nothing that it says or returns holds a credential.
package source

import "errors"

// Faults that callers tell apart by errors.Is. The messages that wrap them name the origin and what to do.
var (
	// ErrInvalidName: the name can never lead to an image.
	ErrInvalidName = errors.New("invalid image name")
	// ErrNotFound: the source has no such image.
	ErrNotFound = errors.New("image not found")
	// ErrUnavailable: the source cannot be reached, broke off or failed; a later attempt may succeed.
	ErrUnavailable = errors.New("image source unavailable")
	// ErrUnauthorized: the source wants other credentials.
	ErrUnauthorized = errors.New("not authorized to pull image")
	// ErrDigestMismatch: the content is not what its digest promises.
	ErrDigestMismatch = errors.New("image digest mismatch")
	// ErrRefused: the content is not a disk image that Virtlet will run.
	ErrRefused = errors.New("image refused")
	// ErrTooLarge: the content is larger than the configured maximum.
	ErrTooLarge = errors.New("image too large")
	// ErrNotModified: the content is still the one that the request excluded.
	ErrNotModified = errors.New("image not modified")
	// ErrChanged: the content at the source is another one than that of which a part was fetched.
	ErrChanged = errors.New("image changed at its source")
)
