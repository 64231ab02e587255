package attest_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/pkg/attest"
)

const (
	gcbKey      = "projects/verified-builder/locations/global/keyRings/attestor/cryptoKeys/google-hosted-worker/cryptoKeyVersions/1"
	gcbRegional = "projects/verified-builder/locations/us-west2/keyRings/attestor/cryptoKeys/builtByGCB/cryptoKeyVersions/1"
)

// described is what gcloud prints, with entries as given.
func described(entries ...string) string {
	return `{"image_summary":{"digest":"sha256:00","fully_qualified_digest":"x","registry":"r","repository":"p","slsa_build_level":3},
		"provenance_summary":{"provenance":[` + strings.Join(entries, ",") + `]}}`
}

func occurrence(kind, envelope string) string {
	text := `"build":{"inTotoSlsaProvenanceV1":{"_type":"https://in-toto.io/Statement/v1","predicate":{"believe":"me"}}},`
	if envelope != "" {
		envelope = `"envelope":` + envelope + `,`
	}
	return `{` + text + envelope + `"kind":"` + kind + `","resourceUri":"https://r/p@sha256:00"}`
}

func signedBy(keys ...string) string {
	var sigs []string
	for _, k := range keys {
		// Google writes signatures in the URL-safe alphabet.
		sigs = append(sigs, fmt.Sprintf(`{"keyid":%q,"sig":%q}`, k, base64.URLEncoding.EncodeToString([]byte{0xfb, 0xff, byte(len(k))})))
	}
	return fmt.Sprintf(`{"payload":%q,"payloadType":"application/vnd.in-toto+json","signatures":[%s]}`,
		base64.StdEncoding.EncodeToString([]byte(good())), strings.Join(sigs, ","))
}

func TestParseGCB(t *testing.T) {
	got, err := attest.ParseGCB([]byte(described(
		occurrence("BUILD", signedBy(gcbKey)),
		occurrence("BUILD", signedBy(gcbRegional, "other")),
		occurrence("BUILD", ""),
		occurrence("BUILD", signedBy()),
		occurrence("ATTESTATION", signedBy(gcbKey)),
	)))
	if err != nil {
		t.Fatal(err)
	}
	want := []struct{ pointer, key, problem string }{
		{"/provenance_summary/provenance/0/envelope/signatures/0", gcbKey, ""},
		{"/provenance_summary/provenance/1/envelope/signatures/0", gcbRegional, "no DSSE"},
		{"/provenance_summary/provenance/1/envelope/signatures/1", "other", ""},
		{"/provenance_summary/provenance/2", "", "nobody signed"},
		{"/provenance_summary/provenance/3/envelope", "", "no signature"},
		{"/provenance_summary/provenance/4", "", "not BUILD"},
	}
	if len(got) != len(want) {
		t.Fatalf("%d signatures: %+v", len(got), got)
	}
	for i, w := range want {
		g := got[i]
		if g.Pointer != w.pointer || g.KeyID != w.key || (g.DSSE == nil) != (w.problem != "") || !strings.Contains(g.Problem, w.problem) {
			t.Errorf("%d: %+v", i, g)
		}
		if g.DSSE == nil {
			continue
		}
		b, err := attest.ParseBundle(g.DSSE)
		if err != nil {
			t.Errorf("%s: %v", g.Pointer, err)
			continue
		}
		if sigs := b.Proto().GetDsseEnvelope().GetSignatures(); !b.Bare() || string(b.Statement().Raw()) != good() || len(sigs) != 1 || sigs[0].GetSig()[0] != 0xfb {
			t.Errorf("%s became %s", g.Pointer, g.DSSE)
		}
	}
	if !attest.LooksLikeGCB([]byte(described())) || attest.LooksLikeGCB([]byte(envelope(good()))) {
		t.Error("it is not told from an envelope")
	}
}

func TestParseGCBRefuses(t *testing.T) {
	many := make([]string, attest.MaxGCB+1)
	for i := range many {
		many[i] = occurrence("BUILD", signedBy(gcbKey))
	}
	for name, c := range map[string]struct{ in, want string }{
		"nothing":             {`{}`, "provenance_summary"},
		"another spelling":    {strings.Replace(described(), "provenance_summary", "Provenance_summary", 1), "spelled"},
		"a kind twice":        {strings.Replace(described(occurrence("BUILD", signedBy(gcbKey))), `"kind"`, `"kind":"BUILD","kind"`, 1), "duplicate"},
		"an envelope twice":   {strings.Replace(described(occurrence("BUILD", signedBy(gcbKey))), `"kind"`, `"envelope":{},"kind"`, 1), "duplicate"},
		"a payload twice":     {strings.Replace(described(occurrence("BUILD", signedBy(gcbKey))), `"payload":`, `"payload":"","payload":`, 1), "duplicate"},
		"Payload":             {strings.Replace(described(occurrence("BUILD", signedBy(gcbKey))), `"payload":`, `"Payload":"","payload":`, 1), "spelled"},
		"an envelope of text": {described(occurrence("BUILD", `"text"`)), "envelope"},
		"data after the end":  {described() + `{}`, "after the end"},
		"many":                {described(many...), "more than 64"},
		"many signatures":     {described(occurrence("BUILD", signedBy(strings.Split(strings.Repeat("k,", 17), ",")...))), "more than the 16"},
		"too large":           {described(occurrence("BUILD", "")) + strings.Repeat(" ", attest.MaxBundle), "more than the"},
	} {
		if _, err := attest.ParseGCB([]byte(c.in)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want it to say %q", name, err, c.want)
		}
	}
}

// FuzzParseGCB: no input panics, and each envelope has one signature.
func FuzzParseGCB(f *testing.F) {
	f.Add([]byte(described(occurrence("BUILD", signedBy(gcbKey, gcbRegional)))))
	f.Add([]byte(described(occurrence("BUILD", ""), occurrence("", signedBy()))))
	f.Add([]byte(`{"provenance_summary":{"provenance":[{"kind":"BUILD","envelope":{"signatures":[{}]}}]}}`))
	f.Add([]byte(`{"provenance_summary":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := attest.ParseGCB(data)
		if err != nil {
			return
		}
		for _, g := range got {
			if (g.DSSE == nil) == (g.Problem == "") || g.Pointer == "" {
				t.Fatalf("%+v", g)
			}
			b, err := attest.ParseBundle(g.DSSE)
			if err == nil && (len(b.Proto().GetDsseEnvelope().GetSignatures()) != 1 || !bytes.Equal(b.Raw(), g.DSSE)) {
				t.Fatalf("%s has not one signature", g.DSSE)
			}
		}
	})
}
