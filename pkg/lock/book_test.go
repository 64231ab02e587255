package lock_test

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

func TestBook(t *testing.T) {
	f, err := lock.FromInputs(nil, record())
	if err != nil {
		t.Fatal(err)
	}
	fetch, build, platform := record().Steps[0].Name, "build", "linux/amd64"
	expect := func(b *lock.Book, method, uri, request, rang string) string {
		e, near, ok := b.Expect(method, uri, attest.Digest(request), rang)
		switch {
		case ok:
			return string(e.Digest)
		case len(near) > 0:
			return "near " + near[0].Method
		}
		return "nothing"
	}
	type want struct{ method, uri, request, rang, give string }
	upload := "https://git.example/a.git/git-upload-pack"
	for name, c := range map[string]struct {
		step  string
		wants []want
	}{
		"in order, and the last again": {fetch, []want{
			{"GET", "https://files.example/a", "", "", of("one")},
			{"GET", "https://files.example/a", of(""), "", of("two")},
			{"GET", "https://FILES.example:443/a", "", "", of("two")},
		}},
		"by what is sent": {fetch, []want{
			{"POST", upload, of("want 2"), "", of("pack 2")},
			{"POST", upload, of("want 1"), "", of("pack 1")},
			{"POST", upload, of("want 3"), "", "near POST"},
			{"GET", upload, "", "", "near POST"},
		}},
		"by range": {fetch, []want{
			{"GET", "https://files.example/big", "", "bytes=100-", of("tail")},
			{"GET", "https://files.example/big", "", "", of("he")},
			{"GET", "https://files.example/big", "", "bytes=7-", "near GET"},
		}},
		"by shape": {fetch, []want{
			{"GET", "https://files.example/q?token={hmac:ffffffffffffffff}", "", "", of("q")},
			{"GET", "https://{hmac:ffffffffffffffff}@files.example/q?token={hmac}", "", "", of("q")},
			{"GET", "https://files.example/q?token=", "", "", "nothing"},
		}},
		"a step that the lock names without exchanges": {"RUN make", []want{
			{"GET", "https://files.example/a", "", "", "near GET"},
			{"GET", "https://files.example/other", "", "", "nothing"},
		}},
		"a step that the lock does not name": {"RUN something new", []want{
			{"GET", "https://files.example/a", "", "", of("one")},
			{"GET", "https://files.example/other", "", "", "nothing"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			b := f.Book(c.step, build, platform)
			for _, w := range c.wants {
				if got := expect(b, w.method, w.uri, w.request, w.rang); got != w.give {
					t.Errorf("%s %s %s %s gives %s, want %s", w.method, w.uri, w.request, w.rang, got, w.give)
				}
			}
		})
	}
	b := f.Book(fetch, build, platform)
	if _, ok := b.Lists("GET", "https://files.example/a", "", "", 200, attest.Digest(of("two"))); !ok {
		t.Error("the second answer is not listed while the first is expected")
	}
	if _, ok := b.Lists("GET", "https://files.example/a", "", "", 200, attest.Digest(of("three"))); ok {
		t.Error("a third answer is listed")
	}
	if _, ok := b.Lists("GET", "https://files.example/big", "", "", 200, attest.Digest(of("he"))); ok {
		t.Error("a part is listed as the whole")
	}
}

func unanswered(r *attestations.InputRequest) {
	*r = attestations.InputRequest{Ordinal: r.Ordinal, Method: r.Method, URI: r.URI, Digest: of(""), Unanswered: "asking upstream: EOF"}
}

// There is no answer that a lock could expect.
func TestALockListsNoRequestWithoutAnAnswer(t *testing.T) {
	in := record()
	lost := in.Steps[0].Requests[0]
	unanswered(&lost)
	lost.Ordinal = 10
	in.Steps[0].Requests = append(in.Steps[0].Requests, lost)
	got, err := lock.FromInputs(nil, in)
	if err != nil {
		t.Fatal(err)
	}
	want, err := lock.FromInputs(nil, record())
	if err != nil || string(got.Marshal()) != string(want.Marshal()) {
		t.Errorf("%v: the lock is\n%s\nwant\n%s", err, got.Marshal(), want.Marshal())
	}
}

// A parameter that only may be a credential says which file is meant.
func TestKeyIsHeldToTheLock(t *testing.T) {
	in, r := record(), redactor()
	in.Steps[0].Requests = in.Steps[0].Requests[:1]
	in.Steps[0].Requests[0].URI = r.URI("https://dl.example/get?key=app-1.0")
	f, err := lock.FromInputs(nil, in)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"app-1.0", "app-2.0"} {
		uri := r.URI("https://dl.example/get?key=" + name)
		st := in.Steps[0]
		st.Requests = slices.Clone(st.Requests)
		st.Requests[0].URI = uri
		_, _, ok := f.Book(st.Name, st.Stage, st.Platform).Expect("GET", uri, "", "")
		if listed := name == "app-1.0"; ok != listed || (len(f.Admits(&st)) == 0) != listed {
			t.Errorf("%s is listed: %t, %q", name, ok, f.Admits(&st))
		}
	}
}

func TestAdmits(t *testing.T) {
	f, err := lock.FromInputs(nil, record())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(st *attestations.InputStep)
		want   string
	}{
		"itself":           {func(*attestations.InputStep) {}, ""},
		"in another order": {func(st *attestations.InputStep) { r := st.Requests; r[0], r[1], r[3], r[4] = r[1], r[0], r[4], r[3] }, ""},
		"under another key": {func(st *attestations.InputStep) {
			st.Requests[8].URI = "https://files.example/q?token={hmac:00000000000000bb}"
		}, ""},
		"less":           {func(st *attestations.InputStep) { st.Requests = st.Requests[2:4] }, ""},
		"nothing":        {func(st *attestations.InputStep) { st.Requests = nil }, ""},
		"other bytes":    {func(st *attestations.InputStep) { st.Requests[0].Digest = of("evil") }, "expected 200 " + of("one") + ", got 200 " + of("evil")},
		"another status": {func(st *attestations.InputStep) { st.Requests[0].Status = 203 }, "got 203"},
		"answers that are swapped": {func(st *attestations.InputStep) {
			r := st.Requests
			r[3].Digest, r[4].Digest = r[4].Digest, r[3].Digest
		}, "got 200"},
		"another URL":               {func(st *attestations.InputStep) { st.Requests[0].URI = "https://evil.example/" }, ": not in the lock"},
		"another method":            {func(st *attestations.InputStep) { st.Requests[0].Method = "HEAD" }, "HEAD https://files.example/a: not in the lock"},
		"cut where it was whole":    {func(st *attestations.InputStep) { st.Requests[0].Cut = true }, "got 200"},
		"not answered at first":     {func(st *attestations.InputStep) { unanswered(&st.Requests[0]) }, ""},
		"not answered, another URL": {func(st *attestations.InputStep) { unanswered(&st.Requests[0]); st.Requests[0].URI += "/loot" }, "/loot: not in the lock"},
		"not answered, another body": {func(st *attestations.InputStep) {
			unanswered(&st.Requests[0])
			st.Requests[0].RequestDigest = of("loot")
		}, ": not in the lock"},
		"not answered at all": {func(st *attestations.InputStep) {
			unanswered(&st.Requests[8])
			st.Requests[8].URI = "https://files.example/q?token={hmac:00000000000000aa}"
		}, "expected an answer, got none"},
		"sent on to another place": {func(st *attestations.InputStep) {
			st.Requests[2].Headers = map[string]string{"location": "https://cdn.example/v3.tgz?X-Amz-Signature={hmac:0123456789abcdef}"}
		}, "v2.tgz?X-Amz-Signature={hmac}, got 302 " + of("") + " -> https://cdn.example/v3.tgz?X-Amz-Signature={hmac}"},
		"sent on with another signature": {func(st *attestations.InputStep) {
			st.Requests[2].Headers = map[string]string{"location": "https://cdn.example/v2.tgz?X-Amz-Signature={hmac:00000000000000aa}"}
		}, ""},
		"another stage, same URLs":    {func(st *attestations.InputStep) { st.Stage = "other" }, ""},
		"a step that may ask nothing": {func(st *attestations.InputStep) { st.Name = "RUN make" }, ": not in the lock"},
	} {
		t.Run(name, func(t *testing.T) {
			st := &record().Steps[0]
			c.change(st)
			got := strings.Join(f.Admits(st), "\n")
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	many := attestations.InputStep{Name: "RUN make"}
	for range 50 {
		many.Requests = append(many.Requests, get(1, "https://evil.example/", "x"))
	}
	if why := f.Admits(&many); len(why) != 1 && (len(why) > 30 || !strings.Contains(why[len(why)-1], "more")) {
		t.Errorf("%d reasons", len(why))
	}
}

func TestDiff(t *testing.T) {
	const deb = "http://deb.example/debian/pool/main/"
	a, b, c := of("a"), of("b"), of("c")
	step := `step "RUN apt-get install" stage=base platform=linux/amd64`
	title := "RUN apt-get install [base linux/amd64]"
	for name, d := range map[string]struct {
		before, after []string
		want          []string
	}{
		"nothing": {[]string{step, "  GET https://x.example/ 200 " + a + " 1"}, []string{step, "  GET https://x.example/ 200 " + a + " 1"}, nil},
		"base image": {
			[]string{"image debian:12 " + a + " platform=linux/amd64"}, []string{"image debian:12 " + b + " platform=linux/amd64"},
			[]string{"changed base image debian:12 (linux/amd64) from " + a + " to " + b},
		},
		"another tag": {
			[]string{"image r.example:5000/debian:12 " + a}, []string{"image r.example:5000/debian:13 " + b},
			[]string{"changed base image r.example:5000/debian:12 from " + a + " to r.example:5000/debian:13 " + b},
		},
		"another image": {
			[]string{"image debian:12 " + a}, []string{"image alpine:3 " + b},
			[]string{"removed base image debian:12 " + a, "added base image alpine:3 " + b},
		},
		"git and files": {
			[]string{"git https://g.example/a#v1 gitCommit:" + strings.Repeat("0", 40), "http https://f.example/x " + a},
			[]string{"git https://g.example/a#v1 gitCommit:" + strings.Repeat("1", 40), "http https://f.example/y " + a},
			[]string{
				"changed git source https://g.example/a#v1 from gitCommit:" + strings.Repeat("0", 40) + " to gitCommit:" + strings.Repeat("1", 40),
				"removed remote file https://f.example/x " + a, "added remote file https://f.example/y " + a,
			},
		},
		"packages": {
			[]string{
				step, "  GET " + deb + "c/curl/curl_7.88.1-10+deb12u5_amd64.deb 200 " + a + " 1", "  GET " + deb + "v/vim/vim_9.0_amd64.deb 200 " + b + " 1",
				"  GET " + deb + "s/same/same_1_all.deb 200 " + c + " 1", "  GET http://deb.example/debian/dists/bookworm/InRelease 200 " + a + " 1",
			},
			[]string{
				step, "  GET " + deb + "c/curl/curl_7.88.1-10+deb12u6_amd64.deb 200 " + b + " 1", "  GET " + deb + "j/jq/jq_1.6-2.1_amd64.deb 200 " + c + " 1",
				"  GET " + deb + "s/same/same_1_all.deb 200 " + c + " 1", "  GET http://deb.example/debian/dists/bookworm/InRelease 200 " + b + " 2",
			},
			[]string{
				title + ": changed package curl 7.88.1-10+deb12u5 -> 7.88.1-10+deb12u6 (deb) <pkg:deb/debian/curl@7.88.1-10%2Bdeb12u6>",
				title + ": added package jq 1.6-2.1 (deb) <pkg:deb/debian/jq@1.6-2.1>",
				title + ": removed package vim 9.0 (deb) <pkg:deb/debian/vim@9.0>",
				title + ": changed GET http://deb.example/debian/dists/bookworm/InRelease: was " + a + ", 1 bytes, is " + b + ", 2 bytes",
			},
		},
		"a package of the same version with other bytes": {
			[]string{step, "  GET " + deb + "j/jq/jq_1.6_amd64.deb 200 " + a + " 1"}, []string{step, "  GET " + deb + "j/jq/jq_1.6_amd64.deb 200 " + b + " 1"},
			[]string{title + ": changed package jq 1.6 (deb): was " + a + ", 1 bytes, is " + b + ", 1 bytes <pkg:deb/debian/jq@1.6?arch=amd64>"},
		},
		"a package from somewhere else": {
			[]string{step, "  GET https://one.example/lodash/-/lodash-4.0.0.tgz 200 " + a + " 1"}, []string{step, "  GET https://two.example/lodash/-/lodash-4.0.0.tgz 200 " + a + " 1"},
			[]string{title + ": changed package lodash 4.0.0 (npm): same bytes, from https://two.example/lodash/-/lodash-4.0.0.tgz, not https://one.example/lodash/-/lodash-4.0.0.tgz <pkg:npm/lodash@4.0.0>"},
		},
		"a package that is gone from the server": {
			[]string{step, "  GET " + deb + "j/jq/jq_1.6_amd64.deb 200 " + a + " 1"}, []string{step, "  GET " + deb + "j/jq/jq_1.6_amd64.deb 404 " + b + " 1"},
			[]string{title + ": changed GET " + deb + "j/jq/jq_1.6_amd64.deb: was " + a + ", 1 bytes, is 404 " + b + ", 1 bytes"},
		},
		"a new step": {
			nil, []string{step, "  POST https://x.example/ 200 " + a + " 1 body=" + b},
			[]string{title + ": added step " + title, title + ": added POST https://x.example/, " + a + ", 1 bytes"},
		},
		"a step that was rewritten": {
			[]string{step, "  GET https://x.example/ 200 " + a + " 1"}, []string{strings.Replace(step, "install", "install -y", 1), "  GET https://x.example/ 200 " + a + " 1"},
			[]string{"RUN apt-get install -y [base linux/amd64]: changed the step's command: \"RUN apt-get install\" is now \"RUN apt-get install -y\""},
		},
		"a step that is gone": {
			[]string{step, "  GET https://x.example/ 302 " + a + " 0 -> https://y.example/"}, nil,
			[]string{title + ": removed step " + title, title + ": removed GET https://x.example/, 302 " + a + ", 0 bytes -> https://y.example/"},
		},
		"another end of a sequence": {
			[]string{step, "  GET https://x.example/ 200 " + a + " 1"}, []string{step, "  GET https://x.example/ 200 " + a + " 1", "  GET https://x.example/ 200 " + b + " 1"},
			[]string{title + ": changed GET https://x.example/: was answered in 1 ways one after the other, is in 2"},
		},
		"headers alone": {
			[]string{"replay " + a}, []string{"replay " + b},
			[]string{"changed headers of answers: replay " + a + " to " + b},
		},
	} {
		t.Run(name, func(t *testing.T) {
			before, after := parse(t, d.before...), parse(t, d.after...)
			var got []string
			for _, c := range lock.Diff(before, after) {
				line := c.Text
				if c.Step != "" {
					line = c.Step + ": " + line
				}
				if c.PURL != "" {
					line += " <" + c.PURL + ">"
				}
				if !strings.HasPrefix(c.Text, c.Kind+" ") {
					t.Errorf("kind %s: %s", c.Kind, c.Text)
				}
				got = append(got, line)
			}
			if strings.Join(got, "\n") != strings.Join(d.want, "\n") {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(d.want, "\n"))
			}
			if len(lock.Diff(after, before)) == 0 != (len(d.want) == 0) {
				t.Error("the other way round it is another matter")
			}
		})
	}
}

// A lock is looked at before anybody trusts it.
func TestDiffOfManyTakesNoTime(t *testing.T) {
	const n = 50_000
	var before, after lock.File
	for i := range n {
		before.Steps = append(before.Steps, lock.Step{Name: strconv.Itoa(i)})
		before.Sources = append(before.Sources, lock.Source{Kind: lock.KindImage, Ref: "r.example/a:old" + strconv.Itoa(i)})
		after.Sources = append(after.Sources, lock.Source{Kind: lock.KindImage, Ref: "r.example/a:new" + strconv.Itoa(i)})
	}
	start := time.Now()
	if got := len(lock.Diff(&before, &after)); got != 3*n {
		t.Errorf("%d changes, want %d", got, 3*n)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
}
