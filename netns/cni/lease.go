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

// defaultLeases is where host-local keeps its leases unless its dataDir says otherwise.
const defaultLeases = "/var/lib/cni/networks"

// syncLeases makes host-local's leases durable. The plugin does not do so itself: after a power cut a young lease is an
// empty file, which names no owner, and its address would never be free again.
func syncLeases(list *libcni.NetworkConfigList, res *types100.Result) error {
	for _, p := range list.Plugins {
		if p.Network.IPAM.Type != "host-local" {
			continue
		}
		var conf struct {
			IPAM struct {
				DataDir string `json:"dataDir"`
			} `json:"ipam"`
		}
		if err := json.Unmarshal(p.Bytes, &conf); err != nil {
			return fmt.Errorf("reading the configuration of host-local: %w", err)
		}
		dir := conf.IPAM.DataDir
		if dir == "" {
			dir = defaultLeases
		}
		dir = filepath.Join(dir, list.Name)
		for _, ip := range res.IPs {
			if err := syncPath(filepath.Join(dir, ip.Address.IP.String())); err != nil {
				return err
			}
		}
		if err := syncPath(dir); err != nil {
			return err
		}
	}
	return nil
}

// syncPath writes a file or a folder through to the disk; one that is not there is none of ours.
func syncPath(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("making an address durable: %w", err)
	}
	return errors.Join(f.Sync(), f.Close())
}
