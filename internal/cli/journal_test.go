package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/report"
	"github.com/waxseal/waxseal/pkg/store"
)

// FuzzJournal: whatever a kill, or somebody, left in a journal, it is refused as
// it is, or goes on from the last whole line: what is noted then is found when
// it is opened again.
func FuzzJournal(f *testing.F) {
	audit := attest.DigestOf([]byte("audit"))
	now := time.Now()
	head := `{"schema":"` + journalSchema + `","audit":"` + string(audit) + `"}` + "\n"
	for _, seed := range []string{
		"", head[:20], head, head + `{"image":"a","decision":"pass","decidedAt":"2026-11-29T00:00:00Z"}` + "\n" + `{"image":"b","dec`, head + `{"complete":true}` + "\n", head + "\n", "\n", head + head,
		strings.Replace(head, "sha256:", "sha256:0", 1), head + `{"image":"a","decision":"deny"}` + "\n" + `{"image":"a","decision":"pass"}` + "\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, before []byte) {
		path := filepath.Join(t.TempDir(), "j")
		if err := os.WriteFile(path, before, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := openJournal(path, audit, now)
		if err != nil {
			if now, _ := os.ReadFile(path); !bytes.Equal(now, before) {
				t.Errorf("%q was refused and became %q", before, now)
			}
			return
		}
		earlier := j.earlier
		fresh := !j.has(question{image: "registry.example/new:1"})
		if err := j.note(report.Line{Image: "registry.example/new:1", Decision: gate.Deny, DecidedAt: now}); err != nil {
			t.Fatal(err)
		}
		if err := j.note(report.Line{Image: "registry.example/open:1", Decision: gate.Undecided, DecidedAt: now}); err != nil {
			t.Fatal(err)
		}
		if _, err := openJournal(path, audit, now); err == nil {
			t.Error("two have it open")
		}
		j.close()
		if j, err = openJournal(path, audit, now); err != nil {
			t.Fatalf("after %q: %v", before, err)
		}
		defer j.close()
		if !j.has(question{image: "registry.example/new:1"}) || j.has(question{image: "registry.example/open:1"}) || fresh && j.earlier.Denied != earlier.Denied+1 {
			t.Errorf("after %q: %+v", before, j.earlier)
		}
	})
}

// TestJournalForgets: an answer stands for as long as an audit is broken off, and
// not for the next night's.
func TestJournalForgets(t *testing.T) {
	audit, path := attest.DigestOf([]byte("audit")), filepath.Join(t.TempDir(), "j")
	begin := time.Date(2026, 11, 28, 2, 0, 0, 0, time.UTC)
	open := func(at time.Time) *journal {
		t.Helper()
		j, err := openJournal(path, audit, at)
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	j := open(begin)
	for i, image := range []string{"early", "late"} {
		if err := j.note(report.Line{Image: image, Decision: gate.Pass, DecidedAt: begin.Add(time.Duration(i) * 6 * time.Hour)}); err != nil {
			t.Fatal(err)
		}
	}
	// What left something open is not at its end.
	for _, left := range []report.Trailer{{Complete: false}, {Complete: true, Tally: report.Tally{Done: 1, Undecided: 1}}} {
		if err := j.end(left); err != nil {
			t.Fatal(err)
		}
	}
	j.close()
	for _, c := range []struct {
		name string
		at   time.Time
		want int
	}{
		{"at once", begin.Add(7 * time.Hour), 2},
		{"later", begin.Add(13 * time.Hour), 1},
		{"the next night", begin.Add(24 * time.Hour), 0},
		{"by a clock that was set back", begin.Add(-time.Hour), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := open(c.at)
			defer j.close()
			if len(j.seen) != c.want || j.earlier.Passed != c.want || j.has(question{image: "early"}) != (c.want == 2) {
				t.Errorf("%d are remembered, %+v", len(j.seen), j.earlier)
			}
		})
	}
	j = open(begin.Add(time.Hour))
	if err := j.end(report.Trailer{Complete: true, Tally: report.Tally{Done: 2, Passed: 2}}); err != nil {
		t.Fatal(err)
	}
	j.close()
	if j = open(begin.Add(time.Hour)); len(j.seen) != 0 || j.earlier.Done != 0 {
		t.Errorf("after its end %d are remembered, %+v", len(j.seen), j.earlier)
	}
	if err := j.note(report.Line{Image: "early", Decision: gate.Deny, DecidedAt: begin}); err != nil {
		t.Fatal(err)
	}
	j.close()
	if j = open(begin.Add(time.Hour)); j.earlier.Denied != 1 || j.earlier.Done != 1 {
		t.Errorf("of the audit that began anew: %+v", j.earlier)
	}
	j.close()
}

// TestAuditOf: what changes a verdict makes another audit.
func TestAuditOf(t *testing.T) {
	seen := map[attest.Digest]string{}
	level, err := parseLevel("2")
	if err != nil {
		t.Fatal(err)
	}
	for name, req := range map[string]gate.Request{
		"plain": {}, "a level": {Level: level}, "dependencies": {Dependencies: 1},
		"a registry": {DependencyRegistries: []string{"registry.example/**"}}, "evidence": {Store: store.Options{Evidence: []string{"dir"}}},
		"a moment": {At: time.Unix(1, 0)}, "without TLS": {Store: store.Options{Insecure: true}},
	} {
		if other, same := seen[auditOf("registry.example", req)]; same {
			t.Errorf("%s is the same audit as %s", name, other)
		}
		seen[auditOf("registry.example", req)] = name
	}
	if auditOf("registry.example/", gate.Request{}) != auditOf("registry.example", gate.Request{}) {
		t.Error("a slash makes another audit")
	}
}

// FuzzVerifierFlags: no flags make the verifier ask about anything but an image
// of a registry by the digest that was given.
func FuzzVerifierFlags(f *testing.F) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for _, seed := range []string{
		"-name registry.example/a:1 -digest " + digest + " -stdin-media-type " + descriptorType,
		"--name registry.example/a@" + digest + " -digest " + digest + " -stdin-media-type " + descriptorType + " -pod x -config y",
		"-name oci:/etc -digest " + digest + " -stdin-media-type " + descriptorType,
		"-name a -name b", "verify a", "-",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, " ")
		q, err := parseVerifierFlags(args)
		if err != nil {
			return
		}
		if !strings.Contains(line, descriptorType) || q.ref[strings.LastIndexByte(q.ref, '@')+1:] == "" || strings.HasPrefix(q.ref, "oci:") || strings.HasPrefix(q.ref, "docker:") {
			t.Errorf("%q asks about %+v", line, q)
		}
		if d := q.ref[strings.LastIndexByte(q.ref, '@')+1:]; !strings.Contains(line, d) {
			t.Errorf("%q asks about %s", line, d)
		}
	})
}
