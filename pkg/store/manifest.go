package store

import (
	"context"
	"errors"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Annotations by which BuildKit marks the attestation manifests in an index.
const (
	dockerReferenceType   = "vnd.docker.reference.type"
	dockerReferenceDigest = "vnd.docker.reference.digest"
	dockerAttestation     = "attestation-manifest"
)

// document is a manifest or an index; which of the two, index says.
type document struct {
	SchemaVersion int64             `json:"schemaVersion"`
	MediaType     types.MediaType   `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *v1.Descriptor    `json:"config"`
	Layers        []v1.Descriptor   `json:"layers"`
	Manifests     []v1.Descriptor   `json:"manifests"`
	Subject       *v1.Descriptor    `json:"subject"`
	Annotations   map[string]string `json:"annotations"`

	index bool
}

// parseDocument reads a manifest or index strictly. One that could be read as
// both is refused (CVE-2021-41190), and so is one whose own media type differs
// from the one it was served under.
func parseDocument(raw []byte, served types.MediaType) (*document, error) {
	if len(raw) > attest.MaxManifest {
		return nil, fmt.Errorf("the manifest is larger than the %d bytes allowed", attest.MaxManifest)
	}
	var d document
	if err := attest.UnmarshalStrict(raw, &d); err != nil {
		return nil, fmt.Errorf("the manifest cannot be read: %w", err)
	}
	list, single := d.Manifests != nil, d.Config != nil || d.Layers != nil
	switch {
	case d.SchemaVersion != 2:
		return nil, fmt.Errorf("the manifest has schema version %d, want 2", d.SchemaVersion)
	case list && single:
		return nil, errors.New("the manifest could be an index or an image; such a document is refused")
	case !list && !single:
		return nil, errors.New("the manifest is neither an index nor an image")
	}
	d.index = list
	known := d.MediaType
	if known == "" {
		known = served
	}
	switch {
	case d.MediaType != "" && (served.IsIndex() || served.IsImage()) && served != d.MediaType:
		return nil, fmt.Errorf("the manifest says %q but was served as %q", d.MediaType, served)
	case known.IsIndex() && single, known.IsImage() && list:
		return nil, fmt.Errorf("the manifest is not what its media type %q says", known)
	case known.IsIndex() || known.IsImage():
		d.MediaType = known
	case d.MediaType != "":
		return nil, fmt.Errorf("media type %q is neither an image nor an index", d.MediaType)
	case list:
		d.MediaType = types.OCIImageIndex
	default:
		d.MediaType = types.OCIManifestSchema1
	}
	return &d, nil
}

// describe is the descriptor of raw, with nothing in it that was not checked.
func describe(raw []byte, mediaType types.MediaType) v1.Descriptor {
	return v1.Descriptor{MediaType: mediaType, Size: int64(len(raw)), Digest: hash(attest.DigestOf(raw))}
}

func hash(d attest.Digest) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: d.Hex()} }

// digest returns a descriptor's digest in waxseal's form.
func digest(d v1.Descriptor) (attest.Digest, error) { return attest.ParseDigest(d.Digest.String()) }

// readDocument fetches a manifest and parses it.
func readDocument(ctx context.Context, r Repository, d attest.Digest) (*document, v1.Descriptor, error) {
	if p, ok := r.(interface {
		document(ctx context.Context, d attest.Digest) (*document, v1.Descriptor, error)
	}); ok {
		return p.document(ctx, d)
	}
	raw, desc, err := r.Manifest(ctx, d)
	if err != nil {
		return nil, desc, err
	}
	doc, err := parseDocument(raw, desc.MediaType)
	if err != nil {
		return nil, desc, fmt.Errorf("reading manifest %s: %w", d, err)
	}
	return doc, desc, nil
}

// isAttestation reports whether an entry of an index is one of BuildKit's
// attestation manifests. The annotation alone is not believed: an entry with a
// real platform is one that a runtime may pick.
func isAttestation(d v1.Descriptor) bool {
	return d.Annotations[dockerReferenceType] == dockerAttestation &&
		d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}

// Platforms lists the manifests below an index; none for a manifest. An index
// in an index and an entry that is no image are errors: somebody would run
// what nobody looked at.
func Platforms(ctx context.Context, r Repository, d v1.Descriptor) ([]Platform, error) {
	if !d.MediaType.IsIndex() {
		return nil, nil
	}
	top, err := digest(d)
	if err != nil {
		return nil, err
	}
	doc, _, err := readDocument(ctx, r, top)
	if err != nil {
		return nil, err
	}
	var out []Platform
	seen := map[attest.Digest]bool{}
	for i, m := range doc.Manifests {
		if isAttestation(m) {
			continue
		}
		md, err := digest(m)
		switch {
		case err != nil:
			return nil, fmt.Errorf("reading index %s: entry %d: %w", top, i, err)
		case m.MediaType.IsIndex():
			return nil, fmt.Errorf("reading index %s: entry %d (%s) is an index again; give the digest of the inner one", top, i, md)
		case !m.MediaType.IsImage():
			return nil, fmt.Errorf("reading index %s: entry %d (%s) is no image but %q", top, i, md, m.MediaType)
		case seen[md]:
			continue
		}
		seen[md] = true
		if len(out) == attest.MaxPlatforms {
			return nil, fmt.Errorf("reading index %s: more than the %d platforms allowed", top, attest.MaxPlatforms)
		}
		p, err := platformOf(ctx, r, m)
		if err != nil {
			return nil, fmt.Errorf("reading index %s: entry %d: %w", top, i, err)
		}
		m.Platform = p
		out = append(out, Platform{Descriptor: m, Name: p.String()})
	}
	return out, nil
}

// platformOf is the platform an entry states, or the one its configuration
// does.
func platformOf(ctx context.Context, r Repository, m v1.Descriptor) (*v1.Platform, error) {
	if m.Platform != nil && m.Platform.OS != "" {
		return m.Platform, nil
	}
	md, err := digest(m)
	if err != nil {
		return nil, err
	}
	doc, _, err := readDocument(ctx, r, md)
	if err != nil {
		return nil, err
	}
	unknown := &v1.Platform{OS: "unknown", Architecture: "unknown"}
	if doc.Config == nil {
		return unknown, nil
	}
	raw, err := readBlob(ctx, r, *doc.Config, attest.MaxManifest)
	if err != nil {
		return nil, err
	}
	var config struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
		Variant      string `json:"variant"`
	}
	if err := attest.UnmarshalStrict(raw, &config); err != nil {
		return nil, fmt.Errorf("reading image configuration %s: %w", doc.Config.Digest, err)
	}
	if config.OS == "" {
		return unknown, nil
	}
	return &v1.Platform{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant}, nil
}

// readBlob reads a whole blob of at most limit bytes and checks it against its
// descriptor.
func readBlob(ctx context.Context, r Repository, d v1.Descriptor, limit int64) ([]byte, error) {
	bd, err := digest(d)
	if err != nil {
		return nil, err
	}
	if d.Size > limit {
		return nil, &oversize{size: d.Size, limit: limit}
	}
	// What the descriptor carries is as good as the blob, when it is the blob.
	if d.Data != nil && int64(len(d.Data)) == d.Size && attest.DigestOf(d.Data) == bd {
		return d.Data, nil
	}
	rc, err := r.Blob(ctx, bd)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	// One byte more than stated shows a lie about the size.
	buf := make([]byte, 0, max(d.Size, 0)+1)
	for {
		if len(buf) == cap(buf) {
			return nil, fmt.Errorf("reading blob %s: larger than the %d bytes its descriptor states", bd, d.Size)
		}
		n, err := rc.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	if int64(len(buf)) != d.Size || attest.DigestOf(buf) != bd {
		return nil, &mismatch{want: bd}
	}
	return buf, nil
}

type oversize struct{ size, limit int64 }

func (e *oversize) Error() string {
	return fmt.Sprintf("%d bytes, larger than the %d allowed", e.size, e.limit)
}

// mismatch is content that is not what its digest says.
type mismatch struct{ want attest.Digest }

func (e *mismatch) Error() string {
	return fmt.Sprintf("the content is not what the digest %s says", e.want)
}
