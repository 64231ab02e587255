package verify

import (
	"fmt"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// Builder is one root of trust: who may sign for a builder, and the highest
// Build level that the pair is trusted for.
// https://slsa.dev/spec/v1.2/verifying-artifacts#step-1-check-slsa-build-level
type Builder struct {
	ID       string        // builder.id, compared byte by byte
	Key      attest.Digest // Key.ID of the signer, or
	Identity *Identity     // whom the signer's certificate was issued to
	Window   Window        // when the key's signatures count; an Identity has its own
	MaxLevel int           // 1 to 3
}

// signed reports whether the builder's own signer is s, and whether it was so
// at the time.
func (b Builder) signed(s Signer) (same, intime bool) {
	if b.Identity != nil {
		return b.Identity.names(s), s.during(b.Identity.window)
	}
	return b.Key != "" && b.Key == s.Key, s.during(b.Window)
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
		out = append(out, fmt.Sprintf("builder %q %s %d", b.ID, signer, b.MaxLevel))
	}
	return out
}

// Cap is the highest level a (signer, builder.id) pair can reach, and why.
type Cap struct {
	Level    int
	Unhosted bool // the id itself says that nobody hosts the build
	Reason   string
}

// Cap looks up what a builder.id is trusted for under a signer.
func (t Trust) Cap(signer Signer, builderID string) Cap {
	c := t.lookup(signer, builderID)
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

func (t Trust) lookup(signer Signer, builderID string) Cap {
	if t.Builders == nil {
		return Cap{Level: 2, Reason: "the trusted " + signer.kind() + " signs for this builder.id; Build L3 needs a policy that says so"}
	}
	best, known, late := Cap{}, false, false
	for _, b := range t.Builders {
		if b.ID != builderID {
			continue
		}
		known = true
		same, intime := b.signed(signer)
		late = late || same && !intime
		if same && intime && b.MaxLevel > best.Level {
			best = Cap{Level: b.MaxLevel, Reason: fmt.Sprintf("the policy trusts this signer and builder.id up to Build L%d", b.MaxLevel)}
		}
	}
	if best.Level > 0 {
		return best
	}
	if late {
		return Cap{Reason: fmt.Sprintf("%s signed for builder.id %q at a time when the policy does not trust it to", signer, clip(builderID))}
	}
	if known {
		return Cap{Reason: fmt.Sprintf("%s is not the one trusted for builder.id %q", signer, clip(builderID))}
	}
	return Cap{Reason: fmt.Sprintf("builder.id %q is not a trusted builder%s", clip(builderID), t.near(builderID))}
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
		if canonicalID(b.ID) == canonicalID(id) {
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
