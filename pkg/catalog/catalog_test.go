package catalog

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/sbom"
)

const (
	dpkgStatus = `Package: hello
Status: install ok installed
Maintainer: Somebody <somebody@example.com>
Architecture: amd64
Version: 2.10-3
Description: says hello

`
	osRelease = "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"
	apkDB     = "P:musl\nV:1.2.4-r2\nA:x86_64\nL:MIT\n\n"
)

// rootfs lays out files; a value "-> x" is a symbolic link to x.
func rootfs(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, ok := strings.CutPrefix(text, "-> "); ok {
			err = os.Symlink(to, p)
		} else {
			err = os.WriteFile(p, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func installed(t *testing.T) map[string]string {
	t.Helper()
	var jar bytes.Buffer
	z := zip.NewWriter(&jar)
	for name, text := range map[string]string{
		"META-INF/MANIFEST.MF":                          "Manifest-Version: 1.0\n",
		"META-INF/maven/org.example/lib/pom.properties": "groupId=org.example\nartifactId=lib\nversion=1.0\n",
	} {
		w, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(text))
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"var/lib/dpkg/status":                  dpkgStatus,
		"usr/share/doc/hello/copyright":        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nCopyright: x\nLicense: GPL-3+\n",
		"usr/lib/os-release":                   osRelease,
		"etc/os-release":                       "-> ../usr/lib/os-release",
		"lib/apk/db/installed":                 apkDB,
		"opt/lib-1.0.jar":                      jar.String(),
		"srv/node_modules/p/package.json":      `{"name":"p","version":"3.0.0"}`,
		"srv/package-lock.json":                `{"name":"app","lockfileVersion":2,"packages":{"node_modules/notthere":{"version":"9.9.9"}}}`,
		"usr/lib/python3/q.dist-info/METADATA": "Metadata-Version: 2.1\nName: q\nVersion: 4.0\n\n",
	}
}

func TestRootfsFindsWhatIsInstalledAndIsAlwaysTheSame(t *testing.T) {
	// Nothing may be asked of the network, not even through a proxy.
	asked := make(chan string, 100)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.String()
		http.Error(w, "no", http.StatusBadGateway)
	}))
	defer proxy.Close()
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("HTTPS_PROXY", proxy.URL)
	var c Catalog
	files := installed(t)
	opts := Options{Epoch: "1700000000", Name: "app", Digest: attest.DigestOf(nil), Architecture: "amd64"}
	docs, err := c.Rootfs(t.Context(), rootfs(t, files), opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range sbom.Formats() {
		doc := string(docs[f])
		for _, purl := range []string{
			"pkg:deb/debian/hello@2.10-3", "pkg:apk/debian/musl@1.2.4-r2", "pkg:maven/org.example/lib@1.0", "pkg:npm/p@3.0.0", "pkg:pypi/q@4.0",
		} {
			if !strings.Contains(doc, purl) {
				t.Errorf("the %s document lacks %s", f, purl)
			}
		}
		if strings.Contains(doc, "notthere") {
			t.Errorf("the %s document has a package that a lock file names and nobody installed", f)
		}
		for _, want := range []string{"2023-11-14T22:13:20Z", "GPL-3", string(attest.DigestOf(nil)), `"app"`} {
			if !strings.Contains(doc, want) {
				t.Errorf("the %s document lacks %s", f, want)
			}
		}
	}
	// Another folder, another time, one of the same work twice at once.
	again := make(chan map[string][]byte, 2)
	for range cap(again) {
		root := rootfs(t, files)
		go func() {
			d, err := c.Rootfs(t.Context(), root, opts)
			if err != nil {
				t.Error(err)
			}
			again <- d
		}()
	}
	for range cap(again) {
		d := <-again
		for _, f := range sbom.Formats() {
			if !bytes.Equal(d[f], docs[f]) {
				t.Errorf("the %s document differs the second time", f)
			}
		}
	}
	if len(asked) > 0 {
		t.Errorf("the network was asked for %s", <-asked)
	}
}

func TestRootfsStaysInside(t *testing.T) {
	outside := rootfs(t, map[string]string{"status": strings.ReplaceAll(dpkgStatus, "hello", "fromthehost")})
	var c Catalog
	for _, link := range []string{filepath.Join(outside, "status"), "../../../../../../../../.." + filepath.Join(outside, "status")} {
		root := rootfs(t, map[string]string{
			"etc/os-release":      osRelease,
			"var/lib/dpkg/status": "-> " + link,
		})
		docs, err := c.Rootfs(t.Context(), root, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for f, doc := range docs {
			if bytes.Contains(doc, []byte("fromthehost")) {
				t.Errorf("the %s document tells of a file outside, through %q", f, link)
			}
			if bytes.Contains(doc, []byte(root)) {
				t.Errorf("the %s document tells where the files lay", f)
			}
		}
	}
}

func TestRootfsOfNothing(t *testing.T) {
	var c Catalog
	docs, err := c.Rootfs(t.Context(), t.TempDir(), Options{Formats: []string{sbom.SPDX}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := sbom.Check(sbom.SPDX, docs[sbom.SPDX])
	if err != nil || s.Packages != 0 || s.Name != "image" {
		t.Errorf("got %+v, %v", s, err)
	}
	if len(docs) != 1 {
		t.Errorf("asked for one document, got %d", len(docs))
	}
}

func TestRootfsRefuses(t *testing.T) {
	var c Catalog
	for _, tc := range []struct {
		name, want string
		root       string
		opts       Options
	}{
		{"format", `"x" is unknown`, t.TempDir(), Options{Formats: []string{"x"}}},
		{"epoch", `SOURCE_DATE_EPOCH "now"`, t.TempDir(), Options{Epoch: "now"}},
		{"negative epoch", `SOURCE_DATE_EPOCH "-1"`, t.TempDir(), Options{Epoch: "-1"}},
		{"folder", "opening the image's files", "/nonexistent", Options{}},
	} {
		docs, err := c.Rootfs(t.Context(), tc.root, tc.opts)
		if err == nil || !strings.Contains(err.Error(), tc.want) || docs != nil {
			t.Errorf("%s: got %d documents, %v; want an error with %q", tc.name, len(docs), err, tc.want)
		}
	}
}

func TestRootfsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	var c Catalog
	if docs, err := c.Rootfs(ctx, rootfs(t, installed(t)), Options{}); !errors.Is(err, why) || docs != nil {
		t.Errorf("a cancelled catalog gives %d documents, %v", len(docs), err)
	}
}

func TestNoCatalogerOfOthersMachines(t *testing.T) {
	c := config()
	if c.Packages.Golang.SearchRemoteLicenses || c.Packages.Golang.SearchLocalModCacheLicenses || c.Packages.JavaArchive.UseNetwork ||
		c.Packages.JavaArchive.UseMavenLocalRepository || c.Packages.JavaScript.SearchRemoteLicenses || c.Packages.Python.SearchRemoteLicenses {
		t.Errorf("the configuration looks beyond the image: %+v", c.Packages)
	}
	if !slices.Equal(sbom.Formats(), []string{sbom.SPDX, sbom.CycloneDX}) {
		t.Error("package sbom has formats that are not tested here")
	}
}

// A database that cannot be read is no image without packages.
func TestUnreadDatabases(t *testing.T) {
	var c Catalog
	for name, tc := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"whole":     {map[string]string{"var/lib/dpkg/status": dpkgStatus, "lib/apk/db/installed": apkDB}, nil},
		"emptied":   {map[string]string{"var/lib/dpkg/status": "", "var/lib/rpm/Packages": ""}, nil},
		"elsewhere": {map[string]string{"srv/node_modules/p/package.json": "{", "srv/x.jar": "no archive"}, nil},
		"dpkg":      {map[string]string{"var/lib/dpkg/status": "\x00\x01 no database"}, []string{"/var/lib/dpkg/status: "}},
		"in part":   {map[string]string{"lib/apk/db/installed": apkDB + "P:zlib\nno field\nV:1\n\n"}, []string{"/lib/apk/db/installed: "}},
		"rpm":       {map[string]string{"var/lib/rpm/rpmdb.sqlite": "no database", "usr/lib/os-release": "ID=fedora\n"}, []string{"/var/lib/rpm/rpmdb.sqlite: "}},
	} {
		t.Run(name, func(t *testing.T) {
			docs, err := c.Rootfs(t.Context(), rootfs(t, tc.files), Options{})
			if err != nil {
				t.Fatal(err)
			}
			for f, doc := range docs {
				sum, err := sbom.Check(f, doc)
				if err != nil {
					t.Fatal(err)
				}
				if sum.Unread != "" && tc.want == nil {
					t.Errorf("%s: unread %q", f, sum.Unread)
				}
				for _, w := range tc.want {
					if !strings.Contains(sum.Unread, w) {
						t.Errorf("%s: unread %q, want %q", f, sum.Unread, w)
					}
				}
				if f == sbom.CycloneDX && strings.Contains(string(doc), `"aggregate":"incomplete"`) != (tc.want != nil) {
					t.Errorf("its composition is not as it should be: %s", doc)
				}
			}
		})
	}
}
