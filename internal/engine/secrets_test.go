package engine

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/zricethezav/gitleaks/v8/detect"
	"github.com/zricethezav/gitleaks/v8/report"
)

// The samples are put together here, so that no scanner of this repository
// takes them for real ones.
func TestSecrets(t *testing.T) {
	const noise = "7Kq2Zp9Xv4Lm1Tc8Rb6Wd3Yh5Jn0Fg2Se4Ua"
	github := "ghp" + "_" + noise
	aws := "AKIA" + "Q3EGRIZ7NHP5W2XD"
	texts := []string{
		"make VERSION=1.0 release",
		"curl -H 'Authorization: Bearer " + github + "' https://api.example # gitleaks:allow",
		"deploy --key " + aws,
		"commit 0796f27d68a0ac9a0067e220c1d2bee893403784 of sha256:254db0fb64a77d55007f54b1cfb8c3dc722afb404e3dce28e3b46899bce3aacf",
		"",
	}
	raw, err := json.Marshal(texts)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Secrets(t.Context(), strings.NewReader(`["nothing here"]`+"\n"+string(raw)+"\n"), &out); err != nil {
		t.Fatal(err)
	}
	first, second, _ := strings.Cut(out.String(), "\n")
	if first != "[]" {
		t.Errorf("found %s in nothing", first)
	}
	var got []FoundSecret
	if err := json.Unmarshal([]byte(second), &got); err != nil {
		t.Fatal(err)
	}
	found := map[int][]string{}
	for _, f := range got {
		found[f.Text] = append(found[f.Text], f.Secret)
	}
	if len(found) != 2 || !strings.Contains(strings.Join(found[1], " "), github) || !strings.Contains(strings.Join(found[2], " "), aws) {
		t.Errorf("found %+v", got)
	}
	for _, bad := range []string{"\n", `{"a":1}`, `["a"] ["b"]`, "[\n"} {
		if err := Secrets(t.Context(), strings.NewReader(bad), &out); err == nil {
			t.Errorf("takes %q", bad)
		}
	}
}

// Rules are compiled as texts need them, and nothing is found otherwise than by
// gitleaks with all of them.
func TestSecretsAsGitleaksFindsThem(t *testing.T) {
	all, err := detect.NewDetectorDefaultConfig()
	if err != nil {
		t.Fatal(err)
	}
	all.IgnoreGitleaksAllow = true
	loaded, err := newDetector()
	if err != nil {
		t.Fatal(err)
	}
	const noise = "7Kq2Zp9Xv4Lm1Tc8Rb6Wd3Yh5Jn0Fg2Se4Ua"
	what := func(all []report.Finding) (out []string) {
		for _, f := range all {
			out = append(out, f.RuleID+" "+f.Secret)
		}
		slices.Sort(out)
		return out
	}
	found := 0
	for id, rule := range all.Config.Rules {
		if len(rule.Keywords) == 0 {
			continue
		}
		d := &detector{rules: loaded.rules, keywords: loaded.keywords, compiled: map[string]bool{}}
		for _, word := range rule.Keywords {
			texts := []string{"... " + strings.ToUpper(word) + " ...", word + noise, "export " + word + "_token='" + strings.ToLower(noise) + "'"}
			if err := d.prepare(texts); err != nil {
				t.Fatal(err)
			}
			for _, text := range texts {
				got, want := what(d.find(text)), what(all.DetectString(text))
				if !slices.Equal(got, want) {
					t.Errorf("in %q %q is found, and by gitleaks %q", text, got, want)
				}
				found += len(want)
			}
		}
		if !d.compiled[id] || len(d.compiled) > len(all.Config.Rules)/4 {
			t.Errorf("its keywords have %d rules compiled, with %s: %v", len(d.compiled), id, d.compiled[id])
		}
	}
	if found < 100 {
		t.Errorf("%d secrets in all: these texts show nothing", found)
	}
}
