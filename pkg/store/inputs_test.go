package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/attest"
)

func inputsOf(texts ...string) []InputBlob {
	var out []InputBlob
	for _, s := range texts {
		out = append(out, InputBlob{
			Digest: attest.DigestOf([]byte(s)), Size: int64(len(s)),
			Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s)), nil },
		})
	}
	return out
}

// collectInputs is a put for FetchInputs that keeps what holds its digest.
func collectInputs() (func(WantedInput, io.Reader) error, map[attest.Digest]string) {
	var mu sync.Mutex
	got := map[attest.Digest]string{}
	return func(w WantedInput, r io.Reader) error {
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if attest.DigestOf(b) != w.Digest {
			return errors.New("wrong bytes")
		}
		mu.Lock()
		defer mu.Unlock()
		got[w.Digest] = string(b)
		return nil
	}, got
}

func TestInputsGoBesideAnImageAndComeBack(t *testing.T) {
	for name, place := range map[string]func(t *testing.T) string{
		"registry": func(t *testing.T) string { return startRegistry(t, testkit.RegistryOptions{}) + "/app" },
		"registry without 1.1": func(t *testing.T) string {
			return startRegistry(t, testkit.RegistryOptions{NoReferrers: true}) + "/app"
		},
		"layout":                 func(t *testing.T) string { return "oci:" + filepath.Join(t.TempDir(), "out") },
		"layout opened by a tag": func(t *testing.T) string { return "oci:" + filepath.Join(t.TempDir(), "out") + ":v1" },
	} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			from, top := testIndex(t)
			w := openW(t, place(t))
			if err := Copy(ctx, open(t, from, Options{}), w, top, CopyOptions{}); err != nil {
				t.Fatal(err)
			}
			inputs := inputsOf("one", "two", "", "two")
			first := must(AttachInputs(ctx, w, top, inputs))(t)
			again := must(AttachInputs(ctx, w, top, inputsOf("", "two", "one")))(t)
			if len(first) != 1 || len(again) != 1 || first[0].Digest != again[0].Digest {
				t.Fatalf("attached as %v, then as %v", first, again)
			}
			if listed := must(listing(ctx, w, attest.Digest(top.Digest.String()), first))(t); !listed[first[0].Digest] {
				t.Error("not listed as a referrer")
			}
			put, got := collectInputs()
			absent := WantedInput{Digest: attest.DigestOf([]byte("three"))}
			missing := must(FetchInputs(ctx, w, []WantedInput{
				{Digest: inputs[0].Digest, Size: 3}, absent, {Digest: inputs[1].Digest}, {Digest: inputs[2].Digest},
			}, put))(t)
			if len(missing) != 1 || missing[0] != absent {
				t.Errorf("missing %v", missing)
			}
			if len(got) != 3 || got[inputs[0].Digest] != "one" {
				t.Errorf("got %v", got)
			}
			// The artifact is no evidence, and does not stand in its way.
			for _, p := range must(w.Evidence(ctx, attest.Digest(top.Digest.String())))(t) {
				if p.Raw != nil || p.Skipped != theInputs {
					t.Errorf("listed as %+v", p)
				}
			}
		})
	}
}

func TestInputsAreMountedAndNotSentTwice(t *testing.T) {
	ctx := context.Background()
	var log bytes.Buffer
	addr := startRegistry(t, testkit.RegistryOptions{Log: &log})
	from, top := testIndex(t)
	w, base := openW(t, addr+"/app"), openW(t, addr+"/base")
	if err := Copy(ctx, open(t, from, Options{}), w, top, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	in := inputsOf("a base layer", "here already")
	for i, w := range []Writable{base, w} {
		if err := w.PutBlob(ctx, Blob{Descriptor: in[i].descriptor(), Open: in[i].Open}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range in {
		in[i].Open = func() (io.ReadCloser, error) { return nil, fmt.Errorf("input %d was read", i) }
	}
	in[0].From = base.Reference()
	if _, err := AttachInputs(ctx, w, top, in); err != nil {
		t.Error(err)
	}
}

func TestFetchInputsBelievesNoSize(t *testing.T) {
	ctx := context.Background()
	w := openW(t, "oci:"+filepath.Join(t.TempDir(), "out"))
	in := inputsOf("larger than stated")[0]
	if err := w.PutBlob(ctx, Blob{Descriptor: in.descriptor(), Open: in.Open}); err != nil {
		t.Fatal(err)
	}
	put, got := collectInputs()
	_, err := FetchInputs(ctx, w, []WantedInput{{Digest: in.Digest, Size: 3}}, put)
	if err == nil || !strings.Contains(err.Error(), "larger than stated") || len(got) != 0 {
		t.Errorf("%v, %v", err, got)
	}
}

func TestInputsFillSeveralManifests(t *testing.T) {
	manifests := must(inputManifests(describe([]byte("{}"), types.OCIImageIndex), describe([]byte("{}"), emptyMediaType), inputsOf("1", "2", "3"), 2))(t)
	layers := 0
	for _, raw := range manifests {
		layers += len(must(parseDocument(raw, types.OCIManifestSchema1))(t).Layers)
	}
	if len(manifests) != 2 || layers != 3 {
		t.Errorf("%d manifests with %d layers", len(manifests), layers)
	}
	// As many as go into one manifest, with the longest of digests and sizes.
	in := InputBlob{Digest: attest.DigestOf(nil), Size: maxInputBlob, MediaType: string(types.DockerManifestSchema2)}
	full := must(inputManifests(v1.Descriptor{}, v1.Descriptor{}, slices.Repeat([]InputBlob{in}, inputsPerManifest), inputsPerManifest))(t)
	if len(full) != 1 || len(full[0]) > attest.MaxManifest {
		t.Errorf("%d manifests, the first of %d bytes", len(full), len(full[0]))
	}
}
