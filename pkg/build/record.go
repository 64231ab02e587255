package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/platforms"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver/pb"
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
	Secrets, SSH []string // ids
	sources      []string // identifiers of the sources in the definition
	Dockerfiles  []recordedFile

	// What the record of somebody else's BuildKit is judged by.
	Execs      []recordedExec
	Proxy      bool // its steps had no network but BuildKit's proxy
	Incomplete []recordedMiss
}

// recordedExec is a step that ran a command.
type recordedExec struct {
	Platform string
	Network  int  // as in pb.NetMode
	Insecure bool // security.insecure
	Caches   []string
}

// recordedMiss is a request of which BuildKit's proxy kept no digest.
type recordedMiss struct {
	Method string `json:"method"`
	URI    string `json:"uri"`
	Reason string `json:"reason"`
}

type recordedInput struct {
	URI    string            `json:"uri"`
	Digest map[string]string `json:"digest"`
}

type recordedFile struct {
	Filename string `json:"filename"`
	Data     []byte `json:"data"`
}

type recordedID struct {
	ID string `json:"id"`
}

// records is a build's record: one entry for each platform, "" for a build
// that named none, and what the engine counted.
type records struct {
	platforms map[string]*record
	exported  map[int]ocispec.Descriptor // what each output wrote as an image, by its place among them
	cached    int32
	total     int32
}

// copy is for one of several images of a build: each cleans its own, and takes
// from it what has been told, while others do the same.
func (r *records) copy() *records {
	c := *r
	c.platforms = map[string]*record{}
	for name, rec := range r.platforms {
		own := *rec
		own.Locals = slices.Clone(rec.Locals)
		c.platforms[name] = &own
	}
	return &c
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
	out := &records{platforms: map[string]*record{}, exported: map[int]ocispec.Descriptor{}, cached: found.NumCachedSteps, total: found.NumTotalSteps}
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
	for i, d := range found.Result.GetResults() {
		out.exported[int(i)] = ocispec.Descriptor{MediaType: d.MediaType, Digest: digest.Digest(d.Digest), Size: d.Size}
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
					Secrets []recordedID `json:"secrets"`
					SSH     []recordedID `json:"ssh"`
				} `json:"request"`
			} `json:"externalParameters"`
			InternalParameters struct {
				BuilderPlatform string `json:"builderPlatform"`
				BuildConfig     struct {
					Definition []struct {
						Op recordedOp `json:"op"`
					} `json:"llbDefinition"`
				} `json:"buildConfig"`
			} `json:"internalParameters"`
		} `json:"buildDefinition"`
		RunDetails struct {
			Metadata struct {
				Hermetic bool `json:"buildkit_hermetic"`
				BuildKit struct {
					Source struct {
						Infos []recordedFile `json:"infos"`
					} `json:"source"`
					Network struct {
						Mode  string `json:"mode"`
						Proxy struct {
							Incomplete []recordedMiss `json:"incomplete"`
						} `json:"proxy"`
					} `json:"network"`
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
		Proxy:        p.RunDetails.Metadata.BuildKit.Network.Mode == "proxy",
		Incomplete:   p.RunDetails.Metadata.BuildKit.Network.Proxy.Incomplete,
	}
	for _, d := range p.BuildDefinition.InternalParameters.BuildConfig.Definition {
		if src := d.Op.Op.Source; src != nil {
			rec.sources = append(rec.sources, src.Identifier)
		}
		if x := d.Op.exec(); x != nil {
			rec.Execs = append(rec.Execs, *x)
		}
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
	for _, s := range p.BuildDefinition.ExternalParameters.Request.Secrets {
		rec.Secrets = append(rec.Secrets, s.ID)
	}
	for _, s := range p.BuildDefinition.ExternalParameters.Request.SSH {
		rec.SSH = append(rec.SSH, s.ID)
	}
	return rec, nil
}

// recordedOp is a step of BuildKit's definition of a build.
type recordedOp struct {
	Op struct {
		Source *struct {
			Identifier string `json:"identifier"`
		} `json:"source"`
		Exec *struct {
			Network  int `json:"network"`
			Security int `json:"security"`
			Mounts   []struct {
				Dest string `json:"dest"`
				Type int    `json:"mountType"`
			} `json:"mounts"`
		} `json:"exec"`
	} `json:"Op"`
	Platform struct{ OS, Architecture, Variant string } `json:"platform"`
}

func (o recordedOp) exec() *recordedExec {
	x := o.Op.Exec
	if x == nil {
		return nil
	}
	out := &recordedExec{Network: x.Network, Insecure: x.Security == int(pb.SecurityMode_INSECURE)}
	if o.Platform.OS != "" {
		out.Platform = platforms.Format(platforms.Normalize(ocispec.Platform{OS: o.Platform.OS, Architecture: o.Platform.Architecture, Variant: o.Platform.Variant}))
	}
	for _, m := range x.Mounts {
		if m.Type == int(pb.MountType_CACHE) {
			out.Caches = append(out.Caches, m.Dest)
		}
	}
	return out
}

// redact removes what can be a credential from the bytes that are kept. The
// parsed fields are cleaned where they are used.
func (r *record) redact(with *strings.Replacer) {
	r.raw = []byte(with.Replace(string(r.raw)))
	// URLs that only the engine saw: what steps asked a BuildKit's proxy for.
	for _, uri := range r.fetched() {
		if clean := cleanURL(uri); clean != uri {
			whole, _ := json.Marshal(uri)
			less, _ := json.Marshal(clean)
			r.raw = bytes.ReplaceAll(r.raw, whole, less)
		}
	}
	r.digest = digest.FromBytes(r.raw)
}

// usesLocal reports whether the result was made of a folder of the client's.
func (r *record) usesLocal(name string) bool {
	return slices.Contains(r.sources, "local://"+name)
}

func (r *record) fetched() []string {
	var out []string
	for _, d := range r.Dependencies {
		if strings.HasPrefix(d.URI, "http") {
			out = append(out, d.URI)
		}
	}
	for _, m := range r.Incomplete {
		out = append(out, m.URI)
	}
	return out
}

func isHex(s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdef") == ""
}
