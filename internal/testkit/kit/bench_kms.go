package main

import (
	"encoding/pem"
	"fmt"
	"os"
	"slices"

	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/verify"
)

// kmsRequests is what verifying may ask of a key's service once the key was read.
const kmsRequests = 0

// kms counts what verifying an image asks of AWS KMS, or of what stands in for
// it, where the reference pins the key, and where it names a version: the first
// time and again.
func (b *bench) kms() error {
	base, err := testkit.TinyBase(b.ctx)
	if err != nil {
		return err
	}
	image := b.path("kms-image")
	if err := os.CopyFS(image, os.DirFS(base)); err != nil {
		return err
	}
	public, err := os.ReadFile(b.path("waxseal.pub"))
	if err != nil {
		return err
	}
	key, err := verify.ParseKey("waxseal.pub", public)
	if err != nil {
		return err
	}
	predicate := b.path("provenance.json")
	if err := os.WriteFile(predicate, []byte(`{"buildDefinition": {"buildType": "https://bench.example/build/v1", "externalParameters": {}}, "runDetails": {"builder": {"id": "https://ci.example/builder"}}}`), 0o644); err != nil {
		return err
	}
	if _, err := b.run(b.bin, "attest", "--predicate", predicate, "--type", "slsaprovenance1", "--key", b.path("waxseal.key"), "oci:"+image); err != nil {
		return err
	}

	service := testkit.NewKMS()
	defer service.Close()
	const version = "1234abcd-12ab-34cd-56ef-1234567890ab"
	service.Set("release", public)
	service.Set(version, public)
	ca := b.path("kms-ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: service.AWS.Certificate().Raw}), 0o644); err != nil {
		return err
	}
	env := b.env
	defer func() { b.env = env }()
	b.env = append(slices.Clone(env), "AWS_ACCESS_KEY_ID=AKIDREADER", "AWS_SECRET_ACCESS_KEY=secret", "AWS_REGION=eu-central-1", "AWS_EC2_METADATA_DISABLED=true", "AWS_CA_BUNDLE="+ca)
	asked := func(ref string) (int, sample, error) {
		if err := service.Faults.Set(); err != nil {
			return 0, sample{}, err
		}
		s, err := b.run(b.bin, "verify", "--key", ref, "--level", "1", "oci:"+image)
		return len(service.Faults.Seen()), s, err
	}
	at := service.AWS.Listener.Addr()
	for _, r := range []struct{ what, ref string }{
		{"pinned", fmt.Sprintf("awskms://%s/alias/release@%s", at, key.ID())},
		{"by its ARN", fmt.Sprintf("awskms://%s/arn:aws:kms:eu-central-1:111122223333:key/%s", at, version)},
	} {
		first, s1, err := asked(r.ref)
		if err != nil {
			return err
		}
		again, s2, err := asked(r.ref)
		if err != nil {
			return err
		}
		b.judge("KMS, verify again, key "+r.what, fmt.Sprintf("%d requests (%d the first time, budget %d; %v : %v)", again, first, kmsRequests, ms(s2.Wall), ms(s1.Wall)), again <= kmsRequests && first > 0)
	}
	return nil
}
