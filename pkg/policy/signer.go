package policy

import (
	"bytes"
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

// signer is who signs: the holder of a key, or of a certificate that was issued
// to an identity.
type signer struct {
	key      verify.Key
	identity *verify.Identity
	root     *verify.Root // what the certificate must lead to; nil: any root given
	ca       *verify.CA   // or this; then root only proves the time
}

// builder is the signer as a root of trust.
func (s signer) builder(id string, maxLevel int) verify.Builder {
	if s.identity != nil {
		return verify.Builder{ID: id, Identity: s.identity, MaxLevel: maxLevel}
	}
	return verify.Builder{ID: id, Key: s.key.ID(), Window: s.key.Window(), MaxLevel: maxLevel}
}

// is reports whether a signature is by this signer, at whatever time.
func (s signer) is(by verify.Signer) bool {
	b := s.builder("", 1)
	return b.Signs(by)
}

// line is all of the signer that a decision depends on.
func (s signer) line() string {
	t := verify.Trust{Builders: []verify.Builder{s.builder("", 1)}}
	return t.Lines()[0]
}

func (s signer) String() string {
	switch {
	case s.ca != nil && s.ca.Revocable():
		return fmt.Sprintf("%s under the CA %q, where a revocation list or OCSP response tells that the certificate counted", s.identity, s.ca.Name())
	case s.ca != nil:
		return fmt.Sprintf("%s under the CA %q", s.identity, s.ca.Name())
	case s.root != nil:
		return fmt.Sprintf("%s under %q", s.identity, s.root.Name())
	case s.identity != nil:
		return fmt.Sprintf("%s under a root that is given with it", s.identity)
	}
	return fmt.Sprintf("%q (%s)%s", s.key.Name(), verify.Short(s.key.ID()), s.key.Window())
}

// signers is everybody whose signatures count somewhere in the policy.
type signers struct{ all []signer }

func (s *signers) add(more ...signer) {
	for _, n := range more {
		if !slices.ContainsFunc(s.all, func(o signer) bool { return o.line() == n.line() }) {
			s.all = append(s.all, n)
		}
	}
}

// trust is verify's view of the signers.
func (s signers) trust() verify.Trust {
	t := verify.Trust{Builders: []verify.Builder{}}
	for _, one := range s.all {
		if one.identity == nil {
			t.Keys = append(t.Keys, one.key)
			continue
		}
		t.Identities = append(t.Identities, *one.identity)
		if one.root != nil && !slices.ContainsFunc(t.Roots, func(r *verify.Root) bool { return r.ID() == one.root.ID() }) {
			t.Roots = append(t.Roots, one.root)
		}
		if one.ca != nil && !slices.ContainsFunc(t.CAs, func(c *verify.CA) bool { return c.ID() == one.ca.ID() }) {
			t.CAs = append(t.CAs, one.ca)
		}
	}
	return t
}

// signer reads {key: FILE}, {pem: TEXT}, {kms: REFERENCE}, {issuer: URL, san: PATTERN, root: FILE}
// or {ca: FILE, intermediates: FILE, crl: FILES, ocsp: FILES, revocation: required, san: PATTERN, root: FILE},
// each with from, until and revoked, the one with an issuer with outages as well.
func (d *decoder) signer(n *yaml.Node) signer { return d.signerOf(n, verify.IdentityOptions{}) }

// signerOf is signer where a part of the identity is given already.
func (d *decoder) signerOf(n *yaml.Node, o verify.IdentityOptions) signer {
	var s signer
	var keys int
	var window verify.Window
	given := o
	san, caName, ca := false, "", verify.CAOptions{}
	d.object(n, "the signer", nil, map[string]func(*yaml.Node){
		"key": func(n *yaml.Node) {
			keys++
			if name, raw := d.file(n, "key"); d.err == nil {
				s.key = d.key(n, name, raw)
			}
		},
		"pem": func(n *yaml.Node) {
			keys++
			if raw := d.text(n, "pem"); d.err == nil {
				s.key = d.key(n, fmt.Sprintf("line %d", n.Line), []byte(raw))
			}
		},
		"kms": func(n *yaml.Node) {
			keys++
			s.key = d.kms(n)
		},
		"issuer": func(n *yaml.Node) { o.Issuer = d.text(n, "signer.issuer") },
		"san": func(n *yaml.Node) {
			san = true
			o.Pattern, o.Regexp = d.text(n, "signer.san"), ""
		},
		"root": func(n *yaml.Node) { s.root = d.root(n) },
		"ca":   func(n *yaml.Node) { caName, ca.Roots = d.file(n, "ca") },
		"intermediates": func(n *yaml.Node) {
			_, ca.Intermediates = d.file(n, "intermediates")
		},
		"crl":  func(n *yaml.Node) { ca.CRLs = d.files(n, "crl") },
		"ocsp": func(n *yaml.Node) { ca.OCSP = d.files(n, "ocsp") },
		"revocation": func(n *yaml.Node) {
			if ca.Required = d.text(n, "signer.revocation") == "required"; !ca.Required {
				d.fail(n, `the signer's "revocation" can be "required" only`)
			}
		},
		"from": func(n *yaml.Node) { window.From = d.moment(n, "signer.from") },
		"until": func(n *yaml.Node) {
			window.Until = d.moment(n, "signer.until")
		},
		"revoked": func(n *yaml.Node) {
			d.object(n, "signer.revoked", []string{"at", "reason"}, map[string]func(*yaml.Node){
				"at":     func(n *yaml.Node) { window.Revoked = d.moment(n, "signer.revoked.at") },
				"reason": func(n *yaml.Node) { window.Reason = d.line(n, "signer.revoked.reason") },
			})
		},
		"outages": func(n *yaml.Node) {
			d.list(n, "signer.outages", 100, func(n *yaml.Node) {
				var out verify.Outage
				d.object(n, "an outage", []string{"from", "until", "reason"}, map[string]func(*yaml.Node){
					"from":   func(n *yaml.Node) { out.From = d.moment(n, "outage.from") },
					"until":  func(n *yaml.Node) { out.Until = d.moment(n, "outage.until") },
					"reason": func(n *yaml.Node) { out.Reason = d.line(n, "outage.reason") },
				})
				o.Outages = append(o.Outages, out)
			})
		},
	})
	if d.err != nil {
		return s
	}
	san = san || o.Regexp != ""
	certificate := san || o.Issuer != "" || s.root != nil || ca.Roots != nil || ca.Intermediates != nil || ca.CRLs != nil || ca.OCSP != nil || ca.Required
	switch {
	case keys+boolean(certificate) != 1:
		d.fail(n, `the signer must have one of "key", "pem", "kms" and "san"`)
	case given.Issuer != "" && o.Issuer != given.Issuer:
		d.fail(n, "the signer's issuer is %q here", given.Issuer)
	case certificate && !san:
		d.fail(n, `the signer has no "san"`)
	case ca.Intermediates != nil && ca.Roots == nil:
		d.fail(n, `the signer's "intermediates" lead nowhere without "ca"`)
	case (ca.CRLs != nil || ca.OCSP != nil || ca.Required) && ca.Roots == nil:
		d.fail(n, `the signer's "crl", "ocsp" and "revocation" are about the certificates of a "ca", and it has none`)
	case o.Outages != nil && (!certificate || ca.Roots != nil):
		d.fail(n, `the signer's "outages" are of a Sigstore instance's log: it has no such log`)
	case !window.From.IsZero() && !window.Until.IsZero() && !window.From.Before(window.Until):
		d.fail(n, "the signer's window ends before it begins")
	case !certificate:
		s.key = s.key.During(window)
		return s
	}
	if d.err == nil && ca.Roots != nil {
		var err error
		if s.ca, err = verify.ParseCA(caName, ca); err != nil {
			d.fail(n, "%w", err)
			return s
		}
		o.Anchor, o.AnchorIsCA = s.ca.ID(), true
	} else if s.root != nil && !s.root.Certifies() {
		d.fail(n, "the signer's root %q proves times only; give one that certificates can lead to, or a \"ca\" beside it", s.root.Name())
		return s
	} else if s.root != nil {
		o.Anchor = s.root.ID()
	}
	if d.err != nil {
		return s
	}
	o.Window = window
	id, err := verify.NewIdentity(o)
	if err != nil {
		d.fail(n, "the signer: %w", err)
	}
	s.identity = &id
	return s
}

// window is when the signer's signatures count.
func (s signer) window() verify.Window {
	if s.identity != nil {
		return s.identity.Window()
	}
	return s.key.Window()
}

// like reports whether two signers are one, whenever they count.
func (s signer) like(o signer) bool {
	if s.identity != nil && o.identity != nil {
		return s.identity.Issuer() == o.identity.Issuer() && s.identity.SAN() == o.identity.SAN()
	}
	return s.identity == nil && o.identity == nil && s.key.ID() == o.key.ID()
}

// revoked refuses a policy that revokes a signer in one place and trusts it in
// another: a stolen key is stolen for all that it signs.
func (d *decoder) revoked(n *yaml.Node) {
	for _, s := range d.out.signers.all {
		for _, o := range d.out.signers.all {
			if a, b := s.window(), o.window(); s.like(o) && !a.Revoked.IsZero() && !a.Revoked.Equal(b.Revoked) {
				d.fail(n, "an entry has the signer %s, and another has it without that: revoke it in all of them", s)
				return
			}
		}
	}
}

// anchors refuses a policy some of whose identities say where they come from:
// the root of one would vouch for the names of the others.
func (d *decoder) anchors(n *yaml.Node) {
	var with, without *signer
	for i, s := range d.out.signers.all {
		switch {
		case s.identity == nil:
		case s.root != nil || s.ca != nil:
			with = &d.out.signers.all[i]
		default:
			without = &d.out.signers.all[i]
		}
	}
	if with != nil && without != nil {
		d.fail(n, `signer %s names no "root", and others do: whoever runs theirs could issue certificates in its name`, without.identity)
	}
}

func boolean(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (d *decoder) key(n *yaml.Node, name string, raw []byte) verify.Key {
	k, err := verify.ParseKey(name, raw)
	if err != nil {
		d.fail(n, "%w", err)
	}
	return k
}

// kms reads a key that a key management service has.
func (d *decoder) kms(n *yaml.Node) verify.Key {
	ref := d.text(n, "kms")
	if d.err != nil {
		return verify.Key{}
	}
	if d.opts.ReadKMS == nil {
		d.fail(n, "kms %q: no key management service can be asked here; use key or pem", clip(ref))
		return verify.Key{}
	}
	raw, err := d.opts.ReadKMS(ref)
	if err != nil {
		d.fail(n, "%w", err)
		return verify.Key{}
	}
	return d.key(n, ref, raw)
}

// root reads a trusted root, once for all signers that name it: it remembers
// what it has proved.
func (d *decoder) root(n *yaml.Node) *verify.Root {
	name, raw := d.file(n, "root")
	if d.err != nil {
		return nil
	}
	id := attest.DigestOf(raw)
	for _, s := range d.out.signers.all {
		if s.root != nil && s.root.ID() == id {
			return s.root
		}
	}
	parse := verify.ParseRoot
	if bytes.HasPrefix(bytes.TrimSpace(raw), []byte("-----BEGIN CERTIFICATE")) {
		parse = verify.ParseStamper
	}
	r, err := parse(name, raw)
	if err != nil {
		d.fail(n, "%w", err)
	}
	return r
}

// files reads a file that the policy names, or each of a list.
func (d *decoder) files(n *yaml.Node, what string) []verify.File {
	var out []verify.File
	one := func(n *yaml.Node) {
		name, raw := d.file(n, what)
		out = append(out, verify.File{Name: name, Raw: raw})
	}
	if n.Kind == yaml.ScalarNode {
		one(n)
	} else {
		d.list(n, what, maxRevocations, one)
	}
	return out
}

// maxRevocations bounds the files of one signer that say what is revoked.
const maxRevocations = 64

// file reads a file that the policy names.
func (d *decoder) file(n *yaml.Node, what string) (string, []byte) {
	name := d.text(n, what)
	if d.err != nil {
		return "", nil
	}
	if d.opts.ReadKey == nil {
		d.fail(n, "%s %q is a file, and this policy has no folder to look in; use pem", what, clip(name))
		return "", nil
	}
	raw, err := d.opts.ReadKey(name)
	if err != nil {
		d.fail(n, "reading the signer's %s: %w", what, err)
	}
	if raw == nil {
		raw = []byte{}
	}
	// What the CA itself signs may change under a signed policy.
	if what != "crl" && what != "ocsp" {
		d.out.files = append(d.out.files, attestations.PolicyFile{Name: name, Digest: string(attest.DigestOf(raw))})
	}
	return name, raw
}
