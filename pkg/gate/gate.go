// Package gate gives the verdict: from an image's reference to pass, deny or
// undecided, with the reasons. Every caller goes through Gate.Judge, so there
// is one path from evidence to decision. Inspect reads the same evidence the
// same way and decides nothing.
//
// The reference is resolved once. An index is judged with every platform below
// it and is as good as the worst of them. What goes wrong on the way, a panic
// too, gives "undecided", never a pass.
package gate

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/store"
	"github.com/waxseal/waxseal/pkg/verify"
)

// Gate judges images. The zero Gate is ready, and safe for concurrent use.
type Gate struct {
	// Open opens a reference; default: store.Open.
	Open func(ctx context.Context, ref store.Reference, opts store.Options) (store.Repo, error)
	// Now is the time of the decision; default: time.Now.
	Now func() time.Time
}

// Request is what to judge, and against what.
type Request struct {
	// Reference is the image, in the form store.Parse takes.
	Reference string
	// Name is what the policy knows the image as, when that is not where its
	// evidence lies: the destination of a promotion. Default: Reference
	// without tag and digest.
	Name string
	// Policy holds the trust and the expectations. Without one, Keys and
	// Identities alone are trusted, and no builder above Build L2.
	Policy *policy.Policy
	// Level asks for levels and properties. It can raise what a policy
	// declares, and not lower it. Nil without a policy: Build L1.
	Level *verify.Demand
	// Keys are PEM public keys, Identities those whose certificates count. With
	// a policy they narrow it: evidence must be signed by one of them as well.
	Keys       []verify.Key
	Identities []verify.Identity
	// Roots and CAs are what certificates must lead to, beside those that the
	// policy's own signers name.
	Roots []*verify.Root
	CAs   []*verify.CA
	// Missing is why something that is to be trusted could not be fetched: the
	// verdict then is undecided, whatever the evidence.
	Missing error
	// Dependencies is how far the images that it was built from are looked at,
	// and those that they were built from: up to policy.MaxDepth. It can go
	// deeper than a policy says, and not less deep.
	Dependencies int
	// DependencyRegistries are patterns, each from policy.Registries, of images
	// that may be asked about besides those that the policy allows. Where neither
	// allows any, those in the image's own registry may.
	DependencyRegistries []string
	// Store says how to reach the image, and where else to look for evidence.
	Store store.Options
	// At is the moment to judge as of: what has expired, come into effect or
	// grown old by then. Zero: now.
	At time.Time
	// For says where the image is to run.
	For Workload
	// Explain adds the verdict's Explanation, and what each piece of evidence
	// says.
	Explain bool

	// below: it is a dependency of another image.
	below bool
}

func (r Request) moment(now time.Time) time.Time {
	if !r.At.IsZero() {
		return r.At
	}
	return now
}

// UsageError is a request that cannot be judged whatever the evidence.
type UsageError struct{ err error }

func (e *UsageError) Error() string { return e.err.Error() }
func (e *UsageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// Judge gives the verdict, at the latest shortly after ctx has ended. The error
// is a *UsageError or nil: anything else that goes wrong is in the verdict, as
// "undecided".
func (g Gate) Judge(ctx context.Context, req Request) (*Verdict, error) {
	now := g.now()
	c, err := prepareAt(req, req.moment(now), true)
	if err != nil {
		return nil, err
	}
	v := &Verdict{
		Schema:    VerdictSchema,
		Image:     c.ref.String(),
		Decision:  Undecided,
		Declared:  c.declared,
		TrustedBy: c.trustedBy,
		Platforms: []Subject{},
		Reasons:   []Reason{},
		DecidedAt: now.UTC().Truncate(time.Second),
		AsOf:      req.At.UTC(),
		request:   req,
	}
	v.Subject, v.Properties = nothing(""), []string{}
	if req.Policy != nil {
		v.PolicyDigest = req.Policy.Digest()
	}
	v.TrustDigest = trustDigest(c)
	v.Roots = rootsOf(c.trust)
	if w := req.For; w.Namespace != "" || w.Use != "" || len(w.Labels) > 0 {
		v.For = &w
	}
	if req.Explain {
		v.Explanation = c.explain()
	}
	v = g.within(ctx, c, *v)
	v.ValidUntil = v.validUntil(c.trust.Changes(now))
	return v, nil
}

// Check says what Judge would refuse to judge, whatever the image: nothing but a
// *UsageError, or nil.
func Check(req Request) error {
	_, err := prepare(req, true)
	return err
}

// contain turns a panic into an error: hostile evidence that finds a bug must
// not end in an exit code that somebody takes for an answer.
func contain(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{value: p, stack: debug.Stack()}
		}
	}()
	return f()
}

type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string {
	where := ""
	// The line below the first frame outside of the runtime.
	lines := strings.Split(string(e.stack), "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "panic(") && i+3 < len(lines) {
			where = " at " + strings.TrimSpace(lines[i+3])
		}
	}
	return fmt.Sprintf("internal error: %v%s (please report it)", e.value, where)
}

// missingError is trust that could not be fetched.
type missingError struct{ err error }

func (e *missingError) Error() string { return e.err.Error() }
func (e *missingError) Unwrap() error { return e.err }

// check is a prepared request.
type check struct {
	Request
	ref       store.Reference
	name      string
	trust     verify.Trust
	checker   *verify.Checker
	trustedBy string
	rule      policy.Rule
	matched   bool
	declared  verify.Demand
	at        time.Time // the moment to judge as of
}

// prepare makes a check as of now.
func prepare(req Request, judging bool) (*check, error) { return prepareAt(req, time.Now(), judging) }

func prepareAt(req Request, now time.Time, judging bool) (*check, error) {
	ref, err := store.Parse(req.Reference)
	if err != nil {
		return nil, &UsageError{err}
	}
	if req.Dependencies < 0 || req.Dependencies > policy.MaxDepth {
		return nil, usagef("dependencies are looked at up to %d deep, not %d", policy.MaxDepth, req.Dependencies)
	}
	c := &check{Request: req, ref: ref, name: req.Name, at: now}
	if c.name == "" {
		c.name = Name(ref)
	}
	if req.Level != nil {
		if err := req.Level.Check(); err != nil {
			return nil, &UsageError{err}
		}
	}
	one := verify.Demand{Levels: Levels{Build: 1}}
	switch {
	case req.Policy != nil:
		c.trustedBy = TrustedByPolicy
		c.trust = req.Policy.Trust()
		if len(req.Keys)+len(req.Identities) > 0 {
			c.trust = narrow(c.trust, req)
		}
		c.rule, c.matched = req.Policy.For(c.name)
		c.declared = c.rule.Level()
	case len(req.Keys) > 0:
		c.trustedBy = TrustedByKeys
		c.trust = verify.Trust{Keys: req.Keys, Identities: req.Identities}
		c.declared = one
	case len(req.Identities) > 0:
		c.trustedBy = TrustedByIdentities
		c.trust = verify.Trust{Identities: req.Identities}
		c.declared = one
	case req.Level != nil && req.Level.Levels == one.Levels && len(req.Level.Properties) == 0:
		// Build L1 asks for no authenticity, and the caller for no more.
		c.trustedBy = TrustedByNobody
		c.trust = verify.Trust{Unsigned: true}
	case judging && req.Missing == nil:
		return nil, usagef("nothing to judge by: give --policy FILE, --key PUB, or --certificate-identity with --trusted-root (or --level 1, which believes provenance that nobody signed)")
	default:
		c.trustedBy = TrustedByNobody
	}
	if req.Level != nil {
		c.declared = c.declared.And(*req.Level)
	}
	if req.Missing != nil {
		if !judging {
			return nil, req.Missing
		}
		return c, nil // what there is of the trust may not hold together
	}
	if len(req.Identities) > 0 && len(req.Roots)+len(req.CAs)+len(c.trust.Roots)+len(c.trust.CAs) == 0 {
		return nil, usagef("an identity is proved by a certificate, and there is no trusted root to check one with: give --trusted-root FILE")
	}
	c.trust.Roots = append(c.trust.Roots, req.Roots...)
	c.trust.CAs = append(c.trust.CAs, req.CAs...)
	if c.checker, err = verify.NewChecker(c.trust, now); err != nil {
		return nil, &UsageError{err}
	}
	return c, nil
}

// narrow leaves of a policy's trust what the keys and identities of a request
// sign.
func narrow(t verify.Trust, req Request) verify.Trust {
	given := func(id attest.Digest) bool {
		return slices.ContainsFunc(req.Keys, func(k verify.Key) bool { return k.ID() == id })
	}
	out := verify.Trust{Builders: []verify.Builder{}, Roots: t.Roots, CAs: t.CAs}
	if len(req.Identities) > 0 {
		out.Identities, out.Only = t.Identities, req.Identities
	}
	for _, k := range t.Keys {
		if given(k.ID()) {
			out.Keys = append(out.Keys, k)
		}
	}
	for _, b := range t.Builders {
		if given(b.Key) || b.Identity != nil && len(req.Identities) > 0 {
			out.Builders = append(out.Builders, b)
		}
	}
	return out
}

// Name is what a policy knows a reference as: without tag and digest.
func Name(ref store.Reference) string {
	switch ref.Kind {
	case store.Registry:
		return ref.Place
	case store.Docker:
		// The daemon's name has its tag in it.
		name, _, _ := strings.Cut(ref.Place, "@")
		if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
			name = name[:i]
		}
		return "docker:" + name
	}
	return string(ref.Kind) + ":" + ref.Place
}

func (g Gate) now() time.Time {
	if g.Now != nil {
		return g.Now()
	}
	return time.Now()
}

func (g Gate) open(ctx context.Context, c *check) (store.Repo, error) {
	if g.Open != nil {
		return g.Open(ctx, c.ref, c.Store)
	}
	return store.Open(ctx, c.ref, c.Store)
}

func (g Gate) judge(ctx context.Context, c *check, v *Verdict) error {
	if c.Missing != nil {
		return &missingError{c.Missing}
	}
	found, err := g.find(ctx, c, look{rule: c.rule, level: c.weighed(), source: c.asksSource(), stapled: len(c.trust.CAs) > 0, says: c.Explain})
	if err != nil {
		if found != nil {
			v.Digest = found[0].digest // where it got to
		}
		return err
	}
	subjects := make([]Subject, len(found))
	used := make([][]attest.Digest, len(found))
	// The image itself comes last: an index is what its platforms are.
	var below []verify.Platform
	for i := len(found) - 1; i >= 0; i-- {
		if subjects[i], used[i], err = c.decide(ctx, found[i], below); err != nil {
			v.Digest = found[0].digest
			return err
		}
		below = append(below, verify.Platform{Name: subjects[i].Platform, Rows: subjects[i].Requirements})
	}
	v.used = used
	if !c.below {
		if err := g.depend(ctx, c, v, subjects); err != nil {
			return err
		}
	}
	v.Subject, v.Platforms = subjects[0], subjects[1:]
	v.conclude(c)
	return nil
}

// nothing is what is known of a digest that was not judged.
func nothing(d attest.Digest) Subject {
	return Subject{Digest: d, Decision: Undecided, Properties: []string{}, Requirements: []verify.Row{}, Evidence: []Evidence{}}
}

// undecided records why there is no decision. What was found so far is no
// answer, so none of it is kept but the digest.
func (v *Verdict) undecided(err error) {
	d := v.Digest
	v.Subject, v.Properties = nothing(d), []string{}
	v.Decision = Undecided
	v.Platforms = []Subject{}
	code := CodeUnreadable
	var p *panicError
	var missing *missingError
	switch {
	case errors.As(err, &p):
		code = CodeInternal
	case errors.As(err, &missing):
		code = CodeTrust
	case errors.Is(err, context.DeadlineExceeded):
		code = CodeTimeout
	case errors.Is(err, context.Canceled):
		code = CodeCanceled
	case errors.Is(err, store.ErrNotFound):
		code = CodeNotFound
	case errors.Is(err, store.ErrUnavailable):
		code = CodeUnavailable
	}
	r := Reason{Code: code, Message: printable(err.Error())}
	if code == CodeTimeout {
		r.Message = "no answer before the deadline: " + r.Message
	}
	var way interface{ Hint() string }
	if errors.As(err, &way) {
		r.Hint = printable(way.Hint())
	}
	v.Reasons, v.Warnings, v.Waived = []Reason{r}, nil, nil
	v.used = nil
	v.Dependencies, v.DependencyLevels, v.lacking = nil, nil, nil
}
