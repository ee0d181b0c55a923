package annotations

import (
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/ssh"
	"k8s.io/apimachinery/pkg/api/resource"
)

// FuzzParse reads hostile annotations. What is accepted is what the value says, and says the same when it is written
// again; a fault is told in words of ours alone, which cannot hold a secret.
func FuzzParse(f *testing.F) {
	f.Add("2", "10Gi", ed25519Key, "#cloud-config\nusers: []\n", "VCPUcount")
	f.Add("-1", "1e-999999999", "ssh-rsa AAAA", "#!/bin/sh", "")
	f.Add("", "1.5e3Ki", "x y", "&a [*a, *a]", "DiskDriver")
	f.Add(" 255\n", "17592186044416", "# c\r\n"+ecdsaKey+"\n\n"+`command="a b" `+ed25519Key+"\u2028x", "{a: 1}", "\n\x1b[31m\"")
	f.Add("+7", "1E", "-----BEGIN OPENSSH PRIVATE KEY-----", "a: &x !!binary [*x]\n---\nb: 1\n", "VCPUCount")
	f.Add("7", "13", "", "", "")
	f.Add("1_0", "1500m", "", "", "")
	f.Add("0x10", "0.5Ki", ed25519Key+"\x00", "\ufeff#cloud-config\na: 1", "SSHKeys")
	words := faultWords()
	f.Fuzz(func(t *testing.T, vcpus, size, keys, userData, name string) {
		all := map[string]string{
			"VirtletVCPUCount": vcpus, "VirtletRootVolumeSize": size, "VirtletSSHKeys": keys, "VirtletCloudInitUserData": userData,
		}
		var sum Options
		var faults []string
		for _, only := range slices.Sorted(maps.Keys(all)) {
			o, err := Parse(map[string]string{only: all[only], "example.org/" + name: vcpus})
			if err != nil {
				faults = append(faults, err.Error())
				if !words.MatchString(err.Error()) {
					t.Errorf("error %q", err)
				}
				continue
			}
			switch only {
			case "VirtletVCPUCount":
				sum.VCPUs = o.VCPUs
			case "VirtletRootVolumeSize":
				sum.RootVolumeSize = o.RootVolumeSize
			case "VirtletSSHKeys":
				sum.SSHKeys = o.SSHKeys
			case "VirtletCloudInitUserData":
				sum.UserData = o.UserData
			}
			checkOptions(t, all, o, only)
		}
		// Together they say what they say alone, and are refused for all faults at once.
		switch o, err := Parse(all); {
		case err == nil:
			if len(faults) > 0 || !reflect.DeepEqual(o, sum) {
				t.Errorf("together %+v, alone %+v and faults %q", o, sum, faults)
			}
		case err.Error() != strings.Join(faults, "\n") || !reflect.DeepEqual(o, Options{}):
			t.Errorf("together %q and %+v, alone %q", err, o, faults)
		}
		// A name beside the known ones is a fault, and is told so that it cannot disturb a log.
		if _, err := Parse(map[string]string{"Virtlet" + name: "secretsecret"}); err == nil || strings.Contains(err.Error(), "secretsecret") || !printable(err.Error()) {
			t.Errorf("Virtlet%q: %v", name, err)
		}
	})
}

// printable texts can do nothing to a terminal or a log; lists of faults have line ends.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r != '\n' && !strconv.IsPrint(r) })
}

// faultWords are all the words that there are for a fault.
func faultWords() *regexp.Regexp {
	const (
		number   = `must be a whole number from 1 to 255`
		quantity = `must be a Kubernetes quantity of whole bytes such as 10Gi, above 0 and at most 17592186044416`
		key      = `(line \d+ is not a public key in OpenSSH's form \("ssh-ed25519 AAAA\.\.\. comment"\)\n?)+`
		private  = `line \d+ belongs to a private key; public keys are wanted, one a line`
		empty    = `is empty; remove it or give cloud-init user-data`
		badYAML  = `is (not valid YAML|YAML but not a map); allowed are #cloud-config YAML, a script that begins with #!, and the other forms of cloud-init's user-data`
	)
	return regexp.MustCompile(`\Aannotation (VirtletVCPUCount: ` + number + `|VirtletRootVolumeSize: ` + quantity + `|VirtletSSHKeys: (` + key + `|` + private +
		`)|VirtletCloudInitUserData: (` + empty + `|` + badYAML + `))\z`)
}

// checkOptions compares what one annotation gave with its text, and with what it gives when it is written again.
func checkOptions(t *testing.T, all map[string]string, o Options, only string) {
	value := all[only]
	again := func(text string) {
		t.Helper()
		if o2, err := Parse(map[string]string{only: text}); err != nil || !reflect.DeepEqual(o2, o) {
			t.Errorf("%s: %q gives %+v, which written as %q gives %+v, %v", only, value, o, text, o2, err)
		}
	}
	switch only {
	case "VirtletVCPUCount":
		if n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64); err != nil || int64(o.VCPUs) != n || n < 1 || n > 255 {
			t.Errorf("%q gives %d vCPUs", value, o.VCPUs)
		}
		again(strconv.Itoa(o.VCPUs))
	case "VirtletRootVolumeSize":
		q, err := resource.ParseQuantity(strings.TrimSpace(value)) // what would take it long is refused by us
		if err != nil || q.CmpInt64(o.RootVolumeSize) != 0 || o.RootVolumeSize < 1 || o.RootVolumeSize > 16<<40 {
			t.Errorf("%q gives %d bytes", value, o.RootVolumeSize)
		}
		again(strconv.FormatInt(o.RootVolumeSize, 10))
	case "VirtletSSHKeys":
		for _, key := range o.SSHKeys {
			if strings.ContainsAny(key, "\n\r\x00\v\f\x1c\x1d\x1e\u0085\u2028\u2029") || key != strings.TrimSpace(key) || !strings.Contains(value, key) {
				t.Errorf("key %q of %q", key, value)
			}
			// Some keys that sshd would refuse pass, but none is two, or a comment with something behind it.
			if _, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(key)); err == nil && len(rest) > 0 {
				t.Errorf("key %q has something behind it: %q", key, rest)
			}
		}
		again(strings.Join(o.SSHKeys, "\n"))
	case "VirtletCloudInitUserData":
		if text := string(o.UserData); len(text) == 0 || text != value && text != cloudConfig+"\n"+value {
			t.Errorf("%q gives %q", value, text)
		}
		if strings.HasPrefix(string(o.UserData), cloudConfig+"\n") {
			var doc yaml.Node
			if err := yaml.Unmarshal(o.UserData, &doc); err != nil || doc.Content[0].Kind != yaml.MappingNode {
				t.Errorf("%q gives %q, which is no YAML map: %v", value, o.UserData, err)
			}
		}
		again(string(o.UserData))
	}
}
