package verify

import (
	"fmt"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// MaxLevel is the highest level of the SLSA v1.2 Build track.
const MaxLevel = 3

// Builder is one root of trust: who may sign for a builder, and the highest
// Build level that the pair is trusted for.
// https://slsa.dev/spec/v1.2/verifying-artifacts#step-1-check-slsa-build-level
type Builder struct {
	ID       string        // builder.id, compared byte by byte
	Key      attest.Digest // Key.ID of the signer
	MaxLevel int           // 1 to 3
}

// Trust is everything the verdict believes without evidence.
type Trust struct {
	// Keys are the keys whose signatures count.
	Keys []Key
	// Builders maps (signer, builder.id) to a level. Nil means that only keys
	// were given: then a builder.id is believed because its key is, up to L2.
	Builders []Builder
	// Unsigned lets unverified provenance count for Build L1, which asks for
	// no authenticity. Only for a caller who asked for no more than that.
	Unsigned bool
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
		return Cap{Level: 2, Reason: "the trusted key signs for this builder.id; Build L3 needs a policy that says so"}
	}
	best, known := Cap{}, false
	for _, b := range t.Builders {
		if b.ID != builderID {
			continue
		}
		known = true
		if b.Key == signer.Key && b.MaxLevel > best.Level {
			best = Cap{Level: b.MaxLevel, Reason: fmt.Sprintf("the policy trusts this signer and builder.id up to Build L%d", b.MaxLevel)}
		}
	}
	if best.Level > 0 {
		return best
	}
	if known {
		return Cap{Reason: fmt.Sprintf("key %s is not the one trusted for builder.id %q", Short(signer.Key), clip(builderID))}
	}
	return Cap{Reason: fmt.Sprintf("builder.id %q is not a trusted builder%s", clip(builderID), t.near(builderID))}
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
