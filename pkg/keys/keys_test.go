package keys_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/keys"
)

// child makes a helper of a shell script.
func child(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "helper")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// p256 is a public key as it stands in JSON.
func p256(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), "\n", `\n`)
}

func TestReferences(t *testing.T) {
	for name, ref := range map[string]bool{
		"k.key": false, "/a/b.key": false, "file:///k.key": false, "C:k": false,
		"awskms:///alias/x": true, "env://X": true, "k8s://a/b": true, "pkcs11:object=x": true, "other://x": true,
	} {
		if keys.IsRef(name) != ref {
			t.Errorf("%q", name)
		}
	}
	for ref, want := range map[string]string{
		"other://x":         "no key management service is called",
		"env://X":           "a key in a variable",
		"awskms:///\x1b[0m": "no reference",
		"hashivault://" + strings.Repeat("x", 9000):                        "no reference",
		"hashivault://x@sha256:12":                                         "digest",
		"pkcs11:token=x?module-path=/m.so":                                 "names no key",
		"pkcs11:object=x":                                                  "names no module-path",
		"pkcs11:object=x;object=y?module-path=/m.so":                       "duplicate",
		"pkcs11:object=x?module-path=m.so":                                 "absolute",
		"pkcs11:object=x;type=data?module-path=/m.so":                      "",
		"pkcs11:object=x;type=cert?module-path=/m.so":                      "no key",
		"pkcs11:object=x?module-name=softhsm2":                             "give its file",
		"pkcs11:object=x?module-path=/m.so&pin-source=|program":            "pin-source",
		"pkcs11:object=x?module-path=/m.so&pin-source=relative":            "pin-source",
		"pkcs11:object=x?module-path=/m.so&pin-source=/nowhere/at/all/pin": "reading the PIN",
	} {
		_, err := keys.Open(t.Context(), ref, keys.Options{Sign: true, Program: "/bin/false"})
		var refused *keys.Error
		if !errors.As(err, &refused) || refused.Class != keys.ClassReference || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", ref, err, want)
		}
	}
}

func TestAPINIsNotShown(t *testing.T) {
	for ref, want := range map[string]string{
		"pkcs11:object=x?pin-value=12%2034":                         "pkcs11:object=x",
		"pkcs11:object=x?pin-value=1&module-path=/m.so":             "pkcs11:object=x?module-path=/m.so",
		"pkcs11:object=x?module-path=/m.so&pin-value=1":             "pkcs11:object=x?module-path=/m.so",
		"pkcs11:object=x?module-path=/m.so&pin-value=1@sha256:aa":   "pkcs11:object=x?module-path=/m.so@sha256:aa",
		"pkcs11:object=x?module-path=/m.so&pin-value=1&pin-value=2": "pkcs11:object=x?module-path=/m.so",
		"awskms:///alias/x?pin-value=1":                             "awskms:///alias/x?pin-value=1",
	} {
		got := keys.Name(strings.Replace(ref, "@sha256:aa", "@sha256:"+strings.Repeat("a", 64), 1))
		if want = strings.Replace(want, "@sha256:aa", "@sha256:"+strings.Repeat("a", 64), 1); got != want {
			t.Errorf("%q: %q, want %q", ref, got, want)
		}
	}
	const ref = "pkcs11:object=x?module-path=/m.so&pin-value=4711"
	saw := filepath.Join(t.TempDir(), "saw")
	_, err := keys.Open(t.Context(), ref, keys.Options{Sign: true, Program: child(t, fmt.Sprintf("echo \"$@\" >%s; env >>%s; read l; exit 3", saw, saw))})
	if err == nil || strings.Contains(err.Error(), "4711") {
		t.Errorf("the error is %v", err)
	}
	if raw, err := os.ReadFile(saw); err != nil || strings.Contains(string(raw), "4711") {
		t.Errorf("arguments and environment are %s, %v", raw, err)
	}
}

// The child gets what its own service needs, and no key, password or token of
// somebody else.
func TestEnvironment(t *testing.T) {
	all := []string{
		"PATH=/bin:/usr/bin", "HOME=/h", "SSL_CERT_FILE=/ca", "COSIGN_PASSWORD=x", "COSIGN_PKCS11_PIN=x", "WAXSEAL_KEY=x", "SIGN_KEY=x", "GITHUB_TOKEN=x", "ACTIONS_ID_TOKEN_REQUEST_TOKEN=x",
		"AWS_SECRET_ACCESS_KEY=x", "AWS_ENDPOINT_URL_KMS=x", "AWS_TLS_INSECURE_SKIP_VERIFY=1", "VAULT_TOKEN=x", "VAULT_SKIP_VERIFY=1", "VAULT_AGENT_ADDR=x", "AZURE_CLIENT_SECRET=x",
		"GOOGLE_APPLICATION_CREDENTIALS=x", "KUBECONFIG=x", "SOFTHSM2_CONF=x",
	}
	for scheme, want := range map[string]string{
		"awskms:///alias/x":                "AWS_SECRET_ACCESS_KEY",
		"hashivault://x":                   "VAULT_TOKEN",
		"azurekms://v/x":                   "AZURE_CLIENT_SECRET",
		"gcpkms://projects/x":              "GOOGLE_APPLICATION_CREDENTIALS",
		"k8s://a/b":                        "KUBECONFIG AWS_SECRET_ACCESS_KEY AZURE_CLIENT_SECRET GOOGLE_APPLICATION_CREDENTIALS",
		"pkcs11:object=x?module-path=/m.s": "SOFTHSM2_CONF",
	} {
		saw := filepath.Join(t.TempDir(), "saw")
		_, _ = keys.Open(t.Context(), scheme, keys.Options{Environ: all, Program: child(t, "env >"+saw)})
		raw, err := os.ReadFile(saw)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, l := range strings.Split(strings.TrimSpace(string(raw)), "\n") {
			name, _, _ := strings.Cut(l, "=")
			if !slices.Contains([]string{"PATH", "HOME", "SSL_CERT_FILE", "PWD", "OLDPWD", "_", "SHLVL", "AWS_MAX_ATTEMPTS", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"}, name) {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		wanted := strings.Fields(want)
		slices.Sort(wanted)
		if !slices.Equal(got, wanted) {
			t.Errorf("%s: %q, want %q", scheme, got, wanted)
		}
	}
}

// What a helper says is believed only whole, and within bounds.
func TestAnswers(t *testing.T) {
	public := p256(t)
	open := fmt.Sprintf(`read l; printf '%%s\n' '{"publicKey":"%s","hash":"sha256"}'; `, public)
	for name, c := range map[string]struct {
		script string
		class  keys.Class
		want   string
		tries  int
	}{
		"no JSON":       {"read l; echo hello", keys.ClassUnanswered, "reading what waxseal-kms says", 0},
		"a field twice": {`read l; echo '{"hash":"sha256","hash":"sha384"}'`, keys.ClassUnanswered, "reading what waxseal-kms says", 0},
		"too long":      {"read l; head -c 100000 /dev/zero", keys.ClassUnanswered, "reading what waxseal-kms says", 0},
		"death":         {"read l; echo ouch >&2; exit 2", keys.ClassUnanswered, "waxseal-kms ended: ouch", 0},
		"no key":        {`read l; echo '{"publicKey":"x"}'`, keys.ClassReference, "no public key", 0},
		"nothing":       {`read l; echo '{}'`, keys.ClassReference, "no public key", 0},
		"odd hash":      {`read l; printf '%s\n' '{"publicKey":"` + public + `","hash":"md5"}'`, keys.ClassReference, "md5", 0},
		"silence":       {`while read l; do echo '{"class":"unreachable","message":"connection refused"}'; done`, keys.ClassUnanswered, "no answer in 3 tries, at last: connection refused", 2},
		"refused":       {`read l; printf '%s\n' '{"class":"permission","message":"no\u001b[1m"}'`, keys.ClassPermission, `: no [1m`, 0},
		"unknown":       {`while read l; do echo '{"class":"odd","message":"odd"}'; done`, keys.ClassUnanswered, "odd", 2},
		"wants a PIN":   {`read l; echo '{"class":"pin","message":"T"}'; read l; echo '{"class":"pin-refused","message":"the PIN is wrong"}'`, keys.ClassPINRefused, "the PIN is wrong", 0},
		"no signature":  {open + "read l; echo '{}'", keys.ClassReference, "no signature came back", 0},
		"late silence":  {open + `while read l; do echo '{"class":"unreachable","message":"gone"}'; done`, keys.ClassUnanswered, `signing with the key "hashivault://x": no answer in 3 tries`, 2},
	} {
		t.Run(name, func(t *testing.T) {
			told := 0
			k, err := keys.Open(t.Context(), "hashivault://x", keys.Options{
				Sign: true, Program: child(t, c.script), Tell: func(string) { told++ },
				Environ: []string{"PATH=" + os.Getenv("PATH")},
				PIN:     func(string) ([]byte, error) { return []byte("1"), nil },
			})
			if err == nil {
				defer k.Close()
				_, _, err = k.Sign(t.Context(), []byte("message"))
			}
			var refused *keys.Error
			if !errors.As(err, &refused) || refused.Class != c.class || !strings.Contains(err.Error(), c.want) || told != c.tries {
				t.Errorf("%v, told %d times", err, told)
			}
		})
	}
}

// A Ctrl-C on the terminal ends no helper: the signature that it is there for may
// be made after it.
func TestAHelperIsNotTheTerminals(t *testing.T) {
	group := filepath.Join(t.TempDir(), "group")
	_, _ = keys.Open(t.Context(), "hashivault://x", keys.Options{
		Program: child(t, "read l; cut -d' ' -f5 /proc/$$/stat >"+group), Environ: []string{"PATH=" + os.Getenv("PATH")},
	})
	raw, err := os.ReadFile(group)
	if err != nil {
		t.Fatal(err)
	}
	if its := strings.TrimSpace(string(raw)); its == "" || its == strconv.Itoa(syscall.Getpgrp()) {
		t.Errorf("it is in the process group %q, and this in %d", its, syscall.Getpgrp())
	}
}

// The PIN comes as any other field would.
func TestAPINOnItsWay(t *testing.T) {
	saw := filepath.Join(t.TempDir(), "saw")
	for _, pin := range []string{"1234", "12345", `p"in\u0000`} {
		_, _ = keys.Open(t.Context(), "pkcs11:object=x?module-path=/m.so", keys.Options{
			Sign: true, Environ: []string{"PATH=" + os.Getenv("PATH")},
			Program: child(t, `read -r l; echo '{"class":"pin","message":"T"}'; read -r l; printf '%s\n' "$l" >`+saw),
			PIN:     func(string) ([]byte, error) { return []byte(pin), nil },
		})
		raw, err := os.ReadFile(saw)
		if err != nil {
			t.Fatal(err)
		}
		var got keys.Request
		if err := json.Unmarshal(raw, &got); err != nil || string(got.PIN) != pin || got.Ref == "" || !got.Sign {
			t.Errorf("%q: %s, %v", pin, raw, err)
		}
	}
}

// A Ctrl-C while the helper has the question is no answer of its.
func TestAHelperThatHangs(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	asked := filepath.Join(t.TempDir(), "asked")
	if err := syscall.Mkfifo(asked, 0o600); err != nil {
		t.Fatal(err)
	}
	program := child(t, "read l; echo >"+asked+"; exec sleep 1000")
	done := make(chan error)
	go func() {
		_, err := keys.Open(ctx, "hashivault://x", keys.Options{Program: program, Environ: []string{"PATH=" + os.Getenv("PATH")}})
		done <- err
	}()
	if _, err := os.ReadFile(asked); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func FuzzParseReference(f *testing.F) {
	for _, ref := range []string{"awskms:///alias/x", "pkcs11:token=a;object=b?module-path=/m.so&pin-value=1", "pkcs11:id=%01?pin-source=file:/a", "k8s://a/b", "hashivault://x@sha256:" + strings.Repeat("a", 64)} {
		f.Add(ref)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		name := keys.Name(ref)
		if strings.HasPrefix(ref, "pkcs11:") && strings.Contains(ref, "?") {
			_, query, _ := strings.Cut(name, "?")
			for _, part := range strings.Split(query, "&") {
				if strings.HasPrefix(part, "pin-value=") {
					t.Fatalf("%q shows a PIN", name)
				}
			}
		}
		keys.PINFile(ref)
		// Nothing is started for what is no reference.
		if _, err := keys.Open(t.Context(), ref, keys.Options{Program: "/nowhere/helper"}); err == nil {
			t.Fatal("opened")
		}
	})
}

// TestOneVersion: only a name that its service can never give to another key
// stands for one.
func TestOneVersion(t *testing.T) {
	const ring = "gcpkms://projects/p/locations/l/keyRings/r/cryptoKeys/k"
	const id = "1234abcd-12ab-34cd-56ef-1234567890ab"
	for ref, want := range map[string]bool{
		"awskms:///arn:aws:kms:eu-central-1:111122223333:key/" + id:                           true,
		"awskms://127.0.0.1:4566/arn:aws-us-gov:kms:us-gov-east-1:111122223333:key/mrk-" + id: true,
		"awskms:///arn:aws:kms:eu-central-1:111122223333:alias/key/" + id:                     false,
		"awskms:///arn:aws:kms:eu-central-1:111122223333:alias/release":                       false,
		"awskms:///" + id:               false,
		"awskms:///alias/release":       false,
		ring + "/cryptoKeyVersions/3":   true,
		ring + "/versions/12":           true,
		ring + "/versions/latest":       false,
		ring:                            false,
		ring + "/cryptoKeyVersions/3/x": false,
		"azurekms://v.vault.azure.net/k/0123456789abcdef0123456789abcdef": true,
		"azurekms://v.vault.azure.net/k/latest":                           false,
		"azurekms://v.vault.azure.net/k/":                                 false,
		"azurekms://v.vault.azure.net/k":                                  false,
		"hashivault://release":                                            false,
		"hashivault://0123456789abcdef0123456789abcdef":                   false,
		"openbao://release":                                               false,
		"k8s://ns/secret":                                                 false,
		"pkcs11:token=T;object=O":                                         false,
		"":                                                                false,
	} {
		if got := keys.OneVersion(ref); got != want {
			t.Errorf("OneVersion(%q) = %v, want %v", ref, got, want)
		}
	}
}

// TestAsked: what says whom to ask for a key is told apart, what logs in is not.
func TestAsked(t *testing.T) {
	const ref = "azurekms://v.vault.azure.net/k/0123456789abcdef0123456789abcdef"
	got := keys.Asked(ref, []string{"PATH=/bin", "TMPDIR=/tmp", "SSL_CERT_FILE=ca.pem", "AZURE_CLIENT_SECRET=s", "AZURE_PASSWORD=p", "AZURE_ENVIRONMENT=AZURECHINACLOUD",
		"AZURE_FEDERATED_TOKEN_FILE=t", "AWS_CA_BUNDLE=other.pem", "IDENTITY_HEADER=h", "HTTPS_PROXY=http://proxy.test"})
	if want := []string{"AZURE_ENVIRONMENT=AZURECHINACLOUD", "HTTPS_PROXY=http://proxy.test", "SSL_CERT_FILE=ca.pem"}; !slices.Equal(got, want) {
		t.Errorf("Asked = %q, want %q", got, want)
	}
}

// TestInFile: a key is named in a file by what whoever reads it can check.
func TestInFile(t *testing.T) {
	const id = attest.Digest("sha256:664209e5d23d91b3f983a8150495c0ac64c7ad30757e4c8cd07123cd20158203")
	for ref, want := range map[string]string{
		"awskms:///alias/a":                                     "awskms:///alias/a@" + string(id),
		"awskms:///alias/a@" + string(id):                       "awskms:///alias/a@" + string(id),
		"pkcs11:token=T;object=O?module-path=/m.so&pin-value=1": "pkcs11:token=T;object=O@" + string(id),
		"pkcs11:token=T;object=O?pin-value=1@" + string(id):     "pkcs11:token=T;object=O@" + string(id),
	} {
		if got := keys.InFile(ref, id); got != want {
			t.Errorf("InFile(%q) = %q, want %q", ref, got, want)
		}
	}
}
