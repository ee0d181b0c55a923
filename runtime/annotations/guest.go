package annotations

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// parseSSHKeys takes public keys, one a line, as in authorized_keys: empty lines and comments are skipped.
func parseSSHKeys(value string, o *Options) error {
	var errs []error
	for i, line := range strings.Split(value, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.Contains(line, "PRIVATE KEY"):
			return fmt.Errorf("line %d belongs to a private key; public keys are wanted, one a line", i+1)
		case !isPublicKey(line):
			errs = append(errs, fmt.Errorf("line %d is not a public key in OpenSSH's form (\"ssh-ed25519 AAAA... comment\")", i+1))
		default:
			o.SSHKeys = append(o.SSHKeys, line)
		}
	}
	return errors.Join(errs...)
}

// isPublicKey tells whether the line has a key type followed by a key of that type. Options may stand before it.
func isPublicKey(line string) bool {
	// At some of them cloud-init would begin another key.
	if strings.ContainsFunc(line, func(r rune) bool { return unicode.IsControl(r) && r != '\t' || r == '\u2028' || r == '\u2029' }) {
		return false
	}
	fields := strings.Fields(line)
	for i := range len(fields) - 1 {
		blob, err := base64.StdEncoding.DecodeString(fields[i+1])
		if err != nil || len(blob) < 4 {
			continue
		}
		// The blob begins with its own type, after its length.
		n := uint64(binary.BigEndian.Uint32(blob))
		if n == uint64(len(fields[i])) && uint64(len(blob)) > 4+n && string(blob[4:4+n]) == fields[i] {
			return true
		}
	}
	return false
}

// cloudConfig is the mark of YAML user-data.
const cloudConfig = "#cloud-config"

// otherForms are the marks of the other forms of user-data that cloud-init knows.
func otherForms() []string {
	return []string{
		"#!", "#include", "#cloud-boothook", "#part-handler", "#cloud-config-archive", "#cloud-config-jsonp", "## template:",
		"Content-Type:", "MIME-Version:",
	}
}

// parseUserData takes user-data in every form that cloud-init knows. YAML is held to be a map, and may lack its mark.
func parseUserData(value string, o *Options) error {
	first, _, _ := strings.Cut(value, "\n")
	first = strings.TrimSpace(first)
	switch {
	case strings.TrimSpace(value) == "":
		return errors.New("is empty; remove it or give cloud-init user-data")
	case first == cloudConfig || strings.HasPrefix(first, cloudConfig+" "):
	case hasForm(value):
		o.UserData = []byte(value)
		return nil
	default:
		value = cloudConfig + "\n" + value
	}
	if err := checkYAMLMap([]byte(value)); err != nil {
		return fmt.Errorf("%w; allowed are %s YAML, a script that begins with #!, and the other forms of cloud-init's user-data", err, cloudConfig)
	}
	o.UserData = []byte(value)
	return nil
}

func hasForm(value string) bool {
	for _, mark := range otherForms() {
		if len(value) >= len(mark) && strings.EqualFold(value[:len(mark)], mark) {
			return true
		}
	}
	return false
}

// checkYAMLMap tells what is wrong without a word of the content.
func checkYAMLMap(text []byte) error {
	var doc yaml.Node // a node keeps aliases as they are, so a small text stays small
	dec := yaml.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&doc); err != nil {
		return errors.New("is not valid YAML")
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return errors.New("is YAML but not a map")
	}
	return nil
}
