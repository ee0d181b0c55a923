package proxy

import "testing"

// TestRules: a method of CRI that has no rule, or a rule for no method, is a mistake.
func TestRules(t *testing.T) {
	all := methods()
	if len(all) < 43 {
		t.Fatalf("only %d methods", len(all))
	}
	rules := rules()
	for full := range all {
		if rules[full] == nil {
			t.Errorf("%s has no rule: give it one in rules.go", full)
		}
	}
	for full := range rules {
		if all[full] == nil {
			t.Errorf("the rule for %s is for no method of CRI", full)
		}
	}
}
