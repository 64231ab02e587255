package policy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/sign"
	"github.com/waxseal/waxseal/pkg/verify"
)

// pair of public keys, and how a policy reads them.
func rotating(t *testing.T) (policy.Rotation, policy.ParseOptions, string) {
	t.Helper()
	pems := map[string][]byte{}
	for _, name := range []string{"old.pub", "new.pub", "other.pub"} {
		_, public, err := sign.GenerateKeyPair(nil)
		if err != nil {
			t.Fatal(err)
		}
		pems[name] = public
	}
	old, err := verify.ParseKey("old", pems["old.pub"])
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) ([]byte, error) {
		if raw, ok := pems[name]; ok && name != "new.pub" {
			return raw, nil
		}
		return nil, fmt.Errorf("no file %q", name)
	}
	return policy.Rotation{Old: old.ID(), New: "new.pub", PEM: pems["new.pub"], From: day(2), Until: day(3)},
		policy.ParseOptions{ReadKey: read}, string(pems["old.pub"])
}

func day(n int) time.Time { return time.Date(2026, 12, n, 0, 0, 0, 0, time.UTC) }

const frame = "apiVersion: waxseal.dev/v1\nkind: Policy\n"

func TestRotate(t *testing.T) {
	r, opts, pem := rotating(t)
	indented := "          " + strings.ReplaceAll(strings.TrimSpace(pem), "\n", "\n          ")
	const from, until = "2026-12-02T00:00:00Z", "2026-12-03T00:00:00Z"
	for name, c := range map[string]struct{ in, want string }{
		"comments and all kinds of entries": {`# Ours.
trust:
  # The one CI.
  builders:
    - id: "https://ci.example/b"   # byte by byte
      signer: {key: old.pub}  # since 2024
      maxLevel: 2

    # Another.
    - id: https://other.example/b
      signer:
        key: other.pub
      maxLevel: 1
  reviewers:
    - {name: "Ann's", signer: {key: 'old.pub'}, aliases: ["a: b"]}   # a person
images:
  - match: "**"
    level: {build: 1}
# The end.
`, `# Ours.
trust:
  # The one CI.
  builders:
    - id: "https://ci.example/b"   # byte by byte
      signer: {key: old.pub, until: UNTIL}  # since 2024
      maxLevel: 2
    - id: "https://ci.example/b"   # byte by byte
      signer: {key: new.pub, from: FROM}  # since 2024
      maxLevel: 2

    # Another.
    - id: https://other.example/b
      signer:
        key: other.pub
      maxLevel: 1
  reviewers:
    - {name: "Ann's", signer: {key: 'old.pub', until: UNTIL}, aliases: ["a: b"]}   # a person
    - {name: "Ann's", signer: {key: new.pub, from: FROM}, aliases: ["a: b"]}
images:
  - match: "**"
    level: {build: 1}
# The end.
`},
		"blocks, and a key in the policy itself": {`images:
- match: "**"
  level: {build: 1}
trust:
  builders:
  - maxLevel: 2
    signer:
        from: 2026-01-01   # then
        pem: |
` + indented + `
    id: https://ci.example/b
  - maxLevel: 1
    id: https://two.example/b
    signer:
      key: old.pub
      until: 2026-12-01`, `images:
- match: "**"
  level: {build: 1}
trust:
  builders:
  - maxLevel: 2
    signer:
        from: 2026-01-01   # then
        pem: |
` + indented + `
        until: UNTIL
    id: https://ci.example/b
  - maxLevel: 2
    signer:
        key: new.pub
        from: FROM
    id: https://ci.example/b
  - maxLevel: 1
    id: https://two.example/b
    signer:
      key: old.pub
      until: 2026-12-01
  - maxLevel: 1
    id: https://two.example/b
    signer:
      key: new.pub
      from: FROM`},
		"a list on a line, and of the library": {`trust: {builders: [{use: tekton-chains, key: old.pub, maxLevel: 1}, {id: "x:]", signer: {key: other.pub}, maxLevel: 1}],
  attesters: [
    {signer: {key: "old.pub"}, for: [vex]}
  ]}
images: [{match: "**", level: {build: 1}}]
`, `trust: {builders: [{use: tekton-chains, key: old.pub, until: UNTIL, maxLevel: 1}, {use: tekton-chains, key: new.pub, from: FROM, maxLevel: 1}, {id: "x:]", signer: {key: other.pub}, maxLevel: 1}],
  attesters: [
    {signer: {key: "old.pub", until: UNTIL}, for: [vex]}, {signer: {key: new.pub, from: FROM}, for: [vex]}
  ]}
images: [{match: "**", level: {build: 1}}]
`},
		"the library, as a block": {`trust:
  builders:
    - use: tekton-chains
      key: old.pub # Chains
      parameters: {runSpec: any}
images: [{match: "**", level: {build: 1}}]
`, `trust:
  builders:
    - use: tekton-chains
      key: old.pub # Chains
      until: UNTIL
      parameters: {runSpec: any}
    - use: tekton-chains
      key: new.pub
      from: FROM # Chains
      parameters: {runSpec: any}
images: [{match: "**", level: {build: 1}}]
`},
	} {
		t.Run(name, func(t *testing.T) {
			want := frame + strings.NewReplacer("FROM", from, "UNTIL", until).Replace(c.want)
			for _, newline := range []string{"\n", "\r\n"} {
				got, _, err := policy.Rotate([]byte(strings.ReplaceAll(frame+c.in, "\n", newline)), r, opts)
				if err != nil {
					t.Fatal(err)
				}
				if s := strings.ReplaceAll(string(got), newline, "\n"); s != want {
					t.Errorf("with %q:\n%s\nwant:\n%s", newline, s, want)
				}
			}
		})
	}
}

func TestRotateRevokes(t *testing.T) {
	r, opts, _ := rotating(t)
	r.Reason = "in a log: of \"CI\""
	in := frame + "trust:\n  builders:\n    - {id: \"x:1\", signer: {key: old.pub, until: 2027-01-01}, maxLevel: 1}\nimages: [{match: \"**\", level: {build: 1}}]\n"
	out, n, err := policy.Rotate([]byte(in), r, opts)
	if err != nil || n != 1 {
		t.Fatal(n, err)
	}
	want := `{key: old.pub, revoked: {at: 2026-12-03T00:00:00Z, reason: "in a log: of \"CI\""}, until: 2027-01-01}`
	if !strings.Contains(string(out), want) {
		t.Errorf("%s\nwant %s", out, want)
	}
}

func TestRotateRefuses(t *testing.T) {
	r, opts, _ := rotating(t)
	images := "images: [{match: \"**\", level: {build: 1}}]\n"
	entry := func(text string) string { return frame + "trust:\n  builders:\n" + text + images }
	for name, c := range map[string]struct{ in, want string }{
		"no such key":     {entry("    - {id: \"x:1\", signer: {key: other.pub}, maxLevel: 1}\n"), "no signer with the key sha256:"},
		"not a policy":    {"a: 1\n", "unknown field"},
		"a dash alone":    {entry("    -\n      id: x:1\n      signer: {key: old.pub}\n      maxLevel: 1\n"), "write by hand: until: 2026-12-03T00:00:00Z; and in one below it: key: new.pub, from: 2026-12-02T00:00:00Z"},
		"library, in use": {entry("    - {use: tekton-chains, key: old.pub, from: 2026-01-01}\n"), "write by hand"},
	} {
		if _, _, err := policy.Rotate([]byte(c.in), r, opts); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	r.PEM = nil
	if _, _, err := policy.Rotate([]byte(entry("    - {id: \"x:1\", signer: {key: old.pub}, maxLevel: 1}\n")), r, opts); err == nil {
		t.Error("a key that is none was taken")
	}
}

// Whatever the layout, what is written reads back, or nothing is.
func FuzzParseRotated(f *testing.F) {
	pems := map[string][]byte{}
	for _, name := range []string{"old.pub", "new.pub"} {
		_, public, err := sign.GenerateKeyPair(nil)
		if err != nil {
			f.Fatal(err)
		}
		pems[name] = public
	}
	old, err := verify.ParseKey("old", pems["old.pub"])
	if err != nil {
		f.Fatal(err)
	}
	opts := policy.ParseOptions{ReadKey: func(string) ([]byte, error) { return pems["old.pub"], nil }}
	r := policy.Rotation{Old: old.ID(), New: "new.pub", PEM: pems["new.pub"], From: day(2), Until: day(3), Reason: "a: 'b'"}
	for _, text := range []string{
		"trust:\n  builders:\n    - id: x:1\n      signer: {key: old.pub}\n      maxLevel: 1\nimages: [{match: \"**\", level: {build: 1}}]\n",
		"trust: {builders: [{id: \"x:{\", signer: {key: 'o''ld', from: 2026-01-01}, maxLevel: 1}], reviewers: [{name: A'b # c\n, signer: {key: o}}]}\nimages: [{match: \"**\", level: {build: 1}}]",
		"trust:\n  attesters:\n  - for: [vex]\n    signer:\n      key:\n        old.pub # é\n  builders:\n  -\n    use: witness\n    key: \"o\\\"\"\r\nimages: [{match: \"**\", level: {build: 1}}]\n...\n",
	} {
		f.Add(frame + text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		out, n, err := policy.Rotate([]byte(text), r, opts)
		if err != nil {
			return
		}
		reading := opts
		reading.ReadKey = func(name string) ([]byte, error) {
			if name == r.New {
				return r.PEM, nil
			}
			return opts.ReadKey(name)
		}
		if _, err := policy.Parse(out, reading); err != nil || n == 0 {
			t.Errorf("%d entries, and then: %v\n%s\nwas\n%s", n, err, out, text)
		}
	})
}
