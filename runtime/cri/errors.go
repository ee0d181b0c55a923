package cri

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/virtlet/virtlet/runtime/image"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// faultCodes says what each known fault is in gRPC's words. The first that fits wins, so what a caller can act upon
// stands before what merely happened.
var faultCodes = [...]struct {
	fault error
	code  codes.Code
}{
	{supervisor.ErrNotReady, codes.Unavailable},
	{supervisor.ErrNoSpace, codes.ResourceExhausted},
	{syscall.ENOSPC, codes.ResourceExhausted},
	{syscall.EDQUOT, codes.ResourceExhausted},
	{supervisor.ErrInvalid, codes.InvalidArgument},
	{supervisor.ErrExists, codes.AlreadyExists},
	{supervisor.ErrBusy, codes.Aborted},
	{supervisor.ErrHost, codes.FailedPrecondition},
	{supervisor.ErrState, codes.FailedPrecondition},
	{supervisor.ErrNotFound, codes.NotFound},
	{image.ErrNoSpace, codes.ResourceExhausted},
	{image.ErrInvalidName, codes.InvalidArgument},
	{image.ErrAmbiguous, codes.InvalidArgument},
	{image.ErrRefused, codes.FailedPrecondition},
	{image.ErrTooLarge, codes.FailedPrecondition},
	{image.ErrDigestMismatch, codes.DataLoss},
	{image.ErrUnauthorized, codes.Unauthenticated},
	{image.ErrUnavailable, codes.Unavailable},
	{image.ErrNotFound, codes.NotFound},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
}

// toStatus turns an error of a handler into a gRPC status. A status that the handler chose itself is kept.
func toStatus(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	// A request that has ended fails for that reason first, whatever was cut off by it.
	if end := ctx.Err(); end != nil && errors.Is(err, end) {
		return status.Error(codeOf(end), err.Error())
	}
	return status.Error(codeOf(err), err.Error())
}

func codeOf(err error) codes.Code {
	for _, f := range faultCodes {
		if errors.Is(err, f.fault) {
			return f.code
		}
	}
	return codes.Internal
}

func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

// faults collects everything that is wrong with a request, so that its author mends it in one go.
type faults []string

func (f *faults) add(format string, args ...any) { *f = append(*f, fmt.Sprintf(format, args...)) }

// addErr adds an error that may itself hold several.
func (f *faults) addErr(err error) {
	if err != nil {
		*f = append(*f, strings.Split(err.Error(), "\n")...)
	}
}

// err is nil without faults, else InvalidArgument that begins with what is wrong.
func (f faults) err(format string, args ...any) error {
	if len(f) == 0 {
		return nil
	}
	return invalid("%s: %s", fmt.Sprintf(format, args...), strings.Join(f, "; "))
}
