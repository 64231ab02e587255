package build

import (
	"strings"
	"testing"

	"github.com/waxseal/waxseal/attestations"
)

func TestParseContextManifest(t *testing.T) {
	line := `{"path":"a","mode":"0100644","size":3,"sha256":"98ea"}` + "\n"
	for text, want := range map[string]string{
		"":                                  "",
		line + line:                         "",
		line + "\n":                         "line 2 is empty",
		line + "x\n":                        "line 2",
		`{"mode":"0100644"}`:                "line 1 names no file",
		`{"path":"a","size":-1}`:            "line 1 names no file",
		`{"path":"a","path":"b"}`:           "line 1",
		strings.Repeat("x", maxContextLine): "a line of more than 1048576 bytes",
	} {
		n := 0
		err := parseContextManifest(strings.NewReader(text), func(attestations.ContextFile) { n++ })
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
		if want == "" && n != strings.Count(text, "\n") {
			t.Errorf("%.40q: %d lines", text, n)
		}
	}
}

func FuzzParseContextManifest(f *testing.F) {
	f.Add(`{"path":"a","mode":"0100644","size":3,"sha256":"98ea"}` + "\n" + `{"path":"b","mode":"0120777","size":0,"link":"a"}`)
	f.Add(`{"path":"d","mode":"0020666","size":0,"device":"1:3","xattrs":{"user.a":"00"}}`)
	f.Add("{}\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		err := parseContextManifest(strings.NewReader(text), func(c attestations.ContextFile) {
			if c.Path == "" || c.Size < 0 {
				t.Errorf("shown %+v", c)
			}
		})
		if err == nil && strings.Contains(text, "\n\n") {
			t.Error("an empty line was read")
		}
	})
}
