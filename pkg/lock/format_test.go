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

func parse(t *testing.T, lines ...string) *lock.File {
	t.Helper()
	f, err := lock.Parse([]byte("waxseal-lock 1\n" + strings.Join(lines, "\n") + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestParseRefuses(t *testing.T) {
	d := of("x")
	for text, want := range map[string]string{
		"":                                 "line 1: this is no lock file",
		"{}":                               "line 1: this is no lock file",
		"waxseal-lock":                     `version ""`,
		"waxseal-lock 2":                   `version "2" is not known`,
		"waxseal-lock 1 ":                  "version",
		"waxseal-lock 1\nreplay":           "line 2: replay",
		"waxseal-lock 1\nreplay x":         "line 2: reading digest",
		"waxseal-lock 1\nreplay sha256:00": "line 2: reading digest",
		"waxseal-lock 1\n\nfetch a " + d:   `line 3: "fetch" is not known`,
		"waxseal-lock 1\nimage":            "a reference and a digest",
		"waxseal-lock 1\nimage debian:12 " + strings.ToUpper(d):                              "reading digest",
		"waxseal-lock 1\nimage debian:12 gitCommit:0796f27d68a0ac9a0067e220c1d2bee893403784": "reading digest",
		"waxseal-lock 1\ngit a " + d:                                                         "want gitCommit",
		"waxseal-lock 1\ngit a gitCommit:0796":                                               "want gitCommit",
		"waxseal-lock 1\nimage debian:12 " + d + " platfarm=linux/amd64":                     `"platfarm=linux/amd64" is not known`,
		"waxseal-lock 1\nimage debian:12 " + d + " platform=":                                "empty",
		"waxseal-lock 1\nimage debian:12 " + d + " platform=a platform=b":                    "stands twice",
		"waxseal-lock 1\nimage debian:12 " + d + " size=-1":                                  "size",
		"waxseal-lock 1\nimage debian:12 " + d + " size=0":                                   "size",
		"waxseal-lock 1\nimage debian:12 " + d + " size=01":                                  "size",
		"waxseal-lock 1\nimage debian:12 " + d + "\nimage debian:12 " + of("y"):              "line 3: image \"debian:12\" has no name or stands twice",
		"waxseal-lock 1\nimage \"\" " + d:                                                    "has no name",
		"waxseal-lock 1\nimage  debian:12 " + d:                                              "one space apart",
		"waxseal-lock 1\nimage debian:12\t" + d:                                              "in quotes",
		"waxseal-lock 1\nimage \"debian:12 " + d:                                             "do not close",
		"waxseal-lock 1\nimage \"debian\"x " + d:                                             "follows the quotes",
		"waxseal-lock 1\nimage d\"e\"b " + d:                                                 "in quotes",
		"waxseal-lock 1\nstep":                                                               "a step has a name",
		"waxseal-lock 1\nstep \"a\" color=red":                                               "not known",
		"waxseal-lock 1\nstep \"a\"\nstep \"a\"":                                             `step "a" stands twice`,
		"waxseal-lock 1\n  GET https://a/ 200 " + d + " 1":                                   "below a step",
		"waxseal-lock 1\nstep \"a\"\nGET https://a/ 200 " + d + " 1":                         `"GET" is not known`,
		"waxseal-lock 1\nstep \"a\"\n  GET https://a/ 200 " + d:                              "has a method",
		"waxseal-lock 1\nstep \"a\"\n  GET https://a/ OK " + d + " 1":                        "not an HTTP status",
		"waxseal-lock 1\nstep \"a\"\n  GET https://a/ 20 " + d + " 1":                        "not an HTTP status",
		"waxseal-lock 1\nstep \"a\"\n  GET https://a/ 200 md5:1 1":                           "reading digest",
		"waxseal-lock 1\nstep \"a\"\n  GET https://a/ 200 " + d + " 1e3":                     "number of bytes",
		"waxseal-lock 1\nstep \"a\"\n  GET https://a/ 200 " + d + " 99999999999999999999":    "number of bytes",
		"waxseal-lock 1\nstep \"a\"\n  GET https://a/ 200 " + d + " 1 cut cut":               "not known",
		"waxseal-lock 1\nstep \"a\"\n  GET https://a/ 200 " + d + " 1 ->":                    "not known",
		"waxseal-lock 1\nstep \"a\"\n  GET https://a/ 200 " + d + " 1 body=x":                "reading digest",
		"waxseal-lock 1\nstep \"a\"\n  GET https://a/ 200 " + d + " 1 host=x":                "not known",
		"waxseal-lock 1\nstep \"a\"\n   GET https://a/ 200 " + d + " 1":                      "one space apart",
		"waxseal-lock 1\nstep \"a\"\n  GET \"\" 200 " + d + " 1":                             "has a method and a URL",
	} {
		_, err := lock.Parse([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q\n got %v\nwant %s", text, err, want)
		}
	}
	if _, err := lock.Parse(make([]byte, attest.MaxLock+1)); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Error(err)
	}
}

// TestParseIsKind: what people and git do to a text is no error.
func TestParseIsKind(t *testing.T) {
	f := parse(t, "# a remark", "", "image debian:12 "+of("x")+"\r", "  # another", "step \"a\"\r", "  GET HTTPS://A.example:443/x 200 "+of("b")+" 1\r")
	if len(f.Sources) != 1 || f.Steps[0].Entries[0].URI != "https://a.example/x" {
		t.Errorf("%+v", f)
	}
}

// TestHostileNamesForgeNothing: whatever a step or URL is called, the lock has
// no more lines and fields than it should.
func TestHostileNamesForgeNothing(t *testing.T) {
	forged := "  GET https://evil.example/ 200 " + of("evil") + " 4"
	for _, name := range []string{
		"RUN a\n" + forged, "\"\n" + forged, "a\" stage=\"b", "\\\"\n" + forged, "\r" + forged, "\u2028" + forged, "\x85" + forged, "\x00\x1b[2K", "# no", "", " ", "\xff\xfe", "a\u202eb",
	} {
		in := &attestations.Inputs{
			Sources: []attestations.InputSource{{Kind: "image", URI: "x", Ref: "r" + name, Platform: name, Digest: of("x")}},
			Steps: []attestations.InputStep{{Name: name, Stage: name, Platform: name, Requests: []attestations.InputRequest{{
				Method: "M" + name, URI: "https://a.example/" + name, Range: name, Status: 301, Digest: of("x"), Size: 1,
				Headers: map[string]string{"location": name},
			}}}},
		}
		f, err := lock.FromInputs(nil, in)
		if err != nil {
			t.Fatal(err)
		}
		raw := f.Marshal()
		back, err := lock.Parse(raw)
		if err != nil {
			t.Errorf("%q: %v\n%s", name, err, raw)
			continue
		}
		f.Steps[0].Entries[0].Headers = nil
		if !reflect.DeepEqual(back, f) {
			t.Errorf("%q: written\n%s\nread %+v\nwant %+v", name, raw, back, f)
		}
		if strings.Contains(string(raw), "\n"+forged) || bytes.ContainsAny(raw, "\x00\x1b\r") || bytes.Contains(raw, []byte("\u202e")) {
			t.Errorf("%q forges\n%s", name, raw)
		}
		for _, c := range lock.Diff(&lock.File{}, f) {
			if strings.ContainsFunc(c.Text+c.Step+c.Subject, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0x202e || r == 0x85 }) {
				t.Errorf("%q: said %+q", name, c)
			}
		}
	}
}

func TestFromInputsRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(in *attestations.Inputs)
		want   string
	}{
		"one image, two digests": {func(in *attestations.Inputs) {
			again := in.Sources[0]
			again.Digest = of("other")
			in.Sources = append(in.Sources, again)
		}, "build again"},
		"an image by nothing":      {func(in *attestations.Inputs) { in.Sources[0].Digest = "" }, "reading digest"},
		"a request without digest": {func(in *attestations.Inputs) { in.Steps[0].Requests[0].Digest = "" }, "reading digest"},
		"a request without status": {func(in *attestations.Inputs) { in.Steps[0].Requests[0].Status = 0 }, "status"},
		"a request without method": {func(in *attestations.Inputs) { in.Steps[0].Requests[0].Method = "" }, "method"},
	} {
		in := record()
		c.change(in)
		if _, err := lock.FromInputs(nil, in); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPlatformsAreMerged(t *testing.T) {
	amd, arm := record(), record()
	arm.Sources[0].Platform, arm.Sources[0].Digest = "linux/arm64", of("debian arm64")
	arm.Steps[0].Platform, arm.Steps[0].ID = "linux/arm64", of("3")
	// The second step ran on the builder for both, and is one.
	f, err := lock.FromInputs(nil, amd, arm)
	if err != nil {
		t.Fatal(err)
	}
	back, err := lock.FromInputs(nil, arm, amd)
	if err != nil || !bytes.Equal(back.Marshal(), f.Marshal()) {
		t.Errorf("the order of platforms shows: %v\n%s\n%s", err, f.Marshal(), back.Marshal())
	}
	if len(f.Sources) != 4 || len(f.Steps) != 3 {
		t.Errorf("%d sources, %d steps\n%s", len(f.Sources), len(f.Steps), f.Marshal())
	}
}

func TestRetriesDoNotShow(t *testing.T) {
	want := parse(t, `step "s"`, "  GET https://a.example/ 503 "+of("")+" 0", "  GET https://a.example/ 200 "+of("a")+" 1").Marshal()
	down := attestations.InputRequest{Method: "GET", URI: "https://a.example/", Status: 503, Digest: of("")}
	up := get(0, "https://a.example/", "a")
	for _, requests := range [][]attestations.InputRequest{{down, up}, {down, up, up}, {down, up, up, up, up}} {
		f, err := lock.FromInputs(nil, &attestations.Inputs{Steps: []attestations.InputStep{{Name: "s", Requests: requests}}})
		if err != nil {
			t.Fatal(err)
		}
		if got := f.Marshal(); !bytes.Equal(got, want) {
			t.Errorf("%d requests:\n%s", len(requests), got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, rec := range []*attestations.Inputs{record(), {}} {
		l, err := lock.FromInputs(nil, rec)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(l.Marshal())
	}
	f.Add([]byte("waxseal-lock 1\nimage \"a\\x00b\" " + of("x") + " platform=\"a b\"\nstep \"\\u202e\"\n  A b 999 hmac-" + of("x") + " 0 range=\"bytes=0-, 5-\" cut -> c\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := lock.Parse(raw)
		if err != nil {
			return
		}
		once := l.Marshal()
		again, err := lock.Parse(once)
		if err != nil {
			t.Fatalf("%v\n%s", err, once)
		}
		if !reflect.DeepEqual(l, again) || !bytes.Equal(again.Marshal(), once) {
			t.Fatalf("%q\n is read as %+v\nand then %+v", raw, l, again)
		}
		if changes := lock.Diff(l, again); len(changes) != 0 {
			t.Fatalf("a lock differs from itself: %+v", changes)
		}
		empty := &lock.File{}
		if len(lock.Diff(empty, l)) == 0 && !bytes.Equal(empty.Marshal(), once) {
			t.Fatalf("nothing differs from\n%s", once)
		}
		for i := range l.Steps {
			s := &l.Steps[i]
			b := l.Book(s.Name, s.Stage, s.Platform)
			for _, e := range s.Entries {
				if got, _, ok := b.Expect(e.Method, e.URI, e.RequestDigest, e.Range); !ok || got.Digest != e.Digest || got.Status != e.Status {
					t.Fatalf("the lock expects %+v, not its own %+v", got, e)
				}
			}
		}
	})
}
