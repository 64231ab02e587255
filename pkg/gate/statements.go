package gate

import (
	"context"
	"fmt"
	"slices"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/store"
)

// Statements are what is said about an image and its platforms, as far as the
// trust of a request believes it.
type Statements struct {
	Place    store.Repo
	Digest   attest.Digest // of the image or index
	Index    bool
	Believed []Believed
	Rejected []Evidence // of the types asked for
}

// Believed is one statement about one digest.
type Believed struct {
	Subject   attest.Digest
	Statement *attest.Statement
	Evidence  Evidence // Accepted unless nobody's word was asked for
}

// Statements returns the statements of some predicate types, each accepted by
// the very checks that Judge makes. With unverified, what cannot be verified is
// believed as well, whoever wrote it, and Evidence.Accepted is false. It
// decides nothing else: no level, no rule of a policy.
func (g Gate) Statements(ctx context.Context, req Request, unverified bool, types ...string) (*Statements, error) {
	req.Level = nil
	c, err := prepare(req, false)
	if err != nil {
		return nil, err
	}
	if c.trustedBy == TrustedByNobody && !unverified {
		return nil, usagef("nothing to believe the evidence of %s by: give --policy FILE or --key PUB", c.ref)
	}
	c.Store.Want = func(predicateType string) bool {
		return predicateType == "" || predicateType == attest.OCSPMediaType || slices.Contains(types, predicateType)
	}
	var out *Statements
	err = contain(func() error {
		out, err = g.statements(ctx, c, unverified, types)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the evidence of %q: %w", c.ref, err)
	}
	return out, nil
}

func (g Gate) statements(ctx context.Context, c *check, unverified bool, types []string) (*Statements, error) {
	place, err := g.open(ctx, c)
	if err != nil {
		return nil, err
	}
	desc, err := place.Resolve(ctx)
	if err != nil {
		return nil, err
	}
	platforms, err := store.Platforms(ctx, place, desc)
	if err != nil {
		return nil, err
	}
	out := &Statements{Place: place, Digest: attest.Digest(desc.Digest.String()), Index: desc.MediaType.IsIndex()}
	subjects := []attest.Digest{out.Digest}
	for _, p := range platforms {
		subjects = append(subjects, attest.Digest(p.Descriptor.Digest.String()))
	}
	for _, d := range subjects {
		pieces, err := place.Evidence(ctx, d)
		if err != nil {
			return nil, err
		}
		f, stapled := &found{digest: d}, stapledIn(pieces)
		for i := range pieces {
			e := f.read(&pieces[i], stapled, c, look{rule: c.rule, all: true})
			if !slices.Contains(types, e.PredicateType) {
				continue
			}
			st := statementIn(pieces[i].Raw)
			if st == nil || !st.Binds(d) || !e.Accepted && !unverified {
				out.Rejected = append(out.Rejected, e)
				continue
			}
			out.Believed = append(out.Believed, Believed{Subject: d, Statement: st, Evidence: e})
		}
	}
	return out, nil
}

// statementIn is the statement of a bundle, or one that stands alone.
func statementIn(raw []byte) *attest.Statement {
	if b, err := attest.ParseBundle(raw); err == nil {
		return b.Statement()
	}
	if st, err := attest.ParseStatement(raw); err == nil {
		return st
	}
	return nil
}

// saysRebuild is what came of building an image again, in one line.
func saysRebuild(st *attest.Statement) string {
	var r attestations.Rebuild
	if err := attest.UnmarshalStrict(st.Predicate, &r); err != nil {
		return printable("the result of a rebuild that cannot be read: " + err.Error())
	}
	line := r.Verdict + " by " + r.Build.Builder
	if n := len(r.Differences) + r.MoreDifferences; n > 0 {
		line += ", " + plural(n, "difference", "differences")
	}
	if r.Build.Unverified {
		line += ", from unverified evidence"
	}
	return printable(line)
}
