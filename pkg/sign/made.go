package sign

import (
	"bytes"
	"crypto"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Made reports whether b carries exactly one signature, and the private half
// of public, as Signer.PublicKey returns it, made it. It answers "did I sign
// this before"; whether a stranger's signature counts is for package verify.
func Made(public []byte, b *attest.Bundle) bool {
	env := b.Proto().GetDsseEnvelope()
	if len(env.GetSignatures()) != 1 {
		return false
	}
	key, err := cryptoutils.UnmarshalPEMToPublicKey(public)
	if err != nil {
		return false
	}
	pae := dsse.PAE(env.GetPayloadType(), env.GetPayload())
	// SHA-256 is ours; a service may insist on the hash of its key's size.
	for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		v, err := signature.LoadVerifier(key, h)
		if err == nil && v.VerifySignature(bytes.NewReader(env.GetSignatures()[0].GetSig()), bytes.NewReader(pae)) == nil {
			return true
		}
	}
	return false
}
