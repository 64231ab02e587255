package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/net/http2"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/store"
)

// daemonImages answers the engine for the images of the Docker daemon that
// docker's own builder would begin with: those that were built or loaded there. It
// is a registry with a repository for each image, called by the image's ID. Call
// serve, and close in any case.
type daemonImages struct {
	daemon *dockerDaemon
	home   string // folder for what the daemon gives

	conn   net.Conn
	served sync.WaitGroup
	ctx    context.Context // of what the daemon is asked
	cancel context.CancelFunc

	mu     sync.Mutex
	saved  map[string]*savedImage // by repository
	taken  []string               // names that were asked for, each once
	absent []string               // notes on what is not there as docker's own builder leaves it, each once
}

// savedImage is an image as the daemon gave it, in a layout.
type savedImage struct {
	layout string
	root   ocispec.Descriptor
}

// serve returns the engine's end.
func (d *daemonImages) serve() (*os.File, error) {
	conn, theirs, err := socketPair("channel of the daemon's images")
	if err != nil {
		return nil, err
	}
	d.conn, d.saved = conn, map[string]*savedImage{}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	mux := http.NewServeMux()
	mux.HandleFunc("GET /image", d.image)
	mux.HandleFunc("GET /store", d.store)
	mux.HandleFunc("POST /load", d.load)
	mux.HandleFunc("GET /v2/{repository}/{kind}/{what}", d.content)
	d.served.Go(func() { serveGreeted(d.ctx, conn, mux) })
	return theirs, nil
}

// serveGreeted serves a connection from when its client has begun to speak. By
// itself a server of HTTP/2 hangs up on who has not within ten seconds, and the
// engine does when it has started, which on a busy machine is later.
func serveGreeted(ctx context.Context, conn net.Conn, h http.Handler) {
	first := make([]byte, 1)
	if _, err := conn.Read(first); err == nil {
		(&http2.Server{}).ServeConn(&begun{conn, first}, &http2.ServeConnOpts{Handler: h, Context: ctx})
	}
}

// begun is a connection whose first bytes were read already.
type begun struct {
	net.Conn
	first []byte
}

func (b *begun) Read(p []byte) (int, error) {
	if len(b.first) == 0 {
		return b.Conn.Read(p)
	}
	n := copy(p, b.first)
	b.first = b.first[n:]
	return n, nil
}

// close ends it, and removes what the daemon gave.
func (d *daemonImages) close() {
	if d == nil || d.conn == nil {
		return
	}
	d.cancel()
	d.conn.Close()
	d.served.Wait()
	d.daemon.close()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.saved {
		os.RemoveAll(s.layout)
	}
}

// notes say which images builds began with.
func (d *daemonImages) notes() []string {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, name := range d.taken {
		out = append(out, fmt.Sprintf("the base image %s is the Docker daemon's, as docker's own builder would have it: its digest is recorded, and no registry need have it", name))
	}
	return append(out, d.absent...)
}

// image says which repository a reference means, if any: {"repository": …}, or
// {"error": …}.
func (d *daemonImages) image(w http.ResponseWriter, r *http.Request) {
	var said struct {
		Repository string `json:"repository,omitempty"`
		Error      string `json:"error,omitempty"`
	}
	var err error
	said.Repository, err = d.find(r.Context(), r.URL.Query().Get("ref"), r.URL.Query().Get("platform"), r.URL.Query().Get("registry"))
	if err != nil {
		said.Error = err.Error()
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(said)
}

// daemonImage is what the daemon says of an image.
type daemonImage struct {
	ID, Os, Architecture, Variant string
	RepoDigests                   []string
	Descriptor                    *ocispec.Descriptor // of one in the store of containerd
}

// storeAnswer tells the engine of the daemon's store.
type storeAnswer struct {
	Index  bool   `json:"index,omitempty"`  // it keeps an index, and calls images by the digest of that or their manifest
	Absent bool   `json:"absent,omitempty"` // no daemon answers
	Error  string `json:"error,omitempty"`
}

func (d *daemonImages) askStore(ctx context.Context) (storeAnswer, error) {
	var info struct{ DriverStatus [][2]string }
	if err := d.daemon.get(ctx, "/info", &info); err != nil {
		return storeAnswer{Absent: true}, err
	}
	return storeAnswer{Index: slices.Contains(info.DriverStatus, [2]string{"driver-type", "io.containerd.snapshotter.v1"})}, nil
}

// store says what store the daemon has.
func (d *daemonImages) store(w http.ResponseWriter, r *http.Request) {
	said, _ := d.askStore(r.Context())
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(said)
}

// load gives the daemon an image that docker's own builder would have left there.
// What it says against that ends the build, as it ends docker's. That no daemon
// answers, which docker could not build without, is noted.
func (d *daemonImages) load(w http.ResponseWriter, r *http.Request) {
	said, err := d.askStore(r.Context())
	if err != nil {
		d.mu.Lock()
		for _, name := range r.URL.Query()["name"] {
			note := notInDocker(strconv.Quote(familiar(name))) + ": " + clipLine(err.Error())
			if !slices.Contains(d.absent, note) {
				d.absent = append(d.absent, note)
			}
		}
		d.mu.Unlock()
	} else if err := d.daemon.load(r.Context(), r.Body); err != nil {
		said.Error = err.Error()
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(said)
}

// notInDocker says that an image is not where docker's own builder leaves it.
func notInDocker(label string) string {
	return fmt.Sprintf("the image %s is not in Docker, where docker's own builder leaves it", label)
}

// find returns the repository of the image that a reference means, "" where it
// means none of the daemon's. Of the image with the ID registry one has it, which is
// asked.
func (d *daemonImages) find(ctx context.Context, ref, platform, registry string) (string, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", err
	}
	tagged, ok := named.(reference.Tagged)
	if !ok {
		return "", nil // a digest alone is what a registry has
	}
	repository := reference.TrimNamed(named)
	name := reference.FamiliarName(repository) + ":" + tagged.Tag()
	var img daemonImage
	if d.daemon.get(ctx, "/images/"+(&url.URL{Path: name}).EscapedPath()+"/json", &img) != nil {
		return "", nil // not there, nor perhaps a daemon: a registry says what is wrong
	}
	id, err := attest.ParseDigest(img.ID)
	if err != nil || !img.fits(platform) || img.isFrom(repository) || img.ID == registry {
		return "", nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.saved[id.Hex()]
	if s == nil {
		if s, err = d.save(id); err != nil {
			return "", fmt.Errorf("the Docker daemon's image %s: %w", name, err)
		}
		d.saved[id.Hex()] = s
	}
	if pinned, ok := named.(reference.Canonical); ok && pinned.Digest() != s.root.Digest {
		return "", nil
	}
	if !slices.Contains(d.taken, name) {
		d.taken = append(d.taken, name)
	}
	return id.Hex(), nil
}

// fits reports whether an image is for a platform, as os/architecture/variant.
func (i *daemonImage) fits(platform string) bool {
	p, err := platforms.Parse(platform)
	return err == nil && platforms.Only(p).Match(ocispec.Platform{OS: i.Os, Architecture: i.Architecture, Variant: i.Variant})
}

// isFrom reports whether the daemon got an image from the repository of its name,
// or brought it there: then that has it, with the digest that everybody knows. In
// the store of containerd an image has this digest in any case.
func (i *daemonImage) isFrom(repository reference.Named) bool {
	return i.Descriptor == nil && slices.ContainsFunc(i.RepoDigests, func(s string) bool {
		named, err := reference.ParseNormalizedNamed(s)
		return err == nil && named.Name() == repository.Name()
	})
}

// save has the daemon give an image.
func (d *daemonImages) save(id attest.Digest) (_ *savedImage, err error) {
	layout, err := os.MkdirTemp(d.home, ".tmp-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(layout)
		}
	}()
	req, err := http.NewRequestWithContext(d.ctx, http.MethodGet, "http://docker/images/"+string(id)+"/get", nil)
	if err != nil {
		return nil, err
	}
	resp, err := d.daemon.client.Do(req)
	if err != nil {
		return nil, lastCause(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the daemon answers %s", resp.Status)
	}
	if err := store.UnpackSaved(d.ctx, resp.Body, layout); err != nil {
		return nil, err
	}
	raw, err := readSmall(filepath.Join(layout, "index.json"), attest.MaxManifest)
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, err
	}
	// An image is there once for each of its names, and with it what refers to it.
	images := slices.CompactFunc(slices.DeleteFunc(index.Manifests, refers), func(a, b ocispec.Descriptor) bool { return a.Digest == b.Digest })
	if len(images) != 1 {
		return nil, errors.New("what the daemon gives is not one image")
	}
	return &savedImage{layout, images[0]}, nil
}

// refers reports whether something was saved because it refers to an image: an
// attestation.
func refers(m ocispec.Descriptor) bool { return m.Annotations["io.containerd.manifest.subject"] != "" }

// content gives a manifest or a blob. The engine checks that it has the digest.
func (d *daemonImages) content(w http.ResponseWriter, r *http.Request) {
	kind, what := r.PathValue("kind"), r.PathValue("what")
	d.mu.Lock()
	s := d.saved[r.PathValue("repository")]
	d.mu.Unlock()
	if s == nil || kind != "manifests" && kind != "blobs" {
		http.NotFound(w, r)
		return
	}
	if kind == "manifests" && !strings.Contains(what, ":") {
		what = s.root.Digest.String() // by a tag, whichever
	}
	digest, err := attest.ParseDigest(what)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	f, err := os.Open(filepath.Join(s.layout, "blobs", "sha256", digest.Hex()))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer f.Close()
	form := "application/octet-stream"
	if kind == "manifests" {
		if form, err = manifestForm(f); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	w.Header().Set("Content-Type", form)
	w.Header().Set("Docker-Content-Digest", string(digest))
	st, err := f.Stat()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	http.ServeContent(w, r, "", st.ModTime(), f)
}

// manifestForm reads the media type of a manifest, and goes back to its beginning.
func manifestForm(f *os.File) (string, error) {
	raw, err := readAtMost(f, attest.MaxManifest)
	if err == nil {
		_, err = f.Seek(0, 0)
	}
	var m struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
	}
	if err == nil {
		err = json.Unmarshal(raw, &m)
	}
	switch {
	case err != nil:
		return "", fmt.Errorf("reading a manifest: %w", err)
	case m.MediaType != "":
		return m.MediaType, nil
	case m.Manifests != nil:
		return ocispec.MediaTypeImageIndex, nil
	}
	return ocispec.MediaTypeImageManifest, nil
}
