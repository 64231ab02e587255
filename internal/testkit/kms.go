package testkit

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
)

// KMS is a service with public keys, by name, that speaks as much of two APIs as
// reading them takes: Vault's transit engine
// (https://developer.hashicorp.com/vault/api-docs/secret/transit#read-key) and,
// over TLS, that of AWS KMS
// (https://docs.aws.amazon.com/kms/latest/APIReference/API_GetPublicKey.html).
type KMS struct {
	Vault, AWS *httptest.Server

	mu    sync.Mutex
	keys  map[string][]byte // PEM; nil: the key has no public half
	asked int
}

// KMSToken is what the Vault lets in.
const KMSToken = "hvs.let-me-in"

// NewKMS starts one. Set gives it keys.
func NewKMS() *KMS {
	k := &KMS{keys: map[string][]byte{}}
	k.Vault = httptest.NewServer(http.HandlerFunc(k.serveVault))
	k.AWS = httptest.NewTLSServer(http.HandlerFunc(k.serveAWS))
	return k
}

// Close ends it.
func (k *KMS) Close() {
	k.Vault.Close()
	k.AWS.Close()
}

// Set puts a public key (PEM) under a name; nil for a key without a public half.
func (k *KMS) Set(name string, public []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys[name] = public
}

// Asked is how many keys were asked for so far.
func (k *KMS) Asked() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.asked
}

func (k *KMS) key(name string) ([]byte, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	raw, ok := k.keys[name]
	return raw, ok
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

func (k *KMS) serveVault(w http.ResponseWriter, r *http.Request) {
	name, ok := strings.CutPrefix(r.URL.Path, "/v1/transit/keys/")
	if !ok || r.Header.Get("X-Vault-Token") != KMSToken {
		reply(w, http.StatusForbidden, map[string]any{"errors": []string{"permission denied"}})
		return
	}
	raw, ok := k.key(name)
	if !ok {
		reply(w, http.StatusNotFound, map[string]any{"errors": []string{}})
		return
	}
	if raw == nil { // a symmetric key: its versions are times
		reply(w, http.StatusOK, map[string]any{"data": map[string]any{"latest_version": 1, "type": "aes256-gcm96", "keys": map[string]any{"1": 1442851412}}})
		return
	}
	reply(w, http.StatusOK, map[string]any{"data": map[string]any{
		"latest_version": 2, "type": "ecdsa-p256",
		"keys": map[string]any{"1": map[string]string{"name": "P-256", "public_key": "an older one"}, "2": map[string]string{"name": "P-256", "public_key": string(raw)}},
	}})
}

func (k *KMS) serveAWS(w http.ResponseWriter, r *http.Request) {
	var in struct{ KeyId string }
	fail := func(status int, code, message string) {
		reply(w, status, map[string]string{"__type": code, "message": message})
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil || json.Unmarshal(body, &in) != nil {
		fail(http.StatusBadRequest, "ValidationException", "no JSON")
		return
	}
	if !strings.Contains(r.Header.Get("Authorization"), "Credential=AKIDALLOWED/") {
		fail(http.StatusBadRequest, "AccessDeniedException", "User is not authorized to perform: kms:GetPublicKey")
		return
	}
	raw, ok := k.key(strings.TrimPrefix(in.KeyId, "alias/"))
	block, _ := pem.Decode(raw)
	switch operation := r.Header.Get("X-Amz-Target"); {
	case !ok:
		fail(http.StatusBadRequest, "NotFoundException", "Alias is not found.")
	case block == nil:
		fail(http.StatusBadRequest, "UnsupportedOperationException", "The key is symmetric.")
	case operation == "TrentService.GetPublicKey":
		reply(w, http.StatusOK, map[string]any{
			"KeyId": in.KeyId, "KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY", "SigningAlgorithms": []string{"ECDSA_SHA_256"},
			"PublicKey": base64.StdEncoding.EncodeToString(block.Bytes),
		})
	case operation == "TrentService.DescribeKey":
		reply(w, http.StatusOK, map[string]any{"KeyMetadata": map[string]any{"KeyId": in.KeyId, "SigningAlgorithms": []string{"ECDSA_SHA_256"}}})
	default:
		fail(http.StatusBadRequest, "UnknownOperationException", operation)
	}
}

// cmdKMS starts a KMS with keys from files. VAR is the address of its Vault,
// VAR_AWS that of its AWS; certificates are accepted where SSL_CERT_FILE is
// $VAR_CA.
func cmdKMS(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) >= 2 && !neg, "kms VAR NAME=FILE...")
	k := NewKMS()
	ts.Defer(k.Close)
	for _, arg := range args[1:] {
		name, file, ok := strings.Cut(arg, "=")
		usage(ts, ok, "kms VAR NAME=FILE...")
		var raw []byte
		if file != "" {
			raw = []byte(ts.ReadFile(file))
		}
		k.Set(name, raw)
	}
	ca := ts.MkAbs(fmt.Sprintf(".ca-%s.pem", args[0]))
	ts.Check(os.WriteFile(ca, certificatePEM(k.AWS.Certificate()), 0o644))
	ts.Setenv(args[0], k.Vault.URL)
	ts.Setenv(args[0]+"_AWS", k.AWS.Listener.Addr().String())
	ts.Setenv(args[0]+"_CA", ca)
	ts.Setenv(args[0]+"_TOKEN", KMSToken)
}

func certificatePEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
