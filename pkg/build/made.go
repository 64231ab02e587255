package build

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/patternmatcher"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/store"
)

// maxImageFile bounds a file in which a command writes what image it made.
const maxImageFile = 1 << 20

// newArtifactPattern reads one --artifact.
func newArtifactPattern(p string) (*patternmatcher.PatternMatcher, error) {
	clean := filepath.ToSlash(filepath.Clean(p))
	if p == "" || strings.HasPrefix(p, "!") || filepath.IsAbs(p) || clean == ".." || strings.HasPrefix(clean, "../") {
		return nil, hinted(fmt.Errorf("--artifact %q: a pattern of files below the working folder is wanted", p), "run waxseal in the folder that holds what is made")
	}
	m, err := patternmatcher.New([]string{clean})
	if err != nil {
		return nil, fmt.Errorf("--artifact %q: %w", p, err)
	}
	return m, nil
}

// imageFile is a file in which a command writes which image it made.
type imageFile struct {
	flag, path string
	was        mark // before the command
}

// imageFiles finds them among the arguments of the tools that have such flags.
func imageFiles(args []string, dir string) []imageFile {
	known := []string{"--iidfile", "--digestfile", "--digest-file", "--image-name-with-digest-file", "--image-name-tag-with-digest-file", "--metadata-file", "--image-refs"}
	var out []imageFile
	for i, a := range args {
		flag, path, joined := strings.Cut(a, "=")
		if !slices.Contains(known, flag) {
			continue
		}
		if !joined && i+1 < len(args) {
			path = args[i+1]
		}
		if path == "" {
			continue
		}
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		out = append(out, imageFile{flag: flag, path: path, was: markOf(path)})
	}
	return out
}

// mountedImageFiles are those that somebody has mounted where a command has
// folders of its own, as Kubernetes does /dev/termination-log.
func (w *watched) mountedImageFiles() []string {
	var out []string
	for _, f := range w.images {
		info, err := os.Lstat(f.path)
		if clean := filepath.Clean(f.path); err == nil && info.Mode().IsRegular() && !isBelow(clean, w.dir) &&
			(isBelow(clean, "/dev") || isBelow(clean, "/run") || isBelow(clean, "/var/run")) {
			out = append(out, clean)
		}
	}
	return out
}

// What a command leaves unseen whose image a daemon may have made, and one that
// names an image as its own which nobody saw.
const (
	unseenImage = "how the image of %s was made: where it is watched, podman and buildah alone make one"
	unseenSteps = "what the steps fetched that kaniko took from a cache: nobody looked where they came from"
	unseenMade  = "how the image of %s was made: %s was neither pushed nor left in the working folder"
)

// elsewhere says of images that the command wrote down and that a daemon may
// have made. Before the command is done that is judged by its program.
func (w *watched) elsewhere() []string {
	here := w.req.isOneOf([]string{"podman", "buildah"}) && !w.askedToBuild()
	var out []string
	for _, f := range w.images {
		if !here && (f.flag == "--iidfile" || f.flag == "--metadata-file") {
			out = append(out, fmt.Sprintf(unseenImage, f.flag))
		}
	}
	if w.tookSteps() {
		out = append(out, unseenSteps)
	}
	return out
}

// tookSteps reports whether the record has kaniko take steps of an earlier build
// out of a registry: their tags are digests of all that came before.
func (w *watched) tookSteps() bool {
	if KanikoFolder(os.Getenv) == "" || w.done == nil || w.done.Inputs == nil {
		return false
	}
	key := regexp.MustCompile(`/v2/.*/manifests/[0-9a-f]{64}$`)
	return slices.ContainsFunc(w.done.Inputs.Steps, func(st attestations.InputStep) bool {
		return slices.ContainsFunc(st.Requests, func(q attestations.InputRequest) bool {
			return q.Method == http.MethodGet && q.Status/100 == 2 && key.MatchString(q.URI)
		})
	})
}

// askedToBuild reports whether the record has the command ask a daemon for a
// build, as docker's client and podman's do.
func (w *watched) askedToBuild() bool {
	return w.done != nil && w.done.Inputs != nil && slices.ContainsFunc(w.done.Inputs.Steps, func(st attestations.InputStep) bool {
		return slices.ContainsFunc(st.Requests, func(q attestations.InputRequest) bool {
			u, err := url.Parse(q.URI)
			return err == nil && q.Method == http.MethodPost && strings.HasSuffix(u.Path, "/build")
		})
	})
}

// mark tells whether somebody has written to a file since; the zero mark is that
// of one that is not there.
type mark struct {
	node    uint64
	changed syscall.Timespec
}

func markOf(name string) mark {
	var st syscall.Stat_t
	if syscall.Stat(name, &st) != nil {
		return mark{}
	}
	return mark{st.Ino, st.Ctim}
}

// subjects reads the digests in the file: the command must have written it.
func (f imageFile) subjects() ([]attest.Subject, error) {
	if _, err := os.Stat(f.path); err != nil {
		return nil, fmt.Errorf("reading what image was made, from %s: %w", f.flag, plainPathError(err))
	}
	if markOf(f.path) == f.was {
		return nil, fmt.Errorf("reading what image was made, from %s: %q is older than the command", f.flag, f.path)
	}
	raw, err := readSmall(f.path, maxImageFile)
	if err != nil {
		return nil, fmt.Errorf("reading what image was made, from %s: %w", f.flag, err)
	}
	out, err := parseImageFile(f.flag, raw)
	if err != nil {
		return nil, fmt.Errorf("reading what image was made, from %s: %q: %w", f.flag, f.path, err)
	}
	return out, nil
}

// parseImageFile reads what tools write: a digest, references with one, a line
// each, or buildx's metadata.
func parseImageFile(flag string, raw []byte) ([]attest.Subject, error) {
	if flag == "--metadata-file" {
		return parseMetadata(raw)
	}
	var out []attest.Subject
	for line := range strings.Lines(string(bytes.TrimSpace(raw))) {
		name, digest := "", strings.TrimSpace(line)
		if i := strings.LastIndexByte(digest, '@'); i >= 0 {
			name, digest = digest[:i], digest[i+1:]
		}
		if name == "" && len(digest) == 64 {
			digest = "sha256:" + digest // an older podman leaves it out
		}
		d, err := attest.ParseDigest(digest)
		if err != nil {
			return nil, err
		}
		if name == "" {
			name = map[bool]string{true: "image-id", false: "image"}[flag == "--iidfile"]
		}
		out = append(out, attest.Subject{Name: name, Digest: sha256Hex(d)})
	}
	if len(out) == 0 {
		return nil, errors.New("there is no digest in it")
	}
	return out, nil
}

func parseMetadata(raw []byte) ([]attest.Subject, error) {
	type image struct {
		Digest string `json:"containerimage.digest"`
		Name   string `json:"image.name"`
	}
	var one image
	if err := json.Unmarshal(raw, &one); err != nil {
		return nil, err
	}
	images := map[string]image{"image": one}
	if one.Digest == "" { // of a bake: by target
		images = nil
		if err := json.Unmarshal(raw, &images); err != nil {
			return nil, err
		}
	}
	var out []attest.Subject
	for _, target := range sortedKeys(images) {
		i := images[target]
		if i.Digest == "" {
			continue
		}
		d, err := attest.ParseDigest(i.Digest)
		if err != nil {
			return nil, err
		}
		name, _, _ := strings.Cut(i.Name, ",")
		if name == "" {
			name = target
		}
		out = append(out, attest.Subject{Name: name, Digest: sha256Hex(d)})
	}
	if len(out) == 0 {
		return nil, errors.New("there is no containerimage.digest in it")
	}
	return out, nil
}

// subjects is everything that the command made and that was named, or that it
// wrote down itself.
func (w *watched) subjects(ctx context.Context) ([]attest.Subject, error) {
	var out []attest.Subject
	files, err := artifacts(w.before, w.after, w.req.Artifacts)
	if err != nil {
		return nil, err
	}
	for _, a := range files {
		out = append(out, attest.Subject{Name: a.path, Digest: map[string]string{"sha256": hex.EncodeToString(a.sum[:])}})
	}
	for _, f := range w.images {
		some, err := f.subjects()
		if err != nil {
			return nil, err
		}
		for _, s := range some { // several files may say the same
			if !slices.ContainsFunc(out, func(o attest.Subject) bool { return o.Name == s.Name && maps.Equal(o.Digest, s.Digest) }) {
				out = append(out, s)
			}
		}
		w.pushes = append(w.pushes, w.pushedTo(some)...)
		w.unseen(w.notSeen(f, some)...)
	}
	for _, name := range w.req.Images {
		s, err := w.image(ctx, name)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	switch {
	case len(out) == 0:
		return nil, hinted(errors.New("there is nothing to seal: neither a file nor an image is named"), "name what the command makes with --artifact 'dist/*' or --image REF")
	case len(out) > attest.MaxSubjects:
		return nil, fmt.Errorf("%d files and images are named, and one statement is about %d at most; pack them, or name fewer", len(out), attest.MaxSubjects)
	}
	return out, nil
}

// image is the digest of an image that the command is said to have pushed: the
// gateway must have seen it go there. Who else pushed to the tag meanwhile made
// another image.
func (w *watched) image(ctx context.Context, name string) (attest.Subject, error) {
	ref, err := store.Parse(name)
	if err != nil {
		return attest.Subject{}, err
	}
	place, err := store.Open(ctx, ref, store.Options{Insecure: w.req.Seal.Insecure})
	if err != nil {
		return attest.Subject{}, err
	}
	desc, err := place.Resolve(ctx)
	if err != nil {
		return attest.Subject{}, fmt.Errorf("--image %q: %w", name, err)
	}
	d := attest.Digest(desc.Digest.String())
	s := attest.Subject{Name: name, Digest: sha256Hex(d)}
	if ref.Kind == store.Registry && w.done != nil && !slices.ContainsFunc(w.pushedTo([]attest.Subject{s}), func(p store.Reference) bool { return p.Place == ref.Place }) {
		return attest.Subject{}, hinted(fmt.Errorf("--image %q: the gateway saw nobody push %s there", name, d), "the command must push it itself, in this run, and to the registry that is named")
	}
	return s, nil
}

// notSeen says of images that the command wrote down which of them it may never
// have had: anybody can write down a digest.
func (w *watched) notSeen(f imageFile, images []attest.Subject) []string {
	if f.flag == "--iidfile" || f.flag == "--metadata-file" || w.done == nil {
		return nil // see elsewhere
	}
	var out []string
	for _, s := range images {
		digest := s.Digest["sha256"]
		there := slices.ContainsFunc(w.after.tree.entries, func(e entry) bool {
			return e.mode.IsRegular() && hex.EncodeToString(e.sum[:]) == digest
		})
		if !there && len(w.pushesOf(attest.Digest("sha256:"+digest))) == 0 {
			out = append(out, fmt.Sprintf(unseenMade, f.flag, "sha256:"+digest))
		}
	}
	return out
}

// pushesOf are the URIs to which the record has the command put a manifest.
func (w *watched) pushesOf(d attest.Digest) []string {
	var out []string
	if w.done == nil {
		return nil
	}
	for _, st := range w.done.Inputs.Steps {
		for _, q := range st.Requests {
			if q.Method == http.MethodPut && q.RequestDigest == string(d) && q.Status/100 == 2 {
				out = append(out, q.URI)
			}
		}
	}
	return out
}

// pushedTo is where the record has the command put images.
func (w *watched) pushedTo(images []attest.Subject) []store.Reference {
	var out []store.Reference
	for _, s := range images {
		d := attest.Digest("sha256:" + s.Digest["sha256"])
		for _, uri := range w.pushesOf(d) {
			u, err := url.Parse(uri)
			if err != nil {
				continue
			}
			repo, _, ok := strings.Cut(strings.TrimPrefix(u.Path, "/v2/"), "/manifests/")
			host := u.Host
			if host == "registry-1.docker.io" {
				host = "docker.io" // by which its credentials are known
			}
			if ref, err := store.Parse(host + "/" + repo); ok && err == nil && ref.Kind == store.Registry {
				out = append(out, ref.At(d))
			}
		}
	}
	return out
}

// attach puts the evidence beside the images that were named, and beside those
// that the command pushed and wrote down. That it cannot be put there, where
// nobody named it, is told and no more: it is in the folder.
func (w *watched) attach(ctx context.Context, signed []evidence) ([]string, error) {
	if len(signed) == 0 {
		return nil, nil
	}
	var out []string
	for _, name := range w.req.Images {
		ref, err := store.Parse(name)
		if err != nil {
			return nil, err
		}
		if ref.Kind != store.Registry && ref.Kind != store.Layout {
			continue
		}
		at, err := w.attachTo(ctx, ref, signed)
		if err != nil {
			return nil, err
		}
		out = append(out, at)
	}
	for _, ref := range w.pushes {
		if slices.Contains(out, ref.String()) {
			continue
		}
		at, err := w.attachTo(ctx, ref, signed)
		if err != nil {
			w.notes.add("the evidence is not attached to %s, and stands in %s: %v", ref, w.out(), err)
			continue
		}
		out = append(out, at)
	}
	return out, nil
}

// attachTo puts the evidence beside one image, and returns its reference by
// digest.
func (w *watched) attachTo(ctx context.Context, ref store.Reference, signed []evidence) (string, error) {
	place, err := store.OpenWritable(ctx, ref, store.Options{Insecure: w.req.Seal.Insecure})
	if err != nil {
		return "", err
	}
	desc, err := place.Resolve(ctx)
	if err != nil {
		return "", err
	}
	var parts []store.Attachment
	for _, e := range signed {
		parts = append(parts, store.Attachment{Subject: desc, Bundle: e.bundle})
	}
	if _, err := store.AttachAll(ctx, place, parts); err != nil {
		return "", err
	}
	return ref.At(attest.Digest(desc.Digest.String())).String(), nil
}
