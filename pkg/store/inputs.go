package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/waxseal/waxseal/pkg/attest"
)

// InputsArtifactType is the artifact type of the bytes that went into an
// image, kept beside it: each layer is one input, under its own digest.
const InputsArtifactType = "application/vnd.waxseal.inputs.v1"

const (
	inputMediaType = "application/octet-stream"
	// inputsPerManifest keeps a manifest of inputs well below MaxManifest, and
	// below what registries take.
	inputsPerManifest = 8192
	// maxInputBlob bounds an input whose size nobody stated.
	maxInputBlob = 64 << 30
	// parallelInputs bounds transfers; most inputs are small.
	parallelInputs = 8
)

// InputBlob is one input as AttachInputs stores it.
type InputBlob struct {
	Digest    attest.Digest
	Size      int64
	MediaType string // default "application/octet-stream"
	// Open starts a fresh reader over the bytes; called only where the place
	// has them neither already nor at From.
	Open func() (io.ReadCloser, error)
	// From is a place that is known to have the blob: a base image's
	// repository. The zero value is none.
	From Reference
}

// AttachInputs stores inputs beside subject, which must be in w, as one or more
// referrers of it. What w has already is not sent again, and the same inputs
// give the same manifests, so attaching twice changes nothing. The order and
// repetitions of inputs do not matter.
func AttachInputs(ctx context.Context, w Writable, subject v1.Descriptor, inputs []InputBlob) ([]v1.Descriptor, error) {
	sd, err := digest(subject)
	if err != nil {
		return nil, err
	}
	fail := func(err error) ([]v1.Descriptor, error) {
		return nil, fmt.Errorf("storing the inputs of %s in %q: %w", sd, w.Reference().Place, err)
	}
	inputs = slices.Clone(inputs)
	slices.SortStableFunc(inputs, func(a, b InputBlob) int { return cmp.Compare(a.Digest, b.Digest) })
	inputs = slices.CompactFunc(inputs, func(a, b InputBlob) bool { return a.Digest == b.Digest })
	if len(inputs) == 0 {
		return nil, nil
	}
	var work []func(context.Context) error
	for _, in := range inputs {
		if _, err := attest.ParseDigest(string(in.Digest)); err != nil {
			return fail(err)
		}
		work = append(work, func(ctx context.Context) error {
			return w.PutBlob(ctx, Blob{Descriptor: in.descriptor(), Open: in.Open, From: in.From})
		})
	}
	config := bytesBlob([]byte("{}"), emptyMediaType)
	work = append(work, func(ctx context.Context) error { return w.PutBlob(ctx, config) })
	if err := parallel(ctx, parallelInputs, work); err != nil {
		return fail(err)
	}
	manifests, err := inputManifests(subject, config.Descriptor, inputs, inputsPerManifest)
	if err != nil {
		return fail(err)
	}
	var out []v1.Descriptor
	for _, raw := range manifests {
		desc, err := putReferrer(ctx, w, sd, raw)
		if err != nil {
			return fail(err)
		}
		out = append(out, desc)
	}
	return out, nil
}

// inputManifests are the manifests that list inputs, at most so many in each.
func inputManifests(subject, config v1.Descriptor, inputs []InputBlob, each int) ([][]byte, error) {
	var out [][]byte
	for part := range slices.Chunk(inputs, each) {
		m := v1.Manifest{
			SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: InputsArtifactType,
			Config:  config,
			Subject: &v1.Descriptor{MediaType: subject.MediaType, Size: subject.Size, Digest: subject.Digest},
		}
		for _, in := range part {
			m.Layers = append(m.Layers, in.descriptor())
		}
		raw, err := json.Marshal(m)
		if err != nil {
			return nil, err
		}
		out = append(out, raw)
	}
	return out, nil
}

func (in *InputBlob) descriptor() v1.Descriptor {
	return v1.Descriptor{MediaType: types.MediaType(cmp.Or(in.MediaType, inputMediaType)), Size: in.Size, Digest: hash(in.Digest)}
}

// WantedInput is an input that FetchInputs looks for. A Size of 0 is not known,
// unless the digest is that of nothing.
type WantedInput struct {
	Digest attest.Digest
	Size   int64
}

// FetchInputs hands what of want the place has to put, several at a time, and
// returns what it has not, in the order asked for. It asks by digest alone, so
// nobody's list of inputs is believed, and an input that is a layer of the
// image itself is found too. put must check that what it got has the digest,
// and fail with what the reader fails with.
func FetchInputs(ctx context.Context, r Repository, want []WantedInput, put func(WantedInput, io.Reader) error) ([]WantedInput, error) {
	var mu sync.Mutex
	missing := map[attest.Digest]bool{}
	var work []func(context.Context) error
	for _, w := range want {
		work = append(work, func(ctx context.Context) error {
			err := fetchInput(ctx, r, w, put)
			if errors.Is(err, ErrNotFound) {
				mu.Lock()
				missing[w.Digest] = true
				mu.Unlock()
				return nil
			}
			if err != nil {
				return fmt.Errorf("fetching input %s: %w", w.Digest, err)
			}
			return nil
		})
	}
	if err := parallel(ctx, parallelInputs, work); err != nil {
		return nil, err
	}
	var out []WantedInput
	for _, w := range want {
		if missing[w.Digest] {
			out = append(out, w)
		}
	}
	return out, nil
}

func fetchInput(ctx context.Context, r Repository, w WantedInput, put func(WantedInput, io.Reader) error) error {
	rc, err := r.Blob(ctx, w.Digest)
	if err != nil {
		return err
	}
	defer rc.Close()
	limit := int64(maxInputBlob)
	if w.Size > 0 {
		limit = w.Size
	}
	return put(w, &capped{Reader: rc, left: limit})
}

// capped fails where a place sends more than was asked for; what it sends less
// shows in the digest.
type capped struct {
	io.Reader
	left int64
}

func (c *capped) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if c.left -= int64(n); c.left < 0 {
		return 0, errors.New("it is larger than stated")
	}
	return n, err
}
