package annotations

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/virtlet/virtlet/sandbox/disk"
	"github.com/virtlet/virtlet/sandbox/domain"
)

func parseVCPUCount(value string, o *Options) error {
	n, err := strconv.Atoi(strings.TrimSpace(value))
	if err != nil || n < 1 || n > domain.MaxCPUs {
		return fmt.Errorf("must be a whole number from 1 to %d", domain.MaxCPUs)
	}
	o.VCPUs = n
	return nil
}

// parseAllowSpoofing takes the two words alone: a right is not given for something that resembles one.
func parseAllowSpoofing(value string, o *Options) error {
	switch strings.TrimSpace(value) {
	case "true":
		o.AllowSpoofing = true
	case "false":
	default:
		return errors.New(`must be "true" or "false"`)
	}
	return nil
}

func parseRootVolumeSize(value string, o *Options) error {
	size, ok := Quantity(strings.TrimSpace(value), disk.MaxVirtualSize)
	if !ok || size < 1 {
		return fmt.Errorf("must be a Kubernetes quantity of whole bytes such as 10Gi, above 0 and at most %d", int64(disk.MaxVirtualSize))
	}
	o.RootVolumeSize = size
	return nil
}

// Quantity reads a Kubernetes quantity that is a whole number from 0 to most. Unlike the library's own function, it
// takes no time over a hostile one.
func Quantity(value string, most int64) (int64, bool) {
	// A quantity takes any decimal exponent, and reading 1e-999999999 takes minutes. Sizes need no negative one, and
	// no long one either.
	const longest = 24
	if len(value) > longest {
		return 0, false
	}
	if i := strings.IndexAny(value, "eE"); i >= 0 && i+1 < len(value) {
		exponent := strings.TrimPrefix(value[i+1:], "+")
		if len(exponent) > 2 || strings.HasPrefix(exponent, "-") {
			return 0, false
		}
	}
	q, err := resource.ParseQuantity(value)
	if err != nil {
		return 0, false
	}
	if q.CmpInt64(most) > 0 || q.Sign() < 0 {
		return 0, false
	}
	n := q.Value() // rounded up
	return n, q.CmpInt64(n) == 0
}
