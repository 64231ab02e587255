package corpus

import (
	"fmt"
	"time"

	"github.com/waxseal/waxseal/internal/testkit/virtual"
)

// lifeCases are of signers that end, or are revoked, and of certificates that
// must stand in a log.
func lifeCases() []entry {
	day := 24 * time.Hour
	before, after := minted().Add(-day), minted().Add(day)
	key := func(name, title, stands, code string, life Life, stamp bool) entry {
		e := windowed(name, title, stands, code, life.From, life.Until, stamp)
		inner := e.make
		e.make = func(d *draft) {
			d.c.Trust.Keys[0].Revoked = life.Revoked
			inner(d)
		}
		return e
	}
	id := func(name, title, code string, life Life) entry {
		return entry{name, title, "", func(d *draft) {
			d.trustIdentity(Identity{Issuer: ciIssuer, SAN: ciSAN, Life: life}, d.oursRoot)
			d.outcome(code, func() []byte { return d.certified(d.world.ours, d.provenance()) })
		}}
	}
	// promised is a case of a certificate with the promise that sign makes, where
	// the trusted root lists what list makes of the same log; nil: none.
	type of func(*draft, *virtual.CTLog) *virtual.CTLog
	same := func(_ *draft, l *virtual.CTLog) *virtual.CTLog { return l }
	none := func(*draft, *virtual.CTLog) *virtual.CTLog { return nil }
	another := func(d *draft, _ *virtual.CTLog) *virtual.CTLog {
		l, err := virtual.NewCTLog()
		must(d, err)
		return l
	}
	promised := func(name, title, code string, sign, list of) entry {
		return entry{name, title, "sigstore-conformance: signed certificate timestamps", func(d *draft) {
			log, err := virtual.NewCTLog()
			must(d, err)
			d.trustIdentity(Identity{Issuer: ciIssuer, SAN: ciSAN}, d.root(virtual.RootOptions{CT: list(d, log)}))
			d.outcome(code, func() []byte {
				return d.certified(d.world.ours, d.provenance(), func(o *virtual.Options) { o.CT = sign(d, log) })
			})
		}}
	}
	return []entry{
		key("time/key-revoked-since", "The key leaked a day later; the time stamp proves that it signed before.", "", Accepted, Life{Revoked: after}, true),
		key("time/key-revoked-before", "The key had leaked a day before it signed.", "CVE-2026-54787", "time", Life{Revoked: before}, true),
		key("time/key-revoked-that-moment", "The key leaked at the very moment of the stamp.", "", "time", Life{Revoked: minted()}, true),
		key("time/key-revoked-and-no-stamp", "The key leaks tomorrow, as of now; nothing proves when it signed, and a thief could have.", "CVE-2024-23332", "time", Life{Revoked: usual().Add(day)}, false),
		key("time/key-revoked-before-its-end", "The key has an end, and leaked before that and before it signed.", "", "time", Life{Until: after, Revoked: before}, true),

		key("time/key-that-followed", "The key came into use a day before it signed, after another.", "", Accepted, Life{From: before}, true),

		id("time/identity-begun", "The identity counts since the day before.", Accepted, Life{From: before}),
		id("time/identity-in-its-window", "An identity with a window, and a log entry of a moment within.", Accepted, Life{From: before, Until: after}),
		id("time/identity-ended-since", "An employee left a day later; the log proves that the signature is older.", Accepted, Life{Until: after}),
		id("time/identity-ended-before", "An employee had left a day before.", "time", Life{Until: before}),
		id("time/identity-not-begun", "The identity counts from a day later on.", "time", Life{From: after}),
		id("time/identity-revoked-since", "An account was taken over a day later.", Accepted, Life{Revoked: after}),
		id("time/identity-revoked-before", "An account had been taken over a day before.", "time", Life{Revoked: before}),

		promised("identity/promised", "The certificate carries the promise of the log of certificates.", Accepted, same, same),
		promised("identity/promised-where-no-log-is-trusted", "It does, and the trusted root has no such log.", Accepted, same, none),
		promised("identity/not-promised", "The instance has a log of certificates, and this one does not say that it is there.", "chain", none, same),
		promised("identity/promised-by-another-log", "The promise is of a log of certificates that is not trusted.", "chain", another, same),
		promised("identity/promise-forged", "The promise names the trusted log, and another key made it.", "chain", func(d *draft, l *virtual.CTLog) *virtual.CTLog {
			other, err := l.Impostor()
			must(d, err)
			return other
		}, same),
		promised("identity/promise-for-another-certificate", "The log's promise is for another certificate.", "chain", func(_ *draft, l *virtual.CTLog) *virtual.CTLog {
			other := *l
			other.Other = true
			return &other
		}, same),
		promised("identity/promised-by-a-log-that-ended", "The key of the log of certificates had ended an hour before.", "chain", same, func(_ *draft, l *virtual.CTLog) *virtual.CTLog {
			ended := *l
			ended.Until = minted().Add(-time.Hour)
			return &ended
		}),
	}
}

// thresholdCases ask for two signers of one provenance.
func thresholdCases() []entry {
	// two trusts two people under names, and asks for both.
	two := func(name, title, stands string, enough bool, make func(d *draft, st []byte)) entry {
		return entry{"builder/" + name, title, stands, func(d *draft) {
			d.c.Question.Signatures = 2
			d.trustKey("second", ciID, 3)
			d.c.Trust.Builders[0].Name, d.c.Trust.Builders[1].Name = "CI", "Ann"
			if !enough {
				d.deny(3, "signatures")
			}
			make(d, d.provenance())
		}}
	}
	// workflow trusts the workflows of an owner on any tag; two of their runs signed.
	workflow := func(name, title, stands string, enough bool, other string) entry {
		return entry{"builder/" + name, title, stands, func(d *draft) {
			d.c.Question.Signatures = 2
			d.trustIdentity(Identity{Issuer: ciIssuer, Pattern: "https://ci.example/acme/**@refs/tags/v*"}, d.oursRoot)
			if !enough {
				d.deny(3, "signatures")
			}
			d.file("one.json", d.certified(d.world.ours, d.provenance()), Accepted)
			d.file("two.json", d.certified(d.world.ours, d.provenance(), san(other)), Accepted)
		}}
	}
	return []entry{
		workflow("one-workflow-signed-twice", "Two must sign, and one workflow did on two tags.", "GHSA-3633-5h82-39pq", false, "https://ci.example/acme/build/.github/workflows/seal.yml@refs/tags/v2"),
		workflow("two-workflows-signed", "Two must sign, and two workflows did.", "", true, "https://ci.example/acme/build/.github/workflows/check.yml@refs/tags/v1"),
		two("two-of-two-signed", "Two people signed the same provenance, and two are asked for.", "", true, func(d *draft, st []byte) {
			d.file("ci.json", d.seal("ours", st), Accepted)
			d.file("ann.json", d.seal("second", st), Accepted)
		}),
		two("two-of-three-signed", "Two must sign, three people may, and two did.", "", true, func(d *draft, st []byte) {
			d.trustKey("reviewer", ciID, 3)
			d.c.Trust.Builders[2].Name = "Bob"
			d.file("ann.json", d.seal("second", st), Accepted)
			d.file("bob.json", d.seal("reviewer", st), Accepted)
		}),
		two("one-of-two-signed", "Two must sign, and one did.", "", false, func(d *draft, st []byte) { d.file("ci.json", d.seal("ours", st), Accepted) }),
		two("one-key-signed-twice", "Two must sign, and one key made two bundles.", "go-witness dsse threshold, GHSA-3633-5h82-39pq", false, func(d *draft, st []byte) {
			d.file("ci.json", d.seal("ours", st), Accepted)
			d.file("again.json", d.dsse("ours", st), Accepted)
		}),
		two("one-person-signed-twice", "Two must sign, and one person did with two keys.", "GHSA-3633-5h82-39pq", false, func(d *draft, st []byte) {
			d.trustKey("reviewer", ciID, 3)
			d.c.Trust.Builders[2].Name = "Ann"
			d.file("ann.json", d.seal("second", st), Accepted)
			d.file("again.json", d.seal("reviewer", st), Accepted)
		}),
		two("a-stranger-signed-too", "Two must sign, and one did, and a stranger.", "", false, func(d *draft, st []byte) {
			d.file("ci.json", d.seal("ours", st), Accepted)
			d.file("stranger.json", d.seal("strange", st), "signature")
		}),
		two("two-signed-different-things", "Two must sign one provenance, and each signed another.", "", false, func(d *draft, st []byte) {
			d.file("ci.json", d.seal("ours", st), Accepted)
			d.file("ann.json", d.seal("second", d.provenance(definition("internalParameters", object{"n": 1}))), Accepted)
		}),
		two("two-signed-and-one-alone", "Two signed the same, and one of them something else beside.", "", true, func(d *draft, st []byte) {
			d.file("ci.json", d.seal("ours", st), Accepted)
			d.file("ann.json", d.seal("second", st), Accepted)
			// Of what is worth the same, the least digest comes first: one of these.
			for n := range 4 {
				d.file(fmt.Sprintf("alone%d.json", n), d.seal("second", d.provenance(definition("internalParameters", object{"n": n}))), Accepted)
			}
		}),
	}
}
