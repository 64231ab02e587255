package attest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Digest is an algorithm and lower-case hex, "sha256:…": the only form in
// which waxseal names content.
type Digest string

// ParseDigest checks the form "sha256:" and 64 lower-case hex digits.
func ParseDigest(s string) (Digest, error) {
	alg, rest, ok := strings.Cut(s, ":")
	if !ok || alg != "sha256" {
		return "", fmt.Errorf("reading digest %q: want sha256: and 64 hex digits", clip(s))
	}
	if !isHex(rest, 2*sha256.Size) {
		return "", fmt.Errorf("reading digest %q: want sha256: and 64 lower-case hex digits", clip(s))
	}
	return Digest(s), nil
}

// DigestOf returns the sha256 digest of b.
func DigestOf(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// Hex returns the digest's hex part.
func (d Digest) Hex() string {
	_, h, _ := strings.Cut(string(d), ":")
	return h
}

// String returns the digest itself.
func (d Digest) String() string { return string(d) }

func isHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// clip keeps foreign text in an error to a readable length.
func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
