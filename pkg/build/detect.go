package build

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"github.com/waxseal/waxseal/pkg/attest"
)

// maxDetected bounds one answer about secrets.
const maxDetected = 8 << 20

// foundSecret is a secret that was found in a text.
type foundSecret struct {
	text int    // which of the texts, from 0
	kind string // what it is, as gitleaks calls it: "github-pat"
	// value is the secret as it stands in the text. It is for replacing, never
	// for showing.
	value string
}

// detector looks in texts for what has the shape of a secret. A child, which
// has no key and no token, does that by the rules of gitleaks; it is kept,
// because its start takes longer than its work. It ends with us.
type detector struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Scanner
	said *tail

	mu sync.Mutex // one question at a time
}

func startDetector() (*detector, error) {
	path, err := engineProgram("")
	if err != nil {
		return nil, err
	}
	d := &detector{cmd: exec.Command(path, "secrets"), said: &tail{}}
	d.cmd.Env, d.cmd.Dir, d.cmd.Stderr = engineEnv(os.Environ()), "/", d.said
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// Not in its arguments, which all on the machine can read.
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	d.out = bufio.NewScanner(out)
	d.out.Buffer(nil, maxDetected)
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("looking for secrets: %w", err)
	}
	giveWay(d.cmd.Process.Pid)
	return d, nil
}

// find looks through texts. When ctx ends, so does the detector.
func (d *detector) find(ctx context.Context, texts []string) ([]foundSecret, error) {
	asked, err := json.Marshal(texts)
	if err != nil {
		return nil, fmt.Errorf("looking for secrets: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	defer context.AfterFunc(ctx, func() { _ = d.cmd.Process.Kill() })()
	_, err = d.in.Write(append(asked, '\n'))
	if err == nil && !d.out.Scan() {
		if err = d.out.Err(); err == nil {
			err = io.ErrUnexpectedEOF
		}
	}
	if err != nil {
		_ = d.cmd.Wait() // all that it said is there now
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if t := strings.TrimPrefix(d.said.text(), engineName+": "); t != "" {
			err = errors.New(t)
		}
		return nil, fmt.Errorf("looking for secrets: %w", err)
	}
	var answer []struct {
		Text   int    `json:"text"`
		Kind   string `json:"kind"`
		Secret string `json:"secret"`
	}
	if err := attest.UnmarshalStrict(d.out.Bytes(), &answer); err != nil {
		return nil, fmt.Errorf("looking for secrets: reading the engine's answer: %w", err)
	}
	found := make([]foundSecret, len(answer))
	for i, a := range answer {
		if a.Text < 0 || a.Text >= len(texts) || a.Secret == "" || !strings.Contains(texts[a.Text], a.Secret) {
			return nil, fmt.Errorf("looking for secrets: the engine found %q where it is not", a.Kind)
		}
		found[i] = foundSecret{a.Text, a.Kind, a.Secret}
	}
	return found, nil
}

// end has the child end, and does not wait for it.
func (d *detector) end() {
	d.in.Close()
	_ = d.cmd.Process.Kill()
}

// close ends the child.
func (d *detector) close() {
	d.end()
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = d.cmd.Wait() // an error says how it ended
}
