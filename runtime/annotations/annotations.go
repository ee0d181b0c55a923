// Package annotations reads what a pod asks of its VM by annotations. It is a table with a row for each annotation and
// one pure function over it; a fault names the annotation and what it allows, and never the value, which may be a
// secret. Names of the Virtlet family that the table has not got are faults too, so that a typing error is seen.
package annotations

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Options are what the annotations ask for. A zero field was not asked for.
type Options struct {
	// VCPUs is the number of virtual CPUs.
	VCPUs int
	// RootVolumeSize is the size of the root disk in bytes.
	RootVolumeSize int64
	// SSHKeys are public keys in OpenSSH's form, one each.
	SSHKeys []string
	// UserData is for cloud-init, and begins with the mark of its form.
	UserData []byte
	// AllowSpoofing lets the guest send with every MAC and address. Whether a pod may have it is the node's to say.
	AllowSpoofing bool
}

// prefix marks the annotations that are for us.
const prefix = "Virtlet"

// row is one annotation: what it does to the options. A row without parse is known and not supported yet.
type row struct {
	name  string
	parse func(value string, o *Options) error
}

// table returns the known annotations in the order in which people are told of them.
func table() []row {
	return []row{
		{"VirtletVCPUCount", parseVCPUCount},
		{"VirtletRootVolumeSize", parseRootVolumeSize},
		{"VirtletSSHKeys", parseSSHKeys},
		{"VirtletCloudInitUserData", parseUserData},
		{"VirtletAllowSpoofing", parseAllowSpoofing},

		{"VirtletDiskDriver", nil},
		{"VirtletCPUModel", nil},
		{"VirtletLibvirtCPUSetting", nil},
		{"VirtletSystemUUID", nil},
		{"VirtletChown9pfsMounts", nil},
		{"VirtletFilesFromDataSource", nil},
		{"VirtletForceDHCPNetworkConfig", nil},
		{"VirtletCloudInitImageType", nil},
		{"VirtletCloudInitMetaData", nil},
		{"VirtletCloudInitUserDataOverwrite", nil},
		{"VirtletCloudInitUserDataScript", nil},
		{"VirtletCloudInitUserDataSource", nil},
		{"VirtletCloudInitUserDataSourceKey", nil},
		{"VirtletCloudInitUserDataSourceEncoding", nil},
		{"VirtletSSHKeySource", nil},
	}
}

// Parse reads a pod's annotations. It returns every fault at once; annotations of others are not looked at. It has no
// side effects.
func Parse(annotations map[string]string) (Options, error) {
	var o Options
	var errs []error
	rows := table()
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		i := slices.IndexFunc(rows, func(r row) bool { return r.name == name })
		switch {
		case i < 0:
			errs = append(errs, fmt.Errorf("annotation %q is not known; known are %s", name, supported(rows)))
		case rows[i].parse == nil:
			errs = append(errs, fmt.Errorf("annotation %s is not supported yet; remove it (supported are %s)", name, supported(rows)))
		default:
			if err := rows[i].parse(annotations[name], &o); err != nil {
				errs = append(errs, fmt.Errorf("annotation %s: %w", name, err))
			}
		}
	}
	if len(errs) > 0 {
		return Options{}, errors.Join(errs...)
	}
	return o, nil
}

func supported(rows []row) string {
	var names []string
	for _, r := range rows {
		if r.parse != nil {
			names = append(names, r.name)
		}
	}
	return strings.Join(names, ", ")
}
