package testkit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/waxseal/waxseal/internal/testkit/virtual"
)

// Sigstore makes a Sigstore instance and has people sign with it: a statement
// with the given type and predicate about the one image in an OCI layout. It
// writes into dir
//
//	root.json            the instance's trusted root
//	other-root.json      that of another instance
//	ca.pem, between.pem  the certificates of a private CA
//	key.pub              the key of key.json
//
// and a bundle for each of: good.json (in the log), v1.json, stamped.json (in a
// Rekor v2 log, stamped), ca.json (by the CA, stamped), key.json (by the key,
// stamped), other.json (by the other instance), issuer.json (our name on the
// word of somebody else), name.json (somebody else's name), late.json (signed
// after the certificate had ended), timeless.json (no proof of a time),
// mixed.json (our certificate in the other instance's log).
func Sigstore(dir, layout, predicateType, predicate, san, issuer string) error {
	sum, err := imageIn(layout)
	if err != nil {
		return err
	}
	var body json.RawMessage
	if err := readJSON(predicate, &body); err != nil {
		return err
	}
	statement, err := statementAbout(sum, "https://in-toto.io/Statement/v1", predicateType, body)
	if err != nil {
		return err
	}
	s := &signing{dir: dir, statement: statement}
	return s.all(san, issuer)
}

// imageIn is the hex digest of the one image in a layout.
func imageIn(layout string) (string, error) {
	var index struct{ Manifests []struct{ Digest string } }
	if err := readJSON(filepath.Join(layout, "index.json"), &index); err != nil {
		return "", err
	}
	if len(index.Manifests) != 1 {
		return "", fmt.Errorf("the layout %q has %d images, want one", layout, len(index.Manifests))
	}
	_, sum, _ := strings.Cut(index.Manifests[0].Digest, ":")
	return sum, nil
}

func statementAbout(sum, statementType, predicateType string, predicate json.RawMessage) ([]byte, error) {
	return json.Marshal(map[string]any{
		"_type": statementType, "predicateType": predicateType, "predicate": predicate,
		"subject": []any{map[string]any{"name": "app", "digest": map[string]string{"sha256": sum}}},
	})
}

// signing writes files into dir until something goes wrong.
type signing struct {
	dir       string
	statement []byte
	err       error
}

func (s *signing) write(name string, raw []byte, err error) {
	if s.err == nil {
		s.err = err
	}
	if s.err == nil {
		s.err = os.WriteFile(filepath.Join(s.dir, name), raw, 0o644)
	}
}

func (s *signing) seal(name string, by *virtual.Sigstore, o virtual.Options) {
	raw, err := by.Seal(s.statement, o)
	s.write(name, raw, err)
}

func (s *signing) all(san, issuer string) error {
	ours, err := virtual.New()
	if err != nil {
		return err
	}
	others, err := virtual.New()
	if err != nil {
		return err
	}
	private, err := virtual.NewCA(virtual.CAOptions{})
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
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	for name, instance := range map[string]*virtual.Sigstore{"root.json": ours, "other-root.json": others} {
		raw, err := instance.Root(virtual.RootOptions{})
		s.write(name, raw, err)
	}
	roots, between := private.PEM()
	s.write("ca.pem", roots, nil)
	s.write("between.pem", between, nil)
	s.write("key.pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil)

	me := virtual.Options{SAN: san, Issuer: issuer}
	with := func(change func(*virtual.Options)) virtual.Options {
		o := me
		change(&o)
		return o
	}
	s.seal("good.json", ours, me)
	s.seal("v1.json", ours, with(func(o *virtual.Options) { o.Version = "0.1" }))
	s.seal("stamped.json", ours, with(func(o *virtual.Options) { o.Log, o.Stamp = "v2", true }))
	s.seal("ca.json", ours, virtual.Options{SAN: san, CA: private, Log: "none", Stamp: true})
	s.seal("key.json", ours, virtual.Options{Key: key, Stamp: true})
	s.seal("other.json", others, me)
	s.seal("issuer.json", ours, with(func(o *virtual.Options) { o.Issuer += ".evil.example" }))
	s.seal("name.json", ours, with(func(o *virtual.Options) { o.SAN += "-evil" }))
	s.seal("late.json", ours, with(func(o *virtual.Options) { o.From = time.Now().Add(-time.Hour) }))
	s.seal("timeless.json", ours, with(func(o *virtual.Options) { o.NoPromise = true }))
	s.seal("mixed.json", others, with(func(o *virtual.Options) { o.CA = ours.CA }))
	return s.err
}
