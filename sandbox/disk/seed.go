package disk

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/virtlet/virtlet/netns"
)

// Seed is what cloud-init's NoCloud data source reads at the guest's first boot.
type Seed struct {
	// InstanceID tells cloud-init whether it has run for this machine before.
	InstanceID string
	Hostname   string
	// SSHKeys are public keys in OpenSSH's form, one each, for the image's default user.
	SSHKeys []string
	// UserData in any form that cloud-init knows; it must begin with the mark of that form. Empty means none.
	UserData []byte
	// Network is what the guest's interfaces are to have; nil, or none, leaves it to the image.
	Network *netns.Network
}

// The names that cloud-init looks for, and the volume that it looks for them on.
const (
	metaDataFile      = "meta-data"
	userDataFile      = "user-data"
	networkConfigFile = "network-config"
	seedLabel         = "cidata"
)

// emptyUserData is given where there is none: the file must be there and be of a known form.
const emptyUserData = "#cloud-config\n{}\n"

// Files returns the seed's files by name. It has no side effects, and equal seeds give equal bytes.
func (s Seed) Files() (map[string][]byte, error) {
	if s.InstanceID == "" || s.Hostname == "" {
		return nil, errors.New("building the seed: instance id or host name is empty")
	}
	keys := make([]string, 0, len(s.SSHKeys))
	for i, key := range s.SSHKeys {
		key = strings.TrimSpace(key)
		if strings.ContainsFunc(key, endsLine) {
			return nil, fmt.Errorf("building the seed: SSH key %d has a control character, and would be several keys", i+1)
		}
		if key != "" {
			keys = append(keys, key)
		}
	}
	// JSON is YAML, but for some characters, and what is in a string cannot end it.
	var meta bytes.Buffer
	enc := json.NewEncoder(&meta)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(struct {
		InstanceID    string   `json:"instance-id"`
		LocalHostname string   `json:"local-hostname"`
		PublicKeys    []string `json:"public-keys,omitempty"`
	}{s.InstanceID, s.Hostname, keys})
	if err != nil {
		return nil, fmt.Errorf("building the seed's meta-data: %w", err)
	}
	files := map[string][]byte{metaDataFile: yamlSafe(meta.Bytes()), userDataFile: s.UserData}
	if len(s.UserData) == 0 {
		files[userDataFile] = []byte(emptyUserData)
	}
	if s.Network != nil && len(s.Network.Interfaces) > 0 {
		config, err := networkConfig(*s.Network)
		if err != nil {
			return nil, fmt.Errorf("building the seed's network-config: %w", err)
		}
		files[networkConfigFile] = config
	}
	return files, nil
}

// endsLine tells of the characters at which sshd or cloud-init begins a new line of authorized_keys, and some more.
func endsLine(r rune) bool {
	return unicode.IsControl(r) && r != '\t' || r == '\u2028' || r == '\u2029'
}

// yamlSafe escapes the characters that may stand in JSON's strings, but that YAML refuses or takes for a line's end.
func yamlSafe(doc []byte) []byte {
	out := make([]byte, 0, len(doc))
	for _, r := range string(doc) {
		if r >= 0x7f && r < 0xa0 || r == 0xfeff || r == 0xfffe || r == 0xffff {
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			out = utf8.AppendRune(out, r)
		}
	}
	return out
}

// WriteSeed writes the seed as an ISO 9660 image with the volume id cidata, mode 0600. It replaces an older one, and
// appears only when it is whole and on the disk; on any error nothing is left, and a full file system is ErrNoSpace.
func WriteSeed(path string, s Seed) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing cloud-init seed %s: %w", path, writeFault(err))
		}
	}()
	files, err := s.Files()
	if err != nil {
		return err
	}
	image, err := buildISO(seedLabel, files)
	if err != nil {
		return err
	}
	part := partName(path)
	if err := removeIfThere(part); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeIfThere(part))
		}
	}()
	f, err := os.OpenFile(part, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(image)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	// Unlike a disk, a seed holds nothing that is not known elsewhere.
	if err := removeIfThere(path); err != nil {
		return err
	}
	return publish(part, path)
}
