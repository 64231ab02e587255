package verify_test

import (
	"strings"
	"testing"
	"time"

	"github.com/waxseal/waxseal/pkg/verify"
)

func patterns(t testing.TB, texts ...string) []verify.Pattern {
	t.Helper()
	var out []verify.Pattern
	for _, text := range texts {
		p, err := verify.NewPattern(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

// What a builder asks for beside its signer and its id lowers what it is worth,
// or takes it away; what nothing says is never taken for granted.
func TestCapOf(t *testing.T) {
	id := identity(t, verify.IdentityOptions{Issuer: issuer, Pattern: "https://ci.example/acme/**"})
	certificate := func(r verify.Run) verify.Signer { return verify.Signer{Issuer: issuer, SAN: san, Run: r} }
	ids := patterns(t, "https://ci.example/**/runners/*")
	own := func(change func(*verify.Builder)) verify.Trust {
		b := verify.Builder{SignerID: true, Identity: &id, MaxLevel: 3}
		change(&b)
		return verify.Trust{Builders: []verify.Builder{b}}
	}
	is := func(id, buildType, runner, event string) *verify.Provenance {
		return &verify.Provenance{BuilderID: verify.Field{Value: id}, BuildType: verify.Field{Value: buildType}, Runner: verify.Field{Value: runner}, Event: verify.Field{Value: event}}
	}
	typed := own(func(b *verify.Builder) {
		b.BuildTypes = patterns(t, "https://example.org/t/*", "tekton.dev/v1/TaskRun")
	})
	pushed := own(func(b *verify.Builder) { b.Events = []string{"push"} })
	hosted := own(func(b *verify.Builder) { b.Hosted = true })
	called := own(func(b *verify.Builder) { b.Called = true })
	byID := verify.Trust{Builders: []verify.Builder{{IDs: &ids[0], Key: keyA, MaxLevel: 2}}}
	plain := own(func(*verify.Builder) {})
	keyed := verify.Trust{Builders: []verify.Builder{{ID: "b:c", Key: keyA, MaxLevel: 3, Events: []string{"push"}, Hosted: true}}}
	fleet := own(func(b *verify.Builder) { b.SelfHosted = true })
	bare := verify.Trust{}
	for _, c := range []struct {
		name   string
		trust  verify.Trust
		signer verify.Signer
		p      *verify.Provenance
		level  int
		why    string
	}{
		{"the signer's name", plain, certificate(verify.Run{}), is(san, "x:y", "", ""), 3, "up to Build L3"},
		{"not the signer's name", plain, certificate(verify.Run{}), is(san+"/", "x:y", "", ""), 0, "is not the name in the certificate"},
		{"another signer", plain, verify.Signer{Issuer: issuer, SAN: "https://ci.example/fork/w.yml@refs/tags/v1"}, is("https://ci.example/fork/w.yml@refs/tags/v1", "x:y", "", ""), 0, "is not the one trusted"},
		{"a key for a certificate", plain, verify.Signer{Key: keyA}, is("", "x:y", "", ""), 0, "is not a trusted builder"},

		{"a runner of many", byID, verify.Signer{Key: keyA}, is("https://ci.example/acme/app/runners/7", "x:y", "", ""), 2, "up to Build L2"},
		{"a runner elsewhere", byID, verify.Signer{Key: keyA}, is("https://ci.example.evil/acme/app/runners/7", "x:y", "", ""), 0, "is not a trusted builder"},
		{"more than a runner", byID, verify.Signer{Key: keyA}, is("https://ci.example/acme/app/runners/7/x", "x:y", "", ""), 0, "is not a trusted builder"},
		{"a runner under another key", byID, verify.Signer{Key: keyB}, is("https://ci.example/acme/app/runners/7", "x:y", "", ""), 0, "is not the one trusted"},

		{"a build type", typed, certificate(verify.Run{}), is(san, "https://example.org/t/1", "", ""), 3, ""},
		{"a build type that is no URI", typed, certificate(verify.Run{}), is(san, "tekton.dev/v1/TaskRun", "", ""), 3, ""},
		{"a build type with more after it", typed, certificate(verify.Run{}), is(san, "https://example.org/t/1/2", "", ""), 0, "not for the build type"},
		{"a build type in another case", typed, certificate(verify.Run{}), is(san, "https://example.org/T/1", "", ""), 0, "not for the build type"},

		{"an event of the certificate", pushed, certificate(verify.Run{Event: "push"}), is(san, "x:y", "", ""), 3, ""},
		{"an event of the provenance alone", pushed, certificate(verify.Run{}), is(san, "x:y", "", "push"), 0, "nothing says which event"},
		{"an event under a key", keyed, verify.Signer{Key: keyA}, is("b:c", "x:y", "z-hosted", "push"), 3, ""},
		{"no event under a key", keyed, verify.Signer{Key: keyA}, is("b:c", "x:y", "z-hosted", ""), 0, "nothing says which event"},
		{"the certificate counts before it", pushed, certificate(verify.Run{Event: "pull_request"}), is(san, "x:y", "", "push"), 0, `started by "pull_request"`},
		{"no event", pushed, certificate(verify.Run{}), is(san, "x:y", "", ""), 0, "nothing says which event"},

		{"hosted", hosted, certificate(verify.Run{Runner: "github-hosted"}), is(san, "x:y", "", ""), 3, ""},
		{"hosted, by the provenance alone", hosted, certificate(verify.Run{}), is(san, "x:y", "gitlab-hosted", ""), 1, "nothing says that it ran"},
		{"no runner under a key", keyed, verify.Signer{Key: keyA}, is("b:c", "x:y", "", "push"), 1, "nothing says that it ran"},
		{"self-hosted, by the provenance", hosted, certificate(verify.Run{Runner: "github-hosted"}), is(san, "x:y", "self-hosted", ""), 1, "self-hosted runner"},
		{"self-hosted, by the certificate", hosted, certificate(verify.Run{Runner: "self-hosted"}), is(san, "x:y", "github-hosted", ""), 1, "self-hosted runner"},
		{"no runner", hosted, certificate(verify.Run{}), is(san, "x:y", "", ""), 1, "nothing says that it ran"},
		{"a runner with a word of its own", hosted, certificate(verify.Run{Runner: "hosted"}), is(san, "x:y", "", ""), 1, "nothing says that it ran"},
		{"self-hosted, nobody asked", plain, certificate(verify.Run{}), is(san, "x:y", "self-hosted", ""), 1, "self-hosted runner"},
		{"self-hosted, and it may", fleet, certificate(verify.Run{}), is(san, "x:y", "self-hosted", ""), 3, ""},
		{"self-hosted, without a policy", bare, certificate(verify.Run{}), is(san, "x:y", "self-hosted", ""), 1, "self-hosted runner"},

		{"a reusable workflow", called, certificate(verify.Run{Workflow: "https://ci.example/acme/app/caller.yml@refs/heads/main"}), is(san, "x:y", "", ""), 3, ""},
		{"a workflow that was started itself", called, certificate(verify.Run{Workflow: strings.Replace(san, "refs/tags/v1", "refs/heads/main", 1)}), is(san, "x:y", "", ""), 2, "does not show"},
		{"a workflow of which nothing is said", called, certificate(verify.Run{}), is(san, "x:y", "", ""), 2, "does not show"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.trust.CapOf(c.signer, c.p)
			if got.Level != c.level || !strings.Contains(got.Reason+got.Lowered, c.why) {
				t.Errorf("%+v", got)
			}
			if len(c.trust.Builders) == 1 && c.trust.Builders[0].Admits(c.signer, c.p) != (c.level > 0) {
				t.Error("the builder says otherwise")
			}
		})
	}
	// Whoever asks about the id alone gets what nothing would prove.
	for level, trust := range map[int]verify.Trust{0: typed, 1: hosted, 2: called, 3: plain} {
		if got := trust.Cap(certificate(verify.Run{}), san); got.Level != level {
			t.Errorf("the id alone is worth %+v, want L%d", got, level)
		}
	}
	if got := pushed.Cap(certificate(verify.Run{}), san); got.Level != 0 {
		t.Errorf("the id alone is worth %+v", got)
	}
}

// Everything that a builder asks for is in the trust's lines: two verdicts under
// different terms must not look alike.
func TestLinesSayAllOfABuilder(t *testing.T) {
	id := identity(t, verify.IdentityOptions{Issuer: issuer, SAN: san})
	seen := map[string]string{}
	for name, change := range map[string]func(*verify.Builder){
		"plain":       func(*verify.Builder) {},
		"id":          func(b *verify.Builder) { b.ID = "x:y" },
		"ids":         func(b *verify.Builder) { b.IDs = &patterns(t, "x:y")[0] },
		"signer's id": func(b *verify.Builder) { b.SignerID = true },
		"build types": func(b *verify.Builder) { b.BuildTypes = patterns(t, "x:*") },
		"events":      func(b *verify.Builder) { b.Events = []string{"push"} },
		"hosted":      func(b *verify.Builder) { b.Hosted = true },
		"self-hosted": func(b *verify.Builder) { b.SelfHosted = true },
		"called":      func(b *verify.Builder) { b.Called = true },
		"terms":       func(b *verify.Builder) { b.Terms = "a=b" },
		"level":       func(b *verify.Builder) { b.MaxLevel = 2 },
	} {
		b := verify.Builder{Identity: &id, MaxLevel: 3}
		change(&b)
		line := strings.Join(verify.Trust{Builders: []verify.Builder{b}}.Lines(), "\n")
		if other, ok := seen[line]; ok {
			t.Errorf("%s and %s both are %s", name, other, line)
		}
		seen[line] = name
	}
}

// A trust changes when a key's time begins or ends, and when a root has to be
// fetched anew.
func TestChanges(t *testing.T) {
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	from, until := noon.Add(2*time.Hour), noon.Add(time.Hour)
	keys := []verify.Key{verify.Key{}.During(verify.Window{From: from}), verify.Key{}.During(verify.Window{From: noon.Add(-time.Hour)})}
	fetched := new(verify.Root)
	fetched.Fetched(verify.Origin{FetchedAt: noon.Add(-time.Hour), ValidUntil: until})
	for _, c := range []struct {
		name  string
		trust verify.Trust
		want  time.Time
	}{
		{"never", verify.Trust{Roots: []*verify.Root{new(verify.Root)}, Keys: keys[1:]}, time.Time{}},
		{"a key begins", verify.Trust{Keys: keys}, from},
		{"a builder ends", verify.Trust{Keys: keys, Builders: []verify.Builder{{Window: verify.Window{Until: until}}}}, until},
		{"a root grows old", verify.Trust{Keys: keys, Roots: []*verify.Root{fetched}}, until},
	} {
		if got := c.trust.Changes(noon); !got.Equal(c.want) {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
