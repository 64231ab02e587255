package attest_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/waxseal/waxseal/pkg/attest"
)

// TestOneDocumentOneReading: what two readers could take for two documents is
// refused in every form that evidence has, outside and inside of its envelope,
// and the error says where.
func TestOneDocumentOneReading(t *testing.T) {
	parseStatement := func(s string) error { _, err := attest.ParseStatement([]byte(s)); return err }
	parseBundle := func(s string) error { _, err := attest.ParseBundle([]byte(s)); return err }
	forms := []struct {
		name, good, key string // key is one of the top object
		parse           func(string) error
	}{
		{"statement", good(), "predicateType", parseStatement},
		{"envelope", envelope(good()), "payloadType", parseBundle},
		{"bundle", sigstoreBundle(envelope(good())), "dsseEnvelope", parseBundle},
		{"statement in an envelope", good(), "predicateType", func(s string) error { return parseBundle(envelope(s)) }},
		{"statement in a bundle", good(), "_type", func(s string) error { return parseBundle(sigstoreBundle(envelope(s))) }},
		{"anything", `{"a":{"b":1}}`, "a", func(s string) error {
			var v struct {
				A json.RawMessage `json:"a"`
			}
			return attest.UnmarshalStrict([]byte(s), &v)
		}},
	}
	classes := map[string]func(good, key string) string{
		"duplicate key":        func(good, key string) string { return `{"` + key + `":1,` + good[1:] },
		"duplicate at the end": func(good, key string) string { return good[:len(good)-1] + `,"` + key + `":{}}` },
		"duplicate by escape": func(good, key string) string {
			return good[:len(good)-1] + `,"` + strings.Replace(key, key[:1], `\u00`+hexByte(key[0]), 1) + `":{}}`
		},
		"other case beside": func(good, key string) string { return `{"` + swapCase(key) + `":1,` + good[1:] },
		"other case alone": func(good, key string) string {
			return strings.Replace(good, `"`+key+`"`, `"`+swapCase(key)+`"`, 1)
		},
		"duplicate deep below": func(good, _ string) string { return good[:len(good)-1] + `,"later":[{"x":{"y":1,"y":2}}]}` },
		"trailing text":        func(good, _ string) string { return good + " x" },
		"trailing bracket":     func(good, _ string) string { return good + "}" },
		"trailing comma":       func(good, _ string) string { return good + "," },
		"trailing NUL":         func(good, _ string) string { return good + "\x00" },
		"two objects":          func(good, _ string) string { return good + good },
		"two lines":            func(good, _ string) string { return good + "\n" + good },
		"another before it":    func(good, _ string) string { return "{}" + good },
		"in a list":            func(good, _ string) string { return "[" + good + "]" },
		"byte order mark":      func(good, _ string) string { return "\xef\xbb\xbf" + good },
		"UTF-16":               func(good, _ string) string { return wide(good) },
		"comment":              func(good, _ string) string { return "{/* */" + good[1:] },
		"single quotes":        func(good, _ string) string { return strings.ReplaceAll(good, `"`, "'") },
		"cut":                  func(good, _ string) string { return good[:len(good)-1] },
		"not UTF-8":            func(good, _ string) string { return good[:len(good)-1] + ",\"x\":\"\xc0\xaf\"}" },
	}
	place := regexp.MustCompile(`at byte \d+|at "/|^decoding JSON|not a JSON object|neither a Sigstore`)
	for _, f := range forms {
		if err := f.parse(f.good); err != nil {
			t.Fatalf("%s: %v", f.name, err)
		}
		for name, change := range classes {
			if name == "in a list" && f.name == "anything" {
				continue // of a list it is the decoder that says so
			}
			err := f.parse(change(f.good, f.key))
			if err == nil {
				t.Errorf("%s, %s: accepted", f.name, name)
			} else if !place.MatchString(err.Error()) {
				t.Errorf("%s, %s: no place in %q", f.name, name, err)
			}
		}
	}
}

func hexByte(b byte) string {
	return string("0123456789abcdef"[b>>4]) + string("0123456789abcdef"[b&15])
}

// swapCase changes the case of the first letter.
func swapCase(s string) string {
	for i, r := range s {
		if up := strings.ToUpper(string(r)); up != string(r) {
			return s[:i] + up + s[i+1:]
		} else if low := strings.ToLower(string(r)); low != string(r) {
			return s[:i] + low + s[i+1:]
		}
	}
	return s
}

// wide is a text in UTF-16 with a byte order mark.
func wide(s string) string {
	var b strings.Builder
	for _, u := range utf16.Encode([]rune("\ufeff" + s)) {
		b.WriteByte(byte(u))
		b.WriteByte(byte(u >> 8))
	}
	return b.String()
}
