package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/moby/moby/client"

	"github.com/waxseal/waxseal/pkg/attest"
)

// openDocker finds where an image of the Docker daemon can be read with its
// evidence. The daemon itself keeps neither the manifest (with its older
// store) nor the referrers, so the image is matched to a layout among
// Options.Evidence and Options.Images, or else to the repository it was pulled
// from or pushed to.
func openDocker(ctx context.Context, ref Reference, opts Options) (Repo, error) {
	image := ref.Place
	if ref.Digest != "" {
		image += "@" + string(ref.Digest)
	}
	cli, err := dockerClient()
	if err != nil {
		return nil, &Error{Place: ref.String(), Action: "setting up the client of the Docker daemon", Cause: oneLine(err.Error()),
			Way: "set DOCKER_HOST to the daemon's unix:// or tcp:// address", Err: because{ErrUnavailable, err}}
	}
	defer cli.Close()
	got, err := cli.ImageInspect(ctx, image)
	if err != nil {
		return nil, dockerError(ref, "asking the Docker daemon for the image", err)
	}
	id, err := attest.ParseDigest(got.ID)
	if err != nil {
		return nil, dockerError(ref, "reading the Docker daemon's answer", err)
	}
	if l, err := builtHere(ctx, id, opts); l != nil || err != nil {
		return l, err
	}
	from, err := origin(ref, got.RepoDigests)
	if err != nil {
		return nil, err
	}
	repo, err := openRegistry(from, opts)
	if err != nil || got.Descriptor == nil {
		return repo, err
	}
	// The store of containerd has a digest for every name, in a registry or not.
	if _, err := repo.Resolve(ctx); err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return nil, err
		}
		return nil, &Error{Place: ref.String(), Action: "finding the evidence",
			Cause: fmt.Sprintf("the Docker daemon has the image, but waxseal did not build it here, and if it is in %s, nobody can tell: %s", from.Place, e.Cause),
			Way:   wayToEvidence, Err: err}
	}
	return repo, nil
}

// wayToEvidence is the way out where only the daemon knows an image.
const wayToEvidence = "if waxseal built it elsewhere, name the folder of \"waxseal build --out DIR\" with --evidence DIR; or push the image and name it in its registry"

// builtHere returns the layout that holds the image with that ID, opened at its
// manifest; nil when there is none.
func builtHere(ctx context.Context, id attest.Digest, opts Options) (Repo, error) {
	for _, path := range opts.Evidence {
		for _, dir := range []string{filepath.Join(path, imageDir), path} {
			l, err := layoutWith(ctx, dir, id, opts)
			if l != nil || err != nil {
				return l, err
			}
		}
	}
	if opts.Images == "" {
		return nil, nil
	}
	kept, err := os.ReadDir(opts.Images)
	if err != nil {
		return nil, nil // nothing was built here
	}
	for _, k := range kept {
		if strings.HasPrefix(k.Name(), ".") {
			continue // a build on its way
		}
		// One that cannot be read is another image's trouble.
		if l, err := layoutWith(ctx, filepath.Join(opts.Images, k.Name()), id, opts); l != nil && err == nil {
			return l, nil
		}
	}
	return nil, ctx.Err()
}

// layoutWith opens the layout in dir at the manifest of the image with that ID;
// nil when it has none, or is no layout.
func layoutWith(ctx context.Context, dir string, id attest.Digest, opts Options) (Repo, error) {
	if _, err := os.Stat(filepath.Join(dir, "oci-layout")); err != nil {
		return nil, nil
	}
	l, err := openLayout(ctx, Reference{Kind: Layout, Place: dir}, opts, false)
	if err != nil {
		return nil, err
	}
	if l.ref.Digest, err = l.withConfig(ctx, id); l.ref.Digest == "" || err != nil {
		return nil, err
	}
	return l, nil
}

// origin chooses the repository that an image came from. With several, the one
// whose name was asked for; several digests cannot be told apart.
func origin(ref Reference, repoDigests []string) (Reference, error) {
	asked, err := name.ParseReference(ref.Place, name.WeakValidation)
	if err != nil {
		return Reference{}, &ReferenceError{Input: ref.String(), Cause: plain(err).Error()}
	}
	var named, all []Reference
	for _, s := range repoDigests {
		r, err := Parse(s)
		if err != nil || r.Digest == "" {
			continue
		}
		all = append(all, r)
		if r.Place == asked.Context().Name() {
			named = append(named, r)
		}
	}
	if len(named) > 0 {
		all = named
	}
	switch {
	case len(all) == 0:
		return Reference{}, &Error{Place: ref.String(), Action: "finding the evidence",
			Cause: "the Docker daemon has the image, but waxseal did not build it here and it was never pulled or pushed, so its manifest is not known",
			Way:   wayToEvidence, Err: ErrNotFound}
	case len(all) > 1:
		var names []string
		for _, r := range all {
			names = append(names, r.String())
		}
		return Reference{}, &Error{Place: ref.String(), Action: "finding the evidence",
			Cause: fmt.Sprintf("the Docker daemon knows it from %d places: %s", len(all), oneLine(strings.Join(names, " "))),
			Way:   "name one of them instead"}
	}
	return all[0], nil
}

// withConfig returns the manifest in the layout that is id, or whose
// configuration is: the daemon's image ID is one or the other, by its store.
func (l *layout) withConfig(ctx context.Context, id attest.Digest) (attest.Digest, error) {
	index, err := l.index()
	if err != nil {
		return "", err
	}
	todo := index.Manifests
	for i := 0; i < len(todo) && i < attest.MaxReferrers; i++ {
		d, err := digest(todo[i])
		if err != nil || todo[i].ArtifactType != "" && !types.MediaType(todo[i].ArtifactType).IsConfig() || !todo[i].MediaType.IsIndex() && !todo[i].MediaType.IsImage() {
			continue // evidence is no image
		}
		doc, _, err := readDocument(ctx, l, d)
		if err != nil {
			return "", err
		}
		if d == id || doc.Config != nil && doc.Config.Digest == hash(id) {
			return d, nil
		}
		todo = append(todo, doc.Manifests...)
	}
	return "", nil
}

func dockerError(ref Reference, action string, err error) error {
	e := &Error{Place: ref.String(), Action: action, Cause: oneLine(err.Error()), Err: because{ErrUnavailable, err}}
	switch {
	case ctxErr(err):
		return fmt.Errorf("%s of %q: %w", action, ref, err)
	case cerrdefs.IsNotFound(err):
		e.Cause, e.Err = "not found: the daemon has no such image", because{ErrNotFound, err}
		e.Way = "check the name with: docker image ls"
	case client.IsErrConnectionFailed(err):
		e.Way = "check that Docker runs (docker info), and DOCKER_HOST or the docker context in use"
	}
	return e
}

func ctxErr(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
