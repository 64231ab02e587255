package verify

import "time"

// Suppose returns who Check would say had signed at a time, for a signer that
// the trust names, by key or by certificate. It is for trying a policy on facts
// that nobody signed: nothing is verified. False: nobody whom the trust names,
// and the signer as it is.
func (t Trust) Suppose(s Signer, at time.Time) (Signer, bool) {
	s.first, s.last = at, at
	for _, k := range t.Keys {
		if s.Key != "" && k.ID() == s.Key {
			return s, true
		}
	}
	for _, id := range t.Identities {
		named := s
		named.anchor, named.Time = id.anchor, at
		if id.names(named) {
			return named, true
		}
	}
	return s, false
}
