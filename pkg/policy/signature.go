package policy

import (
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

// SignatureSuffix is what the name of a policy's bundle has after the policy's.
const SignatureSuffix = ".sigstore.json"

// Statement is what a signer of the policy signs.
func (p *Policy) Statement() (*attest.Statement, error) {
	predicate := attestations.Policy{APIVersion: APIVersion}
	for _, d := range p.extends {
		predicate.Extends = append(predicate.Extends, string(d))
	}
	for _, f := range p.files {
		if !slices.Contains(predicate.Files, f) {
			predicate.Files = append(predicate.Files, f)
		}
	}
	return attest.NewStatement(attestations.PolicyV1, []attest.Subject{{
		Name: filepath.Base(p.path), Digest: map[string]string{"sha256": p.digest.Hex()},
	}}, predicate)
}

// CheckSigned returns who signed the policy, by the bundle beside its file. It
// errs unless one of keys did.
func (p *Policy) CheckSigned(keys []verify.Key) (verify.Signer, error) {
	if p.path == "" {
		return verify.Signer{}, fmt.Errorf("checking who signed the policy: it is no file, so there is nothing beside it")
	}
	path := p.path + SignatureSuffix
	raw, err := readFile(path, attest.MaxPolicy)
	if err != nil {
		return verify.Signer{}, fmt.Errorf("checking who signed policy %q: %w", p.path, err)
	}
	s, err := p.signedBy(raw, keys)
	if err != nil {
		return verify.Signer{}, fmt.Errorf("checking who signed policy %q: %s: %w", p.path, path, err)
	}
	return s, nil
}

func (p *Policy) signedBy(raw []byte, keys []verify.Key) (verify.Signer, error) {
	b, err := attest.ParseBundle(raw)
	if err != nil {
		return verify.Signer{}, err
	}
	checker, err := verify.NewChecker(verify.Trust{Keys: keys}, time.Now())
	if err != nil {
		return verify.Signer{}, err
	}
	ok, err := checker.Check(b, p.digest)
	if err != nil {
		return verify.Signer{}, err
	}
	// The same key may sign other things about the same bytes.
	if t := ok.Statement().PredicateType; t != attestations.PolicyV1 {
		return verify.Signer{}, fmt.Errorf("its predicate type is %q, which approves no policy", clip(t))
	}
	var said attestations.Policy
	if err := attest.UnmarshalStrict(ok.Statement().Predicate, &said); err != nil {
		return verify.Signer{}, err
	}
	// A key decides as much as the text that names it.
	for _, f := range p.files {
		if !slices.Contains(said.Files, f) {
			return verify.Signer{}, fmt.Errorf("the signature does not cover %q, which the policy names, as that file is now: look at what changed, and sign the policy again", clip(f.Name))
		}
	}
	return ok.Signer(), nil
}
