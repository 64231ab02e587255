package lock

// Change is one difference between two locks.
type Change struct {
	Kind    string `json:"kind"`           // "added", "removed", "changed"
	Step    string `json:"step,omitempty"` // "" for a source
	Subject string `json:"subject"`        // "package python3 3.11.2-1 (deb)", "base image debian:12", or the URI
	PURL    string `json:"purl,omitempty"`
	Text    string `json:"text"` // the whole in words
}

// Diff says what changed, in the order of the files.
func Diff(before, after *File) []Change { return nil }
