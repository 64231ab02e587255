package testkit

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// baseEpoch is the time of every file in a base image that is younger, and of
// the image itself, so that the same packages give the same digest.
const baseEpoch = 1735689600 // 2025-01-01

// debianRecipe changes whenever what DebianBase does changes, so that a cached
// image of an earlier recipe is not taken for this one.
const debianRecipe = "minbase-1"

// toolsPackages are the programs by which steps fetch things.
const toolsPackages = "ca-certificates,curl,wget,git,netcat-openbsd,openssl,python3,python3-pip,python3-requests,nodejs,npm,openjdk-17-jre-headless"

// Base returns DebianBase for "debian", ToolsBase for "tools" and TinyBase for
// "tiny".
func Base(ctx context.Context, name string) (string, error) {
	switch name {
	case "debian":
		return DebianBase(ctx)
	case "tools":
		return ToolsBase(ctx)
	case "tiny":
		return TinyBase(ctx)
	}
	return "", fmt.Errorf("unknown base image %q: debian, tools or tiny", name)
}

// DebianBase returns the path of an OCI layout with a minimal Debian bookworm
// in it, made by mmdebstrap from the package sources this machine uses. It is
// made once and kept in the checkout's cache; a run that was interrupted
// leaves nothing behind that the next would take for it.
func DebianBase(ctx context.Context) (string, error) {
	sources, err := debianSources()
	if err != nil {
		return "", err
	}
	return cached("debian", debianRecipe+runtime.GOARCH+sources, func(dir string) error {
		root := filepath.Join(dir, "root.tar")
		defer os.Remove(root)
		if err := debootstrap(ctx, root, sources, ""); err != nil {
			return err
		}
		return writeImage(filepath.Join(dir, "image"), []string{"bash"}, root)
	})
}

// ToolsBase is DebianBase with the programs of toolsPackages, and this
// machine's Go in a layer of its own. It takes about a minute to make.
func ToolsBase(ctx context.Context) (string, error) {
	sources, err := debianSources()
	if err != nil {
		return "", err
	}
	goroot, err := exec.CommandContext(ctx, "go", "env", "GOROOT", "GOVERSION").Output()
	if err != nil {
		return "", fmt.Errorf("asking for the folder of Go: %w", err)
	}
	return cached("tools", "tools-1"+toolsPackages+runtime.GOARCH+sources+string(goroot), func(dir string) error {
		root, golang := filepath.Join(dir, "root.tar"), filepath.Join(dir, "go.tar")
		defer os.Remove(root)
		defer os.Remove(golang)
		// Java's package wants the folder of the manual pages to be there.
		if err := debootstrap(ctx, root, sources, toolsPackages, "--essential-hook=mkdir -p \"$1/usr/share/man/man1\""); err != nil {
			return err
		}
		from, _, _ := strings.Cut(string(goroot), "\n")
		if err := tarGo(golang, from); err != nil {
			return err
		}
		return writeImage(filepath.Join(dir, "image"), []string{"bash"}, root, golang)
	})
}

// debootstrap writes the root file system of a Debian bookworm with the
// packages beside the minimal ones as a tar file.
func debootstrap(ctx context.Context, root, sources, packages string, more ...string) error {
	args := []string{
		"--quiet", "--variant=minbase", "--format=tar",
		// The machine's own files and what only a running system needs stay out.
		"--customize-hook=rm -f \"$1/etc/resolv.conf\" \"$1/etc/hostname\"",
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
	}
	if packages != "" {
		args = append(args, "--include="+packages)
	}
	make := exec.CommandContext(ctx, "mmdebstrap", append(append(args, more...), "bookworm", root, "-")...)
	make.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", baseEpoch))
	make.Stdin = strings.NewReader(sources)
	make.Cancel = func() error { return make.Process.Signal(os.Interrupt) }
	make.WaitDelay = 10 * time.Second
	if out, err := make.CombinedOutput(); err != nil {
		return fmt.Errorf("making a Debian base image with mmdebstrap (apt-get install mmdebstrap): %w\n%s", err, out)
	}
	return nil
}

// tarGo writes what `go build` needs of the Go in goroot, as usr/local/go.
func tarGo(out, goroot string) error {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	err = filepath.WalkDir(goroot, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(goroot, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == "testdata" || strings.HasPrefix(rel, "src/cmd/") || slices.Contains([]string{"api", "doc", "misc", "test", "lib", ".git"}, rel) {
				return fs.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(rel, "_test.go") || !d.Type().IsRegular() {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		h := tar.Header{Typeflag: tar.TypeReg, Name: "usr/local/go/" + rel, Mode: int64(info.Mode().Perm()), Size: int64(len(content)), ModTime: time.Unix(baseEpoch, 0)}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	})
	if err == nil {
		err = w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "usr/local/bin/go", Linkname: "../go/bin/go", Mode: 0o777, ModTime: time.Unix(baseEpoch, 0)})
	}
	if err != nil {
		return fmt.Errorf("packing Go: %w", err)
	}
	return errors.Join(w.Close(), f.Close())
}

// debianSources returns Debian's own entries of the machine's package sources,
// in one-line form; the suites of other distributors do not belong in a base
// image.
func debianSources() (string, error) {
	const targets = "$(CREATED_BY) $(SITE) $(REPO_URI) $(RELEASE) $(COMPONENT)"
	out, err := exec.Command("apt-get", "indextargets", "--format", targets, "Created-By: Packages", "Origin: Debian").Output()
	if err != nil {
		return "", fmt.Errorf("asking apt for the package sources (is this Debian?): %w", err)
	}
	lines := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) == 5 && strings.HasPrefix(f[3], "bookworm") && f[4] == "main" {
			lines[fmt.Sprintf("deb %s %s main\n", strings.TrimSuffix(f[2], "/"), f[3])] = true
		}
	}
	if len(lines) == 0 {
		return "", fmt.Errorf("asking apt for the package sources: no Debian bookworm among them (apt-get update?)")
	}
	sorted := make([]string, 0, len(lines))
	for line := range lines {
		sorted = append(sorted, line)
	}
	sort.Strings(sorted)
	return strings.Join(sorted, ""), nil
}

// DebianSource fetches the source of a package of Debian bookworm into dir and
// returns the folder of it. apt's own lists stay as they are. It takes
// dpkg-source (apt-get install dpkg-dev).
func DebianSource(ctx context.Context, name, dir string) (string, error) {
	lines, err := debianSources()
	if err != nil {
		return "", err
	}
	var sources strings.Builder
	for line := range strings.Lines(lines) {
		if strings.HasSuffix(line, " bookworm main\n") {
			sources.WriteString(strings.Replace(line, "deb ", "deb-src ", 1))
		}
	}
	for _, sub := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return "", err
		}
	}
	list := filepath.Join(dir, "sources.list")
	if err := os.WriteFile(list, []byte(sources.String()), 0o644); err != nil {
		return "", err
	}
	own := []string{
		"-qq", "-o", "Dir::Etc::sourcelist=" + list, "-o", "Dir::Etc::sourceparts=-", "-o", "APT::Sandbox::User=",
		"-o", "Dir::State::lists=" + filepath.Join(dir, "lists"), "-o", "Dir::Cache=" + filepath.Join(dir, "cache"),
	}
	for _, command := range [][]string{{"update"}, {"source", name}} {
		apt := exec.CommandContext(ctx, "apt-get", append(own, command...)...)
		apt.Dir = dir
		if out, err := apt.CombinedOutput(); err != nil {
			return "", fmt.Errorf("fetching the source of %s: apt-get %s: %w\n%s", name, command[0], err, out)
		}
	}
	found, err := filepath.Glob(filepath.Join(dir, name+"-*"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("fetching the source of %s: %d folders came of it", name, len(found))
	}
	return found[0], nil
}

// tinyApplets are the commands that the tiny base offers.
const tinyApplets = "sh cat cp echo env false grep head id ls mkdir mv nc printf rm sed sha256sum sleep tail tar test touch true uname wc wget"

// TinyBase returns the path of an OCI layout with nothing but Debian's static
// busybox in it: small enough for a script that builds in a second.
func TinyBase(ctx context.Context) (string, error) {
	return cached("tiny", "busybox-2"+runtime.GOARCH+tinyApplets, func(dir string) error {
		fetch := exec.CommandContext(ctx, "apt-get", "download", "busybox-static")
		fetch.Dir = dir
		if out, err := fetch.CombinedOutput(); err != nil {
			return fmt.Errorf("downloading Debian's busybox-static (apt-get update?): %w\n%s", err, out)
		}
		deb, err := filepath.Glob(filepath.Join(dir, "busybox-static_*.deb"))
		if err != nil || len(deb) != 1 {
			return fmt.Errorf("downloading Debian's busybox-static: no package arrived")
		}
		unpack := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb[0])
		data, err := unpack.Output()
		if err != nil {
			return fmt.Errorf("unpacking busybox-static: %w", err)
		}
		control, err := exec.CommandContext(ctx, "dpkg-deb", "--field", deb[0]).Output()
		if err != nil {
			return fmt.Errorf("reading busybox-static: %w", err)
		}
		busybox, err := fileInTar(data, "./bin/busybox")
		if err != nil {
			return err
		}
		root := filepath.Join(dir, "root.tar")
		if err := os.WriteFile(root, tinyTree(busybox, control), 0o644); err != nil {
			return err
		}
		return writeImage(filepath.Join(dir, "image"), []string{"sh"}, root)
	})
}

func fileInTar(data []byte, name string) ([]byte, error) {
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if err != nil {
			return nil, fmt.Errorf("looking for %q in the package: %w", name, err)
		}
		if h.Name == name {
			return io.ReadAll(r)
		}
	}
}

// tinyTree is the root file system of the tiny base. The package stands in
// dpkg's status file, so that an SBOM of the image names it.
func tinyTree(busybox, control []byte) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(h tar.Header, content []byte) {
		h.Size, h.ModTime, h.Format = int64(len(content)), time.Unix(baseEpoch, 0), tar.FormatPAX
		// Writing to memory fails only for a header that this function got wrong.
		if err := w.WriteHeader(&h); err != nil {
			panic(err)
		}
		w.Write(content)
	}
	for _, dir := range []string{"bin/", "dev/", "etc/", "home/", "proc/", "sys/", "usr/", "usr/lib/", "var/", "var/lib/", "var/lib/dpkg/"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, busybox)
	for applet := range strings.FieldsSeq(tinyApplets) {
		add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777}, nil)
	}
	status := strings.Replace(string(control), "\n", "\nStatus: install ok installed\n", 1) + "\n"
	add(tar.Header{Typeflag: tar.TypeReg, Name: "var/lib/dpkg/status", Mode: 0o644}, []byte(status))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nnogroup:x:65534:\n"))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "usr/lib/os-release", Mode: 0o644}, []byte("ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nPRETTY_NAME=\"tiny test base\"\n"))
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "etc/os-release", Linkname: "../usr/lib/os-release", Mode: 0o777}, nil)
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// writeImage makes an OCI layout at dir whose only image, tagged latest, has
// the trees of the tar files as its layers.
func writeImage(dir string, cmd []string, tarFiles ...string) error {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	created := v1.Time{Time: time.Unix(baseEpoch, 0).UTC()}
	for _, file := range tarFiles {
		layer, err := tarball.LayerFromFile(file, tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(gzip.BestSpeed), tarball.WithCompressedCaching)
		if err != nil {
			return fmt.Errorf("reading the base image's files: %w", err)
		}
		img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{Created: created, Comment: "Debian packages"}})
		if err != nil {
			return err
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.Architecture, config.OS, config.Created = runtime.GOARCH, "linux", created
	config.Config = v1.Config{Cmd: cmd, Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	out, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return out.AppendImage(img,
		layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "latest"}),
		layout.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))
}

// cached returns .cache/base/NAME, a link to the result for this recipe. Where
// there is none, fill makes it, as "image" in an empty folder.
func cached(name, recipe string, fill func(dir string) error) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	cache := filepath.Join(root, ".cache", "base")
	// One takes minutes to make: whoever needs another does not wait for it.
	unlock, err := lock(filepath.Join(cache, "."+name+".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	sum := sha256.Sum256([]byte(recipe))
	keyed := name + "-" + hex.EncodeToString(sum[:6])
	link, final := filepath.Join(cache, name), filepath.Join(cache, keyed)
	if _, err := os.Stat(final); err != nil {
		// Only one process is past the lock: another's half-made folder is dead.
		work := filepath.Join(cache, "."+name)
		if err := os.RemoveAll(work); err != nil {
			return "", err
		}
		if err := os.MkdirAll(work, 0o755); err != nil {
			return "", err
		}
		defer os.RemoveAll(work)
		if err := fill(work); err != nil {
			return "", err
		}
		if err := os.Rename(filepath.Join(work, "image"), final); err != nil {
			return "", err
		}
	}
	if to, err := os.Readlink(link); err != nil || to != keyed {
		os.Remove(link)
		if err := os.Symlink(keyed, link); err != nil {
			return "", err
		}
	}
	return link, nil
}
