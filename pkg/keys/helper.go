package keys

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
)

// program is the helper's name.
const program = "waxseal-kms"

const (
	// answerTime bounds one answer; a person may have to touch the token for it.
	answerTime = 30 * time.Second
	// tries is how often a service is asked that does not answer.
	tries = 3
	// firstWait is before the second try; each later wait is twice as long.
	firstWait = 500 * time.Millisecond
)

// helper is the child that speaks with what holds the key.
type helper struct {
	child   *exec.Cmd
	path    string
	in      io.WriteCloser
	out     io.ReadCloser
	replies chan answer
	said    limited
}

type answer struct {
	reply Reply
	err   error
}

func (k *Key) start(ref string) (*helper, error) {
	fail := func(err error) error {
		return &Error{ClassUnanswered, k.doing(false), err, "install it beside waxseal, as make install does, or give the key as a file"}
	}
	path, err := k.opts.program()
	if err != nil {
		return nil, fail(err)
	}
	h := &helper{path: path, child: exec.Command(path, "serve"), replies: make(chan answer, 1)}
	h.child.Env = clientEnv(ref, k.opts.Environ)
	h.child.Stderr = &h.said
	h.child.WaitDelay = time.Second // a child of its own may hold the other end
	// A Ctrl-C on the terminal is ours to answer, and may be for somebody else: a
	// command that is wrapped, whose work is signed once it has ended well.
	h.child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if h.in, err = h.child.StdinPipe(); err != nil {
		return nil, fail(err)
	}
	if h.out, err = h.child.StdoutPipe(); err != nil {
		return nil, fail(err)
	}
	if err := h.child.Start(); err != nil {
		return nil, fail(fmt.Errorf("starting %s: %w", path, err))
	}
	go h.read()
	return h, nil
}

func (o Options) program() (string, error) {
	if o.Program != "" {
		return o.Program, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(self), program)
	if st, err := os.Stat(beside); err != nil || !st.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not beside waxseal, in %s", program, filepath.Dir(self))
	}
	return beside, nil
}

// read hands out what the helper prints, until it ends.
func (h *helper) read() {
	defer close(h.replies)
	lines := bufio.NewScanner(h.out)
	lines.Buffer(nil, attest.MaxKey)
	for lines.Scan() {
		var a answer
		if err := attest.UnmarshalStrict(lines.Bytes(), &a.reply); err != nil {
			a.err = fmt.Errorf("reading what %s says: %w", program, err)
		}
		h.replies <- a
	}
	if err := lines.Err(); err != nil {
		h.replies <- answer{err: fmt.Errorf("reading what %s says: %w", program, err)}
	}
}

// end closes the helper's input, which ends it, and waits; what hangs is killed.
func (h *helper) end() {
	h.in.Close()
	hangs := time.AfterFunc(2*time.Second, func() {
		h.child.Process.Kill()
		h.out.Close()
	})
	defer hangs.Stop()
	for range h.replies { // Wait may close the pipe only once it was read
	}
	h.child.Wait()
}

// ask has one request answered, and asks again while there is no answer.
func (k *Key) ask(ctx context.Context, r Request) (Reply, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	signing := r.Ref == ""
	wait := firstWait
	for n := 1; ; n++ {
		if err := ctx.Err(); err != nil {
			return Reply{}, err
		}
		if k.helper == nil {
			return Reply{}, errors.New("the key is closed")
		}
		reply, err := k.helper.once(ctx, r)
		if err != nil {
			// A helper that was cut short would answer the wrong question next.
			k.helper.child.Process.Kill()
			k.helper.end()
			said, path := line(k.helper.said.String()), k.helper.path
			k.helper = nil
			return Reply{}, k.broken(ctx, k.doing(signing), err, said, path)
		}
		if reply.Class == "" {
			return reply, nil
		}
		refused := k.refusal(reply, signing)
		if refused.Class != ClassUnanswered {
			return Reply{}, refused
		}
		if n == tries {
			refused.err = fmt.Errorf("no answer in %d tries, at last: %w", tries, refused.err)
			return Reply{}, refused
		}
		if k.opts.Tell != nil {
			k.opts.Tell(fmt.Sprintf("%s: %v; asking again", refused.what, refused.err))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
		wait *= 2
	}
}

// broken is the error where the helper itself failed.
func (k *Key) broken(ctx context.Context, what string, err error, said, path string) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errSlow):
		return &Error{ClassUnanswered, what, err, "try again; or give the public key as a file"}
	}
	if said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return &Error{ClassUnanswered, what, err, "see whether " + path + " is of the same version as waxseal"}
}

var (
	errSlow  = errors.New("the service did not answer in time")
	errEnded = errors.New(program + " ended")
)

func (h *helper) once(ctx context.Context, r Request) (Reply, error) {
	raw, err := encode(r)
	if err != nil {
		return Reply{}, err
	}
	defer clear(raw) // a PIN may be in it
	timer := time.NewTimer(answerTime)
	defer timer.Stop()
	sent := make(chan error, 1)
	go func() { _, err := h.in.Write(raw); sent <- err }()
	// The bytes are in use until they are written; a write ends when the helper
	// does, at the latest.
	defer func() { <-sent }()
	select {
	case a, ok := <-h.replies:
		if !ok {
			return Reply{}, errEnded
		}
		return a.reply, a.err
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
		err = errSlow
	}
	h.child.Process.Kill()
	return Reply{}, err
}

// encode is the request as a line. The PIN is put in by hand: json would leave
// another copy in a buffer that it keeps.
func encode(r Request) ([]byte, error) {
	pin := r.PIN
	r.PIN = nil
	raw, err := json.Marshal(r)
	if err != nil || len(pin) == 0 {
		return append(raw, '\n'), err
	}
	const before, after = `,"pin":"`, "\"}\n"
	whole := make([]byte, 0, len(raw)+len(before)+base64.StdEncoding.EncodedLen(len(pin))+len(after))
	whole = append(append(whole, raw[:len(raw)-1]...), before...) // it has a field already: the reference
	whole = base64.StdEncoding.AppendEncode(whole, pin)
	return append(whole, after...), nil
}

// limited keeps the beginning of what a child prints.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := attest.MaxKey - l.Len(); room > 0 {
		l.Buffer.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

// clientEnv is what the client of a reference's service may read of an
// environment: what it finds its credentials by, but for switches that have it
// accept any certificate, and addresses that stand in for those of the
// reference. Keys, passwords and tokens of others are not in it.
func clientEnv(ref string, environ []string) []string {
	scheme, _, _ := strings.Cut(ref, ":")
	var env []string
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		if reads(scheme, name) && !weakens(name) {
			env = append(env, kv)
		}
	}
	if scheme == aws {
		// waxseal itself asks again, and says so.
		env = append([]string{"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS=true", "AWS_MAX_ATTEMPTS=1"}, env...)
	}
	return env
}

// Asked is what of an environment says who answers for a reference, and who is
// believed to be it: addresses, proxies, authorities, profiles. What only logs in
// is not in it, nor what changes nothing.
func Asked(ref string, environ []string) []string {
	asksNobody := regexp.MustCompile(`SECRET|PASSWORD|TOKEN|ACCESS_KEY|IDENTITY_HEADER|^(?:PATH|USER|TMPDIR|LANG|XDG_CACHE_HOME|XDG_RUNTIME_DIR)$`)
	env := slices.DeleteFunc(clientEnv(ref, environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return asksNobody.MatchString(name)
	})
	slices.Sort(env)
	return env
}

// reads reports whether the client of a service reads the variable.
func reads(scheme, name string) bool {
	clouds := []string{"AWS_", "AZURE_", "GOOGLE_", "CLOUDSDK_", "MSI_", "IDENTITY_"}
	prefixes := map[string][]string{
		aws:        {"AWS_"},
		azure:      {"AZURE_", "MSI_", "IDENTITY_", "SYSTEM_OIDCREQUESTURI", "SYSTEM_ACCESSTOKEN"},
		google:     {"GOOGLE_", "CLOUDSDK_", "GCE_METADATA_"},
		vault:      {"VAULT_", "TRANSIT_SECRET_ENGINE_PATH"},
		openbao:    {"VAULT_", "BAO_", "TRANSIT_SECRET_ENGINE_PATH"},
		kubernetes: append(clouds, "KUBECONFIG", "KUBERNETES_SERVICE_", "USE_GKE_GCLOUD_AUTH_PLUGIN"), // a kubeconfig may have a cloud's program log in
		token: {"SOFTHSM2_CONF", "P11_", "PKCS11_", "OPENSC_", "TPM2_PKCS11_", "YUBIHSM_PKCS11_", "CKNFAST_", "NFAST_",
			"CS_PKCS11_", "ChrystokiConfigurationPath", "CLOUDHSM_", "KRYOPTIC_"},
	}
	common := []string{"PATH", "HOME", "USER", "TMPDIR", "LANG", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "SSL_CERT_FILE", "SSL_CERT_DIR",
		"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"}
	for _, whole := range common {
		if name == whole {
			return true
		}
	}
	for _, prefix := range prefixes[scheme] {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

func weakens(name string) bool {
	switch name {
	case "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "AWS_TLS_INSECURE_SKIP_VERIFY", "AWS_MAX_ATTEMPTS", "VAULT_AGENT_ADDR", "VAULT_PROXY_ADDR", "BAO_AGENT_ADDR", "BAO_PROXY_ADDR",
		"VAULT_TLS_SERVER_NAME", "BAO_TLS_SERVER_NAME", "GOOGLE_CLOUD_UNIVERSE_DOMAIN":
		return true
	}
	return strings.HasPrefix(name, "AWS_ENDPOINT_URL") || strings.HasSuffix(name, "_SKIP_VERIFY")
}
