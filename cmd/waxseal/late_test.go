package main_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/scrypt"
	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/internal/testkit"
)

// opener is what opens an encrypted key in the place of its password.
func opener(t *testing.T, file string) []byte {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(raw)
	var box struct {
		KDF struct {
			Params struct{ N, R, P int }
			Salt   []byte
		}
	}
	if err := json.Unmarshal(block.Bytes, &box); err != nil {
		t.Fatal(err)
	}
	key, err := scrypt.Key([]byte(password), box.KDF.Salt, box.KDF.Params.N, box.KDF.Params.R, box.KDF.Params.P, 32)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// keyAndCertificate writes a plain key and a company's certificate for it, with
// the CA, and returns the key's text.
func keyAndCertificate(t *testing.T, dir string, all secrets) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	words := slices.Clone(scalar)
	slices.Reverse(words)
	all["the plain key"], all["the plain key in memory"] = scalar, words
	// A part of the second line of its PEM, in which the number is.
	all["the plain key's text"] = []byte(base64.StdEncoding.EncodeToString(der)[66:88])
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err := os.WriteFile(filepath.Join(dir, "plain.pem"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	who, err := url.Parse("https://ci.acme.example/release")
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "ci"}, NotBefore: root.NotBefore, NotAfter: root.NotAfter, URIs: []*url.URL{who},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	for name, c := range map[string]struct {
		cert *x509.Certificate
		of   any
	}{"ca.pem": {root, ca.Public()}, "cert.pem": {leaf, key.Public()}} {
		raw, err := x509.CreateCertificate(rand.Reader, c.cert, root, c.of, ca)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})))
	}
	return text
}

// released builds waxseal as make does: the system's dynamic linker is not in it,
// which puts what is in the processor's registers onto the stacks of threads.
func released(t *testing.T) string {
	t.Helper()
	root, err := testkit.Root()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "waxseal")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./cmd/waxseal")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// tokenPIN opens the token of newToken.
const tokenPIN = "PIN-that-opens-the-token"

// newToken puts a key onto a token of SoftHSM's, and its helper beside waxseal; it
// returns the reference.
func newToken(t *testing.T, waxseal, bin, dir, key string) string {
	t.Helper()
	if err := os.Symlink(filepath.Join(bin, "waxseal-kms"), filepath.Join(filepath.Dir(waxseal), "waxseal-kms")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "softhsm2.conf"), "directories.tokendir = "+mkdir(t, dir, "tokens")+"\n")
	for _, args := range [][]string{
		{"--init-token", "--free", "--label", "ci", "--pin", tokenPIN, "--so-pin", "5678"},
		{"--import", key, "--token", "ci", "--label", "release", "--id", "01", "--pin", tokenPIN},
	} {
		child := exec.Command("softhsm2-util", args...)
		child.Env = append(os.Environ(), "SOFTHSM2_CONF="+filepath.Join(dir, "softhsm2.conf"))
		if out, err := child.CombinedOutput(); err != nil {
			testkit.Unavailable(t, "making a token: %v\n%s", err, out)
		}
	}
	return "pkcs11:token=ci;object=release?module-path=/usr/lib/softhsm/libsofthsm2.so"
}

// held is a command that waits: a build in a step, run in its command, promote
// before it writes.
type held struct {
	dir  string
	args []string
	// reached returns when it waits.
	reached func(ctx context.Context) error
	// release has it go on; nil: it hangs for good.
	release func()
}

// TestKeysAreReadLate looks for keys and what opens them in the memory of
// waxseal and all that it has started while others' commands run: nothing of them
// may be there yet, however they are given.
func TestKeysAreReadLate(t *testing.T) {
	if err := testkit.CanBuild(); err != nil {
		testkit.Unavailable(t, "%v", err)
	}
	bin, err := testkit.Shipped(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	waxseal, keys := released(t), t.TempDir()
	all := newKey(t, waxseal, keys)
	text := keyAndCertificate(t, keys, all)
	sealed := filepath.Join(keys, "k.key")
	all["what opens the key"] = opener(t, sealed)
	all["the PIN"], all["the PIN in base64"] = []byte(tokenPIN), []byte(base64.StdEncoding.EncodeToString([]byte(tokenPIN)))
	if fd, err := unix.MemfdSecret(unix.O_CLOEXEC); err != nil {
		// Then it is in memory that is ours like any other.
		for _, name := range []string{"the password", "what opens the key", "the plain key's text", "the PIN"} {
			delete(all, name)
		}
	} else {
		unix.Close(fd)
	}
	plain, cert := filepath.Join(keys, "plain.pem"), filepath.Join(keys, "cert.pem")
	ca := filepath.Join(keys, "ca.pem")
	certified := []string{"--certificate", cert, "--ca-roots", ca, "--timestamp-server-url", "http://127.0.0.1:1", "--timestamp-certificate-chain", ca}
	for name, c := range map[string]struct {
		hold  func(*testing.T, string) *held
		key   string
		flags []string
		env   string
		typed bool
	}{
		"run with a password in the environment":     {heldRun, sealed, nil, "COSIGN_PASSWORD=" + password, false},
		"run with a typed password":                  {heldRun, sealed, nil, "X=", true},
		"run with a plain key":                       {heldRun, plain, nil, "X=", false},
		"run with a key in the environment":          {heldRun, "env://SIGN_KEY", nil, "SIGN_KEY=" + text, false},
		"run with a certificate":                     {heldRun, plain, certified, "X=", false},
		"run with a token":                           {heldRun, "", nil, "COSIGN_PKCS11_PIN=" + tokenPIN, false},
		"build with a typed password":                {heldBuild, sealed, nil, "X=", true},
		"build with a key in the environment":        {heldBuild, "env://SIGN_KEY", nil, "SIGN_KEY=" + text, false},
		"promote with a password in the environment": {heldPromote, sealed, nil, "COSIGN_PASSWORD=" + password, false},
		"promote with a key in the environment":      {heldPromote, "env://SIGN_KEY", nil, "SIGN_KEY=" + text, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := c.hold(t, waxseal)
			flag := "--key"
			if h.args[0] == "promote" {
				flag = "--sign-key"
			}
			if c.key == "" {
				c.key = newToken(t, waxseal, bin, keys, plain)
			}
			args := append([]string{h.args[0], flag, c.key}, c.flags...)
			child := exec.CommandContext(t.Context(), waxseal, append(args, h.args[1:]...)...)
			child.Dir = h.dir
			child.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "CANARY=" + canary, "SOFTHSM2_CONF=" + filepath.Join(keys, "softhsm2.conf"), c.env}
			var said bytes.Buffer
			child.Stdout, child.Stderr = &said, &said
			if c.typed {
				person, its := testkit.Terminal(t)
				child.Stdin, child.SysProcAttr = its, &syscall.SysProcAttr{Setsid: true, Setctty: true}
				io.WriteString(person, password+"\n")
			}
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			ctx, ended := context.WithCancel(t.Context())
			go func() { child.Wait(); ended() }()
			if err := h.reached(ctx); err != nil {
				t.Fatalf("%v\n%s", err, said.String())
			}
			for _, found := range settled(t, child.Process.Pid, all) {
				t.Error(found)
			}
			if !bytes.Contains(look(child.Process.Pid).mem, all["the canary"]) {
				t.Error("the canary is not in the memory of waxseal, so this test does not see it")
			}
			if h.release == nil {
				child.Process.Kill()
				<-ctx.Done()
				return
			}
			h.release()
			<-ctx.Done()
			// Nobody answers for the time of what a certificate signs.
			if good := child.ProcessState.ExitCode() == 0; good != (c.flags == nil) {
				t.Errorf("exit code %d\n%s", child.ProcessState.ExitCode(), said.String())
			}
		})
	}
}

// settled says what is found of secrets in a process and all below it, once the
// key has been tried, which takes a moment and a process of its own.
func settled(t *testing.T, control int, all secrets) (found []string) {
	t.Helper()
	for range 25 {
		found = nil
		for _, p := range append(below(t, control), look(control)) {
			if strings.Contains(p.command, "waxseal-kms") {
				continue // it has the token open, and nothing of the command's
			}
			for what, data := range map[string][]byte{"arguments": p.line, "environment": p.environ, "memory": p.mem} {
				for _, secret := range all.in(data) {
					if secret != "the canary" {
						found = append(found, fmt.Sprintf("%s is in the %s of %s", secret, what, p.command))
					}
				}
			}
		}
		if found == nil {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	return found
}

func heldRun(t *testing.T, _ string) *held {
	dir := t.TempDir()
	return &held{
		dir:  dir,
		args: []string{"run", "--artifact", "made", "--", "sh", "-c", "touch started; until [ -e go ]; do sleep 0.05; done; echo made >made"},
		reached: func(ctx context.Context) error {
			for _, err := os.Stat(filepath.Join(dir, "started")); err != nil; _, err = os.Stat(filepath.Join(dir, "started")) {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				time.Sleep(20 * time.Millisecond)
			}
			return nil
		},
		release: func() { write(t, filepath.Join(dir, "go"), "") },
	}
}

func heldBuild(t *testing.T, _ string) *held {
	base, err := testkit.TinyBase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	started, looked := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(started)
		<-looked
		io.WriteString(w, "go on")
	}))
	release := sync.OnceFunc(func() { close(looked) })
	t.Cleanup(func() { release(); server.Close() })
	dir := t.TempDir()
	write(t, filepath.Join(mkdir(t, dir, "app"), "Dockerfile"), "FROM base\nRUN wget -q -O /answer http://hold.example/\n")
	return &held{
		dir: dir,
		args: []string{"build", "--progress", "plain", "--build-context", "base=oci:" + base, "--cache-dir", filepath.Join(dir, "cache"),
			"--upstream", "hold.example=" + strings.TrimPrefix(server.URL, "http://"), "--output", "type=oci,tar=false,dest=out", "app"},
		reached: func(ctx context.Context) error {
			select {
			case <-started:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
		release: release,
	}
}

func heldPromote(t *testing.T, waxseal string) *held {
	base, err := testkit.TinyBase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var faults testkit.Faults
	reg, err := testkit.NewRegistry(testkit.RegistryOptions{Faults: &faults})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reg.Close() })
	dir := t.TempDir()
	write(t, filepath.Join(dir, "prov.json"), `{"buildDefinition": {"buildType": "https://example.org/build/v1", "externalParameters": {}}, "runDetails": {"builder": {"id": "https://ci.example.org/builder"}}}`)
	for _, args := range [][]string{
		{"cp", "-rL", base, "img"}, {waxseal, "key", "generate", "--output-prefix", "other"},
		{waxseal, "attest", "--key", "other.key", "--predicate", "prov.json", "--type", "slsaprovenance1", "oci:img"},
	} {
		child := exec.Command(args[0], args[1:]...)
		child.Dir, child.Env = dir, append(os.Environ(), "COSIGN_PASSWORD=another")
		if out, err := child.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	const uploads = "POST .*/uploads"
	if err := faults.Set(testkit.Fault{Kind: "hang", Match: uploads}); err != nil {
		t.Fatal(err)
	}
	return &held{
		dir: dir, args: []string{"promote", "--key", "other.pub", "--level", "1", "oci:img", reg.Addr + "/prod/app:v1"},
		reached: func(ctx context.Context) error { return faults.Await(ctx, regexp.MustCompile(uploads)) },
	}
}
