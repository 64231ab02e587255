package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	cosigntypes "github.com/sigstore/cosign/v2/pkg/types"

	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/attest"
)

// TestHostileReferrers asks registries whose list of referrers never ends.
func TestHostileReferrers(t *testing.T) {
	const one = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`
	stranger := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("somebody else was asked")
	}))
	defer stranger.Close()
	for name, c := range map[string]struct {
		link  func(n int) string
		body  func(w http.ResponseWriter)
		want  string // "" is a list without an error
		calls int32
	}{
		"for ever":           {link: func(n int) string { return fmt.Sprintf("</v2/a/referrers/x?n=%d>; rel=\"next\"", n) }, want: "more than the 2048 referrers", calls: maxReferrerPages},
		"in a circle":        {link: func(n int) string { return fmt.Sprintf("<?n=%d>; rel=\"next\"", n%2) }, want: "leads back to a page", calls: 3},
		"to itself":          {link: func(int) string { return `</>; rel="next"` }, want: "leads back to a page", calls: 1},
		"to another host":    {link: func(n int) string { return fmt.Sprintf("<%s/?n=%d>; rel=next", stranger.URL, min(n, 3)) }, want: "leads back", calls: 4},
		"to a blob":          {link: func(n int) string { return "</v2/a/blobs/x?n=" + strings.Repeat("1", min(n, 3)) + ">; rel=next" }, want: "leads back", calls: 4},
		"to no address":      {link: func(int) string { return "<%zz>; rel=next" }, want: "has no address", calls: 1},
		"nowhere":            {link: func(int) string { return "<x>; rel=prev" }, calls: 1},
		"an endless page":    {body: endless, want: "larger than the limit", calls: 1},
		"endless, elsewhere": {body: nil, want: "larger than the limit", calls: 1},
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int32
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == "/v2/":
				case r.URL.Path == "/elsewhere/blobs/x":
					w.Header().Set("Content-Type", string(types.OCIImageIndex))
					endless(w)
				case !strings.Contains(r.URL.Path, "/referrers/sha256:"):
					t.Errorf("asked for %s", r.URL)
				case c.link == nil && c.body == nil:
					calls.Add(1)
					http.Redirect(w, r, "/elsewhere/blobs/x", http.StatusTemporaryRedirect)
				default:
					n := calls.Add(1)
					w.Header().Set("Content-Type", string(types.OCIImageIndex))
					if c.body != nil {
						c.body(w)
						return
					}
					w.Header().Set("Link", c.link(int(n)))
					fmt.Fprint(w, one)
				}
			}))
			defer server.Close()
			host := must(url.Parse(server.URL))(t).Host
			r := must(openRegistry(parse(t, host+"/a"), new(noWait).options()))(t)
			list, err := r.referrers(context.Background(), someDigest)
			if c.want == "" && (err != nil || len(list) != 0) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%d referrers, %v, want %q", len(list), err, c.want)
			}
			if calls.Load() != c.calls {
				t.Errorf("%d requests, want %d", calls.Load(), c.calls)
			}
		})
	}
}

// endless writes for as long as somebody reads.
func endless(w http.ResponseWriter) {
	filler := bytes.Repeat([]byte(" "), 64<<10)
	for {
		if _, err := w.Write(filler); err != nil {
			return
		}
	}
}

func TestSignaturesAreListed(t *testing.T) {
	ctx := context.Background()
	from, top := testIndex(t)
	w := openW(t, from)
	d := attest.Digest(top.Digest.String())
	layer := bytesBlob([]byte(`{"critical":{}}`), cosigntypes.SimpleSigningMediaType)
	config := bytesBlob([]byte("{}"), types.OCIConfigJSON)
	for _, b := range []Blob{layer, config} {
		if err := w.PutBlob(ctx, b); err != nil {
			t.Fatal(err)
		}
	}
	signature := must(w.PutManifest(ctx, types.OCIManifestSchema1, must(json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: config.Descriptor, Layers: []v1.Descriptor{layer.Descriptor},
	}))(t)))(t)
	if err := w.PutTag(ctx, fallbackTag(d)+".sig", signature); err != nil {
		t.Fatal(err)
	}
	signed := func(opts Options, want string) {
		t.Helper()
		if got := summary(evidence(t, open(t, from, opts), top)); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	none := func(predicateType string) bool { return predicateType == "" }
	signed(Options{}, SourceSig+" skipped")
	signed(Options{Want: none}, SourceSig+" skipped")
	ps := evidence(t, open(t, from, Options{}), top)
	if ps[0].Skipped != aSignature || ps[0].Where != signature.Digest.String() || ps[0].Digest != attest.Digest(layer.Descriptor.Digest.String()) {
		t.Errorf("%+v", ps[0])
	}
	// As a referrer too, and among attestations.
	must(putReferrer(ctx, w, d, referrerRaw(t, w, top, "application/vnd.dev.cosign.artifact.sig.v1+json", []byte("{}"), cosigntypes.SimpleSigningMediaType)))(t)
	signed(Options{}, SourceReferrer+" skipped, "+SourceSig+" skipped")
	// Where there is something else it costs no request, unless all is wanted.
	signed(Options{Want: none}, SourceReferrer+" skipped")
}

// TestManyBundlesInOneFile: memory does not grow with a file, one bad line is
// its own trouble, and what is about others is not all shown.
func TestManyBundlesInOneFile(t *testing.T) {
	ctx := context.Background()
	from, top := testIndex(t)
	platform := must(Platforms(ctx, open(t, from, Options{}), top))(t)[1].Descriptor
	statement := func(n int, subjects ...string) []byte {
		var all []attest.Subject
		for _, s := range subjects {
			all = append(all, attest.Subject{Digest: map[string]string{"sha256": s}})
		}
		return must(attest.NewStatement("https://example.com/p", all, map[string]any{"n": n, "filler": strings.Repeat("x", 4000)}))(t).Raw()
	}
	const many = 5000
	var b bytes.Buffer
	for i := range many {
		switch i {
		case 100:
			b.WriteString(`{"_type":"https://in-toto.io/Statement/v1","_type":1}`)
		case 200:
			b.WriteString("   ") // an empty line
		case 300: // about several things, this image among them
			b.Write(statement(i, fmt.Sprintf("%064x", i), top.Digest.Hex))
		case 4000:
			b.Write(statement(i, platform.Digest.Hex))
		default:
			b.Write(statement(i, fmt.Sprintf("%064x", i)))
		}
		b.WriteByte('\n')
	}
	b.Write(statement(many, top.Digest.Hex)) // without a newline
	path := filepath.Join(t.TempDir(), "all.jsonl")
	write(t, path, b.String())
	size := b.Len()
	b = bytes.Buffer{}
	r := open(t, from, Options{Evidence: []string{path}})
	before := heap()
	ps := evidence(t, r, top)
	if grown := heap() - before; grown > int64(size)/4 {
		t.Errorf("reading %d bytes holds on to %d", size, grown)
	}
	read, bad, more := []string{}, "", ""
	for _, p := range ps {
		st := statementOf(p.Raw)
		switch {
		case st != nil && st.Binds(attest.Digest(top.Digest.String())):
			read = append(read, p.Where)
		case strings.HasSuffix(p.Where, ":101"):
			bad = p.Skipped
		case strings.Contains(p.Skipped, "more documents"):
			more = p.Where + " " + p.Skipped
		}
	}
	if got := strings.Join(read, " "); got != path+":301 "+path+":5001" {
		t.Errorf("about the image: %s", got)
	}
	// Of the rest the first are shown.
	if len(ps) != 2+maxAside+2 || !strings.HasPrefix(more, path+":65 from here on, 4932 more documents that are about something else") {
		t.Errorf("%d pieces, %q", len(ps), more)
	}
	if !strings.Contains(bad, `"/_type": duplicate`) {
		t.Errorf("line 101: %q", bad)
	}
	if ps := evidence(t, r, platform); statementOf(ps[len(ps)-2].Raw) == nil || !strings.Contains(summary(ps), SourceFile) {
		t.Errorf("evidence of the platform: %s", summary(ps))
	}
	// A file that changes meanwhile is not believed.
	write(t, path, strings.Repeat("{}\n", 300_000))
	for _, p := range evidence(t, r, top) {
		if statementOf(p.Raw) != nil {
			t.Errorf("read %s of a file that was changed", p.Where)
		}
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestOneBadLine(t *testing.T) {
	from, top := testIndex(t)
	good := must(attest.NewStatement("https://example.com/p", []attest.Subject{{Digest: map[string]string{"sha256": top.Digest.Hex}}}, struct{}{}))(t).Raw()
	path := filepath.Join(t.TempDir(), "all.jsonl")
	write(t, path, "\n"+`{"a":1,"a":2}`+"\n"+string(good)+"\n\xef\xbb\xbf{}\n{} {}\n"+`{"unknown":"form"}`)
	ps := evidence(t, open(t, from, Options{Evidence: []string{path}}), top)
	want := []string{
		path + `:2 (reading JSON at "/a": duplicate object member name at byte 7)`,
		path + ":3",
		path + `:4 (reading JSON at "": invalid character '\ufeff' at start of value at byte 0)`,
		path + ":5 (reading JSON: data after the end of the value, at byte 2)",
		path + ":6", // for who knows the form
	}
	if got := wheres(ps); got != strings.Join(want, "\n") {
		t.Errorf("\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

func TestNestedFolders(t *testing.T) {
	from, top := testIndex(t)
	s := newSigner(t)
	dir := t.TempDir()
	for _, name := range []string{"a.json", "x/b.sigstore.json", "x/y/c.jsonl", "x/.hidden/d.json", "x/y/notes.txt", "image/e.json", "image/oci-layout"} {
		path := filepath.Join(dir, name)
		mkdir(t, filepath.Dir(path))
		write(t, path, string(s.bundle(t, top, "https://example.com/"+filepath.Base(name)).Raw()))
	}
	var got []string
	for _, p := range evidence(t, open(t, from, Options{Evidence: []string{dir}}), top) {
		got = append(got, strings.TrimPrefix(p.Where, dir+"/"))
	}
	if want := "a.json x/b.sigstore.json x/y/c.jsonl:1"; strings.Join(got, " ") != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestRegistryWithoutReferrersListsTheUnion(t *testing.T) {
	ctx := context.Background()
	s := newSigner(t)
	from, top := testIndex(t)
	dst := openW(t, startRegistry(t, testkit.RegistryOptions{NoReferrers: true})+"/a")
	if err := Copy(ctx, open(t, from, Options{}), dst, top, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	must(Attach(ctx, dst, top, s.bundle(t, top, "https://example.com/one")))(t)
	if err := AttachCosign(ctx, dst, top, s.bundle(t, top, "https://example.com/two")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "f.json")
	write(t, path, string(s.bundle(t, top, "https://example.com/three").Raw()))
	r := open(t, dst.Reference().At(attest.Digest(top.Digest.String())).String(), Options{Evidence: []string{path}})
	if got, want := summary(evidence(t, r, top)), strings.Join([]string{SourceTag, SourceAtt, SourceFile}, ", "); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestEvidenceIsReadOnce: a thousand images need not read a file a thousand
// times, and what is new in it is seen.
func TestEvidenceIsReadOnce(t *testing.T) {
	ctx := context.Background()
	from, top := testIndex(t)
	s := newSigner(t)
	path := filepath.Join(t.TempDir(), "all.jsonl")
	write(t, path, string(s.bundle(t, top, "https://example.com/one").Raw()))
	opts := Options{Evidence: []string{path}}.ReadOnce()
	shared := opts.named
	if got := summary(evidence(t, open(t, from, opts), top)); got != SourceFile {
		t.Fatalf("evidence %q", got)
	}
	first := shared.now
	evidence(t, open(t, from, opts), top)
	if shared.now != first {
		t.Error("it was read again")
	}
	write(t, path, string(s.bundle(t, top, "https://example.com/one").Raw())+"\n"+string(s.bundle(t, top, "https://example.com/two").Raw()))
	shared.checked = shared.checked.Add(-2 * recheck)
	if got := summary(evidence(t, open(t, from, opts), top)); got != SourceFile+", "+SourceFile {
		t.Errorf("after a change %q", got)
	}
	// A broken-off reading leaves nothing that the next would take for all.
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	again := Options{Evidence: []string{path}}.ReadOnce()
	if _, err := open(t, from, again).Evidence(cancelled, attest.Digest(top.Digest.String())); err == nil {
		t.Error("a cancelled reading is no error")
	}
	if got := summary(evidence(t, open(t, from, again), top)); got != SourceFile+", "+SourceFile {
		t.Errorf("after a reading that was broken off %q", got)
	}
}

// TestARegistryElsewhereLeadsNotToThisMachine: what listens on loopback answers
// without TLS, and expects to be asked by this machine only.
func TestARegistryElsewhereLeadsNotToThisMachine(t *testing.T) {
	within := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("this machine was asked")
	}))
	defer within.Close()
	opts := new(noWait).options()
	opts.net.transport = roundTrip(func(req *http.Request) (*http.Response, error) {
		if req.URL.Host != "registry.example" {
			return http.DefaultTransport.RoundTrip(req)
		}
		w := httptest.NewRecorder()
		if req.URL.Path != "/v2/" {
			http.Redirect(w, req, within.URL, http.StatusTemporaryRedirect)
		}
		resp := w.Result()
		resp.Request = req
		return resp, nil
	})
	r := must(openRegistry(parse(t, "registry.example/a"), opts))(t)
	if _, err := r.referrers(context.Background(), someDigest); err == nil || !strings.Contains(err.Error(), "plain HTTP") {
		t.Errorf("%v", err)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// TestAReferrerOfAnotherImage: a list of referrers proves nothing, each manifest
// says itself what it is about.
func TestAReferrerOfAnotherImage(t *testing.T) {
	ctx := context.Background()
	from, top := testIndex(t)
	w := openW(t, from)
	other := must(Platforms(ctx, open(t, from, Options{}), top))(t)[0].Descriptor
	d := attest.Digest(top.Digest.String())
	listed := must(w.PutManifest(ctx, types.OCIManifestSchema1, referrerRaw(t, w, other, attest.BundleMediaType, []byte("{}"), attest.BundleMediaType)))(t)
	list := must(w.PutManifest(ctx, types.OCIImageIndex, must(json.Marshal(v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{listed},
	}))(t)))(t)
	if err := w.PutTag(ctx, fallbackTag(d), list); err != nil {
		t.Fatal(err)
	}
	ps := evidence(t, open(t, from, Options{}), top)
	if len(ps) != 1 || ps[0].Raw != nil || !strings.Contains(ps[0].Skipped, "does not name this digest") {
		t.Errorf("%+v", ps)
	}
}

// TestMuchEvidence: what a manifest says of its layers' sizes is enough to refuse
// to read all of them.
func TestMuchEvidence(t *testing.T) {
	ctx := context.Background()
	from, top := testIndex(t)
	w := openW(t, from)
	layer := bytesBlob([]byte("{}"), types.MediaType(attest.BundleMediaType))
	if err := w.PutBlob(ctx, layer); err != nil {
		t.Fatal(err)
	}
	claimed := layer.Descriptor
	claimed.Size = attest.MaxBundle
	for n, want := range map[int]string{attest.MaxEvidenceSum / attest.MaxBundle: "", attest.MaxEvidenceSum/attest.MaxBundle + 1: "more than the"} {
		att := must(w.PutManifest(ctx, types.OCIManifestSchema1, must(json.Marshal(v1.Manifest{
			SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: layer.Descriptor, Layers: slices.Repeat([]v1.Descriptor{claimed}, n),
		}))(t)))(t)
		d := attest.Digest(top.Digest.String())
		if err := w.PutTag(ctx, fallbackTag(d)+".att", att); err != nil {
			t.Fatal(err)
		}
		_, err := open(t, from, Options{}).Evidence(ctx, d)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%d layers of %d bytes: %v", n, claimed.Size, err)
		}
	}
}

// TestCredentialsAreForTheRegistryAlone: wherever it leads, nobody else is sent
// them.
func TestCredentialsAreForTheRegistryAlone(t *testing.T) {
	var led atomic.Int32
	stranger := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		led.Add(1)
		if _, _, sent := r.BasicAuth(); sent || r.Header.Get("Authorization") != "" {
			t.Errorf("%s was sent %q", r.URL, r.Header.Get("Authorization"))
		}
	}))
	defer stranger.Close()
	var known atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "ann" || password != "secret" {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		known.Add(1)
		if r.URL.Path != "/v2/" {
			http.Redirect(w, r, stranger.URL+r.URL.Path, http.StatusTemporaryRedirect)
		}
	}))
	defer server.Close()
	host := must(url.Parse(server.URL))(t).Host
	dir := t.TempDir()
	config := fmt.Appendf(nil, `{"auths":{%q:{"auth":"YW5uOnNlY3JldA=="}}}`, host)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
	ctx := context.Background()
	r := must(openRegistry(parse(t, host+"/a:v1"), new(noWait).options()))(t)
	_, _ = r.referrers(ctx, someDigest)
	_, _ = r.Resolve(ctx)
	_, _, _ = r.tagged(ctx, "v2")
	if known.Load() < 3 || led.Load() < 3 {
		t.Errorf("%d requests with credentials, %d elsewhere", known.Load(), led.Load())
	}
}
