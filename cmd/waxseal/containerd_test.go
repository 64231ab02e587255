package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/imageverifier/bindir"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/waxseal/waxseal/internal/testkit"
)

// TestContainerdVerifier: containerd's own package asks the real binary, under
// the name by which it knows that containerd is asking.
func TestContainerdVerifier(t *testing.T) {
	g := newGatehouse(t)
	link := filepath.Join(t.TempDir(), "waxseal-verifier")
	g.must(os.Symlink(g.bin, link))
	config := filepath.Join(g.dir, "verifier.yaml")
	write := func(path, text string, mode os.FileMode) {
		t.Helper()
		g.must(os.WriteFile(path, []byte(text), mode))
		g.must(os.Chmod(path, mode))
	}
	const good = "apiVersion: waxseal.dev/v1\nkind: Verifier\npolicy: policy.yaml\ndeadline: 1s\n"
	policy := "apiVersion: waxseal.dev/v1\nkind: Policy\ntrust:\n  builders:\n    - {id: \"https://ci.example.org/builder\", signer: {key: k.pub}, maxLevel: 2}\nimages:\n  - {match: \"" + g.addr + "/**\", level: {build: 2}%s}\n"
	write(filepath.Join(g.dir, "policy.yaml"), fmt.Sprintf(policy, ""), 0o644)
	write(config, good, 0o644)

	// The folder of verifiers. containerd gives no configuration, so for the
	// test one is named by what becomes the verifier.
	dir := t.TempDir()
	write(filepath.Join(dir, "waxseal-verifier"), fmt.Sprintf("#!/bin/sh\nexec '%s' \"$@\" -config '%s' -operation pull\n", link, config), 0o755)
	patient := bindir.Config{BinDir: dir, MaxVerifiers: 10, PerVerifierTimeout: 10_000_000_000} // of its own type of time.Duration
	digestOf := func(image string) digest.Digest {
		ref, err := name.ParseReference(image)
		g.must(err)
		desc, err := remote.Head(ref, remote.WithContext(t.Context()))
		g.must(err)
		return digest.Digest(desc.Digest.String())
	}
	ask := func(image string, d digest.Digest) (bool, string) {
		t.Helper()
		got, err := bindir.NewImageVerifier(&patient).VerifyImage(t.Context(), image, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: 100})
		g.must(err)
		return got.OK, got.Reason
	}
	passDigest, denyDigest, hangDigest := digestOf(g.pass), digestOf(g.deny), digest.FromString("hangs")

	for _, c := range []struct {
		name, image string
		digest      digest.Digest
		policy      string
		admitted    bool
		reason      string
	}{
		{"pass", g.pass, passDigest, "", true, "PASSED: carries SLSA Build L2"},
		{"pass by digest", strings.TrimSuffix(g.pass, ":v1") + "@" + string(passDigest), passDigest, "", true, "PASSED"},
		{"deny", g.deny, denyDigest, "", false, "DENIED: carries SLSA"},
		{"the digest decides, not the tag", g.pass, denyDigest, "", false, "not found"},
		{"undecided", g.addr + "/none:v1", passDigest, "", false, "UNDECIDED"},
		{"out of time", g.hang, hangDigest, "", false, "before the deadline"},
		{"another image", "registry.invalid/x:1", passDigest, "", false, "exit code"},
		{"no image of a registry", "oci:" + g.dir, passDigest, "", false, "not an image of a registry"},
		{"two digests", g.addr + "/pass@" + string(denyDigest), passDigest, "", false, "its digest is not that"},
		{"many reasons", g.pass, passDigest, `, parameters: {}, buildTypes: ["https://other.example"], sbom: {required: true}, source: {repository: "https://git.example/x"}`, false, "and 2 more reasons"},
	} {
		t.Run(c.name, func(t *testing.T) {
			write(filepath.Join(g.dir, "policy.yaml"), fmt.Sprintf(policy, c.policy), 0o644)
			admitted, reason := ask(c.image, c.digest)
			if admitted != c.admitted || !strings.Contains(reason, c.reason) || strings.Contains(reason, "\n") || strings.Contains(reason, "truncated") {
				t.Errorf("admitted %t: %s", admitted, reason)
			}
		})
	}
	write(filepath.Join(g.dir, "policy.yaml"), fmt.Sprintf(policy, ""), 0o644)

	t.Run("killed by containerd", func(t *testing.T) {
		write(config, strings.Replace(good, "1s", "1m", 1), 0o644)
		defer write(config, good, 0o644)
		g.must(g.faults.Set(testkit.Fault{Kind: "hang", Match: "/hang/"}))
		hasty := patient
		hasty.PerVerifierTimeout = 1_500_000_000
		got, err := bindir.NewImageVerifier(&hasty).VerifyImage(t.Context(), g.hang, ocispec.Descriptor{Digest: hangDigest})
		if err == nil {
			t.Errorf("%+v", got)
		}
	})
	t.Run("its configuration", func(t *testing.T) {
		defer write(config, good, 0o644)
		for text, want := range map[string]string{
			"":                                   "apiVersion",
			good + "unknown: x\n":                "unknown",
			good + "---\nkind: Verifier\n":       "more than one document",
			good + "policy: other.yaml\n":        "policy",
			"a: [":                               "reading configuration",
			strings.Replace(good, "1s", "1h", 1): "deadline",
			strings.Replace(good, "policy.yaml", "none.yaml", 1):  "none.yaml",
			strings.Replace(good, "policy: policy.yaml\n", "", 1): "name a policy",
		} {
			write(config, text, 0o644)
			if admitted, reason := ask(g.pass, passDigest); admitted || !strings.Contains(reason, want) {
				t.Errorf("%q: admitted %t: %s", text, admitted, reason)
			}
		}
		// Notes of a git repository are evidence, wherever the repository is.
		notes := filepath.Join(g.dir, "notes")
		for _, dir := range []string{"objects", "refs"} {
			g.must(os.MkdirAll(filepath.Join(notes, dir), 0o755))
		}
		for _, at := range []string{notes, "notes"} {
			write(config, good+"evidence: [\"git:"+at+"\"]\n", 0o644)
			if admitted, reason := ask(g.pass, passDigest); !admitted {
				t.Errorf("with the notes of %q: %s", at, reason)
			}
		}
		write(config, good, 0o666)
		if admitted, reason := ask(g.pass, passDigest); admitted || !strings.Contains(reason, "can be written by others") {
			t.Errorf("admitted %t: %s", admitted, reason)
		}
		write(config, good, 0o644)
		g.must(os.Chmod(filepath.Join(g.dir, "policy.yaml"), 0o664))
		if admitted, reason := ask(g.pass, passDigest); admitted || !strings.Contains(reason, "policy.yaml can be written by others") {
			t.Errorf("admitted %t: %s", admitted, reason)
		}
		g.must(os.Chmod(filepath.Join(g.dir, "policy.yaml"), 0o644))
		// So can a key that the policy names.
		g.must(os.Chmod(filepath.Join(g.dir, "k.pub"), 0o646))
		if admitted, reason := ask(g.pass, passDigest); admitted || !strings.Contains(reason, "k.pub can be written by others") {
			t.Errorf("admitted %t: %s", admitted, reason)
		}
		g.must(os.Chmod(filepath.Join(g.dir, "k.pub"), 0o644))
		if admitted, reason := ask(g.pass, passDigest); !admitted {
			t.Errorf("it stays refused: %s", reason)
		}
	})
	t.Run("its flags", func(t *testing.T) {
		right := []string{"-name", g.pass, "-digest", string(passDigest), "-stdin-media-type", "application/vnd.oci.descriptor.v1+json", "-config", config}
		for _, c := range []struct {
			args []string
			code int
		}{
			{right, 0},
			{append([]string{"-pod", "x", "-operation", "run"}, right...), 0},
			{right[:4], 64},
			{append(right[:4:4], "-stdin-media-type", "application/vnd.oci.image.manifest.v1+json", "-config", config), 64},
			{append(right[:8:8], "-name", g.deny), 64},
			{append(right[:8:8], "-extra"), 64},
			{append(right[:8:8], "extra", "x"), 64},
			{[]string{"verify", g.pass}, 64},
			{[]string{"--help"}, 64},
			{nil, 64},
		} {
			cmd := exec.CommandContext(t.Context(), link, c.args...)
			cmd.Env = g.env()
			// Not reading its input is fine, and an input that stays open is too.
			in, err := cmd.StdinPipe()
			g.must(err)
			start := time.Now()
			out, err := cmd.Output()
			in.Close()
			if exitCode(err) != c.code || strings.Count(string(out), "\n") != 1 || time.Since(start) > 8*time.Second {
				t.Errorf("%v: exit code %d after %s: %s", c.args, exitCode(err), time.Since(start), out)
			}
		}
	})
	t.Run("no configuration", func(t *testing.T) {
		if _, err := os.Stat("/etc/waxseal/verifier.yaml"); err == nil {
			testkit.Unavailable(t, "this machine has a configuration of waxseal-verifier")
		}
		bare := t.TempDir()
		g.must(os.Symlink(link, filepath.Join(bare, "waxseal-verifier")))
		got, err := bindir.NewImageVerifier(&bindir.Config{BinDir: bare, MaxVerifiers: 10, PerVerifierTimeout: 10_000_000_000}).
			VerifyImage(t.Context(), g.pass, ocispec.Descriptor{Digest: passDigest})
		g.must(err)
		if got.OK || !strings.Contains(got.Reason, "/etc/waxseal/verifier.yaml") {
			t.Errorf("%+v", got)
		}
	})
}
