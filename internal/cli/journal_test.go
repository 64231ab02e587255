package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/report"
)

// FuzzJournal: whatever a kill, or somebody, left in a journal, it is refused as
// it is, or goes on from the last whole line: what is noted then is found when
// it is opened again.
func FuzzJournal(f *testing.F) {
	audit := attest.DigestOf([]byte("audit"))
	head := `{"schema":"` + journalSchema + `","audit":"` + string(audit) + `"}` + "\n"
	for _, seed := range []string{
		"", head[:20], head, head + `{"image":"a","decision":"pass"}` + "\n" + `{"image":"b","dec`, head + "\n", "\n", head + head,
		strings.Replace(head, "sha256:", "sha256:0", 1), head + `{"image":"a","decision":"deny"}` + "\n" + `{"image":"a","decision":"pass"}` + "\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, before []byte) {
		path := filepath.Join(t.TempDir(), "j")
		if err := os.WriteFile(path, before, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := openJournal(path, audit)
		if err != nil {
			if now, _ := os.ReadFile(path); !bytes.Equal(now, before) {
				t.Errorf("%q was refused and became %q", before, now)
			}
			return
		}
		earlier := j.earlier
		fresh := !j.has("registry.example/new:1")
		if err := j.note(report.Line{Image: "registry.example/new:1", Decision: gate.Deny}); err != nil {
			t.Fatal(err)
		}
		if err := j.note(report.Line{Image: "registry.example/open:1", Decision: gate.Undecided}); err != nil {
			t.Fatal(err)
		}
		if _, err := openJournal(path, audit); err == nil {
			t.Error("two have it open")
		}
		j.close()
		if j, err = openJournal(path, audit); err != nil {
			t.Fatalf("after %q: %v", before, err)
		}
		defer j.close()
		if !j.has("registry.example/new:1") || j.has("registry.example/open:1") || fresh && j.earlier.Denied != earlier.Denied+1 {
			t.Errorf("after %q: %+v", before, j.earlier)
		}
	})
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
