package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/sign"
	"github.com/waxseal/waxseal/pkg/store"
)

// shortType is one of cosign's short names for a predicate type.
type shortType struct{ name, uri string }

func shortTypes() []shortType {
	return []shortType{
		{"slsaprovenance1", attestations.ProvenanceV1},
		{"slsaprovenance", attestations.ProvenanceV02},
		{"spdxjson", attestations.SPDX},
		{"cyclonedx", attestations.CycloneDX},
		{"openvex", attestations.OpenVEX},
		{"vuln", attestations.CosignVuln},
		{"vsa", attestations.VSAV1},
		{"review", attestations.ReviewV1},
	}
}

// attestRequest is what `waxseal attest` was asked for.
type attestRequest struct {
	reference string
	predicate string // file
	kind      string // short name or URI
	sign      signFlags
	roots     anchorFlags
	attach    string // bundle, att or both
	insecure  bool

	commit string   // a git commit, in place of a reference
	refs   []string // branches and tags it is on
	out    string   // file for the bundle about it
}

func newAttestCmd(s *Streams) *cobra.Command {
	var req attestRequest
	var names []string
	for _, t := range shortTypes() {
		names = append(names, t.name)
	}
	cmd := &cobra.Command{
		Use:   "attest [flags] --predicate FILE --type TYPE REF | --commit HEX --out FILE",
		Short: "Sign a predicate about an image and attach it",
		Long: `attest reads a predicate (one JSON object), makes an in-toto statement about
the digest that REF resolves to, signs it, and attaches it as a Sigstore bundle
v0.3 by the registry's referrers, by the fallback tag where there are none, or
in an OCI layout. An index is attested as itself, not platform by platform.

REF is a registry reference or oci:PATH[:TAG][@DIGEST].

With --commit the statement is about a git commit, as reviews and source VSAs
are, and the bundle goes into a file: for --evidence, or a git note.`,
		Example: `  waxseal attest --predicate scan.json --type vuln --key waxseal.key registry.example/app:1.0
  waxseal attest --predicate review.json --type https://acme.example/review/v1 \
    --key waxseal.key oci:out/image:app
  waxseal attest --predicate scan.json --type vuln --keyless registry.example/app:1.0
  waxseal attest --predicate scan.json --type vuln --key ci.key --certificate ci.pem \
    --certificate-chain chain.pem --timestamp-server-url https://tsa.acme.example \
    --timestamp-certificate-chain tsa.pem registry.example/app:1.0
  waxseal attest --predicate review.json --type review --key ann.key \
    --commit 1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a --out review.sigstore.json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if req.commit != "" {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&req.predicate, "predicate", "", "`FILE` with the predicate, one JSON object")
	fl.StringVar(&req.kind, "type", "", "`TYPE` of the predicate: a URI, or one of\n"+strings.Join(names, ", "))
	req.sign.register(fl, "key", "private `KEY` to sign with")
	req.roots.register(fl)
	completePublic(cmd)
	fl.StringVar(&req.attach, "attach", "bundle", "`FORM` to attach: bundle (a referrer), att (cosign's .att tag),\nor both")
	completeValues(cmd, map[string][]string{"type": names, "attach": {"bundle", "att", "both"}})
	fl.StringVar(&req.commit, "commit", "", "attest the git commit with this id, `HEX`, in place of an image")
	fl.StringArrayVar(&req.refs, "ref", nil, "with --commit: a branch or tag it is on, `REF` as refs/heads/main;\nrepeatable")
	fl.StringVar(&req.out, "out", "", "with --commit: `FILE` to write the bundle to")
	fl.BoolVar(&req.insecure, "insecure", false, "allow plain HTTP or an unverified certificate for the registry")
	for _, name := range []string{"predicate", "type"} {
		// The flag was defined above, so this cannot fail.
		_ = cmd.MarkFlagRequired(name)
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		if !req.sign.wanted() {
			return usagef("nothing to sign with: give --key FILE or --keyless")
		}
		if err := req.sign.alone(req.roots); err != nil {
			return err
		}
		if err := req.sign.hold(s); err != nil {
			return err
		}
		if req.commit != "" || req.out != "" || len(req.refs) > 0 {
			return attestCommit(cmd.Context(), s, req)
		}
		req.reference = args[0]
		done, err := attestImage(cmd.Context(), s, req)
		if err != nil {
			return err
		}
		if *output == "json" {
			return json.NewEncoder(s.Out).Encode(done)
		}
		_, err = fmt.Fprintf(s.Out, "attested  %s\ntype      %s\nas        %s\nnext      waxseal inspect %s\n",
			done.Subject, done.PredicateType, strings.Join(done.Attached, ", "), args[0])
		return err
	}
	return cmd
}

// attestCommit signs a statement about a git commit into a file.
func attestCommit(ctx context.Context, s *Streams, req attestRequest) error {
	switch {
	case req.commit == "":
		return usagef("--out and --ref are for --commit HEX: what is said of an image is attached to it")
	case !attest.IsCommit(req.commit):
		return usagef("--commit %q: give the whole id of a git commit, in lower-case hex", req.commit)
	case req.out == "":
		return usagef("--commit needs --out FILE: the bundle is not attached to an image")
	}
	predicateType, err := parseType(req.kind)
	if err != nil {
		return err
	}
	predicate, err := readPredicate(req.predicate)
	if err != nil {
		return err
	}
	subject := attest.Subject{Digest: map[string]string{"gitCommit": req.commit}}
	if len(req.refs) > 0 {
		// https://slsa.dev/spec/v1.2/verifying-source#step-2-check-expectations
		if subject.Annotations, err = json.Marshal(map[string][]string{"sourceRefs": req.refs}); err != nil {
			return err
		}
	}
	st, err := attest.NewStatement(predicateType, []attest.Subject{subject}, predicate)
	if err != nil {
		return err
	}
	signer, err := req.sign.open(ctx, s, req.roots)
	if err != nil {
		return err
	}
	defer signer.Close()
	bundle, err := signer.Sign(ctx, st)
	if err != nil {
		return err
	}
	if err := uninterrupted(ctx, func() error { return writeBundle(req.out, bundle) }); err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.Out, "attested  git commit %s\ntype      %s\nas        %s\n", req.commit, st.PredicateType, req.out)
	return err
}

// writeBundle writes a bundle, and what is stapled to it beside it: both, or
// neither.
func writeBundle(path string, b *attest.Bundle) error {
	if err := writeNew(path, b.Raw(), 0o644); err != nil {
		return err
	}
	stapled := bytes.Join(b.Stapled(), nil)
	if len(stapled) == 0 {
		return nil
	}
	if err := writeNew(store.StapleFile(path), stapled, 0o644); err != nil {
		// Without it the bundle would be a lesser one.
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// attested is what `waxseal attest` made; its JSON is the command's output.
type attested struct {
	Subject       attest.Digest `json:"subject"`
	PredicateType string        `json:"predicateType"`
	Bundle        attest.Digest `json:"bundle"`
	Attached      []string      `json:"attached"` // referrer manifest digests, ".att"
}

// attestImage checks everything that can be checked before the key is opened,
// and attaches nothing before the signature stands.
func attestImage(ctx context.Context, s *Streams, req attestRequest) (*attested, error) {
	if !slices.Contains([]string{"bundle", "att", "both"}, req.attach) {
		return nil, usagef("--attach %q: give bundle, att or both", req.attach)
	}
	predicateType, err := parseType(req.kind)
	if err != nil {
		return nil, err
	}
	predicate, err := readPredicate(req.predicate)
	if err != nil {
		return nil, err
	}
	ref, err := store.Parse(req.reference)
	if err != nil {
		return nil, exitError{ExitUsage, err}
	}
	place, err := store.OpenWritable(ctx, ref, store.Options{Insecure: req.insecure})
	if err != nil {
		return nil, err
	}
	desc, err := place.Resolve(ctx)
	if err != nil {
		return nil, err
	}
	digest, err := attest.ParseDigest(desc.Digest.String())
	if err != nil {
		return nil, err
	}
	subject := attest.Subject{Digest: map[string]string{"sha256": digest.Hex()}}
	if ref.Kind == store.Registry {
		subject.Name = ref.Place // a layout's path is nobody else's business
	}
	st, err := attest.NewStatement(predicateType, []attest.Subject{subject}, predicate)
	if err != nil {
		return nil, err
	}
	if req.attach != "bundle" && req.sign.certificate != "" {
		return nil, usagef("--attach %s: cosign's .att has no place for this certificate and its time stamp; use bundle", req.attach)
	}
	signer, err := req.sign.open(ctx, s, req.roots)
	if err != nil {
		return nil, err
	}
	defer signer.Close()
	return attach(ctx, place, desc, signer, st, req.attach)
}

func attach(ctx context.Context, place store.Writable, desc store.Descriptor, signer sign.Signer, st *attest.Statement, form string) (*attested, error) {
	bundle, err := signer.Sign(ctx, st)
	if err != nil {
		return nil, err
	}
	done := &attested{
		Subject:       attest.Digest(desc.Digest.String()),
		PredicateType: st.PredicateType,
		Bundle:        bundle.Digest(),
	}
	if form != "att" {
		referrer, err := store.Attach(ctx, place, desc, bundle)
		if err != nil {
			return nil, err
		}
		done.Attached = append(done.Attached, referrer.Digest.String())
	}
	if form != "bundle" {
		if err := store.AttachCosign(ctx, place, desc, bundle); err != nil {
			return nil, err
		}
		done.Attached = append(done.Attached, ".att")
	}
	return done, nil
}

// parseType takes a short name or an absolute URI.
func parseType(s string) (string, error) {
	for _, t := range shortTypes() {
		if t.name == s {
			return t.uri, nil
		}
	}
	if u, err := url.Parse(s); err != nil || u.Scheme == "" || (u.Host == "" && u.Opaque == "") {
		return "", usagef("--type %q: neither an absolute URI nor a short name (waxseal attest --help lists them)", s)
	}
	return s, nil
}

// readPredicate reads one JSON object; what it says is its type's business.
func readPredicate(path string) (json.RawMessage, error) {
	raw, err := readSmall(path, attest.MaxSBOM)
	if err != nil {
		return nil, fmt.Errorf("reading predicate %q: %w", path, err)
	}
	var object map[string]json.RawMessage
	if err := attest.UnmarshalStrict(raw, &object); err != nil {
		return nil, fmt.Errorf("reading predicate %q: %w", path, err)
	}
	if object == nil {
		return nil, fmt.Errorf("reading predicate %q: it must be a JSON object", path)
	}
	return raw, nil
}
