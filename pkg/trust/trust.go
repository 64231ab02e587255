// Package trust fetches what is trusted, when somebody asks for that: the
// trusted root of a Sigstore instance through TUF, and the public half of a key
// in a key management service. It returns bytes and says how old they are;
// package verify reads them. Nothing here runs for a root or a key that is
// given as a file.
//
// What cannot be had, or is past its expiry, is an *UnavailableError: no answer
// can rest on it, and asking again may help.
package trust

// UnavailableError is trust that could not be had.
type UnavailableError struct {
	what string // "fetching the trusted root of …"
	err  error
	way  string
}

func (e *UnavailableError) Error() string { return e.what + ": " + e.err.Error() }
func (e *UnavailableError) Unwrap() error { return e.err }

// Hint is the way out.
func (e *UnavailableError) Hint() string { return e.way }
