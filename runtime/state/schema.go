package state

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"

	bolt "go.etcd.io/bbolt"
)

// The buckets. Keys are ids, except in meta.
const (
	bucketMeta   = "meta"
	bucketPods   = "pods"
	bucketVMs    = "vms"
	bucketImages = "images"
)

func buckets() [][]byte {
	return [][]byte{[]byte(bucketMeta), []byte(bucketPods), []byte(bucketVMs), []byte(bucketImages)}
}

// The keys in meta.
const (
	keySchema = "schema"
	keyID     = "id"
)

// A migration brings the records of one schema version to the next one.
type migration struct {
	from int
	run  func(*bolt.Tx) error
}

// migrations lists one step for every version below SchemaVersion, in order.
func migrations() []migration {
	return nil
}

func putSchema(tx *bolt.Tx, version int) error {
	return tx.Bucket([]byte(bucketMeta)).Put([]byte(keySchema), []byte(strconv.Itoa(version)))
}

func putID(tx *bolt.Tx) error {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	return tx.Bucket([]byte(bucketMeta)).Put([]byte(keyID), []byte(hex.EncodeToString(id)))
}

func schemaOf(tx *bolt.Tx) (int, error) {
	meta := tx.Bucket([]byte(bucketMeta))
	if meta == nil {
		return 0, errors.New("it holds something else than Virtlet's records (no schema version)")
	}
	version, err := strconv.Atoi(string(meta.Get([]byte(keySchema))))
	if err != nil {
		return 0, fmt.Errorf("its schema version cannot be read: %w", err)
	}
	return version, nil
}

// migrate refuses a newer schema and runs the steps from an older one, all in one transaction.
func (s *Store) migrate(o options) error {
	var version int
	err := s.view(func(tx *bolt.Tx) (err error) {
		if version, err = schemaOf(tx); err != nil {
			return corrupt(s.path, err)
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case version == o.schema:
		return nil
	case version > o.schema:
		return fmt.Errorf("state database %s: %w: its schema is %d and this program knows up to %d; it was left as it is: "+
			"install the Virtlet that wrote it, or restore the copy that was made before the upgrade",
			s.path, ErrNewerSchema, version, o.schema)
	}
	backup := fmt.Sprintf("%s.schema%d", s.path, version)
	if err := s.view(func(tx *bolt.Tx) error { return tx.CopyFile(backup, fileMode) }); err != nil {
		return fmt.Errorf("copying state database to %s before its upgrade: %w", backup, err)
	}
	err = s.update(func(tx *bolt.Tx) error {
		for _, m := range o.migrations {
			if m.from != version {
				continue
			}
			if err := m.run(tx); err != nil {
				return fmt.Errorf("from schema %d: %w", m.from, err)
			}
			version++
		}
		if version != o.schema {
			return fmt.Errorf("no way is known from schema %d to %d", version, o.schema)
		}
		return putSchema(tx, version)
	})
	if err != nil {
		return fmt.Errorf("upgrading state database %s, which was left as it is: %w", s.path, err)
	}
	return nil
}
