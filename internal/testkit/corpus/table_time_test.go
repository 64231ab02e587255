package corpus

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"

	"github.com/waxseal/waxseal/internal/testkit/virtual"
)

// How virtual.Options change.
func rekor2(o *virtual.Options)    { o.Log, o.Stamp = "v2", true }
func unlogged(o *virtual.Options)  { o.Log = "none" }
func stamped(o *virtual.Options)   { o.Stamp = true }
func noPromise(o *virtual.Options) { o.NoPromise = true }

func version(v string) func(*virtual.Options) { return func(o *virtual.Options) { o.Version = v } }

// from is a certificate that began before the signature, or after it.
func from(d time.Duration) func(*virtual.Options) {
	return func(o *virtual.Options) { o.From = minted().Add(d) }
}

func logged(d time.Duration) func(*virtual.Options) {
	return func(o *virtual.Options) { o.Logged = minted().Add(d) }
}

func san(name string) func(*virtual.Options) { return func(o *virtual.Options) { o.SAN = name } }

func issuer(url string) func(*virtual.Options) { return func(o *virtual.Options) { o.Issuer = url } }

// root is our instance's trusted root, with other windows.
func (d *draft) root(o virtual.RootOptions) []byte {
	return trustedRoot(d, d.world.ours, o)
}

// certificate is a case of a bundle under a certificate for ciSAN.
func certificate(name, title, stands, code string, bend func(*draft, *protobundle.Bundle), changes ...func(*virtual.Options)) entry {
	return entry{name, title, stands, func(d *draft) {
		d.trustCertificate()
		d.outcome(code, func() []byte {
			if bend == nil {
				return d.certified(d.world.ours, d.provenance(), changes...)
			}
			return d.bent(d.world.ours, d.provenance(), func(b *protobundle.Bundle) { bend(d, b) }, changes...)
		})
	}}
}

// outcome adds provenance, and expects a pass where its code says accepted.
func (d *draft) outcome(code string, make func() []byte) {
	if code != Accepted {
		d.nothing()
	}
	d.file("provenance.json", make(), code)
}

// underRoot is a case of a bundle that is good but for the trusted root.
func underRoot(name, title, stands, code string, o virtual.RootOptions, changes ...func(*virtual.Options)) entry {
	return entry{name, title, stands, func(d *draft) {
		d.trustIdentity(Identity{Issuer: ciIssuer, SAN: ciSAN}, d.root(o))
		d.outcome(code, func() []byte { return d.certified(d.world.ours, d.provenance(), changes...) })
	}}
}

// windowed is a case of a key with a window; stamp says whether the signature
// is stamped, when everything is minted.
func windowed(name, title, stands, code string, from, until time.Time, stamp bool) entry {
	return entry{name, title, stands, func(d *draft) {
		k := &d.c.Trust.Keys[0]
		k.From, k.Until = from, until
		d.files["trust/trusted_root.json"] = d.oursRoot
		d.c.Trust.Roots = []string{"trust/trusted_root.json"}
		d.c.Question.Flags = []string{"--trusted-root", "trust/trusted_root.json"}
		d.outcome(code, func() []byte {
			if !stamp {
				return d.seal("ours", d.provenance())
			}
			return d.stampedByKey(d.world.ours)
		})
	}}
}

// stampedByKey is provenance signed by our key, with a time stamp of an
// instance.
func (d *draft) stampedByKey(by *virtual.Sigstore) []byte {
	return d.certified(by, d.provenance(), func(o *virtual.Options) { o.Key, o.Stamp = d.ecdsa("ours"), true })
}

func timeCases() []entry {
	hour := time.Hour
	day := 24 * time.Hour
	others := func(d *draft, changes ...func(*virtual.Options)) *protobundle.TimestampVerificationData {
		o := virtual.Options{SAN: ciSAN, Issuer: ciIssuer, Log: "none", Stamp: true}
		for _, change := range changes {
			change(&o)
		}
		b, err := d.world.theirs.Bundle(d.provenance(), o)
		must(d, err)
		return b.VerificationMaterial.TimestampVerificationData
	}
	return []entry{
		certificate("time/logged", "A certificate, and a Rekor v1 entry with a promise and a proof.", "", Accepted, nil),
		certificate("time/bundle-v0.2", "A bundle v0.2 with its certificate chain.", "", Accepted, nil, version("0.2")),
		certificate("time/bundle-v0.1", "A bundle v0.1, whose entry has a promise.", "", Accepted, nil, version("0.1")),
		certificate("time/logged-and-stamped", "A log entry and a time stamp.", "", Accepted, nil, stamped),
		certificate("time/rekor-v2", "A Rekor v2 entry, which proves no time, and a time stamp.", "kyverno#641a7db", Accepted, nil, rekor2),
		certificate("time/certificate-ended-since", "The certificate was valid for ten minutes a month ago, when it was used.", "", Accepted, nil, from(-time.Minute)),
		underRoot("time/stamp-and-no-log", "An instance without a log; the time stamp proves the time.", "", Accepted, virtual.RootOptions{NoLogs: true}, unlogged, stamped),
		underRoot("time/authority-ended-since", "The time-stamping authority stopped a day later; what it had stamped stays stamped.", "sigstore-conformance trust-root-tsa-validity", Accepted, virtual.RootOptions{Stamps: minted().Add(day)}, rekor2),
		underRoot("time/authority-ended-that-moment", "The time-stamping authority's window ends with the very moment of the stamp.", "sigstore-conformance trust-root-tsa-validity-end-inclusive", Accepted, virtual.RootOptions{Stamps: minted()}, rekor2),
		underRoot("time/log-ended-since", "The log's key was retired a day later.", "", Accepted, virtual.RootOptions{LogUntil: minted().Add(day)}),

		certificate("time/nothing-proves-it", "A certificate, and neither a log entry nor a time stamp.", "", "log", nil, unlogged),
		underRoot("time/no-stamp-and-no-log", "An instance without a log, and no time stamp.", "", "time", virtual.RootOptions{NoLogs: true}, unlogged),
		certificate("time/rekor-v2-without-stamp", "A Rekor v2 entry alone proves no time.", "sigstore-conformance rekor2-no-timestamp", "time", nil, func(o *virtual.Options) { o.Log = "v2" }),
		certificate("time/no-promise", "A Rekor v1 entry with its proof and without the promise: its time is nobody's word.", "", "time", nil, noPromise),
		certificate("time/v0.1-without-promise", "A bundle v0.1 without the inclusion promise that it must have.", "", "log", nil, version("0.1"), noPromise),
		certificate("time/promise-without-proof", "A bundle v0.3 with a promise and without the inclusion proof that it must have.", "", "log", func(_ *draft, b *protobundle.Bundle) {
			b.VerificationMaterial.TlogEntries[0].InclusionProof = nil
		}),
		certificate("time/forged-promise", "The promise of the log entry was signed by nobody.", "CVE-2022-23649", "log", func(_ *draft, b *protobundle.Bundle) {
			set := b.VerificationMaterial.TlogEntries[0].InclusionPromise.SignedEntryTimestamp
			set[len(set)-1] ^= 1
		}),
		certificate("time/forged-time", "The entry's time was changed to one within the certificate's life; the promise is of another.", "CVE-2022-23649", "log", func(_ *draft, b *protobundle.Bundle) {
			b.VerificationMaterial.TlogEntries[0].IntegratedTime = minted().Unix()
		}, from(-time.Minute), logged(20*time.Minute)),
		certificate("time/proof-of-another-root", "The inclusion proof's root is not the checkpoint's.", "", "log", func(_ *draft, b *protobundle.Bundle) {
			b.VerificationMaterial.TlogEntries[0].InclusionProof.RootHash[0] ^= 1
		}),
		certificate("time/entry-twice", "The same log entry twice.", "CVE-2026-49834", "log", func(_ *draft, b *protobundle.Bundle) {
			b.VerificationMaterial.TlogEntries = append(b.VerificationMaterial.TlogEntries, b.VerificationMaterial.TlogEntries[0])
		}),
		certificate("time/endless-entries", "Forty log entries.", "CVE-2024-45395", "log", func(_ *draft, b *protobundle.Bundle) {
			for range 39 {
				b.VerificationMaterial.TlogEntries = append(b.VerificationMaterial.TlogEntries, b.VerificationMaterial.TlogEntries[0])
			}
		}),
		certificate("time/entry-without-body", "A log entry whose body is empty.", "CVE-2023-33199, CVE-2026-23831", "log", func(_ *draft, b *protobundle.Bundle) {
			b.VerificationMaterial.TlogEntries[0].CanonicalizedBody = nil
		}),
		certificate("time/entry-of-another-kind", "A log entry of a kind that takes its key from a URL.", "CVE-2026-24117", "log", func(_ *draft, b *protobundle.Bundle) {
			b.VerificationMaterial.TlogEntries[0].CanonicalizedBody = []byte(`{"apiVersion":"0.0.1","kind":"rpm","spec":{"package":{"url":"https://evil.example/x"},"publicKey":{"url":"https://evil.example/key"}}}`)
		}),
		certificate("time/entry-is-null", "A log entry of nothing at all.", "CVE-2026-44310", "log", func(_ *draft, b *protobundle.Bundle) {
			b.VerificationMaterial.TlogEntries = []*protorekor.TransparencyLogEntry{{}}
		}),
		certificate("time/late-entry", "The log entry is of an hour after the certificate had ended.", "sigstore-conformance intoto-set-outside-signing-cert-validity", "time", nil, from(-time.Minute), logged(hour)),
		certificate("time/early-entry", "The log entry is of an hour before the certificate began.", "", "time", nil, from(-time.Minute), logged(-hour)),
		certificate("time/late-stamp", "The time stamp is of a time after the certificate had ended.", "", "time", nil, unlogged, stamped, from(-hour)).under(virtual.RootOptions{NoLogs: true}),
		{"time/still-to-come", "The log entry's time is later than the moment that is asked about.", "sigstore-conformance integrated-time-in-future", func(d *draft) {
			d.trustCertificate()
			d.nothing()
			d.c.Question.At = minted().Add(-day)
			d.file("provenance.json", d.certified(d.world.ours, d.provenance()), "time")
		}},
		certificate("time/stamp-of-another-authority", "The time stamp is of an authority that is not trusted, with its certificate in it.", "CVE-2026-39984", "time", func(d *draft, b *protobundle.Bundle) {
			b.VerificationMaterial.TimestampVerificationData = others(d)
		}, unlogged, stamped).under(virtual.RootOptions{NoLogs: true}),
		certificate("time/stamp-over-other-bytes", "The time stamp is over another signature.", "", "time", func(d *draft, b *protobundle.Bundle) {
			b.VerificationMaterial.TimestampVerificationData = d.logEntries(d.provenanceOf(d.other.top.Digest), unlogged, stamped).VerificationMaterial.TimestampVerificationData
		}, unlogged, stamped).under(virtual.RootOptions{NoLogs: true}),
		certificate("time/stamp-is-none", "The time stamp is some bytes.", "CVE-2025-66564", "time", func(_ *draft, b *protobundle.Bundle) {
			b.VerificationMaterial.TimestampVerificationData.Rfc3161Timestamps[0].SignedTimestamp = []byte("noon")
		}, unlogged, stamped).under(virtual.RootOptions{NoLogs: true}),
		certificate("time/stamp-twice", "The same time stamp twice: no more than one, and as good as one.", "CVE-2026-49834", Accepted, func(_ *draft, b *protobundle.Bundle) {
			d := b.VerificationMaterial.TimestampVerificationData
			d.Rfc3161Timestamps = append(d.Rfc3161Timestamps, &protocommon.RFC3161SignedTimestamp{SignedTimestamp: d.Rfc3161Timestamps[0].SignedTimestamp})
		}, unlogged, stamped).under(virtual.RootOptions{NoLogs: true}),
		underRoot("time/authority-ended-before", "The time-stamping authority's window ended an hour before it stamped.", "CVE-2026-54787, CVE-2024-56138", "time", virtual.RootOptions{Stamps: minted().Add(-hour)}, rekor2),
		underRoot("time/log-ended-before", "The log's key was retired a day before the entry.", "CVE-2026-54787", "time", virtual.RootOptions{LogUntil: minted().Add(-day)}),
		underRoot("time/log-not-begun", "The log's key came into use a day after the entry.", "CVE-2026-54787", "time", virtual.RootOptions{LogFrom: minted().Add(day)}),
		underRoot("time/rekor-v2-log-ended-before", "The key of the Rekor v2 log was retired a day before; only the time stamp tells.", "CVE-2026-54787", "time", virtual.RootOptions{LogUntil: minted().Add(-day)}, rekor2),
		{"time/intermediate-ended", "The intermediate certificate had ended when the certificate below it was issued and used.", "CVE-2026-24122", func(d *draft) {
			private(d, d.ended, Identity{SAN: ciSAN})
			d.nothing()
			d.file("provenance.json", d.certified(d.world.ours, d.provenance(), unlogged, stamped, issuer(""), func(o *virtual.Options) { o.CA = d.ended }), "chain")
		}},
		underRoot("time/authority-of-names-ended", "The certificate authority's window in the trusted root ended a day before.", "", "chain", virtual.RootOptions{Until: minted().Add(-day)}),

		windowed("time/key-in-its-window", "A key with a window, and a time stamp of a moment within.", "", Accepted, minted().Add(-day), minted().Add(day), true),
		windowed("time/key-rotated-since", "The key was retired since; the time stamp proves that it signed before.", "kyverno/policies#1407", Accepted, time.Time{}, minted().Add(day), true),
		windowed("time/key-ended-before", "The key was retired a day before it signed.", "CVE-2026-54787", "time", time.Time{}, minted().Add(-day), true),
		windowed("time/key-not-begun", "The key came into use a day after it signed.", "", "time", minted().Add(day), time.Time{}, true),
		windowed("time/key-ended-and-no-stamp", "The key was retired since, and nothing proves that it signed before.", "CVE-2024-23332", "time", time.Time{}, minted().Add(day), false),
		windowed("time/key-not-ended-and-no-stamp", "The key is in use; nothing proves when it signed, and nothing needs to.", "", Accepted, minted().Add(-day), usual().Add(day), false),
		{"time/key-stamped-by-another", "The key was retired since, and the time stamp is of an authority that is not trusted.", "", func(d *draft) {
			d.nothing()
			d.c.Trust.Keys[0].Until = minted().Add(day)
			d.files["trust/trusted_root.json"] = d.oursRoot
			d.c.Trust.Roots, d.c.Question.Flags = []string{"trust/trusted_root.json"}, []string{"--trusted-root", "trust/trusted_root.json"}
			d.file("provenance.json", d.stampedByKey(d.world.theirs), "time")
		}},
	}
}

// under is the entry with another trusted root.
func (e entry) under(o virtual.RootOptions) entry {
	inner := e.make
	e.make = func(d *draft) {
		inner(d)
		d.files["trust/trusted_root.json"] = d.root(o)
	}
	return e
}

// private trusts a name under a CA of one's own, and our instance for the time.
func private(d *draft, ca *virtual.CA, id Identity) {
	roots, between := ca.PEM()
	d.trustIdentity(id, d.oursRoot)
	d.policy = "none"
	d.build(2)
	d.pass(2)
	d.c.Trust.Builders = nil
	d.files["trust/ca.pem"], d.files["trust/between.pem"] = roots, between
	d.c.Trust.CARoots, d.c.Trust.CABetween = "trust/ca.pem", "trust/between.pem"
}

const evilIssuer = ciIssuer + ".evil.example"

func identityCases() []entry {
	const tags = "https://ci.example/acme/build/.github/workflows/seal.yml@refs/tags/v*"
	named := func(name, title, stands, code string, id Identity, changes ...func(*virtual.Options)) entry {
		return entry{"identity/" + name, title, stands, func(d *draft) {
			d.trustIdentity(id, d.oursRoot)
			d.outcome(code, func() []byte { return d.certified(d.world.ours, d.provenance(), changes...) })
		}}
	}
	exact := Identity{Issuer: ciIssuer, SAN: ciSAN}
	pattern := Identity{Issuer: ciIssuer, Pattern: tags}
	anyFlow := Identity{Issuer: ciIssuer, Pattern: "https://ci.example/acme/**@refs/tags/v*"}
	refused := func(name, title, stands, says string, id Identity) entry {
		return entry{"identity/" + name, title, stands, func(d *draft) {
			d.trustIdentity(id, d.oursRoot)
			if id.Regexp != "" {
				d.keysOnly(2)
			}
			d.usage(says)
			d.raw("provenance.json", d.certified(d.world.ours, d.provenance()))
		}}
	}
	expression := func(name, title, stands, code, re string, changes ...func(*virtual.Options)) entry {
		return entry{"identity/" + name, title, stands, func(d *draft) {
			d.trustIdentity(Identity{Issuer: ciIssuer, Regexp: re}, d.oursRoot)
			d.keysOnly(2)
			d.pass(2)
			d.outcome(code, func() []byte { return d.certified(d.world.ours, d.provenance(), changes...) })
		}}
	}
	const re = `^https://ci\.example/acme/build/\.github/workflows/seal\.yml@refs/tags/v[0-9]+$`
	return []entry{
		named("exact", "The certificate's name and issuer are exactly those that are trusted.", "", Accepted, exact),
		named("pattern", "The name is a tag of the trusted workflow.", "", Accepted, pattern),
		named("pattern-of-an-owner", "Any workflow of the owner is trusted on a tag.", "", Accepted, anyFlow),
		named("mail", "A mail address.", "", Accepted, Identity{Issuer: ciIssuer, SAN: "release@acme.example"}, san("release@acme.example")),
		named("mail-of-a-domain", "Anybody of one mail domain.", "", Accepted, Identity{Issuer: ciIssuer, Pattern: "*@acme.example"}, san("release@acme.example")),
		expression("expression", "An anchored regular expression.", "", Accepted, re),
		expression("expression-of-an-owner", "An expression of all workflows of an owner, on a tag.", "", Accepted, `^https://ci\.example/acme/[^@]*@refs/tags/.*$`),
		expression("expression-of-a-mail-domain", "An expression of the mail addresses of a domain.", "", Accepted, `^.*@acme\.example$`, san("release@acme.example")),

		named("name-goes-on", "The trusted name with more behind it.", "gh expandToGitHubURL", "identity", exact, san(ciSAN+"-evil")),
		named("repository-goes-on", "A repository whose name only begins like the trusted one.", "gh validateSignerWorkflow", "identity", pattern, san("https://ci.example/acme/build-evil/.github/workflows/seal.yml@refs/tags/v1")),
		named("inside-another", "The trusted name stands inside another.", "", "identity", pattern, san("https://evil.example/?x="+ciSAN)),
		named("fork", "The same workflow in a fork.", "", "identity", pattern, san("https://ci.example/mallory/build/.github/workflows/seal.yml@refs/tags/v1")),
		named("branch-like-a-tag", "A branch that is called like the tag.", "", "identity", pattern, san("https://ci.example/acme/build/.github/workflows/seal.yml@refs/heads/v1")),
		named("branch-with-a-tag-inside", "A branch that is called refs/tags/v1.", "", "identity", pattern, san("https://ci.example/acme/build/.github/workflows/seal.yml@refs/heads/refs/tags/v1")),
		named("branch-with-a-revision-inside", "A branch that is called evil@refs/tags/v1, where any workflow of the owner is trusted on a tag.", "", "identity", anyFlow, san("https://ci.example/acme/build/.github/workflows/seal.yml@refs/heads/evil@refs/tags/v1")),
		named("pull-request", "The workflow as a pull request changed it.", "", "identity", pattern, san("https://ci.example/acme/build/.github/workflows/seal.yml@refs/pull/7/merge")),
		named("star-and-slash", "A star does not reach over a slash.", "", "identity", pattern, san("https://ci.example/acme/build/.github/workflows/seal.yml@refs/tags/v1/../../heads/main")),
		named("another-workflow", "Another workflow of the same repository.", "", "identity", pattern, san("https://ci.example/acme/build/.github/workflows/test.yml@refs/tags/v1")),
		named("case-of-name", "The name in another case.", "", "identity", exact, san("https://ci.example/Acme/build/.github/workflows/seal.yml@refs/tags/v1")),
		named("another-issuer", "The trusted name, on the word of another issuer.", "CVE-2025-29778", "identity", exact, issuer("https://token.evil.example")),
		named("issuer-goes-on", "The issuer only begins like the trusted one.", "CVE-2026-22772", "identity", exact, issuer(evilIssuer)),
		named("issuer-with-slash", "The issuer with a slash at its end.", "", "identity", exact, issuer(ciIssuer+"/")),
		named("no-issuer", "The certificate names no issuer.", "", "identity", exact, issuer("")),
		named("mail-of-another-domain", "A mail address of a domain that ends like the trusted one.", "", "identity", Identity{Issuer: ciIssuer, Pattern: "*@acme.example"}, san("release@evil-acme.example")),
		named("mail-with-our-domain-inside", "A mail address with the trusted domain before the @.", "", "identity", Identity{Issuer: ciIssuer, Pattern: "*@acme.example"}, san("x@acme.example@evil.example")),
		expression("expression-dot", "A dot of the expression is a dot.", "", "identity", re, san("https://ciXexample/acme/build/.github/workflows/seal.yml@refs/tags/v1")),
		expression("expression-two-lines", "The trusted name, and a second line.", "", "identity", re, san(ciSAN+"\nhttps://evil.example")),

		refused("not-anchored", "An expression that says neither where it begins nor where it ends.", "sigstore-go and cosign: unanchored by design", "not anchored", Identity{Issuer: ciIssuer, Regexp: `https://ci\.example/acme/build`}),
		refused("not-anchored-at-the-end", "An expression without an end.", "gh expandToGitHubURL", "not anchored", Identity{Issuer: ciIssuer, Regexp: `^https://ci\.example/acme/build`}),
		refused("half-anchored", "Two alternatives, each anchored at one end only.", "", "not anchored", Identity{Issuer: ciIssuer, Regexp: `^https://ci\.example/a|https://ci\.example/b$`}),
		refused("open-dot", "An expression with a dot that matches any character.", "", "dot", Identity{Issuer: ciIssuer, Regexp: `^https://ci.example/acme/build$`}),
		refused("everybody", "An expression that matches everybody.", "witness policy constraints", "everybody", Identity{Issuer: ciIssuer, Regexp: `^.*$`}),
		refused("expression-over-the-revision", "An expression of all workflows of an owner that leaves the revision open without a word, so that any branch is trusted.", "gh expandToGitHubURL", "[^@]*", Identity{Issuer: ciIssuer, Regexp: `^https://ci\.example/acme/.*$`}),
		refused("expression-over-an-at", "An expression of a tag that the branch evil@refs/tags/v1 matches, too.", "", "[^@]*", Identity{Issuer: ciIssuer, Regexp: `^https://ci\.example/acme/build/.*@refs/tags/v1$`}),
		refused("expression-without-a-host", "An expression of a workflow at any host and of any owner.", "witness policy constraints", "wildcard", Identity{Issuer: ciIssuer, Regexp: `^[^@]*/seal\.yml@refs/tags/v1$`}),
		refused("star-alone", "A pattern that begins with a wildcard.", "witness policy constraints", "wildcard", Identity{Issuer: ciIssuer, Pattern: "**"}),
		refused("stars-after-a-name", "A pattern that matches what only begins alike.", "", "begin", Identity{Issuer: ciIssuer, Pattern: "https://ci.example/acme/build**"}),
		refused("negated-class", "A pattern with a negated class, which implementations read differently.", "GHSA-pmwq-pjrm-6p5r, CVE-2021-41087", "regular expression", Identity{Issuer: ciIssuer, Pattern: "https://ci.example/[^e]vil/build"}),
		refused("issuer-left-out", "A name without an issuer: whoever runs another one could take the same.", "", "issuer", Identity{SAN: ciSAN}),
		refused("issuer-pattern", "An issuer with a wildcard.", "CVE-2026-22772", "issuer", Identity{Issuer: "https://*.example", SAN: ciSAN}),

		certificate("identity/for-servers", "A certificate for servers, not for signing code.", "", "chain", nil, func(o *virtual.Options) { o.Usage = x509.ExtKeyUsageServerAuth }),
		{"identity/another-instance", "Everything is as it should be, in another instance of Sigstore.", "", func(d *draft) {
			d.trustCertificate()
			d.nothing()
			d.file("provenance.json", d.certified(d.world.theirs, d.provenance()), "log")
		}},
		{"identity/another-authority", "A certificate of another instance in the trusted log.", "", func(d *draft) {
			d.trustCertificate()
			d.nothing()
			d.file("provenance.json", d.certified(d.world.ours, d.provenance(), func(o *virtual.Options) { o.CA = d.world.theirs.CA }), "chain")
		}},
		{"identity/another-log", "The trusted authority's certificate in the log of another instance.", "CVE-2023-47122", func(d *draft) {
			d.trustCertificate()
			d.nothing()
			d.file("provenance.json", d.certified(d.world.theirs, d.provenance(), func(o *virtual.Options) { o.CA = d.world.ours.CA }), "log")
		}},
		{"identity/private-authority", "A name under a CA of one's own, whose time a time stamp proves.", "", func(d *draft) {
			private(d, d.world.private, Identity{SAN: ciSAN})
			d.file("provenance.json", d.certified(d.world.ours, d.provenance(), unlogged, stamped, issuer(""), func(o *virtual.Options) { o.CA = d.world.private }), Accepted)
		}},
		{"identity/private-name-in-public", "The name that the private CA vouches for, under a certificate of the instance that only proves the time.", "", func(d *draft) {
			private(d, d.world.private, Identity{SAN: ciSAN})
			d.nothing()
			d.file("provenance.json", d.certified(d.world.ours, d.provenance()), "identity")
		}},
		{"identity/certificate-where-a-key-is-trusted", "A certificate, where only a key is trusted.", "", func(d *draft) {
			d.nothing()
			d.file("provenance.json", d.certified(d.world.ours, d.provenance()), "certificate")
		}},
		{"identity/key-where-a-certificate-is-trusted", "A key, where only a certificate is trusted.", "", func(d *draft) {
			d.trustCertificate()
			d.nothing()
			d.file("provenance.json", d.seal("ours", d.provenance()), "no-key")
		}},
		certificate("identity/sixty-intermediates", "A chain with sixty intermediate certificates, all but one of no use.", "CVE-2026-32280", Accepted, func(_ *draft, b *protobundle.Bundle) {
			chain := b.VerificationMaterial.GetX509CertificateChain()
			for range 59 {
				chain.Certificates = append(chain.Certificates, chain.Certificates[1])
			}
		}, version("0.1")),
		{"time/stamp-with-a-large-key", "Somebody put a certificate into the time stamp whose RSA key has 9216 bits; one of some millions would take hours.", "", func(d *draft) {
			d.trustIdentity(exact, d.root(virtual.RootOptions{NoLogs: true}))
			d.nothing()
			d.file("provenance.json", d.certified(d.world.ours, d.provenance(), unlogged, stamped, func(o *virtual.Options) { o.Beside = d.certificateOf(d.large) }), "time")
		}},
		certificate("identity/intermediate-as-signer", "The certificate of the authority where the signer's should be.", "", "log", func(_ *draft, b *protobundle.Bundle) {
			chain := b.VerificationMaterial.GetX509CertificateChain()
			chain.Certificates = chain.Certificates[1:]
		}, version("0.1")),
		{"identity/certificate-swapped", "The bundle's certificate was exchanged for another of the same name.", "", func(d *draft) {
			d.trustCertificate()
			d.nothing()
			alien := d.logEntries(d.provenance())
			d.file("provenance.json", d.bent(d.world.ours, d.provenance(), func(b *protobundle.Bundle) {
				b.VerificationMaterial.Content = alien.VerificationMaterial.Content
			}), "log")
		}},
		{"identity/certificate-swapped-unlogged", "The same where there is no log to tell.", "", func(d *draft) {
			d.trustIdentity(exact, d.root(virtual.RootOptions{NoLogs: true}))
			d.nothing()
			alien := d.logEntries(d.provenance(), unlogged, stamped)
			d.file("provenance.json", d.bent(d.world.ours, d.provenance(), func(b *protobundle.Bundle) {
				b.VerificationMaterial.Content = alien.VerificationMaterial.Content
			}, unlogged, stamped), "signature")
		}},
		{"identity/narrowed", "The policy trusts it, and the caller asked for another identity as well.", "", func(d *draft) {
			d.trustIdentity(pattern, d.oursRoot)
			d.nothing()
			d.c.Question.Flags = []string{"--certificate-identity", ciSAN + ".1", "--certificate-oidc-issuer", ciIssuer}
			d.file("provenance.json", d.certified(d.world.ours, d.provenance()), "identity")
		}},
	}
}

// certificateOf is a certificate that the holder of a key made for himself.
func (d *draft) certificateOf(key crypto.Signer) *x509.Certificate {
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: minted().Add(-time.Hour), NotAfter: minted().Add(time.Hour)}
	raw, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	must(d, err)
	cert, err := x509.ParseCertificate(raw)
	must(d, err)
	return cert
}

type virtualOptions = virtual.Options

func rootOptions(noLogs, noStamps bool) virtual.RootOptions {
	return virtual.RootOptions{NoLogs: noLogs, NoStamps: noStamps}
}
