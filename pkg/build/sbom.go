package build

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/sbom"
	"golang.org/x/sync/errgroup"
)

// document is one SBOM that has been checked.
type document struct {
	platform string
	format   string
	raw      []byte
	digest   attest.Digest
	packages int
	unread   string // as sbom.Summary has it
}

func (d document) mediaType() string {
	if d.format == sbom.SPDX {
		return "application/spdx+json"
	}
	return "application/vnd.cyclonedx+json"
}

// fetchSBOMs gets the SBOMs of all platforms from the engine. What comes back
// was made from the image's content, so it is bounded and checked before it is
// anything else.
func fetchSBOMs(ctx context.Context, e engine, formats []string, queries []sbomQuery) ([]document, error) {
	docs := make([]document, len(formats)*len(queries))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for i, q := range queries {
		for j, format := range formats {
			slot := &docs[i*len(formats)+j]
			g.Go(func() error {
				q := q
				q.format = format
				d, err := fetchSBOM(ctx, e, q)
				*slot = d
				return err
			})
		}
	}
	return docs, g.Wait()
}

func fetchSBOM(ctx context.Context, e engine, q sbomQuery) (document, error) {
	r, err := e.sbom(ctx, q)
	if err != nil {
		return document{}, err
	}
	defer r.Close()
	raw, err := readAtMost(r, attest.MaxSBOM)
	if err != nil {
		return document{}, fmt.Errorf("reading the %s SBOM of %s: %w", q.format, q.platform, err)
	}
	sum, err := sbom.Check(q.format, raw)
	if err != nil {
		return document{}, fmt.Errorf("checking the %s SBOM of %s: %w", q.format, q.platform, err)
	}
	return document{platform: q.platform, format: q.format, raw: raw, digest: attest.DigestOf(raw), packages: sum.Packages, unread: sum.Unread}, nil
}

// statement says that d describes the manifest with digest m.
func (d document) statement(name string, m attest.Digest) (*attest.Statement, error) {
	st, err := attest.NewStatement(sbom.PredicateType(d.format), subjectsOf(name, m), json.RawMessage(d.raw))
	if err != nil {
		return nil, fmt.Errorf("writing SBOM statement: %w", err)
	}
	return st, nil
}
