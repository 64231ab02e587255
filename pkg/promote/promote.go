// Package promote brings an image that passes from one place to another. Call
// Run. It judges the source, copies image, platforms and evidence by digest,
// reads all of it again, attaches a signed verification summary (VSA) for every
// digest, and moves the tag last: a run that ends early, for whatever reason,
// has moved no tag, and repeating it finishes the work.
package promote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/sign"
	"github.com/waxseal/waxseal/pkg/store"
)

// freshFor is how long a VSA of an earlier run is taken as this run's own:
// repeating a run leaves no second copy, promoting again next week renews it.
const freshFor = 24 * time.Hour

// Request is what to promote, where to, and on what condition.
type Request struct {
	Source      store.Reference
	Destination store.Reference // without a digest: what passes decides that
	// Judge is the condition. Its Reference is set to Source, and its Name to
	// the destination: the destination's rules decide.
	Judge gate.Request
	// Signer signs the VSAs; needed unless DryRun.
	Signer sign.Signer
	// TrySigner, where set, is asked at once whether Signer will open, beside the
	// verdict; when not, the promotion ends, and has written nothing.
	TrySigner func(context.Context) error
	// VerifierID is verifier.id of the VSAs. Default:
	// attestations.UnhostedVerifierID.
	VerifierID      string
	VerifierVersion map[string]string
	// Store says how to reach the destination.
	Store store.Options
	// DryRun judges, reads both places and plans, and writes nothing.
	DryRun bool
	// Progress receives each step as it is done, one at a time. Nil drops them.
	Progress func(Step)
}

// Actions of a Step.
const (
	ActionCopy = "copy"
	ActionSign = "sign"
	ActionTag  = "tag"
)

// Step is one thing that is done, or would be.
type Step struct {
	Action   string        `json:"action"`
	What     string        `json:"what"` // "index", "manifest", "evidence", "blob", "vsa", or the tag
	Digest   attest.Digest `json:"digest,omitempty"`
	Platform string        `json:"platform,omitempty"`
	Detail   string        `json:"detail,omitempty"`
	// Unchanged reports that the destination had it already.
	Unchanged bool `json:"unchanged,omitempty"`
}

// Result is what was planned or done. In JSON it is the command's output.
type Result struct {
	Source      string        `json:"source"`
	Destination string        `json:"destination"`
	Digest      attest.Digest `json:"digest,omitempty"`
	DryRun      bool          `json:"dryRun"`
	Promoted    bool          `json:"promoted"` // the tag is where it should be
	Steps       []Step        `json:"steps"`
	Verdict     *gate.Verdict `json:"verdict"`
}

// UsageError is a request that makes no sense whatever the image.
type UsageError struct{ err error }

func (e *UsageError) Error() string { return e.err.Error() }
func (e *UsageError) Unwrap() error { return e.err }

// Run promotes. Where the verdict is no pass, nothing is written, the error is
// nil, and Result.Promoted is false: the verdict says why. Errors are a
// *UsageError, or what went wrong on the way.
func Run(ctx context.Context, req Request) (*Result, error) {
	if err := req.check(); err != nil {
		return nil, &UsageError{err}
	}
	asked, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tried := make(chan struct{})
	go func() {
		defer close(tried)
		if req.TrySigner == nil {
			return
		}
		if err := req.TrySigner(asked); err != nil {
			cancel(err)
		}
	}()
	res, err := run(asked, req, tried)
	if ctx.Err() == nil && asked.Err() != nil {
		return nil, context.Cause(asked) // a verdict that was cut short is none
	}
	return res, err
}

// run is Run with a request that was checked. Nothing is written before tried is
// closed.
func run(ctx context.Context, req Request, tried <-chan struct{}) (*Result, error) {
	res := &Result{Source: req.Source.String(), Destination: req.Destination.String(), DryRun: req.DryRun, Steps: []Step{}}
	judge := req.Judge
	judge.Reference, judge.Name = req.Source.String(), gate.Name(req.Destination)
	var err error
	if res.Verdict, err = (gate.Gate{}).Judge(ctx, judge); err != nil {
		return nil, &UsageError{err}
	}
	res.Digest = res.Verdict.Digest
	if res.Verdict.Decision != gate.Pass {
		return res, nil
	}
	if <-tried; ctx.Err() != nil {
		return nil, ctx.Err()
	}
	p := &promotion{Request: req, res: res}
	if err := p.run(ctx); err != nil {
		return res, fmt.Errorf("promoting %q to %q: %w", req.Source, req.Destination, err)
	}
	return res, nil
}

func (r *Request) check() error {
	switch {
	case r.Destination.Kind == store.Docker:
		return fmt.Errorf("destination %q: images are not promoted into the Docker daemon; give a registry reference or oci:PATH", r.Destination)
	case r.Destination.Digest != "":
		return fmt.Errorf("destination %q: leave the digest out, it is the source's", r.Destination)
	case r.Signer == nil && !r.DryRun:
		return errors.New("promoting needs a key to sign the verdict with")
	}
	if r.VerifierID == "" {
		r.VerifierID = attestations.UnhostedVerifierID
	}
	return nil
}

// promotion is one run behind a verdict that passed.
type promotion struct {
	Request
	res *Result
	src store.Repo
	top store.Descriptor
}

func (p *promotion) run(ctx context.Context) error {
	if err := p.openSource(ctx); err != nil {
		return err
	}
	summaries, err := p.res.Verdict.VSA(gate.VSAOptions{
		VerifierID: p.VerifierID, VerifierVersion: p.VerifierVersion, ResourceURI: p.Destination.URI(),
	})
	if err != nil {
		return err
	}
	subjects, err := p.subjects(ctx)
	if err != nil {
		return err
	}
	for _, s := range summaries {
		if _, ok := subjects[s.Digest]; !ok {
			return fmt.Errorf("the verdict is about %s, which is not in the image", s.Digest)
		}
	}
	was, err := store.Current(ctx, p.Destination, p.Store)
	if err != nil {
		return err
	}
	if p.DryRun {
		return p.plan(ctx, subjects, summaries, was)
	}
	return p.execute(ctx, subjects, summaries, was)
}

// openSource opens the source at the digest that was judged. What the tag says
// by now does not matter.
func (p *promotion) openSource(ctx context.Context) error {
	ref := p.Source
	if ref.Kind != store.Docker {
		ref = ref.At(p.res.Digest)
	}
	opts := p.Judge.Store
	opts.Want = nil
	var err error
	if p.src, err = store.Open(ctx, ref, opts); err != nil {
		return err
	}
	if p.top, err = p.src.Resolve(ctx); err != nil {
		return err
	}
	if p.top.Digest.String() != string(p.res.Digest) {
		return fmt.Errorf("%q changed after it was judged: it was %s, and is %s", p.Source, p.res.Digest, p.top.Digest)
	}
	return nil
}

// subjects are the image and its platforms, by digest.
func (p *promotion) subjects(ctx context.Context) (map[attest.Digest]store.Descriptor, error) {
	platforms, err := store.Platforms(ctx, p.src, p.top)
	if err != nil {
		return nil, err
	}
	out := map[attest.Digest]store.Descriptor{p.res.Digest: p.top}
	for _, m := range platforms {
		d := m.Descriptor
		out[attest.Digest(d.Digest.String())] = d
	}
	return out, nil
}

func (p *promotion) step(s Step) {
	p.res.Steps = append(p.res.Steps, s)
	if p.Progress != nil {
		p.Progress(s)
	}
}

// tagStep says what happens to the tag.
func (p *promotion) tagStep(was *store.Descriptor) Step {
	s := Step{Action: ActionTag, What: p.Destination.String(), Digest: p.res.Digest}
	switch {
	case was == nil:
		s.Detail = "new"
	case was.Digest == p.top.Digest:
		s.Detail, s.Unchanged = "there already", true
	default:
		s.Detail = "moves from " + was.Digest.String()
	}
	return s
}

// plan lists what would be done.
func (p *promotion) plan(ctx context.Context, subjects map[attest.Digest]store.Descriptor, summaries []gate.SubjectVSA, was *store.Descriptor) error {
	for _, s := range summaries {
		kind := "manifest"
		if subjects[s.Digest].MediaType.IsIndex() {
			kind = "index"
		}
		p.step(Step{Action: ActionCopy, What: kind, Digest: s.Digest, Platform: s.Platform})
		pieces, err := p.src.Evidence(ctx, s.Digest)
		if err != nil {
			return err
		}
		for _, e := range pieces {
			if e.Raw != nil && e.Source != store.SourceIndex {
				p.step(Step{Action: ActionCopy, What: "evidence", Digest: e.Digest, Platform: s.Platform, Detail: strings.TrimSpace(e.Source + " " + e.PredicateType)})
			}
		}
	}
	for _, s := range summaries {
		p.step(Step{Action: ActionSign, What: "vsa", Digest: s.Digest, Platform: s.Platform, Detail: says(s.Predicate)})
	}
	p.step(p.tagStep(was))
	return nil
}

func says(v attestations.VSA) string {
	return v.VerificationResult + " " + strings.Join(v.VerifiedLevels, " ") + " for " + v.ResourceURI
}

func (p *promotion) execute(ctx context.Context, subjects map[attest.Digest]store.Descriptor, summaries []gate.SubjectVSA, was *store.Descriptor) error {
	dst, err := store.OpenWritable(ctx, p.Destination, p.Store)
	if err != nil {
		return err
	}
	err = store.Copy(ctx, p.src, dst, p.top, store.CopyOptions{Evidence: true, Progress: func(c store.Copied) {
		p.step(Step{Action: ActionCopy, What: c.What, Digest: c.Digest, Unchanged: c.What == "blob" && !c.Moved})
	}})
	if err != nil {
		return err
	}
	for _, s := range summaries {
		if err := p.summarise(ctx, dst, subjects[s.Digest], s); err != nil {
			return err
		}
	}
	if err := store.Tag(ctx, dst, p.Destination.Tag, p.top); err != nil {
		return err
	}
	p.step(p.tagStep(was))
	p.res.Promoted = true
	return nil
}

// summarise attaches the VSA for one digest, unless an earlier run of the same
// day has.
func (p *promotion) summarise(ctx context.Context, dst store.Writable, subject store.Descriptor, s gate.SubjectVSA) error {
	step := Step{Action: ActionSign, What: "vsa", Digest: s.Digest, Platform: s.Platform, Detail: says(s.Predicate)}
	there, err := p.hasSummary(ctx, s)
	if err != nil {
		return err
	}
	if there {
		step.Unchanged = true
		p.step(step)
		return nil
	}
	about := attest.Subject{Digest: map[string]string{"sha256": s.Digest.Hex()}}
	if p.Destination.Kind == store.Registry {
		about.Name = p.Destination.Place
	}
	st, err := attest.NewStatement(attestations.VSAV1, []attest.Subject{about}, s.Predicate)
	if err != nil {
		return err
	}
	bundle, err := p.Signer.Sign(ctx, st)
	if err != nil {
		return err
	}
	if _, err := store.Attach(ctx, dst, subject, bundle); err != nil {
		return err
	}
	p.step(step)
	return nil
}

// hasSummary looks for a VSA at the destination that this key signed and that
// says the same, save for the time.
func (p *promotion) hasSummary(ctx context.Context, s gate.SubjectVSA) (bool, error) {
	opts := p.Store
	opts.Want = func(t string) bool { return t == "" || t == attestations.VSAV1 }
	place, err := store.Open(ctx, p.Destination.At(s.Digest), opts)
	if err != nil {
		return false, err
	}
	pieces, err := place.Evidence(ctx, s.Digest)
	if err != nil {
		return false, err
	}
	for _, e := range pieces {
		b, err := attest.ParseBundle(e.Raw)
		if err != nil || b.Statement().PredicateType != attestations.VSAV1 || !b.Statement().Binds(s.Digest) || !sign.Made(p.Signer.PublicKey(), b) {
			continue
		}
		var old attestations.VSA
		if err := attest.UnmarshalStrict(b.Statement().Predicate, &old); err != nil {
			continue
		}
		if age := s.Predicate.TimeVerified.Sub(old.TimeVerified); age >= 0 && age < freshFor && same(old, s.Predicate) {
			return true, nil
		}
	}
	return false, nil
}

// same compares all of two VSAs but the time.
func same(a, b attestations.VSA) bool {
	a.TimeVerified, b.TimeVerified = time.Time{}, time.Time{}
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}
