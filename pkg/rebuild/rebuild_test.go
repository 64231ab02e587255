package rebuild

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/store"
)

// file is an entry of a layer in the making.
type file struct {
	name, body, link string
	kind             byte
	mode             int64
	uid              int
	when             int64
	pax              map[string]string
}

func layerOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: f.kind, Mode: f.mode, Uid: f.uid, Linkname: f.link, ModTime: time.Unix(f.when, 0), PAXRecords: f.pax}
		if f.kind == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(f.body))
		}
		if f.mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(f.body)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(t testing.TB, data []byte, level int, when int64) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, level)
	if err != nil {
		t.Fatal(err)
	}
	if when != 0 {
		w.ModTime = time.Unix(when, 0)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// layout is an OCI layout in the making.
type layout struct {
	t   testing.TB
	dir string
}

func newLayout(t testing.TB) *layout {
	t.Helper()
	l := &layout{t, t.TempDir()}
	if err := os.MkdirAll(filepath.Join(l.dir, "blobs", "sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	l.write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return l
}

func (l *layout) write(name string, data []byte) {
	l.t.Helper()
	if err := os.WriteFile(filepath.Join(l.dir, name), data, 0o644); err != nil {
		l.t.Fatal(err)
	}
}

func (l *layout) blob(mediaType string, data []byte) map[string]any {
	l.t.Helper()
	d := attest.DigestOf(data)
	l.write(filepath.Join("blobs", "sha256", d.Hex()), data)
	return map[string]any{"mediaType": mediaType, "digest": string(d), "size": len(data)}
}

func (l *layout) json(mediaType string, doc any) map[string]any {
	l.t.Helper()
	raw, err := json.Marshal(doc)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.blob(mediaType, raw)
}

// image stores an image of layers, each already compressed or not.
func (l *layout) image(config map[string]any, layers ...[]byte) map[string]any {
	if config == nil {
		config = map[string]any{}
	}
	var list []any
	var ids []any
	for i, raw := range layers {
		list = append(list, l.blob("application/vnd.oci.image.layer.v1.tar+gzip", raw))
		ids = append(ids, fmt.Sprintf("sha256:%064x", i)+"")
		ids[i] = string(attest.DigestOf(append([]byte("id"), raw...)))
	}
	config["os"], config["architecture"], config["rootfs"] = "linux", "amd64", map[string]any{"type": "layers", "diff_ids": ids}
	m := map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": l.json("application/vnd.oci.image.config.v1+json", config), "layers": list}
	return l.json("application/vnd.oci.image.manifest.v1+json", m)
}

// open finishes the layout with root as its only image.
func (l *layout) open(root map[string]any) Image {
	l.t.Helper()
	raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []any{root}})
	if err != nil {
		l.t.Fatal(err)
	}
	l.write("index.json", raw)
	place, err := store.Open(context.Background(), store.Reference{Kind: store.Layout, Place: l.dir}, store.Options{})
	if err != nil {
		l.t.Fatal(err)
	}
	return Image{place, attest.Digest(root["digest"].(string))}
}

func compare(t testing.TB, a, b Image) *attestations.RebuildComparison {
	t.Helper()
	tmp := t.TempDir()
	c, err := Compare(context.Background(), a, b, Options{TempDir: tmp})
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	return c
}

// line is a difference as the tests state it.
func line(d attestations.RebuildDifference) string {
	out := d.Kind + " " + d.Path + ": " + d.Cause
	if len(d.Normalisers) > 0 {
		out += " " + strings.Join(d.Normalisers, ",")
	}
	return out
}

func image(t testing.TB, config map[string]any, layers ...[]byte) Image {
	l := newLayout(t)
	return l.open(l.image(config, layers...))
}

func zipOf(t testing.TB, when int64, method uint16, files ...file) string {
	t.Helper()
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for _, f := range files {
		h := &zip.FileHeader{Name: f.name, Method: method, Modified: time.Unix(when, 0)}
		out, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write([]byte(f.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

func arOf(when string, members ...file) string {
	out := arMagic
	for _, m := range members {
		out += fmt.Sprintf("%-16s%-12s%-6s%-6s%-8s%-10d`\n", m.name, when, "0", "0", "100644", len(m.body)) + m.body
		if len(m.body)%2 == 1 {
			out += "\n"
		}
	}
	return out
}

// pyc is compiled Python of a source of some time.
func pyc(when uint32, code string) string {
	head := make([]byte, 16)
	binary.LittleEndian.PutUint16(head, 3495)
	copy(head[2:], "\r\n")
	binary.LittleEndian.PutUint32(head[8:], when)
	return string(head) + code
}

const day1, day2 = 1700000000, 1700086400

func TestWhyFilesDiffer(t *testing.T) {
	gz := func(s string, level int, when int64) string { return string(gzipped(t, []byte(s), level, when)) }
	tarOf := func(when int64, files ...file) string {
		for i := range files {
			files[i].when = when
		}
		return string(layerOf(t, files...))
	}
	long := strings.Repeat("the same content, over and over; ", 2000)
	for _, tt := range []struct {
		name, path, a, b string
		verdict          string
		want             []string
	}{
		{"gzip time", "srv/x.gz", gz("x", 6, day1), gz("x", 6, day2), "equivalent", []string{
			"content /srv/x.gz: the gzip header holds the time of compression gzip-header/v1"}},
		{"gzip level", "srv/x.gz", gz(long, 1, day1), gz(long, 9, day1), "equivalent", []string{
			"content /srv/x.gz: the gzip header holds a file's name, the level or the kind of system gzip-header/v1",
			"content /srv/x.gz: the same content, compressed differently compression/v1"}},
		{"gzip content", "srv/x.gz", gz("one\n", 6, day1), gz("two\n", 6, day1), "different", []string{
			"content /srv/x.gz: 1 line differs"}},
		{"gzip and trailing bytes", "srv/x.gz", gz("x", 6, day1), gz("x", 6, day2) + "tail", "different", []string{
			"content /srv/x.gz: the gzip file has its members in another order, or headers of another form"}},
		{"pyc", "usr/lib/a.pyc", pyc(day1, "code"), pyc(day2, "code"), "equivalent", []string{
			"content /usr/lib/a.pyc: the pyc file holds the time of its source pyc-mtime/v1"}},
		{"pyc with other code", "usr/lib/a.pyc", pyc(day1, "code"), pyc(day2, "CODE"), "different", []string{
			"content /usr/lib/a.pyc: compiled Python code differs: another source, or another order of a set's or dictionary's elements"}},
		{"zip times", "srv/x.whl", zipOf(t, day1, zip.Deflate, file{name: "a", body: "x"}), zipOf(t, day2, zip.Deflate, file{name: "a", body: "x"}), "equivalent", []string{
			"content /srv/x.whl: the zip archive holds the times of its files zip-times/v1"}},
		{"zip within zip", "srv/x.jar",
			zipOf(t, day1, zip.Store, file{name: "in.zip", body: zipOf(t, day1, zip.Store, file{name: "a.pyc", body: pyc(day1, "c")})}),
			zipOf(t, day1, zip.Store, file{name: "in.zip", body: zipOf(t, day1, zip.Store, file{name: "a.pyc", body: pyc(day2, "c")})}), "equivalent", []string{
				"content /srv/x.jar!/in.zip!/a.pyc: the pyc file holds the time of its source pyc-mtime/v1"}},
		{"zip with another member", "srv/x.jar", zipOf(t, day1, zip.Store, file{name: "a"}), zipOf(t, day1, zip.Store, file{name: "b"}), "different", []string{
			"content /srv/x.jar: the zip archive has other members"}},
		{"zip with hidden bytes", "srv/x.pyz", "#!/bin/a\n" + zipShift(zipOf(t, day1, zip.Store, file{name: "a"}), 9), "#!/bin/b\n" + zipShift(zipOf(t, day1, zip.Store, file{name: "a"}), 9), "different", []string{
			"content /srv/x.pyz: what the zip archive says of its members differs"}},
		{"tar times", "srv/x.tar", tarOf(day1, file{name: "a", body: "x"}), tarOf(day2, file{name: "a", body: "x"}), "equivalent", []string{
			"content /srv/x.tar: the tar archive holds the times of its files tar-times/v1"}},
		{"tar in gzip", "srv/x.tgz", gz(tarOf(day1, file{name: "a.txt", body: "x\n"}), 6, day1), gz(tarOf(day1, file{name: "a.txt", body: "y\n"}), 6, day2), "different", []string{
			"content /srv/x.tgz!/a.txt: 1 line differs",
			"content /srv/x.tgz: the gzip header holds the time of compression gzip-header/v1"}},
		{"tar modes", "srv/x.tar", tarOf(day1, file{name: "a", mode: 0o644}), tarOf(day1, file{name: "a", mode: 0o755}), "different", []string{
			`content /srv/x.tar: what the tar archive says of its members differs (first at "a")`}},
		{"static library", "usr/lib/l.a", arOf("1700000000", file{name: "a.o/", body: "odd"}), arOf("1700086400", file{name: "a.o/", body: "odd"}), "equivalent", []string{
			"content /usr/lib/l.a: the ar archive holds times and owners of its members ar-headers/v1"}},
		{"apt's log", "var/log/apt/history.log", "Start-Date: 2026-01-02  03:04:05\nInstall: a\n", "Start-Date: 2026-01-03  04:05:06\nInstall: a\n", "equivalent", []string{
			"content /var/log/apt/history.log: the package manager's log /var/log/apt/history.log holds the time of the run apt-logs/v1"}},
		{"apt's log with other packages", "var/log/apt/history.log", "Start-Date: 2026-01-02  03:04:05\nInstall: a\n", "Start-Date: 2026-01-03  04:05:06\nInstall: b\n", "different", []string{
			"content /var/log/apt/history.log: apt's log holds the time of the run; 2 lines differ"}},
		{"aux-cache", "var/cache/ldconfig/aux-cache", "\x00\x01", "\x00\x02", "equivalent", []string{
			"content /var/cache/ldconfig/aux-cache: ldconfig's aux-cache holds inode numbers and times ldconfig-aux-cache/v1"}},
		{"apt's cache", "var/cache/apt/pkgcache.bin", "\x00\x01", "\x00\x02", "equivalent", []string{
			"content /var/cache/apt/pkgcache.bin: apt's cache holds the times of its package lists apt-cache/v1"}},
		{"machine id", "etc/machine-id", strings.Repeat("a", 32) + "\n", strings.Repeat("b", 32) + "\n", "equivalent", []string{
			"content /etc/machine-id: a machine id made at random machine-id/v1"}},
		{"no machine id", "etc/machine-id", strings.Repeat("a", 32) + "\n", "uninitialized\n", "different", []string{
			"content /etc/machine-id: 1 line differs"}},
		{"shadow", "etc/shadow", "a:*:19000:0:99999:7:::\n", "a:*:19001:0:99999:7:::\n", "equivalent", []string{
			"content /etc/shadow: the days of the last password changes differ shadow-days/v1"}},
		{"shadow with another password", "etc/shadow", "a:*:19000:0:99999:7:::\n", "a::19000:0:99999:7:::\n", "different", []string{
			"content /etc/shadow: an account's password or its day of change; 1 line differs"}},
		{"a date", "x", "built Sun Nov 22 03:01:07 UTC 2026\n", "built Mon Nov 23 04:11:17 UTC 2026\n", "different", []string{
			"content /x: 1 line differs only in times"}},
		{"ids", "etc/app.conf", "id=0f8fad5b-d9cb-469f-a165-70867728950e\nx\n", "id=7c9e6679-7425-40de-944b-e07fc1f90ae7\nx\n", "different", []string{
			"content /etc/app.conf: 1 line differs only in random or hashed ids"}},
		{"order", "var/lib/list", "a\nb\n", "b\na\n", "different", []string{
			"content /var/lib/list: the same lines in another order, from line 1 on"}},
		{"binary time", "opt/x.bin", "\x00\x00\xff" + string(be(day1)) + "\xff", "\x00\x00\xff" + string(be(day2)) + "\xff", "different", []string{
			fmt.Sprintf("content /opt/x.bin: %d of 8 bytes differ, from byte 4 on, and look like a time", diffBytes(be(day1), be(day2)))}},
		{"key", "etc/ssh/ssh_host_ed25519_key", "\x00a", "\x00bc", "different", []string{
			"content /etc/ssh/ssh_host_ed25519_key: an ssh host key made at random; binary data of other sizes, the same up to byte 1"}},
		{"broken gzip", "srv/x.gz", gz("x", 6, day1)[:12], gz("x", 6, day2)[:12], "different", []string{
			"content /srv/x.gz: 3 of 12 bytes differ, from byte 4 on, and look like a time"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			same := file{name: "etc/same", body: "same"}
			c := compare(t,
				image(t, nil, layerOf(t, same, file{name: tt.path, body: tt.a})),
				image(t, nil, layerOf(t, same, file{name: tt.path, body: tt.b})))
			var got []string
			for _, d := range c.Differences {
				got = append(got, line(d))
			}
			if c.Verdict != tt.verdict || !slices.Equal(got, tt.want) {
				t.Errorf("%s, want %s:\n%s\nwant\n%s", c.Verdict, tt.verdict, strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
			for _, n := range c.Normalisers {
				if n.Reason == "" || n.Uses < 1 {
					t.Errorf("normaliser %+v", n)
				}
			}
		})
	}
}

func be(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func diffBytes(a, b []byte) (n int) {
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

// zipShift moves the offsets of a zip archive by what will stand before it.
func zipShift(s string, by uint32) string {
	b := []byte(s)
	add := func(at int) { binary.LittleEndian.PutUint32(b[at:], binary.LittleEndian.Uint32(b[at:])+by) }
	end := bytes.LastIndex(b, []byte("PK\x05\x06"))
	for at := int(binary.LittleEndian.Uint32(b[end+16:])); at < end; {
		add(at + 42)
		at += zipCentralSize + int(binary.LittleEndian.Uint16(b[at+28:])) + int(binary.LittleEndian.Uint16(b[at+30:])) + int(binary.LittleEndian.Uint16(b[at+32:]))
	}
	add(end + 16)
	return string(b)
}

func TestWhyEntriesDiffer(t *testing.T) {
	base := file{name: "srv/x", body: "x", when: day1}
	with := func(change func(*file)) file {
		f := base
		change(&f)
		return f
	}
	for _, tt := range []struct {
		name    string
		b       []file
		verdict string
		want    []string
	}{
		{"time", []file{with(func(f *file) { f.when = day2 })}, "equivalent", []string{"time /srv/x: the file's time is that of the build file-times/v1"}},
		{"mode", []file{with(func(f *file) { f.mode = 0o4755 })}, "different", []string{"mode /srv/x: other permissions"}},
		{"owner", []file{with(func(f *file) { f.uid = 7 })}, "different", []string{"owner /srv/x: another owner"}},
		{"attributes", []file{with(func(f *file) { f.pax = map[string]string{"SCHILY.xattr.user.a": "b"} })}, "different", []string{"attributes /srv/x: other extended attributes"}},
		{"type", []file{with(func(f *file) { f.kind, f.link = tar.TypeSymlink, "/etc/passwd" })}, "different", []string{"type /srv/x: not the same kind of file"}},
		{"missing", []file{{name: "srv/y", body: "x", when: day1}}, "different", []string{
			"missing /srv/x: only the original has this file", "added /srv/y: only the rebuilt image has this file"}},
		{"whiteout", []file{base, {name: "srv/.wh.old", when: day1}}, "different", []string{"added /srv/.wh.old: only the rebuilt image has this whiteout"}},
		{"pycache", []file{base, {name: "srv/__pycache__/a.pyc", when: day1}}, "different", []string{
			"added /srv/__pycache__/a.pyc: only the rebuilt image has this file: Python compiles a module when it is first imported"}},
		{"a path twice", []file{base, base}, "different", []string{"archive : the layer holds a path more than once"}},
		{"a path out of the root", []file{with(func(f *file) { f.name = "../../srv/x" })}, "equivalent", []string{
			"archive : the layer holds the same files, with headers of another form layer-form/v1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := compare(t, image(t, nil, layerOf(t, base)), image(t, nil, layerOf(t, tt.b...)))
			var got []string
			for _, d := range c.Differences {
				got = append(got, line(d))
			}
			if c.Verdict != tt.verdict || !slices.Equal(got, tt.want) {
				t.Errorf("%s, want %s:\n%s\nwant\n%s", c.Verdict, tt.verdict, strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

func TestWhyLayersAndConfigurationsDiffer(t *testing.T) {
	x, y := file{name: "x", body: strings.Repeat("x", 5000)}, file{name: "y", body: "y"}
	plain := layerOf(t, x, y)
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		a, b    Image
		verdict string
		want    []string
	}{
		{"the same", image(t, nil, plain), image(t, nil, plain), "reproduced", nil},
		{"gzip or zstd", image(t, nil, gzipped(t, plain, 6, 0)), image(t, nil, enc.EncodeAll(plain, nil)), "equivalent", []string{
			"compression : the layer holds the same archive, compressed differently compression/v1"}},
		{"order", image(t, nil, plain), image(t, nil, layerOf(t, y, x)), "equivalent", []string{
			"archive : the layer holds its files in another order layer-form/v1"}},
		{"a hard link before what it leads to", image(t, nil, layerOf(t, x, file{name: "z", kind: tar.TypeLink, link: "x"})), image(t, nil, layerOf(t, file{name: "z", kind: tar.TypeLink, link: "x"}, x)), "different", []string{
			"archive : the layer holds its files in another order, by which they unpack to something else"}},
		{"a link after what lies below it", image(t, nil, layerOf(t, file{name: "d", kind: tar.TypeSymlink, link: "/etc"}, file{name: "d/x", body: "x"})), image(t, nil, layerOf(t, file{name: "d/x", body: "x"}, file{name: "d", kind: tar.TypeSymlink, link: "/etc"})), "different", []string{
			"archive : the layer holds its files in another order, by which they unpack to something else"}},
		{"a folder after what lies below it", image(t, nil, layerOf(t, file{name: "d", kind: tar.TypeDir, mode: 0o755}, file{name: "d/x", body: "x"})), image(t, nil, layerOf(t, file{name: "d/x", body: "x"}, file{name: "d", kind: tar.TypeDir, mode: 0o755})), "equivalent", []string{
			"archive : the layer holds its files in another order layer-form/v1"}},
		{"created", image(t, map[string]any{"created": "2026-01-01T00:00:00Z"}, plain), image(t, map[string]any{"created": "2026-01-02T00:00:00Z"}, plain), "equivalent", []string{
			"config /created: the configuration holds the time of the build config-times/v1"}},
		{"history", image(t, map[string]any{"history": []any{map[string]any{"created": "2026-01-01T00:00:00Z"}}}, plain),
			image(t, map[string]any{"history": []any{map[string]any{"created": "2026-01-02T00:00:00Z"}}}, plain), "equivalent", []string{
				"config /history/0/created: the configuration holds the time of the build config-times/v1"}},
		{"environment", image(t, map[string]any{"config": map[string]any{"Env": []string{"A=1"}}}, plain), image(t, map[string]any{"config": map[string]any{"Env": []string{"A=2"}, "User": "0"}}, plain), "different", []string{
			"config /config/Env/0: the configuration's config Env 0 differs", "config /config/User: the configuration's config User is only in the rebuilt image"}},
		{"number of layers", image(t, nil, plain), image(t, nil, plain, layerOf(t, y)), "different", []string{
			"manifest /layers: another number of layers", "added /y: only the rebuilt image has this file"}},
		{"a map and a list", image(t, map[string]any{"config": []any{1}}, plain), image(t, map[string]any{"config": map[string]any{"a": 1}}, plain), "different", []string{
			"config /config: the configuration's config differs"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := compare(t, tt.a, tt.b)
			var got []string
			for _, d := range c.Differences {
				got = append(got, line(d))
			}
			if c.Verdict != tt.verdict || !slices.Equal(got, tt.want) {
				t.Errorf("%s, want %s:\n%s\nwant\n%s", c.Verdict, tt.verdict, strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

func TestAnIndexIsComparedPlatformByPlatform(t *testing.T) {
	index := func(arm string) Image {
		l := newLayout(t)
		var list []any
		for arch, body := range map[string]string{"amd64": "x", "arm64": arm} {
			m := l.image(nil, layerOf(t, file{name: "x", body: body}))
			m["platform"] = map[string]any{"os": "linux", "architecture": arch}
			list = append(list, m)
		}
		slices.SortFunc(list, func(a, b any) int {
			return strings.Compare(fmt.Sprint(a.(map[string]any)["platform"]), fmt.Sprint(b.(map[string]any)["platform"]))
		})
		return l.open(l.json("application/vnd.oci.image.index.v1+json", map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": list}))
	}
	c := compare(t, index("one"), index("two"))
	if c.Verdict != attestations.RebuildDifferent || len(c.Platforms) != 2 || c.Platforms[0].Verdict != attestations.RebuildReproduced || c.Platforms[1].Verdict != attestations.RebuildDifferent {
		t.Errorf("%+v", c)
	}
	if len(c.Differences) != 1 || c.Differences[0].Platform != "linux/arm64" {
		t.Errorf("%+v", c.Differences)
	}
	if c := compare(t, index("one"), index("one")); c.Verdict != attestations.RebuildReproduced || len(c.Platforms) != 2 {
		t.Errorf("%+v", c)
	}
	single := image(t, nil, layerOf(t, file{name: "x", body: "x"}))
	if c := compare(t, index("one"), single); c.Verdict != attestations.RebuildDifferent || len(c.Differences) != 1 {
		t.Errorf("%+v", c)
	}
}

func TestHostileLayersAreErrorsAndNoVerdict(t *testing.T) {
	good := image(t, nil, layerOf(t, file{name: "x", body: "x"}))
	cut := layerOf(t, file{name: "x", body: strings.Repeat("y", 3000)})[:1024]
	for name, bad := range map[string]func(l *layout) map[string]any{
		"cut short":      func(l *layout) map[string]any { return l.image(nil, cut) },
		"cut gzip":       func(l *layout) map[string]any { return l.image(nil, gzipped(t, cut, 6, 0)[:40]) },
		"no tar archive": func(l *layout) map[string]any { return l.image(nil, bytes.Repeat([]byte("junk"), 1000)) },
		"not its digest": func(l *layout) map[string]any {
			m := l.image(nil, layerOf(t, file{name: "z"}))
			l.write(filepath.Join("blobs", "sha256", attest.DigestOf(layerOf(t, file{name: "z"})).Hex()), layerOf(t, file{name: "w"}))
			return m
		},
		"no such layer": func(l *layout) map[string]any {
			m := l.image(nil, layerOf(t, file{name: "v"}))
			if err := os.Remove(filepath.Join(l.dir, "blobs", "sha256", attest.DigestOf(layerOf(t, file{name: "v"})).Hex())); err != nil {
				t.Fatal(err)
			}
			return m
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			if c, err := Compare(context.Background(), good, l.open(bad(l)), Options{TempDir: t.TempDir()}); err == nil {
				t.Errorf("%+v", c)
			}
		})
	}
}

// sparse is a layer of a few bytes that says it holds a file of size bytes.
func sparse(t testing.TB, size int64) []byte {
	t.Helper()
	raw := layerOf(t, file{name: "holes", body: "x"})
	head := raw[:tarBlock]
	head[156] = 'S'
	copy(head[257:], "ustar  \x00")
	clear(head[329:])
	copy(head[386:], fmt.Sprintf("%011o\x00%011o\x00", 0, 1))
	head[483-1] = 0
	// The logical size, base-256.
	field := head[483:495]
	clear(field)
	field[0] = 0x80
	binary.BigEndian.PutUint64(field[4:], uint64(size))
	copy(head[148:], "        ")
	total := 0
	for _, c := range head {
		total += int(c)
	}
	copy(head[148:], fmt.Sprintf("%06o\x00 ", total))
	return raw
}

func TestASparseFileIsBounded(t *testing.T) {
	good := image(t, nil, layerOf(t, file{name: "x", body: "x"}))
	if _, err := Compare(context.Background(), good, image(t, nil, sparse(t, 4096)), Options{TempDir: t.TempDir()}); err != nil {
		t.Errorf("a small one: %v", err)
	}
	if c, err := Compare(context.Background(), good, image(t, nil, sparse(t, 1<<50)), Options{TempDir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "more than is read") {
		t.Errorf("a large one: %+v, %v", c, err)
	}
}

func TestDifferencesAreBoundedAndCounted(t *testing.T) {
	var a, b []file
	for i := range attest.MaxDifferences + 50 {
		a = append(a, file{name: fmt.Sprintf("f%05d", i), body: "a", when: day1})
		b = append(b, file{name: fmt.Sprintf("f%05d", i), body: "a", when: day2})
	}
	b[attest.MaxDifferences+40].body = "b"
	c := compare(t, image(t, nil, layerOf(t, a...)), image(t, nil, layerOf(t, b...)))
	if len(c.Differences) != attest.MaxDifferences || c.MoreDifferences != 51 || c.Verdict != attestations.RebuildDifferent {
		t.Errorf("%d differences, %d more, %s", len(c.Differences), c.MoreDifferences, c.Verdict)
	}
	// What nothing covers comes first.
	if c.Differences[0].Kind != attestations.DifferentContent {
		t.Errorf("%+v", c.Differences[0])
	}
}

func TestABombIsNotUnpacked(t *testing.T) {
	bomb := string(gzipped(t, make([]byte, attest.MaxUnpacked+1), 9, day1))
	other := string(gzipped(t, make([]byte, attest.MaxUnpacked+1), 9, day2))
	c := compare(t, image(t, nil, layerOf(t, file{name: "b.gz", body: bomb})), image(t, nil, layerOf(t, file{name: "b.gz", body: other})))
	if c.Verdict != attestations.RebuildDifferent || len(c.Differences) != 1 || !strings.Contains(c.Differences[0].Cause, "look like a time") {
		t.Errorf("%s %+v", c.Verdict, c.Differences)
	}
}
