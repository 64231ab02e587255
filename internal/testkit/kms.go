package testkit

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
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

// KMS is a service with keys, by name, that speaks as much of two APIs as using
// them takes: Vault's transit engine, reading only
// (https://developer.hashicorp.com/vault/api-docs/secret/transit#read-key; see
// Vault for a real one), and, over TLS, that of AWS KMS
// (https://docs.aws.amazon.com/kms/latest/APIReference/API_Sign.html).
type KMS struct {
	Vault, AWS *httptest.Server
	// Faults breaks both, and has their requests: those of AWS with the
	// operation as path.
	Faults Faults

	mu   sync.Mutex
	keys map[string]kmsKey
}

type kmsKey struct {
	public  []byte        // PEM; nil: it has no public half
	private crypto.Signer // nil: it does not sign
}

// KMSToken is what the Vault lets in.
const KMSToken = "hvs.let-me-in"

// NewKMS starts one. Set and Make give it keys.
func NewKMS() *KMS {
	k := &KMS{keys: map[string]kmsKey{}}
	k.Vault = httptest.NewServer(k.Faults.Around(http.HandlerFunc(k.serveVault)))
	aws := k.Faults.Around(http.HandlerFunc(k.serveAWS))
	k.AWS = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Path = "/" + r.Header.Get("X-Amz-Target")
		aws.ServeHTTP(w, r)
	}))
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
	k.keys[name] = kmsKey{public: public}
}

// Make makes a key that signs, of a kind that MakeKey knows.
func (k *KMS) Make(name, kind string) error {
	key, err := MakeKey(kind)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys[name] = kmsKey{pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), key}
	return nil
}

// MakeKey makes a private key: p256, p384, p521, ed25519, or rsaN of N bits.
func MakeKey(kind string) (crypto.Signer, error) {
	curves := map[string]elliptic.Curve{"p224": elliptic.P224(), "p256": elliptic.P256(), "p384": elliptic.P384(), "p521": elliptic.P521()}
	if curve, ok := curves[kind]; ok {
		return ecdsa.GenerateKey(curve, rand.Reader)
	}
	if kind == "ed25519" {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}
	var bits int
	if _, err := fmt.Sscanf(kind, "rsa%d", &bits); err != nil {
		return nil, fmt.Errorf("no kind of key is called %q", kind)
	}
	return rsa.GenerateKey(rand.Reader, bits)
}

func (k *KMS) key(name string) (kmsKey, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, ok := k.keys[name]
	return key, ok
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
	key, ok := k.key(name)
	if !ok {
		reply(w, http.StatusNotFound, map[string]any{"errors": []string{}})
		return
	}
	if key.public == nil { // a symmetric key: its versions are times
		reply(w, http.StatusOK, map[string]any{"data": map[string]any{"latest_version": 1, "type": "aes256-gcm96", "keys": map[string]any{"1": 1442851412}}})
		return
	}
	reply(w, http.StatusOK, map[string]any{"data": map[string]any{
		"latest_version": 2, "type": "ecdsa-p256",
		"keys": map[string]any{"1": map[string]string{"name": "P-256", "public_key": "an older one"}, "2": map[string]string{"name": "P-256", "public_key": string(key.public)}},
	}})
}

func (k *KMS) serveAWS(w http.ResponseWriter, r *http.Request) {
	var in struct {
		KeyId, MessageType, SigningAlgorithm string
		Message                              []byte
	}
	fail := func(status int, code, message string) {
		reply(w, status, map[string]string{"__type": code, "message": message})
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil || json.Unmarshal(body, &in) != nil {
		fail(http.StatusBadRequest, "ValidationException", "no JSON")
		return
	}
	// AKIDALLOWED may do all, AKIDREADER all but sign.
	operation := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	who := r.Header.Get("Authorization")
	if !strings.Contains(who, "Credential=AKIDALLOWED/") && (operation == "Sign" || !strings.Contains(who, "Credential=AKIDREADER/")) {
		fail(http.StatusBadRequest, "AccessDeniedException", "User is not authorized to perform: kms:"+operation)
		return
	}
	key, ok := k.key(strings.TrimPrefix(in.KeyId, "alias/"))
	block, _ := pem.Decode(key.public)
	switch {
	case !ok:
		fail(http.StatusBadRequest, "NotFoundException", "Alias is not found.")
		return
	case block == nil:
		fail(http.StatusBadRequest, "UnsupportedOperationException", "The key is symmetric.")
		return
	}
	spec, algorithms, hash := awsAlgorithms(block.Bytes)
	switch {
	case operation == "GetPublicKey":
		reply(w, http.StatusOK, map[string]any{
			"KeyId": in.KeyId, "KeySpec": spec, "KeyUsage": "SIGN_VERIFY", "SigningAlgorithms": algorithms,
			"PublicKey": base64.StdEncoding.EncodeToString(block.Bytes),
		})
	case operation == "DescribeKey":
		reply(w, http.StatusOK, map[string]any{"KeyMetadata": map[string]any{"KeyId": in.KeyId, "SigningAlgorithms": algorithms}})
	case operation == "Sign" && key.private != nil && in.MessageType == "DIGEST" && in.SigningAlgorithm == algorithms[0] && len(in.Message) == hash.Size():
		sig, err := key.private.Sign(rand.Reader, in.Message, hash)
		if err != nil {
			fail(http.StatusInternalServerError, "KMSInternalException", err.Error())
			return
		}
		reply(w, http.StatusOK, map[string]any{"KeyId": in.KeyId, "Signature": sig, "SigningAlgorithm": in.SigningAlgorithm})
	case operation == "Sign":
		fail(http.StatusBadRequest, "ValidationException", "Digest is invalid length for algorithm "+in.SigningAlgorithm)
	default:
		fail(http.StatusBadRequest, "UnknownOperationException", operation)
	}
}

// awsAlgorithms is what AWS signs with a key, the hash that of the first.
func awsAlgorithms(pkix []byte) (spec string, algorithms []string, hash crypto.Hash) {
	pub, _ := x509.ParsePKIXPublicKey(pkix)
	if ec, ok := pub.(*ecdsa.PublicKey); ok {
		switch ec.Curve {
		case elliptic.P384():
			return "ECC_NIST_P384", []string{"ECDSA_SHA_384"}, crypto.SHA384
		case elliptic.P521():
			return "ECC_NIST_P521", []string{"ECDSA_SHA_512"}, crypto.SHA512
		}
		return "ECC_NIST_P256", []string{"ECDSA_SHA_256"}, crypto.SHA256
	}
	return "RSA_2048", []string{"RSASSA_PKCS1_V1_5_SHA_256", "RSASSA_PSS_SHA_256"}, crypto.SHA256
}

// cmdKMS starts a KMS with public keys from files, and with ones that it makes
// itself of a KIND and signs with. VAR can be broken. VAR is the address of its Vault,
// VAR_AWS that of its AWS; certificates are accepted where SSL_CERT_FILE is
// $VAR_CA.
func cmdKMS(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) >= 2 && !neg, "kms VAR NAME=[FILE|+KIND]...")
	k := NewKMS()
	ts.Defer(k.Close)
	ts.Value(faultsKey{}).(map[string]*Faults)[args[0]] = &k.Faults
	for _, arg := range args[1:] {
		name, file, ok := strings.Cut(arg, "=")
		usage(ts, ok, "kms VAR NAME=[FILE|+KIND]...")
		if kind, makes := strings.CutPrefix(file, "+"); makes {
			ts.Check(k.Make(name, kind))
			continue
		}
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

// cmdPrivateKey writes a plain private key, PKCS#8, that nobody else may read.
func cmdPrivateKey(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 2 && !neg, "privatekey FILE KIND")
	key, err := MakeKey(args[1])
	ts.Check(err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
}
