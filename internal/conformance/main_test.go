package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/attest"
)

// The suite's default signer.
const (
	beacon      = "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/.github/workflows/extremely-dangerous-oidc-beacon.yml@refs/heads/main"
	tokenIssuer = "https://token.actions.githubusercontent.com"
)

// fixtures finds the conformance suite's cases, which are not part of this
// repository.
func fixtures(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("WAXSEAL_FIXTURES")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "fixtures")
	}
	if _, err := os.Stat(filepath.Join(dir, "sigstore-conformance")); err != nil {
		t.Skipf("no fixtures of sigstore-conformance: set WAXSEAL_FIXTURES (%v)", err)
	}
	return dir
}

// TestConformance runs the 70 cases of the suite twice, by path and by digest.
// The suite only asks that a case is refused; here it must be for its reason.
// The log is asked before the rest: a case with several faults, or with a log
// entry in a form that no checkpoint goes with, is refused for that.
func TestConformance(t *testing.T) {
	dir := fixtures(t)
	reasons := map[string]string{
		"bundle-empty-certificate-chain_fail":                       "log",
		"bundle-from-wrong-instance_fail":                           "log",
		"bundle-invalid-base64-signature_fail":                      "format",
		"bundle-malformed-json_fail":                                "format",
		"bundle-negative-log-index_fail":                            "log",
		"bundle-unknown-version_fail":                               "format",
		"bundle-with-root-cert_fail":                                "log",
		"checkpoint-bad-keyhint_fail":                               "log",
		"checkpoint-wrong-roothash_fail":                            "log",
		"dsse-invalid-sig_fail":                                     "log",
		"dsse-mismatch-envelope_fail":                               "log",
		"dsse-mismatch-sig_fail":                                    "log",
		"inclusion-proof-corrupted-hash_fail":                       "log",
		"incorrect-public-key_fail":                                 "log",
		"integrated-time-in-future_fail":                            "time",
		"intoto-expired-certificate_fail":                           "time",
		"intoto-log-entry-mismatch_fail":                            "log",
		"intoto-missing-inclusion-proof_fail":                       "log",
		"intoto-set-outside-signing-cert-validity_fail":             "time",
		"intoto-tsa-timestamp-outside-cert-validity_fail":           "time",
		"invalid-checkpoint-signature_fail":                         "log",
		"invalid-ct-key_fail":                                       "chain",
		"invalid-inclusion-proof_fail":                              "log",
		"managed-key-no-key_fail":                                   "no-key",
		"managed-key-wrong-key_fail":                                "trust",
		"message-digest-mismatch_fail":                              "subject",
		"rekor2-checkpoint-missing-log-signature_fail":              "log",
		"rekor2-checkpoint-missing-origin_fail":                     "log",
		"rekor2-checkpoint-missing-root-hash_fail":                  "log",
		"rekor2-checkpoint-missing-size_fail":                       "log",
		"rekor2-checkpoint-no-matching-signature_fail":              "log",
		"rekor2-dsse-invalid-sig_fail":                              "log",
		"rekor2-dsse-mismatch-envelope_fail":                        "log",
		"rekor2-dsse-mismatch-sig_fail":                             "log",
		"rekor2-no-inclusion-proof_fail":                            "log",
		"rekor2-no-timestamp_fail":                                  "time",
		"rekor2-timestamp-outside-trust-root-tsa-validity_fail":     "time",
		"rekor2-timestamp-outside-tsa-cert-validity_fail":           "time",
		"rekor2-timestamp-payload-mismatch_fail":                    "time",
		"rekor2-timestamp-untrusted-tsa-with-embedded-cert_fail":    "time",
		"rekor2-timestamp-untrusted-tsa-without-embedded-cert_fail": "time",
		"rekor2-timestamp-with-incorrect-time_fail":                 "format",
		"set-invalid-signature_fail":                                "log",
		"signature-mismatch_fail":                                   "log",
		"trust-root-tlog-missing-validity-start_fail":               "trust",
		"wrong-hashedrekord-artifact_fail":                          "log",
		"wrong-hashedrekord-cert-and-sig_fail":                      "log",
		"wrong-hashedrekord-entry_fail":                             "log",
		"wrong-material_fail":                                       "subject",
	}
	suite := filepath.Join(dir, "sigstore-conformance")
	entries, err := os.ReadDir(suite)
	if err != nil {
		t.Fatal(err)
	}
	passed, refused := 0, 0
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		name, folder := e.Name(), filepath.Join(suite, e.Name())
		artifact := override(folder, "artifact", filepath.Join(suite, "a.txt"))
		raw, err := os.ReadFile(artifact)
		if err != nil {
			t.Fatal(err)
		}
		for how, what := range map[string]string{"path": artifact, "digest": string(attest.DigestOf(raw))} {
			t.Run(name+"/"+how, func(t *testing.T) {
				args := []string{"verify-bundle", "--bundle", filepath.Join(folder, "bundle.sigstore.json")}
				if key := override(folder, "key.pub", ""); key != "" {
					args = append(args, "--key", key)
				} else {
					args = append(args, "--certificate-identity", content(folder, "identity", beacon), "--certificate-oidc-issuer", content(folder, "issuer", tokenIssuer))
				}
				root := override(folder, "trusted_root.json", filepath.Join(dir, "sigstore-public-good", "trusted_root.json"))
				err := run(t.Context(), append(args, "--trusted-root", root, what), io.Discard)
				if !strings.HasSuffix(name, "_fail") {
					if err != nil {
						t.Fatal(err)
					}
					passed++
					return
				}
				refused++
				var r *refusal
				if !errors.As(err, &r) || r.class == "" || r.class != reasons[name] {
					t.Errorf("refused with %v, want class %q", err, reasons[name])
				}
			})
		}
	}
	if passed != 42 || refused != 98 {
		t.Errorf("%d passed and %d were refused, want 42 and 98", passed, refused)
	}
}

func override(folder, name, otherwise string) string {
	path := filepath.Join(folder, name)
	if _, err := os.Stat(path); err != nil {
		return otherwise
	}
	return path
}

func content(folder, name, otherwise string) string {
	raw, err := os.ReadFile(filepath.Join(folder, name))
	if err != nil {
		return otherwise
	}
	return strings.TrimSpace(string(raw))
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		nil, {"sign-bundle"}, {"attest"}, {"verify-bundle"},
		{"sign-bundle", "--bundle", "b", "--identity-token", "t", "--trusted-root", "r", "x"},
		{"sign-bundle", "--staging", "--bundle", "b", "--identity-token", "t", "--trusted-root", "r", "--signing-config", "c", "x"},
		{"sign-bundle", "--bundle", "b", "--trusted-root", "r", "--signing-config", "c", "x"},
		{"verify-bundle", "--bundle", "b", "x"},
		{"verify-bundle", "--bundle", "b", "--certificate-identity", "i", "x"},
		{"verify-bundle", "--bundle", "b", "--key", "k", "--certificate-identity", "i", "--certificate-oidc-issuer", "u", "x"},
		{"verify-bundle", "--staging", "--bundle", "b", "--key", "k", "x"},
		{"verify-bundle", "--nonsense"},
	} {
		var r *refusal
		if err := run(t.Context(), args, io.Discard); !errors.As(err, &r) || r.class != classUsage {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// TestSignBundle signs with the real Fulcio, time-stamping authority and log,
// with the options that the suite gives, in its order (_sign_for_bundle in
// test/client.py of sigstore-conformance 03662d5); we and the real cosign verify
// it. The suite itself fetches its identity token from GitHub, and names no
// instance but Sigstore's own.
func TestSignBundle(t *testing.T) {
	var peers string
	for _, name := range []string{"fulcio", "timestamp-server", "rekor-server-posix"} {
		peers = filepath.Dir(testkit.Peer(t, name))
	}
	cosign := testkit.Peer(t, "cosign")
	dir := t.TempDir()
	instance, err := testkit.StartInstance(t.Context(), peers, dir, testkit.InstanceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer instance.Close()
	token, err := instance.Token("ann@acme.example", nil)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	root, config := filepath.Join(dir, "trusted_root.json"), filepath.Join(dir, "signing_config.json")
	artifact, another := file("a.txt", "an artifact\n"), file("b.txt", "another\n")
	statement := file("statement.json", `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"a.txt","digest":{"sha256":"`+
		attest.DigestOf([]byte("an artifact\n")).Hex()+`"}}],"predicateType":"https://slsa.dev/provenance/v1","predicate":{}}`)
	bundle := filepath.Join(dir, "bundle.json")
	for name, c := range map[string]struct {
		args []string
		file string
	}{"bytes": {nil, artifact}, "statement": {[]string{"--in-toto"}, statement}} {
		t.Run(name, func(t *testing.T) {
			args := append(append([]string{"sign-bundle"}, c.args...), "--identity-token", token, "--bundle", bundle, "--trusted-root", root, "--signing-config", config, c.file)
			if err := run(t.Context(), args, io.Discard); err != nil {
				t.Fatal(err)
			}
			verify := []string{"verify-bundle", "--bundle", bundle, "--certificate-identity", "ann@acme.example", "--certificate-oidc-issuer", instance.Issuer, "--trusted-root", root}
			if err := run(t.Context(), append(verify, artifact), io.Discard); err != nil {
				t.Error(err)
			}
			var r *refusal
			if err := run(t.Context(), append(verify, another), io.Discard); !errors.As(err, &r) || r.class != "subject" && r.class != "log" {
				t.Errorf("another file: %v", err)
			}
			by := []string{"--bundle", bundle, "--new-bundle-format", "--use-signed-timestamps", "--certificate-identity", "ann@acme.example", "--certificate-oidc-issuer", instance.Issuer, "--trusted-root", root}
			command := "verify-blob"
			if len(c.args) > 0 {
				command, by = "verify-blob-attestation", append(by, "--type", "slsaprovenance1")
			}
			if out, err := exec.Command(cosign, append(append([]string{command}, by...), artifact)...).CombinedOutput(); err != nil {
				t.Errorf("cosign: %v\n%s", err, out)
			}
		})
	}
	// What fails leaves no bundle.
	for name, c := range map[string]struct{ token, file, root, class, want string }{
		"no token":        {"x", artifact, root, classSign, "it is no identity token"},
		"no statement":    {token, artifact, root, classSign, "reading in-toto statement"},
		"another's token": {token[:len(token)-8] + "AAAAAAAA", statement, root, classSign, "it refused (4"},
		"no root":         {token, statement, config, classSign, "checking what was just signed"},
	} {
		none := filepath.Join(dir, "none.json")
		err := run(t.Context(), []string{"sign-bundle", "--in-toto", "--identity-token", c.token, "--bundle", none, "--trusted-root", c.root, "--signing-config", config, c.file}, io.Discard)
		var r *refusal
		if !errors.As(err, &r) || r.class != c.class || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if _, err := os.Stat(none); err == nil {
			t.Errorf("%s: there is a bundle", name)
		}
	}
}
