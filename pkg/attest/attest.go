// Package attest holds the nouns every other room speaks: a Digest, a
// Subject, a Statement and the signed Bundle around it.
//
// Call ParseStatement or ParseBundle on bytes that came from somewhere else:
// both parse strictly (no duplicate keys, no other spelling of a known key, no
// trailing data) and within the limits below, and both keep the bytes as they
// were received. Call NewStatement to make one. Nothing here does I/O, and
// nothing here verifies a signature: that is package verify.
package attest
