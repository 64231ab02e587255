package verify

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// Builder is one root of trust: who may sign for a builder, and the highest
// Build level that the pair is trusted for.
// https://slsa.dev/spec/v1.2/verifying-artifacts#step-1-check-slsa-build-level
type Builder struct {
	ID string // builder.id, compared byte by byte; or one of the next two
	// IDs is a pattern of builder.id, for platforms that give each runner one.
	IDs *Pattern
	// SignerID asks that builder.id is the name in the signer's certificate.
	SignerID bool
	Key      attest.Digest // Key.ID of the signer, or
	Identity *Identity     // whom the signer's certificate was issued to
	Window   Window        // when the key's signatures count; an Identity has its own
	MaxLevel int           // 1 to 3

	// BuildTypes are those that it is trusted for; none: any.
	BuildTypes []Pattern
	// Events are those that may have started the run, in the platform's words;
	// none: any, and nothing need say which.
	Events []string
	// Hosted asks for proof of a runner of the platform's own above Build L1;
	// without it only a run that is known to be self-hosted ends there.
	Hosted bool
	// SelfHosted lets self-hosted runners count like others.
	SelfHosted bool
	// Called asks for proof of a reusable workflow above Build L2.
	Called bool
	// Name is who signs, in the policy's words: signers of one name are one. Empty:
	// it names nobody.
	Name string
	// Terms is what else a policy holds the builder to, for Trust.Lines.
	Terms string
}

// covers reports whether the builder is the one that builder.id names.
func (b Builder) covers(s Signer, builderID string) bool {
	switch {
	case b.SignerID:
		return s.SAN != "" && builderID == s.SAN
	case b.IDs != nil:
		return b.IDs.Match(builderID)
	}
	return b.ID == builderID
}

// Admits reports whether the builder vouches for a provenance at all: by its
// signer, at that time, of that build type and event.
func (b Builder) Admits(s Signer, p *Provenance) bool {
	same, intime := b.signed(s)
	return same && intime && b.covers(s, p.BuilderID.Value) && b.judge(s, p).Level > 0
}

// judge is what the builder, whose signer and id are known, is worth for one
// provenance.
func (b Builder) judge(s Signer, p *Provenance) Cap {
	if len(b.BuildTypes) > 0 && !slices.ContainsFunc(b.BuildTypes, func(t Pattern) bool { return t.Match(p.BuildType.Value) }) {
		return Cap{Reason: fmt.Sprintf("the policy trusts builder.id %q, but not for the build type %q", clip(p.BuilderID.Value), clip(p.BuildType.Value))}
	}
	if e := b.event(s, p); len(b.Events) > 0 && !slices.Contains(b.Events, e) {
		if e == "" {
			return Cap{Reason: "nothing says which event started the run, and the policy trusts this builder for some only"}
		}
		return Cap{Reason: fmt.Sprintf("the run was started by %q, and the policy does not trust this builder for that", clip(e))}
	}
	c := Cap{Level: b.MaxLevel, Reason: b.reason()}
	switch {
	case selfHosted(s, p) && !b.SelfHosted:
		c.selfHosted()
	case b.Hosted && !hosted(b.runner(s, p)):
		c.lower(1, "nothing says that it ran on one of the platform's own runners")
	case b.Called && !s.called():
		c.lower(2, "the certificate does not show that a workflow signed which the caller cannot change")
	}
	return c
}

func (b Builder) reason() string {
	if b.SignerID || b.IDs != nil {
		return fmt.Sprintf("the policy trusts this signer and its builder.id up to Build L%d", b.MaxLevel)
	}
	return fmt.Sprintf("the policy trusts this signer and builder.id up to Build L%d", b.MaxLevel)
}

// signed reports whether the builder's own signer is s, and whether it was so
// at the time.
func (b Builder) signed(s Signer) (same, intime bool) {
	if b.Identity != nil {
		_, logged := b.Identity.logs(s)
		return b.Identity.names(s), logged && s.during(b.Identity.window)
	}
	return b.Key != "" && b.Key == s.Key, s.during(b.Window)
}

// Signs reports whether a signature is by the builder's own signer, at whatever
// time it was made.
func (b Builder) Signs(s Signer) bool {
	same, _ := b.signed(s)
	return same
}

// Trust is everything the verdict believes without evidence.
type Trust struct {
	// Keys are the keys whose signatures count.
	Keys []Key
	// Identities are those whose certificates count, when they lead to one of
	// Roots or CAs.
	Identities []Identity
	// Roots are the instances of Sigstore that are believed; CAs the private
	// authorities. A CA needs a root whose log or time-stamping authority proves
	// the time.
	Roots []*Root
	CAs   []*CA
	// Only narrows Identities: a certificate must be one of these as well. Nil:
	// no narrowing.
	Only []Identity
	// Builders maps (signer, builder.id) to a level. Nil means that only keys
	// or identities were given: then a builder.id is believed because its
	// signer is, up to L2.
	Builders []Builder
	// Unsigned lets unverified provenance count for Build L1, which asks for
	// no authenticity. Only for a caller who asked for no more than that.
	Unsigned bool
}

// Lines says all of the trust that a verdict could depend on, a line for each
// part, for a digest of it.
func (t Trust) Lines() []string {
	var out []string
	for _, k := range t.Keys {
		out = append(out, "key "+string(k.id)+k.window.String())
	}
	for _, id := range t.Identities {
		out = append(out, id.digestLine())
	}
	for _, id := range t.Only {
		out = append(out, "only "+id.digestLine())
	}
	for _, r := range t.Roots {
		out = append(out, "root "+string(r.id))
	}
	for _, c := range t.CAs {
		out = append(out, "ca "+string(c.id))
	}
	for _, b := range t.Builders {
		signer := string(b.Key) + b.Window.String()
		if b.Identity != nil {
			signer = b.Identity.digestLine()
		}
		out = append(out, fmt.Sprintf("builder %s %s %d%s", b.name(), signer, b.MaxLevel, b.terms()))
	}
	return out
}

func (b Builder) name() string {
	switch {
	case b.SignerID:
		return "by its signer's name"
	case b.IDs != nil:
		return fmt.Sprintf("pattern %q", b.IDs)
	}
	return fmt.Sprintf("%q", b.ID)
}

// terms says all that makes the builder count for less; nothing for none.
func (b Builder) terms() string {
	var out strings.Builder
	for _, t := range b.BuildTypes {
		fmt.Fprintf(&out, " type %q", t)
	}
	for _, e := range b.Events {
		fmt.Fprintf(&out, " event %q", e)
	}
	for _, f := range []struct {
		name string
		set  bool
	}{{"hosted", b.Hosted}, {"self-hosted", b.SelfHosted}, {"called", b.Called}} {
		if f.set {
			out.WriteString(" " + f.name)
		}
	}
	if b.Name != "" {
		fmt.Fprintf(&out, " name %q", b.Name)
	}
	if b.Terms != "" {
		fmt.Fprintf(&out, " terms %q", b.Terms)
	}
	return out.String()
}

// Changes is the next moment after at when the window of a key opens or ends:
// what it signed without a proven time counts from or until then; or when a root
// must be fetched anew, or what tells which certificates are revoked. Zero: never. The windows of identities and of what is in
// a root are held against proven times, which stay.
func (t Trust) Changes(at time.Time) time.Time {
	var next time.Time
	windows := make([]Window, 0, len(t.Keys)+len(t.Builders)+len(t.Roots))
	for _, k := range t.Keys {
		windows = append(windows, k.window)
	}
	for _, b := range t.Builders {
		windows = append(windows, b.Window)
	}
	for _, r := range t.Roots {
		windows = append(windows, Window{Until: r.origin.ValidUntil})
	}
	for _, c := range t.CAs {
		for _, end := range c.revoked.ends() {
			windows = append(windows, Window{Until: end})
		}
	}
	for _, w := range windows {
		for _, moment := range []time.Time{w.From, w.Until} {
			if moment.After(at) && (next.IsZero() || moment.Before(next)) {
				next = moment
			}
		}
	}
	return next
}

// Cap is the highest level a (signer, builder.id) pair can reach, and why.
type Cap struct {
	Level    int
	Unhosted bool // the id itself says that nobody hosts the build
	// SelfHosted: the build ran on a runner that is not the platform's, and the
	// level is lower for it.
	SelfHosted bool
	Reason     string
	// Lowered is why the level is less than the pair could have; empty when it
	// is not.
	Lowered string
}

const onSelfHosted = "it ran on a self-hosted runner, which nobody but its owner vouches for"

func (c *Cap) selfHosted() {
	c.SelfHosted = true
	c.lower(1, onSelfHosted)
}

func (c *Cap) lower(level int, why string) {
	if c.Level > level {
		c.Level, c.Lowered = level, why
	}
}

// Cap looks up what a builder.id is trusted for under a signer, whatever it has
// built. What a builder is trusted for only in part does not count here: see
// CapOf.
func (t Trust) Cap(signer Signer, builderID string) Cap {
	return t.CapOf(signer, &Provenance{BuilderID: Field{Value: builderID}})
}

// CapOf looks up what a provenance can carry under its signer.
func (t Trust) CapOf(signer Signer, p *Provenance) Cap {
	builderID := p.BuilderID.Value
	c := t.lookup(signer, p)
	if Unhosted(builderID) {
		// Whatever anybody wrote down: a build on somebody's own machine is
		// not on a hosted platform.
		c.Unhosted = true
		if c.Level > 1 {
			c.Level = 1
		}
	}
	return c
}

// Unhosted reports whether a builder.id says that nobody hosts the build, or
// differs from the one that says so only in what people overlook.
func Unhosted(builderID string) bool {
	return canonicalID(builderID) == canonicalID(attestations.UnhostedBuilderID)
}

func (t Trust) lookup(signer Signer, p *Provenance) Cap {
	id := p.BuilderID.Value
	if t.Builders == nil {
		c := Cap{Level: 2, Reason: "the trusted " + signer.kind() + " signs for this builder.id; Build L3 needs a policy that says so"}
		if selfHosted(signer, p) {
			c.selfHosted()
		}
		return c
	}
	// What comes nearest to counting says why it does not.
	const strange, other, late, part = 1, 2, 3, 4
	best, near := Cap{}, 0
	why := fmt.Sprintf("builder.id %q is not a trusted builder%s", clip(id), t.near(id))
	nearer := func(how int, reason string) {
		if how > near {
			near, why = how, reason
		}
	}
	for _, b := range t.Builders {
		same, intime := b.signed(signer)
		switch {
		case b.SignerID && same && !b.covers(signer, id):
			nearer(other, fmt.Sprintf("builder.id %q is not the name in the certificate, %q, and the policy asks that it is", clip(id), clip(signer.SAN)))
		case !b.covers(signer, id):
		case !same:
			nearer(strange, fmt.Sprintf("%s is not the one trusted for builder.id %q", signer, clip(id)))
		case !intime:
			nearer(late, fmt.Sprintf("%s signed for builder.id %q at a time when the policy does not trust it to", signer, clip(id)))
		default:
			c := b.judge(signer, p)
			// Of two that are worth the same, the one that could be worth more
			// has more to say.
			if c.Level > best.Level || c.Level == best.Level && best.Lowered == "" {
				best = c
			}
			nearer(part, c.Reason)
		}
	}
	if best.Level > 0 {
		return best
	}
	return Cap{Reason: why}
}

func (s Signer) kind() string {
	if s.SAN != "" {
		return "identity"
	}
	return "key"
}

// near names the trusted id that differs only in what people overlook.
func (t Trust) near(id string) string {
	for _, b := range t.Builders {
		if b.ID != "" && canonicalID(b.ID) == canonicalID(id) {
			return fmt.Sprintf(" (the policy has %q; ids are compared byte by byte)", clip(b.ID))
		}
	}
	return ""
}

// Short is a digest cut to what a line can show.
func Short(d attest.Digest) string {
	if h := d.Hex(); len(h) >= 12 {
		return "sha256:" + h[:12]
	}
	return string(d)
}
