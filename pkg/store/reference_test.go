package store

import (
	"errors"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/pkg/attest"
)

const someDigest = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"

func TestParse(t *testing.T) {
	for in, want := range map[string]Reference{
		"reg.example/a/b":                {Registry, "reg.example/a/b", "latest", ""},
		"reg.example:5000/a:v1":          {Registry, "reg.example:5000/a", "v1", ""},
		"reg.example/a@" + someDigest:    {Registry, "reg.example/a", "", someDigest},
		"reg.example/a:v1@" + someDigest: {Registry, "reg.example/a", "v1", someDigest},
		"127.0.0.1:5000/a":               {Registry, "127.0.0.1:5000/a", "latest", ""},
		"[::1]:5000/a:v1":                {Registry, "[::1]:5000/a", "v1", ""},
		"localhost/a":                    {Registry, "localhost/a", "latest", ""},
		"alpine":                         {Registry, "index.docker.io/library/alpine", "latest", ""},
		"docker.io/library/alpine:3":     {Registry, "index.docker.io/library/alpine", "3", ""},
		"oci:images":                     {Layout, "images", "", ""},
		"oci:/a/b:v1":                    {Layout, "/a/b", "v1", ""},
		"oci:/a:b/c":                     {Layout, "/a:b/c", "", ""},
		"oci:a:v1@" + someDigest:         {Layout, "a", "v1", someDigest},
		"oci:./with space@home":          {Layout, "./with space@home", "", ""},
		"oci:/a@" + someDigest:           {Layout, "/a", "", someDigest},
		"file:dist/app":                  {File, "dist/app", "", ""},
		"file:/a@b@" + someDigest:        {File, "/a@b", "", someDigest},
		"docker:web":                     {Docker, "web", "", ""},
		"docker:reg.example:5000/web:v1": {Docker, "reg.example:5000/web:v1", "", ""},
		"docker:web@" + someDigest:       {Docker, "web", "", someDigest},
	} {
		got, err := Parse(in)
		if err != nil {
			t.Errorf("Parse(%q): %v", in, err)
			continue
		}
		if got != want {
			t.Errorf("Parse(%q) = %+v, want %+v", in, got, want)
		}
		again, err := Parse(got.String())
		if err != nil || again != got {
			t.Errorf("Parse(%q) = %+v, %v; not the reference it is the text of", got.String(), again, err)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                         "empty",
		"UPPER/case":               "case",
		"reg.example/UPPER":        "reg.example/UPPER",
		"reg.example/a:":           "not a tag",
		"reg.example/a:v 1":        "not a tag",
		"reg.example/a@sha256:abc": "not a digest",
		"reg.example/a@" + "sha512:" + strings.Repeat("a", 128): "not a digest",
		"reg.example/a@latest":    "not a digest",
		"https://reg.example/a":   "leave https:// out",
		"docker://reg.example/a":  "leave docker:// out",
		"docker-daemon://a":       "write docker:a",
		"oci://path":              "write oci:path",
		"./path":                  "write oci:./path",
		"/path":                   "write oci:/path",
		"~/path":                  "write oci:~/path",
		"reg.example/../a":        `".."`,
		"reg.example//a":          `""`,
		"reg.example/":            "reg.example/",
		"oci:":                    "no path",
		"oci::v1":                 "no path",
		"oci:a:v$":                "not a tag",
		"docker:":                 "docker:NAME",
		"docker:UPPER":            "docker:NAME",
		"a\nb":                    "control character",
		":/a":                     "registry",
		strings.Repeat("a", 9000): "9000 bytes",
	} {
		_, err := Parse(in)
		var re *ReferenceError
		if !errors.As(err, &re) {
			t.Errorf("Parse(%.40q): %v, want a *ReferenceError", in, err)
			continue
		}
		if text := re.Error() + "\n" + re.Hint(); !strings.Contains(text, want) || re.Hint() == "" || strings.Count(re.Error(), "\n") > 0 {
			t.Errorf("Parse(%.40q): %q, hint %q; want %q", in, re.Error(), re.Hint(), want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"reg.example:5000/a/b:v1@" + someDigest, "oci:/a:b/c:v1", "docker:web:1", "oci:a@b@" + someDigest, "a:b:c", "[::1]/a", "oci:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Fatalf("Parse(%q): the error breaks the line: %q", s, err)
			}
			return
		}
		if r.Kind == "" || r.Place == "" || r.Kind == Registry && r.Tag == "" && r.Digest == "" {
			t.Fatalf("Parse(%q) = %+v", s, r)
		}
		if again, err := Parse(r.String()); err != nil || again != r {
			t.Fatalf("Parse(%q) = %+v, but %q gives %+v, %v", s, r, r.String(), again, err)
		}
		if r.Kind == Registry {
			if _, err := openRegistry(r, Options{}); err != nil {
				t.Fatalf("Parse(%q) gives a repository that cannot be opened: %v", s, err)
			}
		}
	})
}

func TestURI(t *testing.T) {
	r, err := Parse("reg.example/a:v1@" + someDigest)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.URI(); got != "oci://reg.example/a" {
		t.Errorf("URI = %q", got)
	}
	if got := (Reference{Kind: Layout, Place: "/a b"}).URI(); got != "file:///a%20b" {
		t.Errorf("URI = %q", got)
	}
}

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1": true, "127.8.0.2:5000": true, "localhost": true, "localhost:5000": true, "[::1]:5000": true, "[::1]": true, "x.localhost": true,
		"10.0.0.1:5000": false, "192.168.1.1": false, "reg.example": false, "127.0.0.1.evil.example": false, "localhost.evil.example": false, "reg.local": false,
	} {
		if got := loopback(host); got != want {
			t.Errorf("loopback(%q) = %v", host, got)
		}
	}
}

func TestParseDocument(t *testing.T) {
	d := `{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"digest":"` + someDigest + `"}`
	const ociIndex, ociManifest = "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json"
	for name, c := range map[string]struct{ in, served, want string }{
		"manifest":              {in: `{"schemaVersion":2,"config":` + d + `,"layers":[]}`},
		"index":                 {in: `{"schemaVersion":2,"mediaType":"` + ociIndex + `","manifests":[` + d + `]}`, served: ociIndex},
		"empty index":           {in: `{"schemaVersion":2,"manifests":[]}`},
		"docker":                {in: `{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":` + d + `}`},
		"both":                  {in: `{"schemaVersion":2,"manifests":[],"config":` + d + `}`, want: "index or an image"},
		"both, one empty":       {in: `{"schemaVersion":2,"manifests":[` + d + `],"layers":[]}`, want: "index or an image"},
		"neither":               {in: `{"schemaVersion":2}`, want: "neither"},
		"schema 1":              {in: `{"schemaVersion":1,"fsLayers":[]}`, want: "schema version 1"},
		"served as another":     {in: `{"schemaVersion":2,"mediaType":"` + ociManifest + `","config":` + d + `}`, served: ociIndex, want: "served as"},
		"not what it says":      {in: `{"schemaVersion":2,"mediaType":"` + ociIndex + `","config":` + d + `}`, want: "not what"},
		"served, not what":      {in: `{"schemaVersion":2,"manifests":[]}`, served: ociManifest, want: "not what"},
		"another type":          {in: `{"schemaVersion":2,"mediaType":"text/html","manifests":[]}`, want: "text/html"},
		"duplicate":             {in: `{"schemaVersion":2,"manifests":[],"manifests":[]}`, want: "duplicate"},
		"case variant":          {in: `{"schemaVersion":2,"manifests":[],"Layers":[]}`, want: "spelled"},
		"case variant in depth": {in: `{"schemaVersion":2,"manifests":[{"Digest":"` + someDigest + `"}]}`, want: "spelled"},
		"bad digest":            {in: `{"schemaVersion":2,"manifests":[{"digest":"sha256:abc"}]}`, want: "cannot be read"},
		"too large":             {in: strings.Repeat(" ", attest.MaxManifest+1), want: "larger"},
	} {
		_, err := parseDocument([]byte(c.in), mediaType(c.served))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func FuzzParseDocument(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[]}`), "")
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"`+someDigest+`"}}`), "application/vnd.oci.image.manifest.v1+json")
	f.Fuzz(func(t *testing.T, raw []byte, served string) {
		doc, err := parseDocument(raw, mediaType(served))
		if err != nil {
			return
		}
		if doc.index == (doc.Config != nil || doc.Layers != nil) || doc.index != doc.MediaType.IsIndex() {
			t.Fatalf("accepted %q as %+v", raw, doc)
		}
	})
}
