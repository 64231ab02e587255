package gate

import (
	"fmt"

	"github.com/waxseal/waxseal/pkg/verify"
)

// Explanation is what a verdict was measured by, in words: what stands in no
// other of its fields.
type Explanation struct {
	Trust   []string `json:"trust"`   // whose word counts, and for how much
	Demands []string `json:"demands"` // what the policy says of this image, beside trust
}

func (c *check) explain() *Explanation {
	e := &Explanation{Trust: []string{}, Demands: []string{}}
	trusts := func(format string, args ...any) {
		e.Trust = append(e.Trust, printable(fmt.Sprintf(format, args...)))
	}
	for _, k := range c.trust.Keys {
		trusts("signatures of the key %s (%s) count%s", k.Name(), verify.Short(k.ID()), k.Window())
	}
	for _, id := range c.trust.Identities {
		trusts("certificates issued to %s count", id)
	}
	for _, id := range c.trust.Only {
		trusts("of these, only certificates issued to %s count", id)
	}
	for _, r := range c.trust.Roots {
		trusts("certificates, log entries and time stamps may lead to the trusted root %s (%s)", r.Name(), verify.Short(r.ID()))
	}
	for _, ca := range c.trust.CAs {
		trusts("certificates may lead to the CA %s (%s)", ca.Name(), verify.Short(ca.ID()))
	}
	for _, b := range c.trust.Builders {
		trusts("provenance counts from %s", c.Policy.BuilderWords(b))
	}
	switch {
	case c.trust.Unsigned:
		trusts("provenance that nobody signed counts for Build L1, because no more was asked")
	case c.trust.Builders == nil:
		trusts("any builder.id that they sign for is trusted up to Build L2, an unhosted one up to Build L1")
	}
	if c.Policy != nil {
		for _, s := range c.rule.Sentences(c.at) {
			e.Demands = append(e.Demands, printable(s))
		}
	}
	return e
}
