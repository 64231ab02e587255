package cli

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/keys"
	"github.com/waxseal/waxseal/pkg/policy"
)

func newPolicyCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Write, check, explain, test and sign policies",
		Long: `A policy is a YAML file: whom it trusts to build, and what it demands of which
images. All entries that match an image hold together. "waxseal policy schema"
prints its schema with a description of each field; "policy init" drafts one.

Builders are trusted by id, idPattern or idFromSigner, or taken from the library
with use ("waxseal builders list"); each can have buildTypes, parameters, events,
runners: hosted|any, a name of who signs, and a window of its signer. source of
an entry can have a ref, such as refs/tags/v*, and a workflow. parameters names
what else may be set, as any or a list: {buildArgs: [VERSION]} of build's, and
{command: [make all], variables: [CFLAGS]} of run's.

level is {build: N, source: N}. Beside it, and source, buildTypes and parameters,
an entry can have:

  properties       verified properties by name ("waxseal levels" lists them)
  sbom             required, formats, forbidden packages, licenses allow|deny
  vulnerabilities  limits and an sla by severity, fixableOnly, maxAge of a scan
  hardening        nonRoot: true|numeric, noSecrets: true
  rules            name, expr, message: what these words cannot say, in CEL
  dependencies     of the images it was built from: registries that may be
                   asked, depth, and the level that each must carry
  signatures       atLeast, of: how many of the signers that builders' names
                   tell apart must have signed one and the same provenance
  approvals        atLeast, of: how many reviewers must have approved its source
  vsa              verifiers, policy {uri, digest}, maxAge, resourceUri, names,
                   required, delegates: build|source|properties
  waivers          requirement|rule|vulnerability, reason, owner, expires

sbom, vulnerabilities, hardening and each rule can have an effective date; until
then what they would deny is a warning. trust.attesters names who else signs
SBOMs and scans, and who alone signs OpenVEX. A signer is a key (a file), pem,
kms (awskms://…, k8s://…; of pkcs11: only what @sha256:… pins), or a san with an
issuer or ca. A ca can have intermediates, crl and ocsp (files that say which
certificates are revoked), and a root that proves the time; revocation: required
counts only what these, or OCSP responses stapled to the evidence, tell of.
extends: {file, digest} takes over all of another policy.

trust.verifiers names whose verification summaries (VSA) count, for how much,
made under which policy and up to which maxAge ago; a summary of the image
stands in for no more than vsa.delegates says, and what is expected of source,
build type and parameters is never delegated. When the same verifier later says
FAILED under the same policy URI, its older summaries count no more. A summary
of the commit that the provenance names shows the Source level; so does the
source provenance of trust.sources, which shows SLSA_SOURCE_TWO_PARTY_REVIEWED
below Source L4 only where its properties list that. source.ref is the branch or
tag that either must name. Two reviews of the commit by different
trust.reviewers, neither its author nor the builder, show
SLSA_SOURCE_TWO_PARTY_REVIEWED ("waxseal approve" signs one).

A rule must give true or false. It sees:

  image       reference, name (of Docker Hub: index.docker.io/…), digest,
              platform, config {user, env (names), entrypoint, cmd, workingDir,
              labels, exposedPorts, volumes, architecture, os, layers, history}
  provenance  builderId, buildType, externalParameters, repository, commit,
              ref, entryPoint, runner, event, dependencies [{name, uri, digest}]
  signer      key, name, issuer, san: who signed the provenance; repository,
              commit, ref, workflow, runner, event: of the run that its
              certificate was issued to
  sbom        format, packages [{name, version, purl, licenses}]; with several
              SBOMs the rule must hold for each
  inputs      mode, verdict, hermetic, lock, allowHosts, gaps, sources [{kind,
              uri, ref, platform, digest}], steps [{name, stage, platform,
              verdict, reused, names, gaps, requests [{method, uri, status,
              digest, size}], refusals [{kind, destination, reason, count}]}]

A rule about evidence that is not there denies. One that gives an error, as for
a label that is not set (write "x" in image.config.labels), is not decided.
A secret is told by the shapes that AWS, GitHub, GitLab, Slack, Google, Stripe,
npm, PyPI, RubyGems, Docker Hub, Hugging Face, Vault, SendGrid, Anthropic,
OpenAI and Azure give their tokens, by private keys, JSON web tokens and
passwords in URLs, and by variables called password, secret, token, api_key,
access_key, private_key or credentials that have a value.`,
		Example: `  waxseal policy init --key waxseal.pub -o policy.yaml registry.example/app:1.0
  waxseal policy test policy-tests/`,
		Args: noCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPolicyInitCmd(s), newPolicyCheckCmd(s), newPolicyTestCmd(s), newPolicyExplainCmd(s), newPolicySignCmd(s), newPolicySchemaCmd(s))
	return cmd
}

func newPolicySchemaCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of a policy",
		Args:  cobra.NoArgs,
	}
	test := cmd.Flags().Bool("test", false, "print that of a case of \"waxseal policy test\"")
	cmd.RunE = func(*cobra.Command, []string) error {
		schema := policy.Schema()
		if *test {
			schema = policy.CaseSchema()
		}
		_, err := s.Out.Write(schema)
		return err
	}
	return cmd
}

func newPolicyInitCmd(s *Streams) *cobra.Command {
	var flags judgeFlags
	var out string
	var match []string
	cmd := &cobra.Command{
		Use:   "init [flags] REF",
		Short: "Draft a policy from an image's own evidence",
		Long: `init verifies the evidence of an image with the keys given and writes a
commented policy that this evidence fulfils: the builder and its key, the level,
the source, the build type, the parameters that were set, and the SBOMs.`,
		Example: `  waxseal policy init --key waxseal.pub -o policy.yaml registry.example/app:1.0`,
		Args:    cobra.ExactArgs(1),
	}
	fl := cmd.Flags()
	fl.StringArrayVar(&flags.keys, "key", nil, "public `KEY` that signs the evidence, as verify takes it; repeatable")
	fl.StringArrayVar(&flags.evidence, "evidence", nil, "look for evidence in `PATH` too: a bundle, JSON lines, or a\nfolder that build --out wrote; repeatable")
	fl.BoolVar(&flags.insecure, "insecure", false, "allow plain HTTP or an unverified certificate for the registry")
	fl.StringVarP(&out, "out", "o", "", "write to `FILE`, which must not exist (default: standard output)")
	fl.StringArrayVar(&match, "match", nil, "image name `PATTERN` the policy is for; repeatable\n(default: REF without tag and digest)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req, err := flags.request(cmd.Context(), s, args[0])
		if err != nil {
			return err
		}
		draft := gate.DraftRequest{Request: req, Match: match, KeyFiles: map[attest.Digest]string{}, KeyPEM: map[attest.Digest][]byte{}}
		for i, k := range req.Keys {
			if draft.KeyPEM[k.ID()], err = readKeyPEM(cmd.Context(), s, flags.keys[i]); err != nil {
				return exitError{ExitUsage, fmt.Errorf("reading public key %q: %w", keys.Name(flags.keys[i]), err)}
			}
			// A file's policy names the key's file. One that goes to standard
			// output has no place yet, and carries the key in itself.
			if out != "" && !keys.IsRef(flags.keys[i]) {
				draft.KeyFiles[k.ID()] = relativeTo(filepath.Dir(out), flags.keys[i])
			}
		}
		text, err := gate.Gate{}.Draft(cmd.Context(), draft)
		if err != nil {
			return gateError(err)
		}
		if out == "" {
			_, err = s.Out.Write(text)
			return err
		}
		if err := writeNew(out, text, 0o644); err != nil {
			return err
		}
		fmt.Fprintf(s.Err, "Wrote %s. Read it, then: waxseal verify --policy %s %s\n", out, out, args[0])
		return nil
	}
	return cmd
}

// relativeTo is path as a file in dir names it; absolute when that cannot be
// said.
func relativeTo(dir, path string) string {
	d, err := filepath.Abs(dir)
	if err != nil {
		return path
	}
	p, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	rel, err := filepath.Rel(d, p)
	if err != nil || strings.HasPrefix(rel, "../../..") {
		return p
	}
	return filepath.ToSlash(rel)
}

func newPolicyCheckCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [flags] FILE",
		Short: "Check a policy and say what it means",
		Long: `check reads a policy and prints its digest and, in plain words, whom it trusts
and what it expects. Exit code 64 and the place in the file if it is wrong.`,
		Example: `  waxseal policy check policy.yaml
  waxseal policy check --output json policy.yaml`,
		Args: cobra.ExactArgs(1),
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		p, err := loadPolicy(cmd.Context(), s, args[0])
		if err != nil {
			return policyError(err)
		}
		if *output == "json" {
			return printJSON(s, struct {
				Digest  attest.Digest   `json:"digest"`
				Extends []attest.Digest `json:"extends,omitempty"` // the nearest first
				*policy.Brief
			}{p.Digest(), p.Extends(), p.Brief()})
		}
		_, err = fmt.Fprintf(s.Out, "%s\n%s", p.Digest(), p.Summary())
		return err
	}
	return cmd
}
