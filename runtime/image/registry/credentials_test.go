package registry

import "testing"

// TestBestKey: which entry of a docker config counts, whatever order a map has.
func TestBestKey(t *testing.T) {
	for name, tc := range map[string]struct {
		keys       []string
		host, path string
		want       string // empty means none
	}{
		"host":                   {[]string{"a.example", "b.example"}, "b.example", "x", "b.example"},
		"case":                   {[]string{"A.Example"}, "a.example", "x", "A.Example"},
		"port":                   {[]string{"a.example", "a.example:5000"}, "a.example:5000", "x", "a.example:5000"},
		"another_port":           {[]string{"a.example:5000", "a.example:443"}, "a.example", "x", ""},
		"part_of_a_host":         {[]string{"example", "a.example.org"}, "a.example", "x", ""},
		"docker_hub":             {[]string{"https://index.docker.io/v1/"}, "registry-1.docker.io", "library/x", "https://index.docker.io/v1/"},
		"url":                    {[]string{"https://a.example/v2/"}, "a.example", "x", "https://a.example/v2/"},
		"the_longest_path":       {[]string{"a.example", "a.example/x", "a.example/x/y", "a.example/z"}, "a.example", "x/y/w", "a.example/x/y"},
		"the_very_path":          {[]string{"a.example", "a.example/x/y"}, "a.example", "x/y", "a.example/x/y"},
		"a_part_of_an_element":   {[]string{"a.example", "a.example/vm"}, "a.example", "vms/x", "a.example"},
		"a_part_and_no_host":     {[]string{"a.example/vm"}, "a.example", "vms/x", ""},
		"the_host_written_twice": {[]string{"https://a.example", "a.example"}, "a.example", "x", "a.example"},
	} {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				m := map[string]bool{}
				for _, key := range tc.keys {
					m[key] = true
				}
				if got, found := bestKey(m, tc.host, tc.path); got != tc.want || found != (tc.want != "") {
					t.Fatalf("got %q, %t; want %q", got, found, tc.want)
				}
			}
		})
	}
}
