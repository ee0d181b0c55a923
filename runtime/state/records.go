package state

import (
	"encoding/json"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"github.com/virtlet/virtlet/runtime/image"
	"github.com/virtlet/virtlet/sandbox/supervisor"
)

// ErrBadRecord marks a record that cannot be read; the message names its bucket and key. It stays in the file until
// it is put anew or deleted by its id.
var ErrBadRecord = errors.New("unreadable record")

// PutPod records a pod, in place of the record with the same id.
func (s *Store) PutPod(pod supervisor.Pod) error {
	return s.put(bucketPods, pod.ID, pod)
}

// DeletePod forgets a pod; an unknown id is no error.
func (s *Store) DeletePod(id string) error {
	return s.remove(bucketPods, id)
}

// PutVM records a virtual machine, in place of the record with the same id.
func (s *Store) PutVM(vm supervisor.VM) error {
	return s.put(bucketVMs, vm.ID, vm)
}

// DeleteVM forgets a virtual machine; an unknown id is no error.
func (s *Store) DeleteVM(id string) error {
	return s.remove(bucketVMs, id)
}

// Load returns all pods and virtual machines as of one moment, each in the order of their ids. The error, beside the
// readable records, joins one ErrBadRecord for each that is not.
func (s *Store) Load() ([]supervisor.Pod, []supervisor.VM, error) {
	var (
		pods []supervisor.Pod
		vms  []supervisor.VM
		bad  []error
	)
	err := s.view(func(tx *bolt.Tx) error {
		pods = collect(tx, bucketPods, func(p supervisor.Pod) string { return p.ID }, &bad)
		vms = collect(tx, bucketVMs, func(v supervisor.VM) string { return v.ID }, &bad)
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("loading pods and virtual machines: %w", err)
	}
	return pods, vms, errors.Join(bad...)
}

// UpdateImages records and forgets images in one transaction, so that a name never belongs to two.
func (s *Store) UpdateImages(put []image.Image, remove []string) error {
	values := make([][]byte, len(put))
	for i, img := range put {
		value, err := encode(img.ID, img)
		if err != nil {
			return fmt.Errorf("recording image %q: %w", img.ID, err)
		}
		values[i] = value
	}
	err := s.update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte(bucketImages))
		for _, id := range remove {
			if err := b.Delete([]byte(id)); err != nil {
				return err
			}
		}
		for i, img := range put {
			if err := b.Put([]byte(img.ID), values[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("recording images: %w", err)
	}
	return nil
}

// LoadImages returns all images in the order of their ids, with errors as Load has them.
func (s *Store) LoadImages() ([]image.Image, error) {
	var (
		images []image.Image
		bad    []error
	)
	err := s.view(func(tx *bolt.Tx) error {
		images = collect(tx, bucketImages, func(i image.Image) string { return i.ID }, &bad)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("loading images: %w", err)
	}
	return images, errors.Join(bad...)
}

func encode(id string, record any) ([]byte, error) {
	if id == "" {
		return nil, errors.New("the record has no id")
	}
	return json.Marshal(record)
}

func (s *Store) put(bucket, id string, record any) error {
	value, err := encode(id, record)
	if err == nil {
		err = s.update(func(tx *bolt.Tx) error {
			return tx.Bucket([]byte(bucket)).Put([]byte(id), value)
		})
	}
	if err != nil {
		return fmt.Errorf("recording %q in %s: %w", id, bucket, err)
	}
	return nil
}

func (s *Store) remove(bucket, id string) error {
	err := s.update(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte(bucket)).Delete([]byte(id))
	})
	if err != nil {
		return fmt.Errorf("deleting %q from %s: %w", id, bucket, err)
	}
	return nil
}

// collect reads a bucket's records and appends a fault for each that is not what its key says. Without a single good
// one it returns an empty list; nil is for a bucket that cannot be read at all.
func collect[T any](tx *bolt.Tx, bucket string, idOf func(T) string, bad *[]error) []T {
	records := []T{}
	b := tx.Bucket([]byte(bucket))
	if b == nil {
		*bad = append(*bad, fmt.Errorf("%w: bucket %s is missing", ErrBadRecord, bucket))
		return nil
	}
	cursor := b.Cursor()
	for key, value := cursor.First(); key != nil; key, value = cursor.Next() {
		var record T
		err := json.Unmarshal(value, &record)
		if err == nil && idOf(record) != string(key) {
			err = fmt.Errorf("it says that its id is %q", idOf(record))
		}
		if err != nil {
			*bad = append(*bad, fmt.Errorf("%w: %s/%s: %w", ErrBadRecord, bucket, key, err))
			continue
		}
		records = append(records, record)
	}
	return records
}
