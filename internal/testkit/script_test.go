package testkit

import (
	"encoding/json"
	"slices"
	"testing"
)

func TestSelectJSON(t *testing.T) {
	var doc any
	if err := json.Unmarshal([]byte(`{"a":[{"b":"x","n":1},{"b":"y"}],"https://k.example/v":true,"o":{"z":null}}`), &doc); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][]string{
		".a[].b":                 {"x", "y"},
		".a[1].b":                {"y"},
		".a[0].n":                {"1"},
		".a[7].b":                {},
		`."https://k.example/v"`: {"true"},
		".o.z":                   {"null"},
		".missing":               {},
	} {
		got, err := selectJSON(doc, path)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
}
