package annotations

import (
	"reflect"
	"strings"
	"testing"
)

const (
	ed25519Key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHk2ZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZm me@example.org"
	ecdsaKey   = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBA=="
)

func TestParse(t *testing.T) {
	tests := []struct {
		name        string
		annotations map[string]string
		want        Options
	}{
		{"none", nil, Options{}},
		{"others_are_not_ours", map[string]string{"example.org/VirtletVCPUCount": "x", "virtletx": "y", "kubernetes.io/x": "z"}, Options{}},
		{"one_vcpu", map[string]string{"VirtletVCPUCount": "1"}, Options{VCPUs: 1}},
		{"most_vcpus", map[string]string{"VirtletVCPUCount": " 255 "}, Options{VCPUs: 255}},
		{"size_in_gibibytes", map[string]string{"VirtletRootVolumeSize": "10Gi"}, Options{RootVolumeSize: 10 << 30}},
		{"size_in_gigabytes", map[string]string{"VirtletRootVolumeSize": "10G"}, Options{RootVolumeSize: 10e9}},
		{"size_in_bytes", map[string]string{"VirtletRootVolumeSize": "1073741824"}, Options{RootVolumeSize: 1 << 30}},
		{"size_with_fraction", map[string]string{"VirtletRootVolumeSize": "1.5Gi"}, Options{RootVolumeSize: 3 << 29}},
		{"size_with_exponent", map[string]string{"VirtletRootVolumeSize": "5e+9"}, Options{RootVolumeSize: 5e9}},
		{"largest_size", map[string]string{"VirtletRootVolumeSize": "16Ti"}, Options{RootVolumeSize: 16 << 40}},
		{"key", map[string]string{"VirtletSSHKeys": ed25519Key}, Options{SSHKeys: []string{ed25519Key}}},
		{"keys_among_blanks_and_comments", map[string]string{"VirtletSSHKeys": "\n# mine\n  " + ed25519Key + "  \r\n\n" + ecdsaKey + "\n"},
			Options{SSHKeys: []string{ed25519Key, ecdsaKey}}},
		{"key_with_options", map[string]string{"VirtletSSHKeys": `from="10.0.0.0/8",command="a b" ` + ed25519Key},
			Options{SSHKeys: []string{`from="10.0.0.0/8",command="a b" ` + ed25519Key}}},
		{"no_keys_at_all", map[string]string{"VirtletSSHKeys": "\n"}, Options{}},
		{"cloud_config", map[string]string{"VirtletCloudInitUserData": "#cloud-config\nusers: []\n"}, Options{UserData: []byte("#cloud-config\nusers: []\n")}},
		{"yaml_without_its_mark", map[string]string{"VirtletCloudInitUserData": "users: []\n"}, Options{UserData: []byte("#cloud-config\nusers: []\n")}},
		{"json_without_its_mark", map[string]string{"VirtletCloudInitUserData": `{"users": []}`}, Options{UserData: []byte("#cloud-config\n{\"users\": []}")}},
		{"script", map[string]string{"VirtletCloudInitUserData": "#!/bin/sh\necho {\n"}, Options{UserData: []byte("#!/bin/sh\necho {\n")}},
		{"mime", map[string]string{"VirtletCloudInitUserData": "Content-Type: multipart/mixed; boundary=\"x\"\n--x"},
			Options{UserData: []byte("Content-Type: multipart/mixed; boundary=\"x\"\n--x")}},
		{"template", map[string]string{"VirtletCloudInitUserData": "## template: jinja\n#cloud-config\n{% x %}"},
			Options{UserData: []byte("## template: jinja\n#cloud-config\n{% x %}")}},
		{"spoofing", map[string]string{"VirtletAllowSpoofing": "true"}, Options{AllowSpoofing: true}},
		{"no_spoofing", map[string]string{"VirtletAllowSpoofing": "false"}, Options{}},
		{"all", map[string]string{"VirtletVCPUCount": "2", "VirtletRootVolumeSize": "1Gi", "VirtletSSHKeys": ed25519Key, "VirtletCloudInitUserData": "#!/bin/sh"},
			Options{VCPUs: 2, RootVolumeSize: 1 << 30, SSHKeys: []string{ed25519Key}, UserData: []byte("#!/bin/sh")}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Parse(tc.annotations)
			if err != nil || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, %v; want %+v", got, err, tc.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct {
		name, annotation, value, want string
	}{
		{"vcpus_zero", "VirtletVCPUCount", "0", "from 1 to 255"},
		{"vcpus_negative", "VirtletVCPUCount", "-1", "from 1 to 255"},
		{"vcpus_too_many", "VirtletVCPUCount", "256", "from 1 to 255"},
		{"vcpus_no_number", "VirtletVCPUCount", "two", "from 1 to 255"},
		{"vcpus_fraction", "VirtletVCPUCount", "1.5", "from 1 to 255"},
		{"vcpus_empty", "VirtletVCPUCount", "", "from 1 to 255"},
		{"vcpus_beyond_integers", "VirtletVCPUCount", strings.Repeat("9", 99), "from 1 to 255"},
		{"size_zero", "VirtletRootVolumeSize", "0", "quantity"},
		{"size_negative", "VirtletRootVolumeSize", "-1Gi", "quantity"},
		{"size_too_large", "VirtletRootVolumeSize", "17Ti", "at most 17592186044416"},
		{"size_beyond_integers", "VirtletRootVolumeSize", "100E", "quantity"},
		{"size_part_of_a_byte", "VirtletRootVolumeSize", "0.5", "whole bytes"},
		{"size_part_of_a_large_number", "VirtletRootVolumeSize", "1000000000.5", "whole bytes"},
		{"size_milli", "VirtletRootVolumeSize", "1500m", "whole bytes"},
		{"size_unit_of_others", "VirtletRootVolumeSize", "10GB", "such as 10Gi"},
		{"size_empty", "VirtletRootVolumeSize", "", "quantity"},
		{"size_that_takes_minutes_to_read", "VirtletRootVolumeSize", "1e-999999999", "quantity"},
		{"size_with_long_exponent", "VirtletRootVolumeSize", "1E+999999999", "quantity"},
		{"key_garbage", "VirtletSSHKeys", ed25519Key + "\nsecretsecret", "line 2"},
		{"key_type_alone", "VirtletSSHKeys", "ssh-ed25519", "line 1"},
		{"key_of_another_type", "VirtletSSHKeys", "ssh-rsa " + strings.Fields(ed25519Key)[1], "line 1"},
		{"key_cut", "VirtletSSHKeys", ed25519Key[:30], "line 1"},
		{"key_with_control_character", "VirtletSSHKeys", ed25519Key + "\x1b[0m", "line 1"},
		{"key_and_another_behind_a_line_of_unicode", "VirtletSSHKeys", ed25519Key + "\u2028" + ed25519Key, "line 1"},
		{"key_and_another_behind_a_next_line", "VirtletSSHKeys", ed25519Key + "\u0085" + ed25519Key, "line 1"},
		{"key_private", "VirtletSSHKeys", "-----BEGIN OPENSSH PRIVATE KEY-----\nsecretsecret", "private key"},
		{"userdata_empty", "VirtletCloudInitUserData", " \n", "is empty"},
		{"userdata_list", "VirtletCloudInitUserData", "#cloud-config\n- secretsecret\n", "not a map"},
		{"userdata_scalar", "VirtletCloudInitUserData", "secretsecret", "not a map"},
		{"userdata_broken", "VirtletCloudInitUserData", "#cloud-config\na: [secretsecret\n", "not valid YAML"},
		{"userdata_unknown_alias", "VirtletCloudInitUserData", "a: *secretsecret\n", "not valid YAML"},
		{"userdata_comment_alone", "VirtletCloudInitUserData", "#cloud-config\n# nothing\n", "not"},
		{"spoofing_empty", "VirtletAllowSpoofing", "", `"true" or "false"`},
		{"spoofing_nearly", "VirtletAllowSpoofing", "1", `"true" or "false"`},
		{"spoofing_loud", "VirtletAllowSpoofing", "TRUE", `"true" or "false"`},
		{"misspelt", "VirtletVCPUcount", "2", "VirtletVCPUCount, VirtletRootVolumeSize, VirtletSSHKeys, VirtletCloudInitUserData, VirtletAllowSpoofing"},
		{"of_the_predecessor", "VirtletDiskDriver", "virtio", "not supported yet"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Parse(map[string]string{tc.annotation: tc.value, "VirtletX": "secretsecret"})
			if err == nil || !reflect.DeepEqual(got, Options{}) {
				t.Fatalf("got %+v, %v", got, err)
			}
			for _, want := range []string{tc.want, tc.annotation, `"VirtletX"`} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not contain %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "secretsecret") || strings.Contains(err.Error(), "AAAA"+"C3Nz") {
				t.Errorf("error tells the value: %v", err)
			}
		})
	}
}
