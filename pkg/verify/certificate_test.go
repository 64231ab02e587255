package verify_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/waxseal/waxseal/internal/testkit/virtual"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

const (
	issuer = "https://token.ci.example"
	san    = "https://ci.example/acme/app/.github/workflows/release.yml@refs/tags/v1"
)

func newSigstore(t testing.TB) *virtual.Sigstore {
	t.Helper()
	s, err := virtual.New()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func trustedRoot(t testing.TB, s *virtual.Sigstore, o virtual.RootOptions) *verify.Root {
	t.Helper()
	raw, err := s.Root(o)
	if err != nil {
		t.Fatal(err)
	}
	r, err := verify.ParseRoot("root.json", raw)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func identity(t testing.TB, o verify.IdentityOptions) verify.Identity {
	t.Helper()
	id, err := verify.NewIdentity(o)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func seal(t testing.TB, s *virtual.Sigstore, o virtual.Options) *attest.Bundle {
	t.Helper()
	raw, err := s.Seal(statement(sha256Subject(image), "https://example.org/t", `{"a":1}`), o)
	if err != nil {
		t.Fatal(err)
	}
	return bundleOf(t, raw)
}

func bundleOf(t testing.TB, raw []byte) *attest.Bundle {
	t.Helper()
	b, err := attest.ParseBundle(raw)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// changed seals, and changes the bundle as nobody should.
func changed(t testing.TB, s *virtual.Sigstore, o virtual.Options, change func(*protobundle.Bundle)) *attest.Bundle {
	t.Helper()
	b, err := s.Bundle(statement(sha256Subject(image), "https://example.org/t", `{"a":1}`), o)
	if err != nil {
		t.Fatal(err)
	}
	change(b)
	raw, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return bundleOf(t, raw)
}

// wantCode checks an answer: "" is accepted.
func wantCode(t testing.TB, ok *verify.Accepted, err error, want verify.Code) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	var r *verify.Rejection
	if !errors.As(err, &r) || r.Code != want {
		t.Errorf("got %v, want code %q", err, want)
	}
	if ok != nil {
		t.Error("a rejection came with a statement")
	}
}

func TestCertificates(t *testing.T) {
	ours, theirs := newSigstore(t), newSigstore(t)
	now := time.Now()
	me := virtual.Options{SAN: san, Issuer: issuer}
	with := func(change func(*virtual.Options)) virtual.Options {
		o := me
		change(&o)
		return o
	}
	exact := identity(t, verify.IdentityOptions{Issuer: issuer, SAN: san})
	trust := func(o virtual.RootOptions, ids ...verify.Identity) verify.Trust {
		if ids == nil {
			ids = []verify.Identity{exact}
		}
		return verify.Trust{Roots: []*verify.Root{trustedRoot(t, ours, o)}, Identities: ids}
	}
	good := trust(virtual.RootOptions{})
	both := good
	both.Roots = append([]*verify.Root{trustedRoot(t, theirs, virtual.RootOptions{})}, good.Roots...)
	pattern := identity(t, verify.IdentityOptions{Issuer: issuer, Pattern: "https://ci.example/acme/app/.github/workflows/release.yml@refs/tags/v*"})
	stamped := virtual.Options{SAN: san, Issuer: issuer, Log: "none", Stamp: true}
	noLogs := trust(virtual.RootOptions{NoLogs: true})
	outage := func(from, until time.Time) verify.Identity {
		return identity(t, verify.IdentityOptions{Issuer: issuer, SAN: san, Outages: []verify.Outage{{From: from, Until: until, Reason: "down"}}})
	}
	other := must(theirs.Bundle(statement(sha256Subject(image), "https://example.org/t", `{}`), stamped))(t)

	for _, c := range []struct {
		name  string
		b     *attest.Bundle
		trust verify.Trust
		want  verify.Code
	}{
		{"v0.3, the log's time", seal(t, ours, me), good, ""},
		{"v0.2", seal(t, ours, with(func(o *virtual.Options) { o.Version = "0.2" })), good, ""},
		{"v0.1", seal(t, ours, with(func(o *virtual.Options) { o.Version = "0.1" })), good, ""},
		{"log and time stamp", seal(t, ours, with(func(o *virtual.Options) { o.Stamp = true })), good, ""},
		{"Rekor v2 with a time stamp", seal(t, ours, with(func(o *virtual.Options) { o.Log, o.Stamp = "v2", true })), good, ""},
		{"a pattern", seal(t, ours, me), trust(virtual.RootOptions{}, pattern), ""},
		{"the second root", seal(t, ours, me), both, ""},
		{"an instance without a log", seal(t, ours, stamped), noLogs, ""},
		{"a certificate that ended since", seal(t, ours, with(func(o *virtual.Options) {
			o.From, o.Logged = now.Add(-48*time.Hour), now.Add(-48*time.Hour+time.Minute)
		})), good, ""},

		{"no root", seal(t, ours, me), verify.Trust{Identities: []verify.Identity{exact}}, verify.CodeCertificate},
		{"keys only", seal(t, ours, me), verify.Trust{Keys: []verify.Key{newPair(t, "k", nil).public}}, verify.CodeCertificate},
		{"nobody trusted", seal(t, ours, me), verify.Trust{Roots: good.Roots}, verify.CodeIdentity},
		{"the zero identity", seal(t, ours, me), trust(virtual.RootOptions{}, verify.Identity{}), verify.CodeIdentity},

		{"another issuer, our name", seal(t, ours, with(func(o *virtual.Options) { o.Issuer = "https://token.evil.example" })), good, verify.CodeIdentity},
		{"no issuer", seal(t, ours, with(func(o *virtual.Options) { o.Issuer = "" })), good, verify.CodeIdentity},
		{"the issuer with a slash more", seal(t, ours, with(func(o *virtual.Options) { o.Issuer += "/" })), good, verify.CodeIdentity},
		{"another name", seal(t, ours, with(func(o *virtual.Options) { o.SAN += "x" })), good, verify.CodeIdentity},
		{"a name that only begins alike", seal(t, ours, with(func(o *virtual.Options) { o.SAN = strings.Replace(san, "/app/", "/app-evil/", 1) })), trust(virtual.RootOptions{}, pattern), verify.CodeIdentity},
		{"a branch called like the tag", seal(t, ours, with(func(o *virtual.Options) { o.SAN = strings.Replace(san, "refs/tags/v1", "refs/heads/refs/tags/v1", 1) })), trust(virtual.RootOptions{}, pattern), verify.CodeIdentity},
		{"our name inside another", seal(t, ours, with(func(o *virtual.Options) { o.SAN = "https://evil.example/?" + san })), trust(virtual.RootOptions{}, pattern), verify.CodeIdentity},

		{"another instance", seal(t, theirs, me), good, verify.CodeLog},
		{"another instance's certificate in our log", seal(t, ours, with(func(o *virtual.Options) { o.CA = theirs.CA })), good, verify.CodeChain},
		{"our certificate in another's log", seal(t, theirs, with(func(o *virtual.Options) { o.CA = ours.CA })), good, verify.CodeLog},
		{"our certificate in another's log, both trusted", seal(t, theirs, with(func(o *virtual.Options) { o.CA = ours.CA })), both, verify.CodeChain},
		{"a certificate for RSA", seal(t, ours, with(func(o *virtual.Options) { o.Certified = must(rsa.GenerateKey(rand.Reader, 2048))(t) })), good, ""},
		{"a certificate for weak RSA", seal(t, ours, with(func(o *virtual.Options) { o.Certified = must(rsa.GenerateKey(rand.Reader, 1024))(t) })), good, verify.CodeSignature},
		{"a certificate for servers", seal(t, ours, with(func(o *virtual.Options) { o.Usage = x509.ExtKeyUsageServerAuth })), good, verify.CodeChain},
		{"no log entry", seal(t, ours, stamped), good, verify.CodeLog},
		{"no log entry and no stamp", seal(t, ours, with(func(o *virtual.Options) { o.Log = "none" })), noLogs, verify.CodeTime},
		{"an entry that proves no time", seal(t, ours, with(func(o *virtual.Options) { o.NoPromise = true })), good, verify.CodeTime},
		{"v0.1 without a promise", seal(t, ours, with(func(o *virtual.Options) { o.Version, o.NoPromise = "0.1", true })), good, verify.CodeLog},
		{"a thousand intermediate certificates", changed(t, ours, with(func(o *virtual.Options) { o.Version = "0.1" }), func(b *protobundle.Bundle) {
			chain := b.VerificationMaterial.GetX509CertificateChain()
			for range 1000 {
				chain.Certificates = append(chain.Certificates, chain.Certificates[1])
			}
		}), good, ""},
		{"a chain in v0.3", changed(t, ours, with(func(o *virtual.Options) { o.Version = "0.1" }), func(b *protobundle.Bundle) {
			b.MediaType = attest.BundleMediaType
		}), good, verify.CodeUnreadable},
		{"the intermediate's certificate as the signer's", changed(t, ours, with(func(o *virtual.Options) { o.Version = "0.1" }), func(b *protobundle.Bundle) {
			chain := b.VerificationMaterial.GetX509CertificateChain()
			chain.Certificates = chain.Certificates[1:]
		}), good, verify.CodeLog},
		{"Rekor v2 without a time stamp", seal(t, ours, with(func(o *virtual.Options) { o.Log = "v2" })), good, verify.CodeTime},
		{"a stamp of another authority", changed(t, ours, stamped, func(b *protobundle.Bundle) {
			b.VerificationMaterial.TimestampVerificationData = other.VerificationMaterial.TimestampVerificationData
		}), noLogs, verify.CodeTime},
		{"a stamp over another signature", changed(t, ours, stamped, func(b *protobundle.Bundle) {
			b.VerificationMaterial.TimestampVerificationData = must(ours.Bundle(statement(sha256Subject(image), "t:x", `{}`), stamped))(t).VerificationMaterial.TimestampVerificationData
		}), noLogs, verify.CodeTime},
		{"the entry of another signature", changed(t, ours, me, func(b *protobundle.Bundle) {
			b.VerificationMaterial.TlogEntries = must(ours.Bundle(statement(sha256Subject(image), "t:x", `{}`), me))(t).VerificationMaterial.TlogEntries
		}), good, verify.CodeLog},
		{"the same entry twice", changed(t, ours, me, func(b *protobundle.Bundle) {
			b.VerificationMaterial.TlogEntries = append(b.VerificationMaterial.TlogEntries, b.VerificationMaterial.TlogEntries[0])
		}), good, verify.CodeLog},
		{"more entries than anybody has", changed(t, ours, me, func(b *protobundle.Bundle) {
			for range 1000 {
				b.VerificationMaterial.TlogEntries = append(b.VerificationMaterial.TlogEntries, b.VerificationMaterial.TlogEntries[0])
			}
		}), good, verify.CodeLog},
		{"another payload under the signature", changed(t, ours, stamped, func(b *protobundle.Bundle) {
			b.GetDsseEnvelope().Payload = statement(sha256Subject(image), "https://example.org/t", `{"a":2}`)
		}), noLogs, verify.CodeSignature},
		{"a promise changed by a byte", changed(t, ours, me, func(b *protobundle.Bundle) {
			b.VerificationMaterial.TlogEntries[0].IntegratedTime++
		}), good, verify.CodeLog},

		{"logged after the certificate ended", seal(t, ours, with(func(o *virtual.Options) { o.From, o.Logged = now.Add(-time.Hour), now })), good, verify.CodeTime},
		{"stamped after the certificate ended", seal(t, ours, virtual.Options{SAN: san, Issuer: issuer, Log: "none", Stamp: true, From: now.Add(-time.Hour)}), noLogs, verify.CodeTime},
		{"logged in time, stamped too late", seal(t, ours, with(func(o *virtual.Options) {
			o.From, o.Logged, o.Stamp = now.Add(-time.Hour), now.Add(-55*time.Minute), true
		})), good, verify.CodeTime},
		{"a time that is still to come", seal(t, ours, with(func(o *virtual.Options) { o.From, o.Logged = now.Add(time.Hour), now.Add(65*time.Minute) })), good, verify.CodeTime},
		{"the log's key before its time", seal(t, ours, me), trust(virtual.RootOptions{LogFrom: now.Add(time.Hour)}), verify.CodeTime},
		{"the log's key after its time", seal(t, ours, me), trust(virtual.RootOptions{LogUntil: now.Add(-time.Hour)}), verify.CodeTime},
		{"a Rekor v2 log after its time", seal(t, ours, with(func(o *virtual.Options) { o.Log, o.Stamp = "v2", true })), trust(virtual.RootOptions{LogUntil: now.Add(-time.Hour)}), verify.CodeTime},
		{"an entry without a promise in a log after its time", seal(t, ours, with(func(o *virtual.Options) { o.NoPromise, o.Stamp = true, true })), trust(virtual.RootOptions{LogUntil: now.Add(-time.Hour)}), verify.CodeTime},
		{"the authority after its time", seal(t, ours, me), trust(virtual.RootOptions{Until: now.Add(-time.Hour)}), verify.CodeChain},
		{"the stamper after its time", seal(t, ours, stamped), trust(virtual.RootOptions{NoLogs: true, Stamps: now.Add(-time.Hour)}), verify.CodeTime},
		{"the identity before its time", seal(t, ours, me), trust(virtual.RootOptions{}, identity(t, verify.IdentityOptions{Issuer: issuer, SAN: san, Window: verify.Window{From: now.Add(time.Hour)}})), verify.CodeTime},
		{"the identity after its time", seal(t, ours, me), trust(virtual.RootOptions{}, identity(t, verify.IdentityOptions{Issuer: issuer, SAN: san, Window: verify.Window{Until: now.Add(-time.Hour)}})), verify.CodeTime},
		{"the identity revoked before it signed", seal(t, ours, me), trust(virtual.RootOptions{}, identity(t, verify.IdentityOptions{Issuer: issuer, SAN: san, Window: verify.Window{Revoked: now.Add(-time.Hour), Reason: "left"}})), verify.CodeTime},
		{"the identity revoked after it signed", seal(t, ours, me), trust(virtual.RootOptions{}, identity(t, verify.IdentityOptions{Issuer: issuer, SAN: san, Window: verify.Window{Revoked: now.Add(time.Hour), Reason: "left"}})), ""},
		{"the identity in its time", seal(t, ours, me), trust(virtual.RootOptions{}, identity(t, verify.IdentityOptions{Issuer: issuer, SAN: san, Window: verify.Window{From: now.Add(-time.Hour), Until: now.Add(time.Hour)}})), ""},
		{"in no log, in an outage", seal(t, ours, stamped), trust(virtual.RootOptions{}, outage(now.Add(-time.Hour), now.Add(time.Hour))), ""},
		{"in no log, without a word on it", seal(t, ours, stamped), good, verify.CodeLog},
		{"in no log, before the outage", seal(t, ours, stamped), trust(virtual.RootOptions{}, outage(now.Add(time.Hour), now.Add(2*time.Hour))), verify.CodeLog},
		{"in no log, after the outage", seal(t, ours, stamped), trust(virtual.RootOptions{}, outage(now.Add(-2*time.Hour), now.Add(-time.Hour))), verify.CodeLog},
		{"in no log, in somebody else's outage", seal(t, ours, stamped), trust(virtual.RootOptions{}, identity(t, verify.IdentityOptions{Issuer: issuer, SAN: san}),
			identity(t, verify.IdentityOptions{Issuer: issuer, SAN: "else@acme.example", Outages: []verify.Outage{{From: now.Add(-time.Hour), Until: now.Add(time.Hour), Reason: "down"}}})), verify.CodeLog},
		{"in no log and without a stamp, in an outage", seal(t, ours, with(func(o *virtual.Options) { o.Log = "none" })), trust(virtual.RootOptions{}, outage(now.Add(-time.Hour), now.Add(time.Hour))), verify.CodeTime},
		{"an entry that does not hold, in an outage", changed(t, ours, with(func(o *virtual.Options) { o.Stamp = true }), func(b *protobundle.Bundle) {
			b.VerificationMaterial.TlogEntries[0].IntegratedTime++
		}), trust(virtual.RootOptions{}, outage(now.Add(-time.Hour), now.Add(time.Hour))), verify.CodeLog},
		{"another's entry, in an outage", seal(t, theirs, with(func(o *virtual.Options) { o.CA, o.Stamp = ours.CA, true })), trust(virtual.RootOptions{}, outage(now.Add(-time.Hour), now.Add(time.Hour))), verify.CodeLog},
	} {
		t.Run(c.name, func(t *testing.T) {
			// Twice: what is remembered must not change the answer.
			for range 2 {
				ok, err := checked(t, c.b, c.trust)
				wantCode(t, ok, err, c.want)
				if err == nil && (ok.Signer().Unlogged != "") != strings.HasPrefix(c.name, "in no log") {
					t.Errorf("unlogged %q", ok.Signer().Unlogged)
				}
				if err == nil && (ok.Signer().SAN != san || ok.Signer().Issuer != issuer || ok.Signer().Root != "root.json" || ok.Signer().Time.IsZero() || ok.Signer().Key != "") {
					t.Errorf("signer %+v", ok.Signer())
				}
			}
		})
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestPrivateCA(t *testing.T) {
	instance := newSigstore(t)
	ours := must(virtual.NewCA(virtual.CAOptions{}))(t)
	expired := must(virtual.NewCA(virtual.CAOptions{Until: time.Now().Add(-time.Hour)}))(t)
	ca := func(c *virtual.CA) *verify.CA {
		roots, between := c.PEM()
		return must(verify.ParseCA("ca.pem", verify.CAOptions{Roots: roots, Intermediates: between}))(t)
	}
	root := trustedRoot(t, instance, virtual.RootOptions{})
	private := ca(ours)
	byCA := identity(t, verify.IdentityOptions{SAN: san, Anchor: private.ID(), AnchorIsCA: true})
	trust := verify.Trust{CAs: []*verify.CA{private}, Roots: []*verify.Root{root}, Identities: []verify.Identity{byCA}}
	late := trust
	late.CAs = []*verify.CA{ca(expired)}
	late.Identities = []verify.Identity{identity(t, verify.IdentityOptions{SAN: san, Anchor: late.CAs[0].ID(), AnchorIsCA: true})}
	pinned := trust
	pinned.Identities = []verify.Identity{identity(t, verify.IdentityOptions{Issuer: issuer, SAN: san, Anchor: root.ID()})}

	for _, c := range []struct {
		name  string
		o     virtual.Options
		trust verify.Trust
		want  verify.Code
	}{
		{"with a time stamp", virtual.Options{CA: ours, Log: "none", Stamp: true}, trust, ""},
		{"with a log entry", virtual.Options{CA: ours}, trust, ""},
		{"with an issuer named, too", virtual.Options{CA: ours, Issuer: issuer}, trust, ""},
		{"with no time", virtual.Options{CA: ours, Log: "none"}, trust, verify.CodeTime},
		{"an intermediate certificate that had ended", virtual.Options{CA: expired, Log: "none", Stamp: true}, late, verify.CodeChain},
		// The public instance issues the same name to somebody: the CA did not.
		{"the instance's certificate for the CA's name", virtual.Options{Issuer: issuer}, trust, verify.CodeIdentity},
		// The CA's owner writes the instance's issuer into a certificate.
		{"the CA's certificate for the instance's name", virtual.Options{CA: ours, Issuer: issuer}, pinned, verify.CodeIdentity},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.SAN = san
			ok, err := checked(t, seal(t, instance, c.o), c.trust)
			wantCode(t, ok, err, c.want)
			if err == nil && ok.Signer().Root != "ca.pem" {
				t.Errorf("signer %+v", ok.Signer())
			}
		})
	}
	if _, err := verify.NewChecker(verify.Trust{CAs: []*verify.CA{private}, Identities: trust.Identities}, time.Now()); err == nil {
		t.Error("a CA without anything that proves a time was accepted")
	}
}

func TestParseCARefuses(t *testing.T) {
	roots, between := must(virtual.NewCA(virtual.CAOptions{}))(t).PEM()
	leaf := changed(t, newSigstore(t), virtual.Options{SAN: san, Issuer: issuer}, func(*protobundle.Bundle) {})
	leafPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Proto().GetVerificationMaterial().GetCertificate().GetRawBytes()})
	for _, c := range []struct {
		name           string
		roots, between []byte
		want           string
	}{
		{"nothing", nil, nil, "no certificate"},
		{"an intermediate certificate as root", between, nil, "not a root certificate"},
		{"a leaf", leafPEM, nil, "not the certificate of an authority"},
		{"a leaf as intermediate", roots, leafPEM, "not the certificate of an authority"},
		{"a key", newPair(t, "k", nil).pem, nil, "PUBLIC KEY"},
		{"text after it", append(bytes.Clone(roots), "hello"...), nil, "not PEM"},
		{"too many", bytes.Repeat(roots, 101), nil, "more than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := verify.ParseCA("ca.pem", verify.CAOptions{Roots: c.roots, Intermediates: c.between}); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "ca.pem") {
				t.Errorf("got %v, want it to say %q", err, c.want)
			}
		})
	}
}

func TestParseRootRefuses(t *testing.T) {
	good := string(must(newSigstore(t).Root(virtual.RootOptions{}))(t))
	if _, err := verify.ParseRoot("r", []byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, in, want string }{
		{"empty", "", "ends early"},
		{"another type", strings.Replace(good, "trustedroot+json", "bundle+json", 1), "media type"},
		{"a field nobody knows", strings.Replace(good, "{", `{"trustEverybody":true,`, 1), "unknown field"},
		{"a field twice", strings.Replace(good, "{", `{"tlogs":[],`, 1), "duplicate"},
		{"data after it", good + "{}", ""},
		{"nothing in it", `{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`, "prove no time"},
		{"large", strings.Repeat(" ", attest.MaxTrustedRoot+1), "larger"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := verify.ParseRoot("root.json", []byte(c.in)); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "root.json") {
				t.Errorf("got %v, want it to say %q", err, c.want)
			}
		})
	}
}

// gh reads the last of several roots only where a newline ends it.
func TestParseRoots(t *testing.T) {
	one := must(newSigstore(t).Root(virtual.RootOptions{}))(t)
	two := must(newSigstore(t).Root(virtual.RootOptions{}))(t)
	pretty := new(bytes.Buffer)
	if err := json.Indent(pretty, one, "", "  "); err != nil {
		t.Fatal(err)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	lf := []byte("\n")
	for _, c := range []struct {
		name string
		in   []byte
		want int // 0: refused
	}{
		{"one", one, 1},
		{"one, over several lines", pretty.Bytes(), 1},
		{"two lines", join(one, lf, two, lf), 2},
		{"two lines, the last without its end", join(one, lf, two), 2},
		{"empty lines between", join(one, lf, lf, two, lf, lf), 2},
		{"lines that end as on Windows", join(one, []byte("\r\n"), two, []byte("\r\n")), 2},
		{"one without its end", one, 1},
		{"two on a line", join(one, two), 0},
		{"the second is none", join(one, lf, []byte(`{"mediaType":"x"}`)), 0},
		{"the second is cut", join(one, lf, two[:len(two)-10]), 0},
		{"too many", bytes.Repeat(join(one, lf), 17), 0},
		{"nothing", nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			roots, err := verify.ParseRoots("roots.jsonl", c.in)
			if len(roots) != c.want || (err != nil) != (c.want == 0) {
				t.Fatalf("%d roots, %v; want %d", len(roots), err, c.want)
			}
			if err != nil && !strings.Contains(err.Error(), "roots.jsonl") {
				t.Errorf("the error names no file: %v", err)
			}
			if c.want == 2 && (roots[0].ID() == roots[1].ID() || roots[1].ID() != attest.DigestOf(bytes.TrimSpace(two))) {
				t.Errorf("roots %s and %s", roots[0].ID(), roots[1].ID())
			}
		})
	}
}

func TestPartsOfARoot(t *testing.T) {
	s := newSigstore(t)
	until := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	open, ended := trustedRoot(t, s, virtual.RootOptions{}), trustedRoot(t, s, virtual.RootOptions{LogUntil: until, Stamps: until, Until: until})
	count := func(r *verify.Root) map[verify.PartKind]int {
		out := map[verify.PartKind]int{}
		for _, p := range r.Parts() {
			out[p.Kind]++
			if p.ID == "" || p.From.IsZero() && p.Kind != verify.PartLog && p.Kind != verify.PartCTLog {
				t.Errorf("part %+v", p)
			}
		}
		return out
	}
	if n := count(open); n[verify.PartAuthority] == 0 || n[verify.PartLog] == 0 || n[verify.PartStamper] == 0 {
		t.Errorf("parts %v", n)
	}
	closed := map[verify.PartKind]bool{}
	for _, p := range ended.Parts() {
		if p.Until.Equal(until) {
			closed[p.Kind] = true
		}
	}
	if !closed[verify.PartAuthority] || !closed[verify.PartLog] || !closed[verify.PartStamper] {
		t.Errorf("closed: %v of %+v", closed, ended.Parts())
	}

	// What was ended must not be trusted again; what is new may come.
	if w := ended.Weakens(open); len(w) != 0 {
		t.Errorf("a root that ends more weakens: %+v", w)
	}
	if w := open.Weakens(open); len(w) != 0 {
		t.Errorf("the same root weakens: %+v", w)
	}
	if w := open.Weakens(trustedRoot(t, newSigstore(t), virtual.RootOptions{})); len(w) != 0 {
		t.Errorf("new parts weaken: %+v", w)
	}
	if w := open.Weakens(ended); len(w) != len(closed) {
		t.Errorf("what is open again: %+v", w)
	}
	longer := trustedRoot(t, s, virtual.RootOptions{LogUntil: until.Add(time.Minute), Stamps: until, Until: until})
	if w := longer.Weakens(ended); len(w) != 1 || w[0].Kind != verify.PartLog {
		t.Errorf("what ends later: %+v", w)
	}
}

// What was good when it was made stays so when all that vouched for it has
// ended: that is what the proven times are for.
func TestEvidenceOutlivesItsCertificates(t *testing.T) {
	s := newSigstore(t)
	trust := verify.Trust{
		Roots:      []*verify.Root{trustedRoot(t, s, virtual.RootOptions{LogUntil: time.Now().Add(time.Hour), Stamps: time.Now().Add(time.Hour), Until: time.Now().Add(time.Hour)})},
		Identities: []verify.Identity{identity(t, verify.IdentityOptions{Issuer: issuer, SAN: san})},
	}
	for name, o := range map[string]virtual.Options{
		"a log entry": {}, "a time stamp": {Stamp: true}, "Rekor v2 with a time stamp": {Log: "v2", Stamp: true},
	} {
		o.SAN, o.Issuer = san, issuer
		checker := must(verify.NewChecker(trust, time.Now().AddDate(20, 0, 0)))(t)
		if _, err := checker.Check(seal(t, s, o), image); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKeyWindows(t *testing.T) {
	s := newSigstore(t)
	private := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	key := newPair(t, "old.pub", private).public
	now := time.Now()
	root := []*verify.Root{trustedRoot(t, s, virtual.RootOptions{})}
	stamped := seal(t, s, virtual.Options{Key: private, Stamp: true})
	bare := seal(t, s, virtual.Options{Key: private})
	elsewhere := seal(t, newSigstore(t), virtual.Options{Key: private, Stamp: true})
	from, until := verify.Window{From: now.Add(-time.Hour)}, verify.Window{Until: now.Add(30 * time.Minute)}
	for _, c := range []struct {
		name   string
		b      *attest.Bundle
		window verify.Window
		roots  []*verify.Root
		at     time.Time
		want   verify.Code
	}{
		{"always", bare, verify.Window{}, nil, now, ""},
		{"now within", bare, until, nil, now, ""},
		{"now before", bare, verify.Window{From: now.Add(time.Hour)}, nil, now, verify.CodeTime},
		{"now after, nothing proves when", bare, until, root, now.Add(time.Hour), verify.CodeTime},
		{"now after, a stamp that nobody trusts", stamped, until, nil, now.Add(time.Hour), verify.CodeTime},
		{"now after, a stamp of another instance", elsewhere, until, root, now.Add(time.Hour), verify.CodeTime},
		{"rotated since, stamped in its time", stamped, until, root, now.Add(time.Hour), ""},
		{"stamped before its time, now within", stamped, verify.Window{From: now.Add(time.Hour)}, root, now.Add(2 * time.Hour), verify.CodeTime},
		{"stamped after its time", stamped, verify.Window{Until: now.Add(-time.Hour)}, root, now, verify.CodeTime},
		{"stamped within both ends", stamped, verify.Window{From: from.From, Until: until.Until}, root, now.Add(24 * time.Hour), ""},
		{"revoked since, stamped before", stamped, verify.Window{Revoked: now.Add(time.Hour), Reason: "lost"}, root, now.Add(24 * time.Hour), ""},
		{"revoked before it was stamped", stamped, verify.Window{Revoked: now.Add(-time.Hour), Reason: "lost"}, root, now, verify.CodeTime},
		{"revoked, nothing proves when", bare, verify.Window{Revoked: now.Add(-time.Hour), Reason: "lost"}, root, now, verify.CodeTime},
		{"to be revoked, nothing proves when", bare, verify.Window{Revoked: now.Add(time.Hour), Reason: "lost"}, root, now, verify.CodeTime},
		{"revoked, a stamp that nobody trusts", stamped, verify.Window{Revoked: now.Add(time.Hour), Reason: "lost"}, nil, now, verify.CodeTime},
		{"revoked since, stamped before, begun after", stamped, verify.Window{From: now.Add(30 * time.Minute), Revoked: now.Add(time.Hour)}, root, now.Add(24 * time.Hour), verify.CodeTime},
		{"stamped in time to come", stamped, verify.Window{From: from.From}, root, now.Add(-30 * time.Minute), verify.CodeTime},
	} {
		t.Run(c.name, func(t *testing.T) {
			checker := must(verify.NewChecker(verify.Trust{Keys: []verify.Key{key.During(c.window)}, Roots: c.roots}, c.at))(t)
			ok, err := checker.Check(c.b, image)
			wantCode(t, ok, err, c.want)
		})
	}

	// The reason is in the message.
	revoked := must(verify.NewChecker(verify.Trust{Keys: []verify.Key{key.During(verify.Window{Revoked: now, Reason: "the laptop was stolen"})}}, now))(t)
	if _, err := revoked.Check(bare, image); err == nil || !strings.Contains(err.Error(), "the laptop was stolen") || !strings.Contains(err.Error(), "nothing that is trusted proves") {
		t.Error(err)
	}

	// The same key twice: each window is one of its times.
	checker := must(verify.NewChecker(verify.Trust{Keys: []verify.Key{key.During(verify.Window{Until: now.Add(-time.Hour)}), key.During(from)}}, now))(t)
	if _, err := checker.Check(bare, image); err != nil {
		t.Error(err)
	}
}

func TestCapOfIdentities(t *testing.T) {
	s := newSigstore(t)
	trust := verify.Trust{Roots: []*verify.Root{trustedRoot(t, s, virtual.RootOptions{})}, Identities: []verify.Identity{
		identity(t, verify.IdentityOptions{Issuer: issuer, Pattern: "https://ci.example/acme/**"}),
	}}
	signer := func(name string) verify.Signer {
		ok, err := checked(t, seal(t, s, virtual.Options{SAN: name, Issuer: issuer}), trust)
		if err != nil {
			t.Fatal(err)
		}
		return ok.Signer()
	}
	mine, other := signer(san), signer("https://ci.example/acme/other")
	id := identity(t, verify.IdentityOptions{Issuer: issuer, SAN: san})
	ended := identity(t, verify.IdentityOptions{Issuer: issuer, SAN: san, Window: verify.Window{Until: time.Now().Add(-time.Hour)}})
	trust.Builders = []verify.Builder{{ID: "https://a", Identity: &id, MaxLevel: 3}, {ID: "https://b", Identity: &ended, MaxLevel: 3}, {ID: "https://k", MaxLevel: 3}}
	for _, c := range []struct {
		signer verify.Signer
		id     string
		level  int
		says   string
	}{
		{mine, "https://a", 3, "up to Build L3"},
		{other, "https://a", 0, "is not the one trusted"},
		{mine, "https://a/", 0, "byte by byte"},
		{mine, "https://b", 0, "at a time when"},
		// A builder without a signer must not be that of a signer without a key.
		{mine, "https://k", 0, "is not the one trusted"},
		{verify.Signer{}, "https://a", 0, "is not the one trusted"},
		{verify.Signer{}, "https://k", 0, "is not the one trusted"},
		{verify.Signer{SAN: san, Issuer: issuer}, "https://b", 0, "at a time when"},
	} {
		if got := trust.Cap(c.signer, c.id); got.Level != c.level || !strings.Contains(got.Reason, c.says) {
			t.Errorf("%s for %s: %+v, want %d and %q", c.signer, c.id, got, c.level, c.says)
		}
	}
	trust.Builders = nil
	if got := trust.Cap(mine, "https://a"); got.Level != 2 || !strings.Contains(got.Reason, "identity") {
		t.Errorf("without builders: %+v", got)
	}
}

func TestOnlyNarrows(t *testing.T) {
	s := newSigstore(t)
	b := seal(t, s, virtual.Options{SAN: san, Issuer: issuer})
	trust := verify.Trust{Roots: []*verify.Root{trustedRoot(t, s, virtual.RootOptions{})}, Identities: []verify.Identity{
		identity(t, verify.IdentityOptions{Issuer: issuer, Pattern: "https://ci.example/**"}),
	}}
	trust.Only = []verify.Identity{identity(t, verify.IdentityOptions{Issuer: issuer, SAN: san})}
	ok, err := checked(t, b, trust)
	wantCode(t, ok, err, "")
	trust.Only = []verify.Identity{identity(t, verify.IdentityOptions{Issuer: issuer, SAN: san + "x"})}
	ok, err = checked(t, b, trust)
	wantCode(t, ok, err, verify.CodeIdentity)
	trust.Only = []verify.Identity{}
	ok, err = checked(t, b, trust)
	wantCode(t, ok, err, verify.CodeIdentity)
}

// FuzzCheckCertificates: no bundle panics, in the libraries either, and none is
// accepted that is not one of the seeds in another spelling.
func FuzzCheckCertificates(f *testing.F) {
	s := newSigstore(f)
	st := statement(sha256Subject(image), "https://example.org/t", `{"a":1}`)
	for _, o := range []virtual.Options{{}, {Version: "0.1"}, {Log: "v2", Stamp: true}, {Log: "none", Stamp: true}, {NoPromise: true}} {
		o.SAN, o.Issuer = san, issuer
		f.Add(must(s.Seal(st, o))(f))
	}
	trust := verify.Trust{Roots: []*verify.Root{trustedRoot(f, s, virtual.RootOptions{})}, Identities: []verify.Identity{identity(f, verify.IdentityOptions{Issuer: issuer, SAN: san})}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := attest.ParseAnyBundle(raw)
		if err != nil {
			return
		}
		c := must(verify.NewChecker(trust, time.Now()))(t)
		_, err = c.CheckArtifact(b, verify.Artifact{Digest: image})
		var r *verify.Rejection
		switch {
		case err == nil && !bytes.Equal(b.Statement().Raw(), st):
			t.Error("a statement was accepted that nobody signed")
		case err != nil && !errors.As(err, &r):
			t.Errorf("not a rejection: %v", err)
		case err != nil && strings.Contains(r.Message, "panic"):
			t.Error(r.Message)
		}
	})
}

func FuzzParseRoot(f *testing.F) {
	f.Add(must(newSigstore(f).Root(virtual.RootOptions{}))(f))
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := verify.ParseRoot("r", raw)
		if err == nil && r.ID() != attest.DigestOf(raw) {
			t.Error("another id")
		}
	})
}
