package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/report"
	"github.com/waxseal/waxseal/pkg/store"
)

// VerifierName is the name of the link under which waxseal speaks containerd's
// protocol for image verifiers.
const VerifierName = "waxseal-verifier"

// verifierConfig is where the verifier's configuration lies. containerd hands
// its verifiers none, and its environment is not to decide.
const verifierConfig = "/etc/waxseal/verifier.yaml"

const (
	// verifierDeadline is below the ten seconds that containerd gives.
	verifierDeadline    = 8 * time.Second
	maxVerifierDeadline = 5 * time.Minute
	descriptorType      = "application/vnd.oci.descriptor.v1+json"
)

// Verifier answers one question of containerd (its plugin
// io.containerd.image-verifier.v1.bindir), which starts every file of a folder
// as FILE -name REF -digest DIGEST -stdin-media-type TYPE, with a descriptor on
// standard input: 0 admits the image, every other code blocks it, and standard
// output is the reason, one line of ours. It starts no child and ends by itself
// in time.
func Verifier(ctx context.Context, args []string, s Streams) int {
	start := time.Now()
	q, err := parseVerifierFlags(args)
	config := &verifierFile{deadline: verifierDeadline}
	if err == nil {
		config, err = readVerifierFile(q.config)
	}
	if err != nil {
		return verifierAnswer(&s, ExitUsage, "not decided: "+err.Error())
	}
	ctx, cancel := context.WithDeadline(ctx, start.Add(config.deadline))
	defer cancel()
	done := make(chan func() int, 1)
	go func() { done <- verifierJudge(ctx, &s, config, q) }()
	// Whatever hangs, containerd gets its answer.
	late := time.NewTimer(time.Until(start.Add(config.deadline + lastWords)))
	defer late.Stop()
	select {
	case say := <-done:
		return say()
	case <-late.C:
		return verifierAnswer(&s, ExitUndecided, "not decided: no answer before the deadline")
	}
}

// verifierQuestion is what containerd asks.
type verifierQuestion struct {
	ref    string
	config string
}

// parseVerifierFlags reads containerd's flags: one dash, the value in the next
// argument. Pairs that it may come to add are none of our business; another kind
// of question is.
func parseVerifierFlags(args []string) (verifierQuestion, error) {
	q := verifierQuestion{config: verifierConfig}
	got := map[string]string{}
	for i := 0; i < len(args); i += 2 {
		flag := strings.TrimLeft(args[i], "-")
		if flag == args[i] || i+1 == len(args) {
			return q, fmt.Errorf("%s speaks with containerd: -name REF -digest DIGEST -stdin-media-type TYPE, not %q", VerifierName, args[i])
		}
		if _, twice := got[flag]; twice {
			return q, fmt.Errorf("-%s stands twice", flag)
		}
		got[flag] = args[i+1]
	}
	if t := got["stdin-media-type"]; t != descriptorType {
		return q, fmt.Errorf("the media type of the question is %q, and only %q is known", t, descriptorType)
	}
	digest, err := attest.ParseDigest(got["digest"])
	if err != nil {
		return q, fmt.Errorf("-digest %q: %w", got["digest"], err)
	}
	ref, err := store.Parse(got["name"])
	switch {
	case err != nil:
		return q, err
	case ref.Kind != store.Registry:
		return q, fmt.Errorf("-name %q: not an image of a registry", got["name"])
	case ref.Digest != "" && ref.Digest != digest:
		return q, fmt.Errorf("-name %q: its digest is not that of -digest", got["name"])
	}
	// The tag has been resolved: what it points to by now does not matter.
	q.ref = ref.At(digest).String()
	if given, ok := got["config"]; ok {
		q.config = given
	}
	return q, nil
}

// verifierFile is the verifier's configuration.
type verifierFile struct {
	flags    judgeFlags
	deadline time.Duration
}

func readVerifierFile(path string) (*verifierFile, error) {
	fail := func(err error) (*verifierFile, error) {
		return nil, fmt.Errorf("reading configuration %q: %w", path, err)
	}
	raw, err := readSmall(path, attest.MaxPolicy)
	if err != nil {
		return fail(err)
	}
	var in struct {
		APIVersion   string   `yaml:"apiVersion"`
		Kind         string   `yaml:"kind"`
		Policy       string   `yaml:"policy"`
		PolicyKeys   []string `yaml:"policyKeys"`
		TrustedRoots []string `yaml:"trustedRoots"`
		Evidence     []string `yaml:"evidence"`
		Deadline     string   `yaml:"deadline"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	if err := dec.Decode(&in); err != nil && !errors.Is(err, io.EOF) {
		return fail(errors.New(strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\n", " "), "yaml: ")))
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return fail(errors.New("more than one document"))
	}
	switch {
	case in.APIVersion != "waxseal.dev/v1" || in.Kind != "Verifier":
		return fail(errors.New(`it must have "apiVersion: waxseal.dev/v1" and "kind: Verifier"`))
	case in.Policy == "":
		return fail(errors.New(`it must name a policy: "policy: FILE"`))
	}
	out := &verifierFile{deadline: verifierDeadline}
	if in.Deadline != "" {
		out.deadline, err = time.ParseDuration(in.Deadline)
		if err != nil || out.deadline <= 0 || out.deadline > maxVerifierDeadline {
			return fail(fmt.Errorf("deadline %q: give a time up to %s, as 8s", in.Deadline, maxVerifierDeadline))
		}
	}
	beside := func(names ...string) []string {
		var all []string
		for _, n := range names {
			n, git := strings.CutPrefix(n, store.GitPrefix)
			if !filepath.IsAbs(n) {
				n = filepath.Join(filepath.Dir(path), n)
			}
			if git {
				n = store.GitPrefix + n
			}
			all = append(all, n)
		}
		return all
	}
	out.flags = judgeFlags{policy: beside(in.Policy)[0], policyKeys: beside(in.PolicyKeys...), evidence: beside(in.Evidence...)}
	out.flags.roots = beside(in.TrustedRoots...)
	// Evidence proves itself; who may write the rest, and what the policy names,
	// decides what runs.
	for _, name := range append([]string{path, out.flags.policy}, append(out.flags.policyKeys, out.flags.roots...)...) {
		if err := ownersOnly(name); err != nil {
			return fail(err)
		}
	}
	out.flags.check = ownersOnly
	return out, nil
}

// ownersOnly refuses a file that somebody else than root, or whom we run as, can
// write.
func ownersOnly(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return fmt.Errorf("%s: its owner is not known", path)
	case owner.Uid != 0 && int(owner.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d, not to root", path, owner.Uid)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s can be written by others than its owner (mode %04o): chmod go-w", path, info.Mode().Perm())
	}
	return nil
}

// verifierJudge returns what to say, so that nothing is said twice.
func verifierJudge(ctx context.Context, s *Streams, config *verifierFile, q verifierQuestion) (say func() int) {
	answer := func(code int, text string) func() int {
		return func() int { return verifierAnswer(s, code, text) }
	}
	defer func() {
		if p := recover(); p != nil {
			say = answer(ExitUndecided, fmt.Sprintf("not decided: internal error: %v (please report it)", p))
		}
	}()
	req, err := config.flags.request(ctx, s, q.ref)
	if err != nil {
		return answer(ExitUsage, "not decided: "+err.Error())
	}
	req.Store.NoHelpers = true
	v, err := gate.Gate{}.Judge(ctx, req)
	if err != nil {
		return answer(ExitUsage, "not decided: "+err.Error())
	}
	code := map[gate.Decision]int{gate.Pass: ExitOK, gate.Deny: ExitDenied}[v.Decision]
	if v.Decision != gate.Pass && v.Decision != gate.Deny {
		code = ExitUndecided
	}
	return answer(code, report.Brief(v))
}

// verifierAnswer prints the one line. One that could not be printed admits
// nothing.
func verifierAnswer(s *Streams, code int, text string) int {
	if _, err := fmt.Fprintln(s.Out, report.Clip(text)); err != nil && code == ExitOK {
		return ExitUndecided
	}
	return code
}
