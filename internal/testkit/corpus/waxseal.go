package corpus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/waxseal/waxseal/internal/cli"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/verify"
)

// Verifier answers a case. An error is no answer.
type Verifier func(ctx context.Context, c *Case) (*Answer, error)

// Command runs waxseal in the folder of a case.
type Command func(ctx context.Context, c *Case, args []string) (code int, stdout, stderr []byte, err error)

// Waxseal is waxseal as a verifier, through its command line.
func Waxseal(run Command) Verifier {
	return func(ctx context.Context, c *Case) (*Answer, error) {
		args := c.args()
		reference := "oci:" + c.Question.Image + c.Question.Reference
		if c.Question.Registry != nil {
			addr, done, err := c.serve()
			if err != nil {
				return nil, err
			}
			defer done()
			reference = addr + "/acme/app" + c.Question.Reference
		}
		code, stdout, stderr, err := run(ctx, c, append(args, reference))
		if err != nil {
			return nil, err
		}
		return readVerdict(code, stdout, stderr)
	}
}

// args are the arguments but for the image.
func (c *Case) args() []string {
	q, t := c.Question, c.Trust
	out := []string{"verify", "--output", "json", "--at", q.At.UTC().Format(time.RFC3339)}
	for _, e := range q.Evidence {
		out = append(out, "--evidence", e)
	}
	out = append(out, q.Flags...)
	if t.Policy != "" {
		return append(out, "--policy", t.Policy)
	}
	out = append(out, "--level", q.Level.flag())
	for _, k := range t.Keys {
		out = append(out, "--key", k.File)
	}
	for _, id := range t.Identities {
		if id.Regexp != "" {
			out = append(out, "--certificate-identity-regexp", id.Regexp)
		} else {
			out = append(out, "--certificate-identity", id.SAN)
		}
		if id.Issuer != "" {
			out = append(out, "--certificate-oidc-issuer", id.Issuer)
		}
	}
	for _, r := range t.Roots {
		out = append(out, "--trusted-root", r)
	}
	if t.CARoots != "" {
		out = append(out, "--ca-roots", t.CARoots)
	}
	if t.CABetween != "" {
		out = append(out, "--ca-intermediates", t.CABetween)
	}
	for _, f := range t.CRLs {
		out = append(out, "--ca-crl", f)
	}
	for _, f := range t.OCSP {
		out = append(out, "--ocsp-response", f)
	}
	if t.Revocation {
		out = append(out, "--require-revocation")
	}
	return out
}

func (l Levels) flag() string {
	switch {
	case l.Source == 0:
		return fmt.Sprintf("build=%d", l.Build)
	case l.Build == 0:
		return fmt.Sprintf("source=%d", l.Source)
	}
	return fmt.Sprintf("build=%d,source=%d", l.Build, l.Source)
}

// readVerdict reads what waxseal printed. An exit code alone is no answer.
func readVerdict(code int, stdout, stderr []byte) (*Answer, error) {
	if code == cli.ExitUsage {
		return &Answer{Decision: Usage, Says: string(stderr)}, nil
	}
	type evidence struct {
		Bundle, Where, Code string
		Accepted            bool
	}
	var v struct {
		Decision                  string
		Reached                   Levels
		Digest                    string
		Properties                []string
		Reasons, Warnings, Waived []Reason
		Evidence                  []evidence
		Platforms                 []struct {
			Platform string
			Evidence []evidence
		}
	}
	if err := json.Unmarshal(stdout, &v); err != nil {
		return nil, fmt.Errorf("exit code %d and no verdict (%w): %s", code, err, stderr)
	}
	if want := map[int]string{cli.ExitOK: Pass, cli.ExitDenied: Deny, cli.ExitUndecided: Undecided}[code]; want != v.Decision {
		return nil, fmt.Errorf("exit code %d with the decision %q", code, v.Decision)
	}
	a := &Answer{Decision: v.Decision, Reached: &v.Reached, Digest: v.Digest, Properties: v.Properties,
		Reasons: v.Reasons, Warnings: v.Warnings, Waived: v.Waived, Evidence: []Evidence{}}
	// What a verdict leaves out is empty, and is compared.
	if a.Properties == nil {
		a.Properties = []string{}
	}
	for _, list := range []*[]Reason{&a.Reasons, &a.Warnings, &a.Waived} {
		if *list == nil {
			*list = []Reason{}
		}
	}
	add := func(platform string, list []evidence) {
		for _, e := range list {
			switch {
			case e.Accepted:
				e.Code = Accepted
			case e.Code == string(gate.CodeSkipped):
				e.Code = string(verify.CodeUnreadable) // which of the two is no matter of evidence
			}
			a.Evidence = append(a.Evidence, Evidence{Digest: e.Bundle, Where: e.Where, Platform: platform, Code: e.Code})
		}
	}
	add("", v.Evidence)
	for _, p := range v.Platforms {
		add(p.Platform, p.Evidence)
	}
	return a, nil
}

// InProcess runs waxseal in this process, whose working folder must be the
// case's.
func InProcess(ctx context.Context, c *Case, args []string) (int, []byte, []byte, error) {
	var stdout, stderr bytes.Buffer
	code := cli.Main(ctx, args, cli.Streams{In: new(bytes.Buffer), Out: &stdout, Err: &stderr, LookupEnv: func(name string) (string, bool) {
		v, ok := c.Question.Environment[name]
		return v, ok
	}})
	return code, stdout.Bytes(), stderr.Bytes(), nil
}

// Program runs the program at path in the folder of the case.
func Program(path string) Command {
	return func(ctx context.Context, c *Case, args []string) (int, []byte, []byte, error) {
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.Dir = c.Dir
		cmd.Env = os.Environ()
		for name, value := range c.Question.Environment {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		var ended *exec.ExitError
		if errors.As(err, &ended) && ended.Exited() {
			err = nil
		}
		return cmd.ProcessState.ExitCode(), stdout.Bytes(), stderr.Bytes(), err
	}
}

// path is a file of the case.
func (c *Case) path(name string) string { return filepath.Join(c.Dir, filepath.FromSlash(name)) }
