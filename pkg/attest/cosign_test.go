package attest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
)

func certificate(t testing.TB, lasts time.Duration) string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(lasts)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

const (
	besideStatement = `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"a","digest":{"sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}}],"predicateType":"https://t.example/v1","predicate":{}}`
	besideEntry     = `{"SignedEntryTimestamp":"c2V0","Payload":{"body":"eyJraW5kIjoiaW50b3RvIiwiYXBpVmVyc2lvbiI6IjAuMC4yIn0=","integratedTime":1700000000,"logIndex":7,"logID":"c0d2"}}`
)

func besideEnvelope() []byte {
	return []byte(`{"payloadType":"application/vnd.in-toto+json","payload":"` + base64.StdEncoding.EncodeToString([]byte(besideStatement)) + `","signatures":[{"sig":"c2ln"}]}`)
}

// What cosign keeps beside an envelope becomes one bundle, whose every part is
// where verification looks for it. The real cosign's is in the script
// keyless_rekor1.
func TestAssembleCosign(t *testing.T) {
	short, long := certificate(t, 10*time.Minute), certificate(t, 365*24*time.Hour)
	beside := func(cert, entry, stamp string) map[string]string {
		return map[string]string{"dev.sigstore.cosign/certificate": cert, "dev.sigstore.cosign/bundle": entry, "dev.sigstore.cosign/rfc3161timestamp": stamp}
	}
	raw, err := attest.AssembleCosign(besideEnvelope(), beside(short, besideEntry, `{"SignedRFC3161Timestamp":"c3RhbXA="}`))
	if err != nil {
		t.Fatal(err)
	}
	again, err := attest.AssembleCosign(besideEnvelope(), beside(short, besideEntry, `{"SignedRFC3161Timestamp":"c3RhbXA="}`))
	if err != nil || !bytes.Equal(raw, again) {
		t.Errorf("not the same twice: %v", err)
	}
	b, err := attest.ParseBundle(raw)
	if err != nil {
		t.Fatal(err)
	}
	m := b.Proto().GetVerificationMaterial()
	entry := m.GetTlogEntries()[0]
	if string(b.Statement().Raw()) != besideStatement || len(m.GetX509CertificateChain().GetCertificates()) != 1 || entry.GetLogIndex() != 7 || entry.GetIntegratedTime() != 1700000000 ||
		entry.GetKindVersion().GetKind() != "intoto" || entry.GetKindVersion().GetVersion() != "0.0.2" || string(entry.GetInclusionPromise().GetSignedEntryTimestamp()) != "set" ||
		string(m.GetTimestampVerificationData().GetRfc3161Timestamps()[0].GetSignedTimestamp()) != "stamp" {
		t.Errorf("the bundle is %s", raw)
	}
	for name, annotations := range map[string]map[string]string{"a key": beside("", besideEntry, ""), "a key that lasts": beside(long, besideEntry, ""), "nothing": nil} {
		if raw, err := attest.AssembleCosign(besideEnvelope(), annotations); raw != nil || err != nil {
			t.Errorf("%s: %s, %v; want the envelope to stand for itself", name, raw, err)
		}
	}
	for name, c := range map[string]struct {
		annotations map[string]string
		want        string
	}{
		"no PEM":          {beside("x", "", ""), "the certificate is not PEM"},
		"no certificate":  {beside("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "", ""), "the certificate: "},
		"no JSON":         {beside(short, "x", ""), "the log's promise: "},
		"a body twice":    {beside(short, strings.Replace(besideEntry, `"body"`, `"body":"","body"`, 1), ""), "the log's promise: "},
		"a body of bytes": {beside(short, strings.Replace(besideEntry, "eyJ", "!", 1), ""), "the entry is not base64"},
		"an id of words":  {beside(short, strings.Replace(besideEntry, "c0d2", "log", 1), ""), "the log's id is not hex"},
		"no stamp":        {beside(short, "", "[]"), "the time stamp: "},
	} {
		if raw, err := attest.AssembleCosign(besideEnvelope(), c.annotations); raw != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %s, %v; want %q", name, raw, err, c.want)
		}
	}
}

func FuzzParseCosign(f *testing.F) {
	cert := certificate(f, 10*time.Minute)
	f.Add(besideEnvelope(), cert, besideEntry, `{"SignedRFC3161Timestamp":"c3RhbXA="}`)
	f.Add([]byte("{}"), cert, "{}", "{}")
	f.Add(besideEnvelope(), "", "null", "null")
	f.Fuzz(func(t *testing.T, envelope []byte, cert, entry, stamp string) {
		raw, err := attest.AssembleCosign(envelope, map[string]string{
			"dev.sigstore.cosign/certificate": cert, "dev.sigstore.cosign/bundle": entry, "dev.sigstore.cosign/rfc3161timestamp": stamp,
		})
		if raw == nil {
			return
		}
		if err != nil {
			t.Errorf("both %s and %v", raw, err)
		}
		b, err := attest.ParseBundle(raw)
		if err != nil {
			return // the envelope holds no statement
		}
		if alone, err := attest.ParseBundle(envelope); err != nil || !bytes.Equal(alone.Statement().Raw(), b.Statement().Raw()) {
			t.Errorf("another statement than the envelope's: %v", err)
		}
	})
}
