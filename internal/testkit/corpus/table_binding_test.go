package corpus

import (
	"encoding/base64"
	"fmt"
	"strings"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/internal/testkit/virtual"
	"github.com/waxseal/waxseal/pkg/verify"
)

// The requirements that a denial names most.
const (
	reqExists      = verify.RowExists
	reqProcess     = verify.RowProcess
	reqExpect      = verify.RowExpectations
	reqAuthentic   = verify.RowAuthentic
	reqHosted      = verify.RowHosted
	reqUnforgeable = verify.RowUnforgeable
	reqIsolated    = verify.RowIsolated
)

const amd64, arm64 = "linux/amd64", "linux/arm64"

// subjects is provenance with these subjects.
func (d *draft) subjects(list ...any) []byte {
	return compact(object{"_type": "https://in-toto.io/Statement/v1", "subject": list, "predicateType": attestations.ProvenanceV1, "predicate": predicate()})
}

// each seals provenance of the index and of platforms; the index is "".
func (d *draft) each(parts ...string) {
	for _, p := range parts {
		of, name := d.top, "index"
		for i, platform := range []string{amd64, arm64} {
			if p == platform {
				of, name = d.platforms[i], []string{"amd64", "arm64"}[i]
			}
		}
		d.file(name+".json", d.seal("ours", d.provenanceOf(of.Digest)), Accepted, p)
	}
}

func (d *draft) index() { d.image = d.multi.clone() }

func bindingCases() []entry {
	const other = "https://in-toto.io/Statement/v1#subject"
	denied := func(name, title, stands string, code string, subjects func(*draft) []any) entry {
		return entry{"binding/" + name, title, stands, func(d *draft) {
			d.nothing()
			d.file("provenance.json", d.seal("ours", d.subjects(subjects(d)...)), code)
		}}
	}
	return []entry{
		{"binding/the-image", "Provenance of exactly this image, signed by the trusted key.", "", func(d *draft) { d.good() }},
		denied("another-image", "Good provenance of another image.", other, "subject", func(d *draft) []any { return []any{subject(d.other.top.Digest)} }),
		{"binding/second-subject", "This image is the second subject of three.", other, func(d *draft) {
			st := d.subjects(subject(d.other.top.Digest), subject(d.top.Digest), subject(d.multi.top.Digest))
			d.file("provenance.json", d.seal("ours", st), Accepted)
		}},
		{"binding/subject-without-name", "The subject has no name; its digest is what binds.", other, func(d *draft) {
			d.file("provenance.json", d.seal("ours", d.subjects(object{"digest": object{"sha256": hexOf(d.top.Digest)}})), Accepted)
		}},
		{"binding/two-algorithms", "The subject's digest is given as sha256 and as sha512.", other, func(d *draft) {
			d.file("provenance.json", d.seal("ours", d.subjects(object{"digest": object{"sha256": hexOf(d.top.Digest), "sha512": strings.Repeat("ab", 64)}})), Accepted)
		}},
		denied("sha512-only", "The subject has a sha512 digest only, which an OCI image named by sha256 cannot be compared with.", other, "subject",
			func(*draft) []any { return []any{object{"digest": object{"sha512": strings.Repeat("ab", 64)}}} }),
		denied("wrong-algorithm", "The image's sha256 stands under the name of another algorithm of the same length.", other, "subject",
			func(d *draft) []any { return []any{object{"digest": object{"sha3_256": hexOf(d.top.Digest)}}} }),
		denied("sha256-called-sha512", "The image's sha256 stands under sha512, whose digests are longer.", other, "unreadable",
			func(d *draft) []any { return []any{object{"digest": object{"sha512": hexOf(d.top.Digest)}}} }),
		denied("upper-case", "The subject's digest is in upper case.", other, "unreadable",
			func(d *draft) []any {
				return []any{object{"digest": object{"sha256": strings.ToUpper(hexOf(d.top.Digest))}}}
			}),
		denied("truncated", "The subject's digest is cut short.", other, "unreadable",
			func(d *draft) []any { return []any{object{"digest": object{"sha256": hexOf(d.top.Digest)[:63]}}} }),
		denied("no-subject", "The statement has no subject.", other, "unreadable", func(*draft) []any { return []any{} }),
		denied("subject-without-digest", "The subject has the image's name and no digest.", other, "unreadable",
			func(*draft) []any { return []any{object{"name": imageName, "digest": object{}}} }),
		{"binding/subject-with-different-case", "The key is spelled Subject: a reader that folds case sees a subject, a strict one none.", "in-toto/attestation#74", func(d *draft) {
			d.nothing()
			st := strings.Replace(string(d.provenance()), `"subject"`, `"Subject"`, 1)
			d.file("provenance.json", d.seal("ours", []byte(st)), "unreadable")
		}},
		{"binding/thousand-subjects", "The image is the last of 1,024 subjects.", "CVE-2024-45395", func(d *draft) {
			d.file("provenance.json", d.seal("ours", d.subjects(many(1023, subjectOnly(d.top.Digest))...)), Accepted)
		}},
		{"binding/too-many-subjects", "16,385 subjects are too many to be read, though the image is among them.", "CVE-2024-45395", func(d *draft) {
			d.nothing()
			d.file("provenance.json", d.seal("ours", d.subjects(many(16_384, subjectOnly(d.top.Digest))...)), "unreadable")
		}},
		{"binding/referrer-of-this-image", "A bundle is attached to this image; its statement is about another.", "ratify-v1 SLSA plugin", func(d *draft) {
			d.nothing()
			raw := d.seal("ours", d.provenanceOf(d.other.top.Digest))
			d.refer(d.top, raw)
			d.seen(raw, "", "subject")
		}},
		{"binding/log-entry-of-another-statement", "A good bundle whose log entry is that of another statement.", "CVE-2022-36056", func(d *draft) {
			d.trustCertificate()
			d.nothing()
			alien := d.logEntries(d.provenanceOf(d.other.top.Digest))
			d.file("provenance.json", d.bent(d.world.ours, d.provenance(), func(b *protobundle.Bundle) {
				b.VerificationMaterial.TlogEntries = alien.VerificationMaterial.TlogEntries
			}), "log")
		}},
		{"binding/log-entry-of-another-key", "The log entry is of the same statement, and of another key and signature.", "CVE-2026-22703, CVE-2024-51746", func(d *draft) {
			d.trustCertificate()
			d.nothing()
			alien := d.logEntries(d.provenance())
			d.file("provenance.json", d.bent(d.world.ours, d.provenance(), func(b *protobundle.Bundle) {
				b.VerificationMaterial.TlogEntries = alien.VerificationMaterial.TlogEntries
			}), "log")
		}},
		{"binding/rekor-v2-entry-of-another-statement", "A Rekor v2 entry of another statement beside a good signature and stamp.", "CVE-2026-22703, sigstore-go#600", func(d *draft) {
			d.trustCertificate()
			d.nothing()
			v2 := func(o *virtual.Options) { o.Log, o.Stamp = "v2", true }
			alien := d.logEntries(d.provenanceOf(d.other.top.Digest), v2)
			d.file("provenance.json", d.bent(d.world.ours, d.provenance(), func(b *protobundle.Bundle) {
				b.VerificationMaterial.TlogEntries = alien.VerificationMaterial.TlogEntries
			}, v2), "log")
		}},
		{"binding/signature-of-another-statement", "The payload is this image's provenance, the signature another's.", "", func(d *draft) {
			d.nothing()
			elsewhere := d.people["ours"].sign(d, payloadType, d.provenanceOf(d.other.top.Digest))
			d.file("provenance.json", bundleOf(d.people["ours"], payloadType, d.provenance(), elsewhere), "signature")
		}},
		{"binding/platform-by-digest", "One platform of an index, asked for by its own digest, with provenance of its own.", "cosign#3552", func(d *draft) {
			d.index()
			d.c.Question.Reference, d.c.Question.Digest, d.c.Question.MediaType = "@"+d.platforms[0].Digest, d.platforms[0].Digest, d.platforms[0].MediaType
			d.file("amd64.json", d.seal("ours", d.provenanceOf(d.platforms[0].Digest)), Accepted)
		}},

		{"index/every-part", "The index and each platform have provenance.", "", func(d *draft) {
			d.index()
			d.each("", amd64, arm64)
		}},
		{"index/one-statement-for-all", "One statement names the index and both platforms.", "slsa-verifier#174", func(d *draft) {
			d.index()
			raw := d.seal("ours", d.subjects(subject(d.top.Digest), subject(d.platforms[0].Digest), subject(d.platforms[1].Digest)))
			d.file("provenance.json", raw, Accepted, "", amd64, arm64)
		}},
		{"index/only-the-index", "The index is attested, and neither platform that would run is.", "cosign#3552, policy-controller#786", func(d *draft) {
			d.index()
			d.deny(0, "level "+reqExists+" "+amd64, "level "+reqExists+" "+arm64)
			d.each("")
		}},
		{"index/only-the-platforms", "Both platforms are attested, and the index that was asked for is not.", "", func(d *draft) {
			d.index()
			d.deny(0, "level "+reqExists)
			d.each(amd64, arm64)
		}},
		{"index/one-platform-missing", "One platform of two has no provenance.", "cosign#3552", func(d *draft) {
			d.index()
			d.deny(0, "level "+reqExists+" "+arm64)
			d.each("", amd64)
		}},
		{"index/sibling", "The provenance of one platform is attached to the other as well.", "", func(d *draft) {
			d.index()
			d.deny(0, "level "+reqExists+" "+arm64)
			d.each("", amd64)
			raw := d.seal("ours", d.provenanceOf(d.platforms[0].Digest, external("noCache", true)))
			d.refer(d.platforms[1], raw)
			d.seen(raw, "", "subject", arm64)
		}},
		{"index/swapped-child", "A platform was exchanged in the index, whose own digest is so another; all the evidence is of the old one.", "", func(d *draft) {
			old := d.multi
			d.image = several(single("app on amd64", nil), single("something else", nil))
			d.deny(0, "level "+reqExists, "level "+reqExists+" "+arm64)
			d.file("amd64.json", d.seal("ours", d.provenanceOf(old.platforms[0].Digest)), Accepted, amd64)
			d.file("index.json", d.seal("ours", d.provenanceOf(old.top.Digest)), "subject", "", amd64, arm64)
			d.file("arm64.json", d.seal("ours", d.provenanceOf(old.platforms[1].Digest)), "subject", "", amd64, arm64)
		}},
		{"index/worse-platform", "One platform was built by a builder that is trusted less: the index is as good as its worst part.", "", func(d *draft) {
			d.index()
			d.trustKey("ours", "https://ci.example/builder/v0", 2)
			d.deny(2, "level "+reqUnforgeable+" "+arm64, "level "+reqIsolated+" "+arm64)
			d.each("", amd64)
			d.file("arm64.json", d.seal("ours", d.provenanceOf(d.platforms[1].Digest, builder("https://ci.example/builder/v0"))), Accepted, arm64)
		}},
		{"index/worse-platform-enough", "The same, where the lower level is all that is asked.", "", func(d *draft) {
			d.index()
			d.trustKey("ours", "https://ci.example/builder/v0", 2)
			d.build(2)
			d.pass(2)
			d.each("", amd64)
			d.file("arm64.json", d.seal("ours", d.provenanceOf(d.platforms[1].Digest, builder("https://ci.example/builder/v0"))), Accepted, arm64)
		}},
		{"index/empty", "An index without any platform: nothing in it could run.", "", func(d *draft) {
			d.image = &image{blobs: map[string][]byte{}}
			const kind = "application/vnd.oci.image.index.v1+json"
			d.top = d.put(kind, []byte(`{"schemaVersion":2,"mediaType":"`+kind+`","manifests":[]}`))
			d.entries = []descriptor{d.top}
			d.deny(3, "platforms")
			d.each("")
		}},
		{"index/platform-by-stranger", "One platform's provenance is signed by a stranger.", "", func(d *draft) {
			d.index()
			d.deny(0, "level "+reqExists+" "+arm64)
			d.each("", amd64)
			d.file("arm64.json", d.seal("strange", d.provenanceOf(d.platforms[1].Digest)), "signature", arm64)
		}},
		{"index/platform-from-another-source", "One platform was built from another repository.", "", func(d *draft) {
			d.index()
			d.c.Question.Repository = repository
			d.deny(0, "source "+reqExpect+" "+arm64)
			d.each("", amd64)
			d.file("arm64.json", d.seal("ours", d.provenanceOf(d.platforms[1].Digest, source("git+https://git.example/evil/app", object{"gitCommit": commit}))), Accepted, arm64)
		}},
		{"index/buildkit-unsigned", "BuildKit's own attestations lie unsigned in the index, and Build L1 is all that is asked.", "buildkit#2688", func(d *draft) {
			d.buildkit()
			d.distrust()
			d.keysOnly(1)
			d.pass(1)
			d.seenBuildkit("unsigned")
		}},
		{"index/buildkit-unsigned-not-enough", "BuildKit's own attestations lie unsigned in the index, and a policy asks for Build L2.", "buildkit#2688", func(d *draft) {
			d.buildkit()
			d.build(2)
			d.deny(0, "level "+reqExists, "level "+reqExists+" "+amd64, "level "+reqExists+" "+arm64)
			d.seenBuildkit("unsigned")
		}},
		{"index/buildkit-for-one-platform", "BuildKit's unsigned provenance is there for one platform only.", "", func(d *draft) {
			d.buildkit(0)
			d.distrust()
			d.keysOnly(1)
			d.deny(0, "level "+reqExists, "level "+reqExists+" "+arm64)
			d.seenBuildkit("unsigned", 0)
		}},
	}
}

func subjectOnly(digest string) object { return object{"digest": object{"sha256": hexOf(digest)}} }

// many is n other subjects and a last one.
func many(n int, last object) []any {
	var out []any
	for i := range n {
		out = append(out, object{"digest": object{"sha256": fmt.Sprintf("%064x", i)}})
	}
	return append(out, last)
}

// logEntries is a bundle whose log entries are wanted.
func (d *draft) logEntries(st []byte, changes ...func(*virtual.Options)) *protobundle.Bundle {
	o := virtual.Options{SAN: ciSAN, Issuer: ciIssuer}
	for _, change := range changes {
		change(&o)
	}
	b, err := d.world.ours.Bundle(st, o)
	must(d, err)
	return b
}

// buildkit makes the image an index as BuildKit writes it, with its own unsigned
// provenance of platforms; of all of them by default.
func (d *draft) buildkit(of ...int) {
	if of == nil {
		of = []int{0, 1}
	}
	d.index()
	below := d.platforms
	for _, n := range of {
		st := d.provenanceOf(d.platforms[n].Digest, builder("https://buildkit.example"))
		layer := d.put("application/vnd.in-toto+json", st)
		layer.Annotations = map[string]string{"in-toto.io/predicate-type": attestations.ProvenanceV1}
		config := d.put("application/vnd.oci.image.config.v1+json", []byte(`{"architecture":"unknown","os":"unknown","rootfs":{"type":"layers","diff_ids":[]}}`))
		m := d.putManifest(manifest{Config: &config, Layers: []descriptor{layer}})
		m.Platform = &platform{"unknown", "unknown"}
		m.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": d.platforms[n].Digest}
		below = append(below, m)
	}
	d.top = d.putManifest(manifest{MediaType: "application/vnd.oci.image.index.v1+json", Manifests: below})
	d.entries = []descriptor{d.top}
}

// seenBuildkit expects a code of what buildkit wrote.
func (d *draft) seenBuildkit(code string, of ...int) {
	if of == nil {
		of = []int{0, 1}
	}
	for _, n := range of {
		d.seen(d.provenanceOf(d.platforms[n].Digest, builder("https://buildkit.example")), "", code, []string{amd64, arm64}[n])
	}
}

// envelopeObject is a bundle of good provenance, for cases that bend it.
func (d *draft) envelopeObject() object {
	st := d.provenance()
	return bundleObject(d.people["ours"], payloadType, st, d.people["ours"].sign(d, payloadType, st))
}

func envelopeCases() []entry {
	const protocol = "https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md"
	// bend denies a bundle that make gives.
	bend := func(name, title, stands, code string, make func(*draft) []byte) entry {
		return entry{"envelope/" + name, title, stands, func(d *draft) {
			d.nothing()
			d.file("provenance.json", make(d), code)
		}}
	}
	accept := func(name, title, stands string, make func(*draft) []byte) entry {
		return entry{"envelope/" + name, title, stands, func(d *draft) { d.file("provenance.json", make(d), Accepted) }}
	}
	payload := func(name, title, stands, code string, change func(string) string) entry {
		return bend(name, title, stands, code, func(d *draft) []byte { return d.seal("ours", []byte(change(string(d.provenance())))) })
	}
	text := func(change func(string) string) func(*draft) []byte {
		return func(d *draft) []byte { return []byte(change(string(d.seal("ours", d.provenance())))) }
	}
	replace := func(old, new string) func(string) string {
		return func(s string) string {
			out := strings.Replace(s, old, new, 1)
			if out == s {
				panic("nothing was replaced: " + old)
			}
			return out
		}
	}
	signer := func(name, title string) entry {
		return entry{"envelope/key-" + name, title, "", func(d *draft) {
			d.distrust()
			delete(d.files, "trust/ours.pub")
			d.trustKey(name, ciID, 3)
			d.file("provenance.json", d.seal(name, d.provenance()), Accepted)
		}}
	}
	return []entry{
		accept("dsse", "A bare DSSE envelope, as cosign keeps in .att.", "", func(d *draft) []byte { return d.dsse("ours", d.provenance()) }),
		accept("dsse-base64url", "The envelope's base64 is of the URL-safe alphabet, which readers must take.", protocol, func(d *draft) []byte {
			st := d.provenance(external("noCache", true), definition("internalParameters", object{"x": "???>>>~~~"}))
			return compact(object{"payload": base64.URLEncoding.EncodeToString(st), "payloadType": payloadType, "signatures": []any{
				object{"sig": base64.URLEncoding.EncodeToString(d.people["ours"].sign(d, payloadType, st))}}})
		}),
		accept("raw-signature", "The ECDSA signature is the two numbers side by side, as in DSSE's own test vector, and not DER.", protocol, func(d *draft) []byte {
			st := d.provenance()
			return bundleOf(d.people["ours"], payloadType, st, d.people["ours"].flat(d, st))
		}),
		accept("keyid-of-another", "The envelope's keyid names another key; it is a hint and proves nothing.", protocol, func(d *draft) []byte {
			st := d.provenance()
			return compact(object{"payload": st, "payloadType": payloadType, "signatures": []any{object{"keyid": "strange", "sig": d.people["ours"].sign(d, payloadType, st)}}})
		}),
		accept("hint-of-another", "The bundle's hint is of another key; it is not authenticated.", "", func(d *draft) []byte {
			st := d.provenance()
			return bundleOf(d.people["strange"], payloadType, st, d.people["ours"].sign(d, payloadType, st))
		}),
		accept("statement-v0.1", "An in-toto statement v0.1.", "", func(d *draft) []byte {
			return d.seal("ours", []byte(strings.Replace(string(d.provenance()), "Statement/v1", "Statement/v0.1", 1)))
		}),
		accept("statement-with-more", "The statement has a member that its type does not know, which readers must ignore.", "https://github.com/in-toto/attestation/blob/v1.2.0/spec/v1/README.md", func(d *draft) []byte {
			return d.seal("ours", []byte(strings.Replace(string(d.provenance()), `{"_type"`, `{"later":{"a":1},"_type"`, 1)))
		}),
		accept("indented", "The bundle is written over several lines.", "", text(func(s string) string { return strings.ReplaceAll(s, `,"`, ",\n  \"") })),
		signer("p384", "A key on P-384, with SHA-256 as cosign signs."),
		signer("p384-sha384", "A key on P-384, with SHA-384 as Sigstore's registry of algorithms says."),
		signer("ed25519", "An Ed25519 key."),
		signer("rsa", "An RSA key of 2048 bits."),

		bend("payload-type", "The envelope is signed as plain text, though it holds a statement.", protocol, "unreadable", func(d *draft) []byte {
			st := d.provenance()
			return bundleOf(d.people["ours"], "text/plain", st, d.people["ours"].sign(d, "text/plain", st))
		}),
		bend("payload-type-changed", "It was signed as plain text and calls itself a statement.", protocol, "signature", func(d *draft) []byte {
			st := d.provenance()
			return bundleOf(d.people["ours"], payloadType, st, d.people["ours"].sign(d, "text/plain", st))
		}),
		bend("payload-type-parameter", "The payload type has a parameter added.", protocol, "unreadable", func(d *draft) []byte {
			const kind = payloadType + "; charset=utf-8"
			st := d.provenance()
			return bundleOf(d.people["ours"], kind, st, d.people["ours"].sign(d, kind, st))
		}),
		bend("signature-over-payload-only", "The signature is over the payload, not over its pre-authentication encoding.", protocol, "signature", func(d *draft) []byte {
			st := d.provenance()
			return bundleOf(d.people["ours"], payloadType, st, d.people["ours"].plain(d, st))
		}),
		bend("no-signature", "No signature in the envelope.", protocol, "unreadable", func(d *draft) []byte { return bundleOf(d.people["ours"], payloadType, d.provenance()) }),
		bend("empty-signature", "The one signature is empty.", "", "unreadable", func(d *draft) []byte { return bundleOf(d.people["ours"], payloadType, d.provenance(), []byte{}) }),
		bend("two-signatures", "Two good signatures by two people: a bundle has one.", "", "signature-count", func(d *draft) []byte {
			st := d.provenance()
			return bundleOf(d.people["ours"], payloadType, st, d.people["ours"].sign(d, payloadType, st), d.people["second"].sign(d, payloadType, st))
		}),
		bend("same-signature-twice", "The same signature twice, which counts for no more than one.", "go-witness dsse threshold, GHSA-3633-5h82-39pq", "signature-count", func(d *draft) []byte {
			st := d.provenance()
			sig := d.people["ours"].sign(d, payloadType, st)
			return bundleOf(d.people["ours"], payloadType, st, sig, sig)
		}),
		bend("endless-signatures", "A hundred signatures, the good one last.", "CVE-2023-46737, CVE-2023-33957", "unreadable", func(d *draft) []byte {
			st := d.provenance()
			var sigs [][]byte
			for range 100 {
				sigs = append(sigs, []byte("none"))
			}
			return bundleOf(d.people["ours"], payloadType, st, append(sigs, d.people["ours"].sign(d, payloadType, st))...)
		}),
		bend("signature-bit", "One bit of the signature is another.", "", "signature", func(d *draft) []byte {
			st := d.provenance()
			sig := d.people["ours"].sign(d, payloadType, st)
			sig[len(sig)-1] ^= 1
			return bundleOf(d.people["ours"], payloadType, st, sig)
		}),
		bend("payload-changed", "The commit in the payload was changed after it was signed.", "", "signature", func(d *draft) []byte {
			st := d.provenance()
			return bundleOf(d.people["ours"], payloadType, []byte(strings.Replace(string(st), commit, strings.Repeat("0", 40), 1)), d.people["ours"].sign(d, payloadType, st))
		}),
		bend("other-spelling-signed", "The signature is over the same statement written with spaces: real bytes are what is verified.", "CVE-2026-44309", "signature", func(d *draft) []byte {
			st := d.provenance()
			return bundleOf(d.people["ours"], payloadType, st, d.people["ours"].sign(d, payloadType, []byte(strings.ReplaceAll(string(st), ":", ": "))))
		}),
		bend("null-envelope", "The bundle's envelope is null.", "CVE-2026-44310", "unreadable", func(d *draft) []byte {
			o := d.envelopeObject()
			o["dsseEnvelope"] = nil
			return compact(o)
		}),
		bend("stranger", "Provenance that is true in every word, signed by a stranger.", "", "signature", func(d *draft) []byte { return d.seal("strange", d.provenance()) }),
		bend("stranger-with-our-hint", "A stranger signed, and the bundle's hint is of the trusted key.", "", "signature", func(d *draft) []byte {
			st := d.provenance()
			return bundleOf(d.people["ours"], payloadType, st, d.people["strange"].sign(d, payloadType, st))
		}),
		bend("not-signed", "A bare statement that nobody signed.", "ampel pkg/verifier/implementation.go:514", "unsigned", func(d *draft) []byte { return d.provenance() }),
		bend("message-signature", "A bundle over the statement's bytes as a plain message, not as an envelope.", "", "unreadable", func(d *draft) []byte {
			o := d.envelopeObject()
			delete(o, "dsseEnvelope")
			o["messageSignature"] = object{"messageDigest": object{"algorithm": "SHA2_256", "digest": "q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s="}, "signature": "AAAA"}
			return compact(o)
		}),
		bend("future-version", "A bundle of a version that does not exist yet.", "", "unreadable", text(replace("bundle.v0.3", "bundle.v0.9"))),
		bend("unknown-field", "The bundle has a member that its version does not know.", "", "unreadable", text(replace(`{"dsseEnvelope"`, `{"comment":"x","dsseEnvelope"`))),
		bend("bundle-and-envelope", "One document that is a bundle and a bare envelope at once, each with another payload.", "in-toto/attestation#74", "unreadable", text(replace(`{"dsseEnvelope"`, `{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[],"dsseEnvelope"`))),
		bend("no-material", "The bundle says neither a key nor a certificate.", "", "unreadable", func(d *draft) []byte {
			o := d.envelopeObject()
			o["verificationMaterial"] = object{}
			return compact(o)
		}),
		bend("trailing-object", "A second JSON object follows the bundle.", "", "unreadable", text(func(s string) string { return s + "{}" })),
		bend("byte-order-mark", "A byte order mark before the bundle.", "", "unreadable", text(func(s string) string { return "\ufeff" + s })),
		bend("duplicate-envelope", "The bundle has its envelope twice, the second one empty.", "in-toto/attestation#74", "unreadable", text(replace(`{"dsseEnvelope"`, `{"dsseEnvelope":{"payload":"e30=","payloadType":"x","signatures":[]},"dsseEnvelope"`))),
		bend("case-of-envelope", "The envelope's key is spelled DsseEnvelope.", "in-toto/attestation#74", "unreadable", text(replace("dsseEnvelope", "DsseEnvelope"))),
		bend("base64-line-breaks", "A line break within the envelope's base64.", "", "unreadable", func(d *draft) []byte {
			return []byte(strings.Replace(string(d.dsse("ours", d.provenance())), `"payload":"`, `"payload":"\n`, 1))
		}),
		bend("nested", "A hundred thousand brackets.", "CVE-2023-30551", "unreadable", func(*draft) []byte { return []byte(strings.Repeat("[", 100000)) }),

		payload("two-objects", "The payload holds two JSON objects, each a statement.", "", "unreadable", func(s string) string { return s + s }),
		payload("payload-duplicate-subject", "The payload has two subjects lists; the last one is this image's.", "in-toto/attestation#74", "unreadable", replace(`"subject"`, `"subject":[{"digest":{"sha256":"`+strings.Repeat("0", 64)+`"}}],"subject"`)),
		payload("payload-duplicate-builder", "builder.id stands twice in the predicate.", "in-toto/attestation#74", "unreadable", replace(`"builder":{"id"`, `"builder":{"id":"https://evil.example","id"`)),
		payload("payload-case-of-builder", "builder.id stands a second time, spelled ID.", "in-toto/attestation#74", "predicate", replace(`"builder":{`, `"builder":{"ID":"https://evil.example",`)),
		payload("payload-case-of-definition", "The key is spelled BuildDefinition.", "in-toto/attestation#74", "predicate", replace("buildDefinition", "BuildDefinition")),
		payload("payload-no-json", "The payload is no JSON; the signature over it is good.", "CVE-2026-39395", "unreadable", func(string) string { return "hello world" }),
		payload("payload-invalid-utf8", "A string of the payload is not UTF-8.", "", "unreadable", replace(imageName, "\xff\xfe")),
		payload("payload-half-surrogate", "A string of the payload escapes half a surrogate pair, which readers decode differently.", "in-toto/attestation#74", "unreadable", replace(imageName, `\ud800`)),
		payload("statement-type", "The statement is of a type that nobody defines.", "", "unreadable", replace("Statement/v1", "Statement/v9")),
		payload("no-predicate-type", "The statement names no predicate type.", "", "unreadable", replace(`"predicateType":"`+attestations.ProvenanceV1+`",`, "")),
		payload("predicate-is-text", "The predicate is a string.", "", "unreadable", func(s string) string {
			i := strings.Index(s, `"predicate":`)
			return s[:i] + `"predicate":"x"}`
		}),
		bend("no-predicate", "The statement has no predicate.", "", "predicate", func(d *draft) []byte {
			s := string(d.provenance())
			return d.seal("ours", []byte(s[:strings.Index(s, `,"predicate":`)]+"}"))
		}),
		bend("empty-predicate", "The predicate is empty.", "CVE-2026-39395", "predicate", func(d *draft) []byte { return d.seal("ours", d.about(attestations.ProvenanceV1, object{})) }),
		bend("v0.2-type-v1-body", "The type says SLSA provenance v0.2, the body is v1.", "", "predicate", func(d *draft) []byte { return d.seal("ours", d.about(attestations.ProvenanceV02, predicate())) }),
		bend("v1-type-v0.2-body", "The type says SLSA provenance v1, the body is v0.2.", "", "predicate", func(d *draft) []byte {
			return d.seal("ours", d.about(attestations.ProvenanceV1, old()))
		}),
	}
}

// old is a predicate of SLSA provenance v0.2 by ciID.
func old() object {
	return object{
		"builder": object{"id": ciID}, "buildType": "https://ci.example/build/v1",
		"invocation": object{"configSource": object{"uri": "git+" + repository, "digest": object{"sha1": commit}, "entryPoint": "build"}},
		"metadata":   object{"completeness": object{"parameters": true, "environment": true, "materials": true}},
		"materials":  []any{object{"uri": "git+" + repository, "digest": object{"sha1": commit}}},
	}
}
