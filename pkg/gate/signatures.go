package gate

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/verify"
)

// claimOf is the digest of a predicate as JSON values. Numbers are compared as
// they are written: as floats, different ones would be alike.
func claimOf(st *attest.Statement) attest.Digest {
	dec := json.NewDecoder(bytes.NewReader(st.Predicate))
	dec.UseNumber()
	var value any
	if err := dec.Decode(&value); err != nil {
		return ""
	}
	plain, err := json.Marshal([]any{st.PredicateType, value})
	if err != nil {
		return ""
	}
	return attest.DigestOf(plain)
}

// signatory is one of those who signed a provenance.
type signatory struct {
	name   string // as a policy calls them; "" for nobody in particular
	shown  string
	bundle attest.Digest
}

// signatories are those who signed what the candidate says, each once, and whose
// signing of it is as good: a certificate that contradicts it counts for nothing.
func (c *check) signatories(f *found, chosen *verify.Candidate) []signatory {
	seen := map[string]bool{}
	var out []signatory
	for i := range f.candidates {
		o := &f.candidates[i]
		if o.Signer == nil || o.Claim == "" || o.Claim != chosen.Claim || !slices.Equal(o.Problems, chosen.Problems) {
			continue
		}
		id, name := c.Policy.Signatory(*o.Signer)
		if !seen[id] {
			seen[id] = true
			out = append(out, signatory{name, cmp.Or(name, o.Signer.String()), o.Bundle})
		}
	}
	return out
}

// counted are the signatories who count for what is asked.
func counted(ask policy.Quorum, all []signatory) []signatory {
	return slices.DeleteFunc(slices.Clone(all), func(s signatory) bool { return len(ask.Of) > 0 && (s.name == "" || !ask.Counts(s.name)) })
}

// countersigned leaves of the candidates those that as many have signed as the
// policy asks for, if there are any: what one signer alone says, however good it
// looks, must not stand before what all of them say.
func (c *check) countersigned(f *found) {
	asks := c.rule.Signatures()
	if len(asks) == 0 {
		return
	}
	var enough []verify.Candidate
	for i := range f.candidates {
		all := c.signatories(f, &f.candidates[i])
		if !slices.ContainsFunc(asks, func(ask policy.Quorum) bool { return len(counted(ask, all)) < ask.AtLeast }) {
			enough = append(enough, f.candidates[i])
		}
	}
	if len(enough) > 0 {
		f.candidates = enough
	}
}

// signed says which signatures that the policy asks for are missing, and returns
// the bundles of those that are there.
func (c *check) signed(f *found, chosen *verify.Candidate, s *Subject) []attest.Digest {
	var out []attest.Digest
	for _, ask := range c.rule.Signatures() {
		var have []signatory
		if chosen != nil {
			have = counted(ask, c.signatories(f, chosen))
		}
		var names []string
		for _, one := range have {
			names, out = append(names, one.shown), append(out, one.bundle)
		}
		if len(have) >= ask.AtLeast {
			continue
		}
		by := "nobody who counts"
		if len(names) > 0 {
			slices.Sort(names)
			by = strings.Join(names, ", ") + " alone"
		}
		s.reasons = append(s.reasons, Reason{Code: CodeSignatures, Message: fmt.Sprintf("the policy asks for one provenance signed by %s, and it is by %s", ask, by),
			Hint: "have the same predicate signed by another of them, with \"waxseal attest\""})
	}
	return out
}
