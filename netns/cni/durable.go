package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// makeDurable sees to it that what ADD has left on the disk survives a power cut. host-local writes its leases without a
// sync; after a power cut a young one is an empty file, which DEL takes for nobody's, so its address would be lost to
// the node for good. libcni's cached result is written in the same way.
func (c *CNI) makeDurable(list *libcni.NetworkConfigList, a Attachment, res *types100.Result) error {
	files := append(leases(list, res), filepath.Join(c.conf.CacheDir, "results", list.Name+"-"+a.PodID+"-"+a.ifName()))
	var errs []error
	for _, path := range files {
		// Both are details of others: where they do it otherwise, there is nothing to sync.
		if err := syncFile(path); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("making the lease of the address durable: %w", err)
	}
	return nil
}

// leases are the files in which host-local keeps the addresses of a result, one for each.
func leases(list *libcni.NetworkConfigList, res *types100.Result) []string {
	var files []string
	for _, p := range list.Plugins {
		var conf struct {
			IPAM struct {
				Type    string `json:"type"`
				DataDir string `json:"dataDir"`
			} `json:"ipam"`
		}
		if json.Unmarshal(p.Bytes, &conf) != nil || conf.IPAM.Type != "host-local" {
			continue
		}
		dir := conf.IPAM.DataDir
		if dir == "" {
			dir = "/var/lib/cni/networks"
		}
		for _, ip := range res.IPs {
			files = append(files, filepath.Join(dir, list.Name, ip.Address.IP.String()))
		}
	}
	return files
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
