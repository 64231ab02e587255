package engine

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
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
