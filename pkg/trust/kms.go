package trust

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
)

// helper is the program that speaks with key management services.
const helper = "waxseal-kms"

// answerTime bounds one answer of a service.
const answerTime = 30 * time.Second

// IsKMS reports whether a key is named by a reference to a key management
// service, and not by a file.
func IsKMS(name string) bool {
	scheme, _, ok := strings.Cut(name, "://")
	return ok && scheme != "file" || strings.HasPrefix(name, "pkcs11:")
}

// KeyOptions configures PublicKey.
type KeyOptions struct {
	// Program is the helper; default: waxseal-kms beside this program, wherever
	// PATH leads: what it says is believed.
	Program string
	// Cache is the folder below which keys are kept that a reference pins; ""
	// keeps none.
	Cache string
	// Environ is the environment that the services' clients find their
	// credentials in, as os.Environ gives it. What would have them accept any
	// certificate, or ask elsewhere, is not passed on.
	Environ []string
}

// PublicKey returns the public half (PEM) of a key in AWS KMS (awskms://), Azure
// Key Vault (azurekms://), Google Cloud KMS (gcpkms://), HashiCorp Vault
// (hashivault://) or OpenBao (openbao://), in sigstore's spelling. A reference
// that ends in @sha256:DIGEST pins the key: to the sha256 of its PKIX form, which
// is how waxseal names a key. A reference that can name no key is a plain error;
// a service that gives none an *UnavailableError.
func PublicKey(ctx context.Context, ref string, o KeyOptions) ([]byte, error) {
	fail := func(format string, args ...any) ([]byte, error) {
		return nil, fmt.Errorf("reading the key %q: %w", ref, fmt.Errorf(format, args...))
	}
	uri, pin := ref, attest.Digest("")
	if i := strings.LastIndex(ref, "@sha256:"); i > 0 {
		d, err := attest.ParseDigest(ref[i+1:])
		if err != nil {
			return fail("%v", err)
		}
		uri, pin = ref[:i], d
	}
	scheme, _, _ := strings.Cut(uri, ":")
	switch {
	case len(uri) > attest.MaxURI || strings.ContainsFunc(uri, func(r rune) bool { return r < ' ' || r > '~' }):
		return fail("it is no reference to a key")
	case scheme == "pkcs11" || scheme == "k8s":
		return fail("%s keys are not read; export the public half to a file and give that", scheme)
	case !slices.Contains([]string{"awskms", "azurekms", "gcpkms", "hashivault", "openbao"}, scheme):
		return fail("no key management service is called %q; known are awskms, azurekms, gcpkms, hashivault and openbao", scheme)
	}
	kept := keptKey(o.Cache, pin)
	if raw, err := os.ReadFile(kept); pin != "" && err == nil && keyID(raw) == pin {
		return raw, nil
	}
	raw, err := o.ask(ctx, uri)
	if err != nil {
		return nil, err
	}
	if is := keyID(raw); pin != "" && is != pin {
		return fail("the service has %s there", is)
	}
	if kept != "" && os.MkdirAll(filepath.Dir(kept), 0o700) == nil {
		_ = writeWhole(kept, raw) // the next one asks again
	}
	return raw, nil
}

// keptKey is where a pinned key is kept; others are not, for nothing would tell
// that a copy was changed.
func keptKey(cache string, pin attest.Digest) string {
	if cache == "" || pin == "" {
		return ""
	}
	return filepath.Join(cache, "kms", pin.Hex()+".pub")
}

// keyID is the sha256 of a key's PKIX form.
func keyID(raw []byte) attest.Digest {
	block, _ := pem.Decode(raw)
	if block == nil {
		return ""
	}
	sum := sha256.Sum256(block.Bytes)
	return attest.Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// reply is what the helper prints.
type reply struct {
	PublicKey string `json:"publicKey"`
	Class     string `json:"class"`
	Message   string `json:"message"`
}

// ask has the helper ask the service.
func (o KeyOptions) ask(ctx context.Context, uri string) ([]byte, error) {
	what := fmt.Sprintf("fetching the key %q", uri)
	program, err := o.program()
	if err != nil {
		return nil, &UnavailableError{what, err, "install it beside waxseal, as make install does, or give the public key as a file"}
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	var out, said limited
	child := exec.CommandContext(ctx, program, "public-key", uri)
	child.Env, child.Stdout, child.Stderr = clientEnv(o.Environ), &out, &said
	child.WaitDelay = time.Second
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = child.Run()
	if ctx.Err() != nil {
		return nil, &UnavailableError{what, errors.New("the service did not answer in time"), "try again; or give the public key as a file"}
	}
	if err != nil {
		return nil, &UnavailableError{what, fmt.Errorf("%s ended: %w: %s", helper, err, line(said.String())), "see whether " + program + " is of the same version as waxseal"}
	}
	var r reply
	if err := attest.UnmarshalStrict(out.Bytes(), &r); err != nil {
		return nil, &UnavailableError{what, fmt.Errorf("reading what %s says: %w", helper, err), "see whether " + program + " is of the same version as waxseal"}
	}
	way := "try again; or give the public key as a file"
	switch {
	case r.Class == "" && r.PublicKey != "":
		return []byte(r.PublicKey), nil
	case r.Class == "reference":
		return nil, fmt.Errorf("reading the key %q: %s", uri, line(r.Message))
	case r.Class == "not-found":
		way = "see whether the reference and the account are right: the service has no such key"
	case r.Class == "permission":
		way = "allow whoever runs this " + permission(uri)
	}
	return nil, &UnavailableError{what, errors.New(line(r.Message)), way}
}

// permission is what reading a public key takes.
func permission(uri string) string {
	scheme, _, _ := strings.Cut(uri, ":")
	return map[string]string{
		"awskms":     "kms:GetPublicKey and kms:DescribeKey on the key",
		"azurekms":   "the key permission \"get\" (Key Vault Crypto User)",
		"gcpkms":     "cloudkms.cryptoKeyVersions.viewPublicKey and cloudkms.cryptoKeyVersions.list (roles/cloudkms.viewer and roles/cloudkms.publicKeyViewer)",
		"hashivault": "to read transit/keys/NAME, and log in (VAULT_TOKEN)",
		"openbao":    "to read transit/keys/NAME, and log in (BAO_TOKEN)",
	}[scheme]
}

func (o KeyOptions) program() (string, error) {
	if o.Program != "" {
		return o.Program, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(self), helper)
	if st, err := os.Stat(beside); err != nil || !st.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not beside waxseal, in %s", helper, filepath.Dir(self))
	}
	return beside, nil
}

// clientEnv is the environment without what weakens a check: switches that have
// a client accept any certificate, and addresses that stand in for those of the
// reference.
func clientEnv(environ []string) []string {
	env := []string{"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS=true"}
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case strings.HasPrefix(name, "AWS_ENDPOINT_URL"), name == "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", name == "AWS_TLS_INSECURE_SKIP_VERIFY",
			strings.HasSuffix(name, "_SKIP_VERIFY"), name == "VAULT_AGENT_ADDR", name == "VAULT_PROXY_ADDR", name == "BAO_AGENT_ADDR", name == "BAO_PROXY_ADDR",
			name == "VAULT_TLS_SERVER_NAME", name == "BAO_TLS_SERVER_NAME", name == "GOOGLE_CLOUD_UNIVERSE_DOMAIN":
		default:
			env = append(env, kv)
		}
	}
	return env
}

// limited keeps the beginning of what a child prints.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := attest.MaxKey - l.Len(); room > 0 {
		l.Buffer.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

// line is somebody else's message on one line.
func line(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}
