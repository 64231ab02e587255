package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/waxseal/waxseal/pkg/attest"
)

// record is what the engine wrote down about one platform of a build, as far
// as waxseal uses it.
type record struct {
	raw    []byte
	digest digest.Digest

	Dependencies []recordedInput
	Hermetic     bool // every input pinned and no step had a network
	Platform     string
	Locals       []string // sources the engine read from this machine without a digest
	Dockerfiles  []recordedFile
}

type recordedInput struct {
	URI    string            `json:"uri"`
	Digest map[string]string `json:"digest"`
}

type recordedFile struct {
	Filename string `json:"filename"`
	Data     []byte `json:"data"`
}

// records is a build's record: one entry for each platform, "" for a build
// that named none, and what the engine counted.
type records struct {
	platforms map[string]*record
	cached    int32
	total     int32
}

// fetchRecords asks the engine for its record of a build that has ended.
func fetchRecords(ctx context.Context, c *client.Client, ref string) (*records, error) {
	stream, err := c.ControlClient().ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{Ref: ref, EarlyExit: true})
	if err != nil {
		return nil, fmt.Errorf("reading the engine's build record: %w", err)
	}
	var found *controlapi.BuildHistoryRecord
	for {
		ev, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading the engine's build record: %w", err)
		}
		if ev.Record != nil && ev.Record.Ref == ref && ev.Type != controlapi.BuildHistoryEventType_DELETED {
			found = ev.Record
		}
	}
	if found == nil {
		return nil, errors.New("reading the engine's build record: it kept none; provenance needs an engine whose build history is on")
	}
	out := &records{platforms: map[string]*record{}, cached: found.NumCachedSteps, total: found.NumTotalSteps}
	store := proxy.NewContentStore(c.ContentClient())
	results := map[string]*controlapi.BuildResultInfo{}
	if found.Result != nil {
		results[""] = found.Result
	}
	for k, v := range found.Results {
		results[k] = v
	}
	if len(results) > attest.MaxPlatforms {
		return nil, fmt.Errorf("reading the engine's build record: %d platforms, more than %d", len(results), attest.MaxPlatforms)
	}
	for name, result := range results {
		for _, a := range result.GetAttestations() {
			if !strings.HasPrefix(a.Annotations["in-toto.io/predicate-type"], "https://slsa.dev/provenance/") {
				continue
			}
			rec, err := fetchRecord(ctx, store, a)
			if err != nil {
				return nil, fmt.Errorf("reading the engine's build record: %w", err)
			}
			out.platforms[name] = rec
		}
	}
	return out, nil
}

func fetchRecord(ctx context.Context, store content.Provider, a *controlapi.Descriptor) (*record, error) {
	if a.Size < 0 || a.Size > attest.MaxStatement {
		return nil, fmt.Errorf("%d bytes, more than %d", a.Size, attest.MaxStatement)
	}
	d, err := digest.Parse(a.Digest)
	if err != nil {
		return nil, err
	}
	r, err := store.ReaderAt(ctx, ocispec.Descriptor{MediaType: a.MediaType, Digest: d, Size: a.Size})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	raw, err := readAtMost(io.NewSectionReader(r, 0, r.Size()), attest.MaxStatement)
	if err != nil {
		return nil, err
	}
	if d.Algorithm().FromBytes(raw) != d {
		return nil, fmt.Errorf("its bytes do not have the digest %s", d)
	}
	return parseRecord(raw)
}

// parseRecord reads the SLSA v1 predicate that BuildKit keeps for a build.
func parseRecord(raw []byte) (*record, error) {
	var p struct {
		BuildDefinition struct {
			ResolvedDependencies []recordedInput `json:"resolvedDependencies"`
			ExternalParameters   struct {
				Request struct {
					Locals []struct {
						Name string `json:"name"`
					} `json:"locals"`
				} `json:"request"`
			} `json:"externalParameters"`
			InternalParameters struct {
				BuilderPlatform string `json:"builderPlatform"`
			} `json:"internalParameters"`
		} `json:"buildDefinition"`
		RunDetails struct {
			Metadata struct {
				Hermetic bool `json:"buildkit_hermetic"`
				BuildKit struct {
					Source struct {
						Infos []recordedFile `json:"infos"`
					} `json:"source"`
				} `json:"buildkit_metadata"`
			} `json:"metadata"`
		} `json:"runDetails"`
	}
	if err := attest.UnmarshalStrict(raw, &p); err != nil {
		return nil, err
	}
	rec := &record{
		raw: raw, digest: digest.FromBytes(raw),
		Dependencies: p.BuildDefinition.ResolvedDependencies,
		Hermetic:     p.RunDetails.Metadata.Hermetic,
		Platform:     p.BuildDefinition.InternalParameters.BuilderPlatform,
		Dockerfiles:  p.RunDetails.Metadata.BuildKit.Source.Infos,
	}
	for i, d := range rec.Dependencies {
		if d.URI == "" {
			return nil, fmt.Errorf("input %d has no URI", i)
		}
		for alg, v := range d.Digest {
			if !isHex(v) {
				return nil, fmt.Errorf("input %q: digest %s:%q is not hexadecimal", cleanURL(d.URI), alg, v)
			}
		}
	}
	for _, l := range p.BuildDefinition.ExternalParameters.Request.Locals {
		rec.Locals = append(rec.Locals, l.Name)
	}
	return rec, nil
}

// redact removes what can be a credential from the bytes that are kept. The
// parsed fields are cleaned where they are used.
func (r *record) redact(with *strings.Replacer) {
	r.raw = []byte(with.Replace(string(r.raw)))
	r.digest = digest.FromBytes(r.raw)
}

func isHex(s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdef") == ""
}
