package verify_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

const (
	goodV1 = `{"buildDefinition":{"buildType":"https://example.org/build/v1","externalParameters":{"source":"git+https://example.org/acme/app@refs/heads/main"},
		"resolvedDependencies":[{"uri":"git+https://example.org/acme/app@refs/heads/main","digest":{"gitCommit":"c0ffee"}},{"uri":"pkg:deb/debian/x"}]},
		"runDetails":{"builder":{"id":"https://ci.example.org/b"},"metadata":{"startedOn":"2026-01-01T00:00:00Z"}}}`
	goodV02 = `{"builder":{"id":"https://ci.example.org/b"},"buildType":"https://example.org/build/v0",
		"invocation":{"configSource":{"uri":"git+https://example.org/acme/app.git","digest":{"sha1":"c0ffee"}},"parameters":{"a":"b"},"environment":{"arch":"amd64"}},
		"metadata":{"completeness":{"parameters":true}},"materials":[{"uri":"x","digest":{"sha256":"00"}}]}`
	ours = `{"buildDefinition":{"buildType":"https://waxseal.dev/attestations/container-build/v1","externalParameters":{"context":{"kind":"directory"},"cacheFrom":["type=registry,ref=x"]},
		"resolvedDependencies":[{"uri":"https://evil.example/x","digest":{"gitCommit":"1"}},{"name":"source","uri":"git+https://example.org/acme/app","digest":{"gitCommit":"c0ffee"},"annotations":{"changedFiles":["main.go"]}}]},
		"runDetails":{"builder":{"id":"https://waxseal.dev/builders/unhosted-local"}}}`
)

func parsed(t testing.TB, predicateType, predicate string) *attest.Statement {
	t.Helper()
	st, err := attest.ParseStatement(statement(sha256Subject(image), predicateType, predicate))
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestParseProvenance(t *testing.T) {
	for _, c := range []struct {
		name, kind, in string
		want           verify.Provenance // the fields compared below
		source         verify.Source
	}{
		{"v1", attestations.ProvenanceV1, goodV1, verify.Provenance{
			BuilderID:       verify.Field{Value: "https://ci.example.org/b", Pointer: "/predicate/runDetails/builder/id"},
			BuildType:       verify.Field{Value: "https://example.org/build/v1", Pointer: "/predicate/buildDefinition/buildType"},
			ExternalPointer: "/predicate/buildDefinition/externalParameters", Unpinned: 1, StartedOn: "2026-01-01T00:00:00Z",
		}, verify.Source{Repository: "https://example.org/acme/app", Commit: "c0ffee", Pointer: "/predicate/buildDefinition/externalParameters/source",
			Ref: verify.Field{Value: "refs/heads/main", Pointer: "/predicate/buildDefinition/externalParameters/source"}}},
		{"v0.2", attestations.ProvenanceV02, goodV02, verify.Provenance{
			BuilderID:       verify.Field{Value: "https://ci.example.org/b", Pointer: "/predicate/builder/id"},
			BuildType:       verify.Field{Value: "https://example.org/build/v0", Pointer: "/predicate/buildType"},
			ExternalPointer: "/predicate/invocation",
		}, verify.Source{Repository: "https://example.org/acme/app.git", Commit: "c0ffee", Pointer: "/predicate/invocation/configSource/uri"}},
		{"waxseal's", attestations.ProvenanceV1, ours, verify.Provenance{
			BuilderID: verify.Field{Value: attestations.UnhostedBuilderID, Pointer: "/predicate/runDetails/builder/id"},
			BuildType: verify.Field{Value: attestations.ContainerBuildType, Pointer: "/predicate/buildDefinition/buildType"},
			Form:      verify.FormWaxseal, ExternalPointer: "/predicate/buildDefinition/externalParameters",
			CacheImports: "/predicate/buildDefinition/externalParameters/cacheFrom",
		}, verify.Source{Repository: "https://example.org/acme/app", Commit: "c0ffee", Dirty: true, Changed: []string{"main.go"}, Pointer: "/predicate/buildDefinition/resolvedDependencies/1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := verify.ParseProvenance(parsed(t, c.kind, c.in))
			if err != nil {
				t.Fatal(err)
			}
			if len(p.Sources) != 1 || fmt.Sprint(p.Sources[0]) != fmt.Sprint(c.source) {
				t.Errorf("sources %+v, want %+v", p.Sources, c.source)
			}
			if _, there := p.External["environment"]; there {
				t.Error("the platform's environment counts as set by the user")
			}
			got := *p
			got.PredicateType, got.External, got.Sources, got.Dependencies = "", nil, nil, nil
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestParseProvenanceRefuses(t *testing.T) {
	for _, c := range []struct{ name, kind, in, want string }{
		{"v1 body under the v0.2 type", attestations.ProvenanceV02, goodV1, "body is v1"},
		{"v0.2 body under the v1 type", attestations.ProvenanceV1, goodV02, "buildDefinition"},
		{"no builder", attestations.ProvenanceV1, strings.Replace(goodV1, "https://ci.example.org/b", "", 1), "builder/id"},
		{"no builder, v0.2", attestations.ProvenanceV02, strings.Replace(goodV02, "https://ci.example.org/b", "", 1), "builder/id"},
		{"no build type", attestations.ProvenanceV1, strings.Replace(goodV1, "https://example.org/build/v1", "", 1), "buildType"},
		{"no parameters", attestations.ProvenanceV1, strings.Replace(goodV1, "externalParameters", "parametersExternal", 1), "externalParameters"},
		{"parameters that are a list", attestations.ProvenanceV1, `{"buildDefinition":{"buildType":"x:y","externalParameters":[]},"runDetails":{"builder":{"id":"x:y"}}}`, "externalParameters"},
		{"a key in another case", attestations.ProvenanceV1, strings.Replace(goodV1, "buildDefinition", "BuildDefinition", 1), "uildDefinition"},
		{"a builder in another case", attestations.ProvenanceV1, strings.Replace(goodV1, `"id"`, `"ID"`, 1), ""},
		{"another predicate", attestations.SPDX, `{}`, "not SLSA provenance"},
		{"too large", attestations.ProvenanceV1, `{"x":"` + strings.Repeat("y", verify.MaxProvenance) + `"}`, "more than"},
		{"control characters", attestations.ProvenanceV1, `{"buildDefinition":{"buildType":"\u001b[2J"}}`, "externalParameters"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := verify.ParseProvenance(parsed(t, c.kind, c.in))
			var r *verify.Rejection
			if !errors.As(err, &r) || r.Code != verify.CodePredicate || !strings.Contains(r.Message, c.want) {
				t.Errorf("got %v, want it to say %q", err, c.want)
			}
			if err != nil && strings.ContainsRune(err.Error(), '\x1b') {
				t.Error("the message carries control characters")
			}
		})
	}
}

// What else the build took from the repository makes it no build of that, nor
// does a name that looks like a ref.
func TestSourceIsWhatWasBuilt(t *testing.T) {
	const app, tag = "git+https://example.org/acme/app.git", "refs/tags/v1"
	dep := func(name, uri, commit string) string {
		return fmt.Sprintf(`{"name":%q,"uri":%q,"digest":{"gitCommit":%q}}`, name, uri, commit)
	}
	for _, c := range []struct{ name, context, deps, want string }{
		{"one", "", dep("source", app+"@"+tag, "1"), "refs/tags/v1 1"},
		{"one in a fragment", "", dep("source", app+"#"+tag+":sub", "1"), "refs/tags/v1 1"},
		{"and another of the repository", "", dep("", app+"@"+tag, "1") + "," + dep("source", app+"@zz", "2"), " 2"},
		{"two", "", dep("source", app+"@"+tag, "1") + "," + dep("source", app+"@zz", "2"), ""},
		{"two refs of one commit", "", dep("source", app+"@"+tag, "1") + "," + dep("source", app+"@zz", "1"), ""},
		{"a branch whose name has a ref in it", "", dep("source", app+"@x@"+tag, "1"), " 1"},
		{"a ref with a ref in it", "", dep("source", app+"@refs/heads/x@"+tag, "1"), "refs/heads/x@refs/tags/v1 1"},
		{"a folder that is named as a ref", "", dep("source", app+"@zz#"+tag, "1"), " 1"},
		{"a user and a ref", "", dep("source", "git+ssh://git@example.org/acme/app.git@"+tag, "1"), "refs/tags/v1 1"},
		{"not named, the ref's", app + "#" + tag, dep("", app+"@zz", "2") + "," + dep("", app+"@"+tag, "1"), "refs/tags/v1 1"},
		{"not named, of several", app + "#zz", dep("", app+"@"+tag, "1") + "," + dep("", app+"@zz", "2"), " "},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := verify.ParseProvenance(parsed(t, attestations.ProvenanceV1, fmt.Sprintf(
				`{"buildDefinition":{"buildType":%q,"externalParameters":{"context":{"kind":"git","uri":%q}},"resolvedDependencies":[%s]},"runDetails":{"builder":{"id":"https://ci.example.org/b"}}}`,
				attestations.ContainerBuildType, c.context, c.deps)))
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, s := range p.Sources {
				got += s.Ref.Value + " " + s.Commit
				if !strings.HasSuffix(s.Repository, "example.org/acme/app.git") {
					t.Errorf("the repository is %q", s.Repository)
				}
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestSameRepository(t *testing.T) {
	const want = "https://example.org/acme/app"
	for same, ok := range map[string]bool{
		want: true, want + "/": true, want + ".git": true, "git+" + want: true, "HTTPS://EXAMPLE.org/acme/app": true,
		want + "#main": true, want + "@refs/tags/v1": true,
		want + "-evil": false, want + "/evil": false, "http://example.org/acme/app": false, "https://example.org.evil/acme/app": false,
		"https://example.org/Acme/app": false, "https://user@example.org/acme/app": false, "ssh://git@example.org/acme/app": false,
		"https://example.org/acme/app?x=y": false, "": false, "example.org/acme/app": false, "https://example.org/acme%2Fapp": false,
	} {
		if got := verify.SameRepository(same, want); got != ok {
			t.Errorf("%q: %t", same, got)
		}
	}
	if !verify.SameRepository("git@example.org:acme/app.git", "ssh://git@example.org/acme/app") {
		t.Error("git's short form is not its long one")
	}
}

// FuzzParseProvenance: no input panics, and what is accepted names a builder.
func FuzzParseProvenance(f *testing.F) {
	for _, s := range []string{goodV1, goodV02, ours, `{}`, `{"buildDefinition":null}`, `{"buildDefinition":{"externalParameters":{"source":{"uri":1}}}}`} {
		f.Add(attestations.ProvenanceV1, []byte(s))
		f.Add(attestations.ProvenanceV02, []byte(s))
	}
	for _, form := range forms() {
		f.Add(form.kind, []byte(form.in))
	}
	f.Fuzz(func(t *testing.T, kind string, predicate []byte) {
		p, err := verify.ParseProvenance(&attest.Statement{PredicateType: kind, Predicate: predicate})
		if err != nil {
			var r *verify.Rejection
			if !errors.As(err, &r) {
				t.Fatalf("not a rejection: %v", err)
			}
			return
		}
		if p.BuilderID.Value == "" || p.BuildType.Value == "" {
			t.Fatal("accepted without builder or build type")
		}
		for _, s := range p.Sources {
			verify.SameRepository(s.Repository, s.Repository)
		}
		verify.Contradictions(p, verify.Signer{SAN: "x", Run: verify.Run{Repository: "https://example.org/x", Ref: "refs/heads/x"}})
	})
}
