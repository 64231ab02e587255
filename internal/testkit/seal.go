package testkit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/waxseal/waxseal/internal/testkit/virtual"
)

// sealed is one bundle in a list for Seal.
type sealed struct {
	File string `json:"file"` // where to write it
	// Like takes everything that is not said here from an earlier bundle.
	Like string `json:"like"`
	// Predicate is a file beside the list, in which Replace is replaced.
	Predicate string            `json:"predicate"`
	Replace   map[string]string `json:"replace"`
	Type      string            `json:"type"`      // of the predicate
	Statement string            `json:"statement"` // "v0.1"; default: v1
	SAN       string            `json:"san"`       // none: signed with the key
	Issuer    string            `json:"issuer"`
	Run       map[int]string    `json:"run"` // see virtual.Options
	// GCB writes what gcloud prints of an image, with the envelope in it, in place
	// of a bundle: "ours" is signed with the key, "also" by somebody else before
	// that, "text" has only the text that nobody signed.
	GCB string `json:"gcb"`
	// Unsigned writes the statement alone.
	Unsigned bool `json:"unsigned"`
}

// Seal signs statements about the one image in an OCI layout, as a list says,
// and writes them into dir with root.json, the trusted root of the one instance
// of Sigstore that signs, and key.pub, of the one key.
func Seal(dir, layout, list string) error {
	sum, err := imageIn(layout)
	if err != nil {
		return err
	}
	var all []sealed
	if err := readJSON(list, &all); err != nil {
		return err
	}
	instance, err := virtual.New()
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	s := &signing{dir: dir}
	root, err := instance.Root(virtual.RootOptions{})
	s.write("root.json", root, err)
	s.write("key.pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil)
	known := map[string]sealed{}
	for _, one := range all {
		if base, ok := known[one.Like]; ok {
			one = one.over(base)
		} else if one.Like != "" {
			return fmt.Errorf("%s is like %s, which is not above it", one.File, one.Like)
		}
		known[one.File] = one
		raw, err := one.sign(instance, key, sum, filepath.Dir(list))
		s.write(one.File, raw, err)
	}
	return s.err
}

// over is what one says, and where it says nothing, base.
func (one sealed) over(base sealed) sealed {
	for _, f := range []struct{ to, from *string }{
		{&one.Predicate, &base.Predicate}, {&one.Type, &base.Type}, {&one.Statement, &base.Statement},
		{&one.SAN, &base.SAN}, {&one.Issuer, &base.Issuer}, {&one.GCB, &base.GCB},
	} {
		if *f.to == "" {
			*f.to = *f.from
		}
	}
	run, replace := maps.Clone(base.Run), maps.Clone(base.Replace)
	if run == nil {
		run = map[int]string{}
	}
	if replace == nil {
		replace = map[string]string{}
	}
	maps.Copy(run, one.Run)
	maps.Copy(replace, one.Replace)
	maps.DeleteFunc(run, func(_ int, v string) bool { return v == "" })
	one.Run, one.Replace = run, replace
	return one
}

func (one sealed) sign(instance *virtual.Sigstore, key *ecdsa.PrivateKey, sum, dir string) ([]byte, error) {
	predicate, err := os.ReadFile(filepath.Join(dir, one.Predicate))
	if err != nil {
		return nil, err
	}
	for old, replacement := range one.Replace {
		if !strings.Contains(string(predicate), old) {
			return nil, fmt.Errorf("%s: there is no %q in %s", one.File, old, one.Predicate)
		}
		predicate = []byte(strings.ReplaceAll(string(predicate), old, replacement))
	}
	kind := "https://in-toto.io/Statement/v1"
	if one.Statement == "v0.1" {
		kind = "https://in-toto.io/Statement/v0.1"
	}
	statement, err := statementAbout(sum, kind, one.Type, predicate)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", one.File, err)
	}
	if one.Unsigned {
		return statement, nil
	}
	if one.SAN != "" {
		return instance.Seal(statement, virtual.Options{SAN: one.SAN, Issuer: one.Issuer, Run: one.Run})
	}
	if one.GCB == "" {
		return instance.Seal(statement, virtual.Options{Key: key})
	}
	b, err := instance.Bundle(statement, virtual.Options{Key: key})
	if err != nil {
		return nil, err
	}
	signatures := []map[string]string{{
		"keyid": "projects/verified-builder/locations/global/keyRings/attestor/cryptoKeys/google-hosted-worker/cryptoKeyVersions/1",
		"sig":   base64.URLEncoding.EncodeToString(b.GetDsseEnvelope().GetSignatures()[0].GetSig()),
	}}
	if one.GCB == "also" {
		signatures = append([]map[string]string{
			{"keyid": "projects/other/locations/global/keyRings/attestor/cryptoKeys/other/cryptoKeyVersions/1", "sig": "MEUCIQ=="},
			{"keyid": "projects/verified-builder/locations/us-west2/keyRings/attestor/cryptoKeys/builtByGCB/cryptoKeyVersions/1", "sig": "MEUCIQ=="},
		}, signatures...)
	}
	entry := map[string]any{
		"build": map[string]any{"intotoStatement": json.RawMessage(statement)}, "kind": "BUILD", "resourceUri": "https://registry.example/app@sha256:" + sum,
		"envelope": map[string]any{
			"payload": base64.StdEncoding.EncodeToString(statement), "payloadType": "application/vnd.in-toto+json", "signatures": signatures,
		},
	}
	if one.GCB == "text" {
		delete(entry, "envelope")
	}
	return json.MarshalIndent(map[string]any{
		"image_summary":      map[string]any{"digest": "sha256:" + sum, "slsa_build_level": 3},
		"provenance_summary": map[string]any{"provenance": []any{entry}},
	}, "", "  ")
}
