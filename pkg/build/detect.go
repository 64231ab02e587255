package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
)

// maxDetected bounds the answer of FindSecrets.
const maxDetected = 8 << 20

// FoundSecret is a secret that was found in a text.
type FoundSecret struct {
	Text int    // which of the texts, from 0
	Kind string // what it is, as gitleaks calls it: "github-pat"
	// Value is the secret as it stands in the text. It is for replacing, never
	// for showing.
	Value string
}

// FindSecrets looks in texts for what has the shape of a secret. A child, which
// has no key and no token, does that by the rules of gitleaks. program is the
// engine's; "" is as in EngineOptions.
func FindSecrets(ctx context.Context, texts []string, program string) ([]FoundSecret, error) {
	path, err := engineProgram(program)
	if err != nil {
		return nil, err
	}
	asked, err := json.Marshal(texts)
	if err != nil {
		return nil, fmt.Errorf("looking for secrets: %w", err)
	}
	said, out := &tail{}, &bytes.Buffer{}
	cmd := exec.CommandContext(ctx, path, "secrets")
	cmd.Env = engineEnv(os.Environ())
	// Not in its arguments, which all on the machine can read.
	cmd.Stdin = bytes.NewReader(asked)
	cmd.Stdout = &atMost{w: out, left: maxDetected}
	cmd.Stderr = said
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if t := strings.TrimPrefix(said.text(), engineName+": "); t != "" {
			err = errors.New(t)
		}
		return nil, fmt.Errorf("looking for secrets: %w", err)
	}
	var answer []struct {
		Text   int    `json:"text"`
		Kind   string `json:"kind"`
		Secret string `json:"secret"`
	}
	if err := attest.UnmarshalStrict(out.Bytes(), &answer); err != nil {
		return nil, fmt.Errorf("looking for secrets: reading the engine's answer: %w", err)
	}
	found := make([]FoundSecret, len(answer))
	for i, a := range answer {
		if a.Text < 0 || a.Text >= len(texts) || a.Secret == "" || !strings.Contains(texts[a.Text], a.Secret) {
			return nil, fmt.Errorf("looking for secrets: the engine found %q where it is not", a.Kind)
		}
		found[i] = FoundSecret{a.Text, a.Kind, a.Secret}
	}
	return found, nil
}

// WithoutSecrets is text with every secret in it replaced by its kind in
// braces: "{github-pat}".
func WithoutSecrets(text string, found []FoundSecret) string {
	for _, s := range found {
		text = strings.ReplaceAll(text, s.Value, "{"+s.Kind+"}")
	}
	return text
}
