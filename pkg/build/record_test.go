package build

import (
	"slices"
	"strings"
	"sync"
	"testing"
)

const aRecord = `{
 "buildDefinition": {
  "buildType": "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md",
  "externalParameters": {"configSource": {"path": "Dockerfile"}, "request": {"frontend": "dockerfile.v0", "locals": [{"name": "dockerfile"}]}},
  "internalParameters": {"builderPlatform": "linux/amd64"},
  "resolvedDependencies": [
   {"uri": "pkg:docker/debian@bookworm?platform=linux%2Famd64", "digest": {"sha256": "` + zeros64 + `"}},
   {"uri": "https://git.example/a/b.git#main:sub", "digest": {"sha1": "0123456789abcdef0123456789abcdef01234567"}},
   {"uri": "https://user:pass@dl.example/x.tgz?token=secret", "digest": {"sha256": "` + zeros64 + `"}}
  ]
 },
 "runDetails": {"metadata": {"buildkit_hermetic": true, "buildkit_metadata": {"source": {"infos": [{"filename": "Dockerfile", "data": "RlJPTSBzY3JhdGNo"}]}}}}
}`

const zeros64 = "0000000000000000000000000000000000000000000000000000000000000000"

func TestParseRecord(t *testing.T) {
	r, err := parseRecord([]byte(aRecord))
	if err != nil {
		t.Fatal(err)
	}
	if !r.Hermetic || r.Platform != "linux/amd64" || len(r.Dependencies) != 3 || len(r.Locals) != 1 || string(r.Dockerfiles[0].Data) != "FROM scratch" {
		t.Errorf("got %+v", r)
	}
	for name, c := range map[string]struct{ old, new string }{
		"a duplicate key":       {`"buildkit_hermetic": true`, `"buildkit_hermetic": false, "buildkit_hermetic": true`},
		"a digest that is none": {zeros64, "../../etc/passwd"},
		"an input without URI":  {`"uri": "https://user:pass@dl.example/x.tgz?token=secret"`, `"uri": ""`},
		"trailing data":         {"}}}}\n}", "}}}}\n} {}"},
	} {
		if _, err := parseRecord([]byte(strings.Replace(aRecord, c.old, c.new, 1))); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// The images of one build are prepared at the same time.
func TestRecordsOfTwoImages(t *testing.T) {
	r, err := parseRecord([]byte(aRecord))
	if err != nil {
		t.Fatal(err)
	}
	r.Locals = []string{"context", "dockerfile"}
	all := &records{platforms: map[string]*record{"": r}, total: 3}
	var done sync.WaitGroup
	for range 2 {
		one := all.copy()
		done.Go(func() {
			rec := one.platforms[""]
			rec.redact(strings.NewReplacer("secret", removed))
			rec.Locals = slices.DeleteFunc(rec.Locals, func(name string) bool { return name == "context" })
			if len(rec.Locals) != 1 || rec.Locals[0] != "dockerfile" || strings.Contains(string(rec.raw), "secret") || one.total != 3 {
				t.Errorf("got %+v", rec)
			}
		})
	}
	done.Wait()
	if len(r.Locals) != 2 || r.Locals[0] != "context" || !strings.Contains(string(r.raw), "secret") {
		t.Errorf("the record itself became %+v", r)
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(aRecord))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := parseRecord(raw)
		if err != nil {
			return
		}
		a := account{req: &Request{}, in: &inputs{}, records: &records{}}
		for _, d := range a.dependencies([]*record{r}) {
			for _, v := range d.Digest {
				if !isHex(v) {
					t.Errorf("digest %q of %q", v, d.URI)
				}
			}
		}
	})
}
