package lock_test

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

func open(t *testing.T) *lock.Store {
	t.Helper()
	s, err := lock.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func of(s string) string { return string(attest.DigestOf([]byte(s))) }

func get(ordinal int, uri, body string) attestations.InputRequest {
	return attestations.InputRequest{Ordinal: ordinal, Method: "GET", URI: uri, Status: 200, Digest: of(body), Size: int64(len(body))}
}

// record is what a build of one platform took in.
func record() *attestations.Inputs {
	redirect := attestations.InputRequest{
		Ordinal: 3, Method: "GET", URI: "https://files.example/latest", Status: 302, Digest: of(""),
		Headers: map[string]string{"location": "https://cdn.example/v2.tgz?X-Amz-Signature={hmac:0123456789abcdef}"},
	}
	post := attestations.InputRequest{
		Ordinal: 4, Method: "POST", URI: "https://git.example/a.git/git-upload-pack", RequestDigest: of("want 1"), RequestSize: 6,
		Status: 200, Digest: of("pack 1"), Size: 6,
	}
	other := post
	other.RequestDigest, other.Digest, other.Ordinal = of("want 2"), of("pack 2"), 5
	part := get(6, "https://files.example/big", "tail")
	part.Range, part.Status = "bytes=100-", 206
	cut := get(7, "https://files.example/big", "he")
	cut.Cut = true
	return &attestations.Inputs{
		Mode: attestations.InputsRecord,
		Sources: []attestations.InputSource{
			{Kind: "image", URI: "docker-image://registry.example/debian", Ref: "registry.example/debian:12", Platform: "linux/amd64", Digest: of("debian")},
			{Kind: "git", URI: "https://git.example/b.git#v1", Digest: "gitCommit:0796f27d68a0ac9a0067e220c1d2bee893403784", Tree: of("tree"), Size: 9},
			{Kind: "http", URI: "https://files.example/x y", Digest: of("x"), Size: 1},
			{Kind: "context", URI: "context", Digest: of("context")},
		},
		Steps: []attestations.InputStep{
			{ID: of("1"), Name: "RUN fetch \\\n  \"all\" of it", Stage: "build", Platform: "linux/amd64", Requests: []attestations.InputRequest{
				get(1, "https://files.example/a", "one"), get(2, "https://files.example/a", "two"), redirect, post, other, part, cut,
				get(8, "https://files.example/a", "two"), get(9, "https://files.example/q?token={hmac:00000000000000aa}", "q"),
			}},
			{ID: of("2"), Name: "RUN make", Stage: "build", Platform: "linux/amd64"},
		},
	}
}

func TestFromInputsMarshalParse(t *testing.T) {
	s := open(t)
	f, err := lock.FromInputs(s, record())
	if err != nil {
		t.Fatal(err)
	}
	raw := f.Marshal()
	if again, err := lock.FromInputs(s, record(), record()); err != nil || !bytes.Equal(again.Marshal(), raw) {
		t.Errorf("the same record twice gives another lock (%v):\n%s", err, again.Marshal())
	}
	want := strings.Join([]string{
		`replay ` + string(f.Replay),
		``,
		`image registry.example/debian:12 ` + of("debian") + ` platform=linux/amd64`,
		``,
		`git https://git.example/b.git#v1 gitCommit:0796f27d68a0ac9a0067e220c1d2bee893403784 tree=` + of("tree") + ` size=9`,
		``,
		`http "https://files.example/x y" ` + of("x") + ` size=1`,
		``,
		`step "RUN fetch \\\n  \"all\" of it" stage=build platform=linux/amd64`,
		`  GET https://files.example/a 200 ` + of("one") + ` 3`,
		`  GET https://files.example/a 200 ` + of("two") + ` 3`,
		`  GET https://files.example/big 200 ` + of("he") + ` 2 cut`,
		`  GET https://files.example/big 206 ` + of("tail") + ` 4 range=bytes=100-`,
		`  GET https://files.example/latest 302 ` + of("") + ` 0 -> https://cdn.example/v2.tgz?X-Amz-Signature={hmac}`,
		`  GET https://files.example/q?token={hmac} 200 ` + of("q") + ` 1`,
		`  POST https://git.example/a.git/git-upload-pack 200 ` + of("pack 1") + ` 6 body=` + of("want 1"),
		`  POST https://git.example/a.git/git-upload-pack 200 ` + of("pack 2") + ` 6 body=` + of("want 2"),
		``,
		`step "RUN make" stage=build platform=linux/amd64`,
		``,
	}, "\n")
	if _, body, _ := strings.Cut(string(raw), "OLD NEW\".\n"); body != want {
		t.Errorf("got\n%s\nwant\n%s", body, want)
	}

	p, err := lock.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p.Marshal(), raw) {
		t.Errorf("round trip:\n%s", p.Marshal())
	}
	if err := p.LoadReplay(s); err != nil {
		t.Fatal(err)
	}
	for i := range f.Steps {
		for j, e := range f.Steps[i].Entries {
			if got := p.Steps[i].Entries[j]; e.Headers["location"] != got.Headers["location"] {
				t.Errorf("headers %v, want %v", got.Headers, e.Headers)
			}
			f.Steps[i].Entries[j].Headers, p.Steps[i].Entries[j].Headers = nil, nil
		}
	}
	if !reflect.DeepEqual(p, f) {
		t.Errorf("parsed %+v\nwant %+v", p, f)
	}
	// Another store gets the headers from a build that took the same in, and
	// none from another.
	fresh := open(t)
	changed := record()
	for i := range changed.Steps[0].Requests {
		changed.Steps[0].Requests[i].Headers = map[string]string{"content-type": "text/changed"}
	}
	if err := p.RestoreReplay(fresh, changed); err != nil || fresh.Has(p.Replay) {
		t.Errorf("the headers of other answers were taken (%v)", err)
	}
	if err := p.RestoreReplay(fresh, record()); err != nil || !fresh.Has(p.Replay) {
		t.Errorf("the headers were not restored (%v)", err)
	}
	// Headers of another lock are not taken, none of them: not where an exchange
	// is missing, not where there is another in its place, not for the steps that
	// are the same.
	for name, change := range map[string]func(f *lock.File){
		"an exchange less": func(f *lock.File) { f.Steps[0].Entries = f.Steps[0].Entries[1:] },
		"another URL":      func(f *lock.File) { f.Steps[0].Entries[0].URI = "https://files.example/other" },
		"another answer":   func(f *lock.File) { f.Steps[0].Entries[0].Digest = attest.DigestOf([]byte("other")) },
		"a step more": func(f *lock.File) {
			f.Steps = append(f.Steps, lock.Step{Name: "RUN more", Entries: f.Steps[0].Entries[:1]})
		},
		"a step less":          func(f *lock.File) { f.Steps = f.Steps[:1] },
		"no headers are named": func(f *lock.File) { f.Replay = "" },
	} {
		f, err := lock.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		change(f)
		if err := f.LoadReplay(s); err == nil {
			t.Errorf("%s: the headers of another lock were taken", name)
		}
		for _, st := range f.Steps {
			for _, e := range st.Entries {
				if e.Headers != nil {
					t.Errorf("%s: %s %s has headers", name, e.Method, e.URI)
				}
			}
		}
	}
}
