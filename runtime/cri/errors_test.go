package cri

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/virtlet/virtlet/runtime/image"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

func TestErrorCodes(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("doing this to that: %w", err) }
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		name string
		ctx  context.Context
		err  error
		want codes.Code
	}{
		{"none", nil, nil, codes.OK},
		{"own_status_is_kept", nil, status.Error(codes.OutOfRange, "x"), codes.OutOfRange},
		{"wrapped_status_is_kept", nil, wrap(status.Error(codes.OutOfRange, "x")), codes.OutOfRange},
		{"not_found", nil, wrap(supervisor.ErrNotFound), codes.NotFound},
		{"exists", nil, wrap(supervisor.ErrExists), codes.AlreadyExists},
		{"state", nil, wrap(supervisor.ErrState), codes.FailedPrecondition},
		{"invalid", nil, wrap(supervisor.ErrInvalid), codes.InvalidArgument},
		{"busy", nil, wrap(supervisor.ErrBusy), codes.Aborted},
		{"host", nil, wrap(supervisor.ErrHost), codes.FailedPrecondition},
		{"space", nil, wrap(supervisor.ErrNoSpace), codes.ResourceExhausted},
		{"errno_space", nil, wrap(syscall.ENOSPC), codes.ResourceExhausted},
		{"not_ready", nil, wrap(supervisor.ErrNotReady), codes.Unavailable},
		{"deadline_below", nil, wrap(context.DeadlineExceeded), codes.DeadlineExceeded},
		{"cancelled_below", nil, wrap(context.Canceled), codes.Canceled},
		{"cause_and_failed_undo", nil, errors.Join(wrap(supervisor.ErrNoSpace), wrap(context.DeadlineExceeded)), codes.ResourceExhausted},
		{"ended_request_wins", ended, fmt.Errorf("%w: %w", supervisor.ErrHost, context.Canceled), codes.Canceled},
		{"ended_request_with_another_fault", ended, wrap(supervisor.ErrInvalid), codes.InvalidArgument},
		{"image_refused", nil, wrap(image.ErrRefused), codes.FailedPrecondition},
		{"image_space", nil, wrap(image.ErrNoSpace), codes.ResourceExhausted},
		{"image_name", nil, wrap(image.ErrInvalidName), codes.InvalidArgument},
		{"image_id_ambiguous", nil, wrap(image.ErrAmbiguous), codes.InvalidArgument},
		{"image_unauthorized", nil, wrap(image.ErrUnauthorized), codes.Unauthenticated},
		{"image_digest", nil, wrap(image.ErrDigestMismatch), codes.DataLoss},
		{"unknown", nil, errors.New("surprise"), codes.Internal},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := tc.ctx
			if ctx == nil {
				ctx = t.Context()
			}
			err := toStatus(ctx, tc.err)
			if status.Code(err) != tc.want {
				t.Errorf("got %v, want %s", err, tc.want)
			}
			if tc.err != nil && status.Convert(tc.err).Message() != status.Convert(err).Message() {
				t.Errorf("the text changed to %q", status.Convert(err).Message())
			}
		})
	}
}
