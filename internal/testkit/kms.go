package testkit

import (
	"bytes"
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
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
)

// KMS is a service with keys, by name, that speaks as much of two APIs as using
// them takes: Vault's transit engine
// (https://developer.hashicorp.com/vault/api-docs/secret/transit#sign-data),
// and, over TLS, that of AWS KMS
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

// What the Vault lets in: the first may sign, the second read keys only.
const (
	KMSToken  = "hvs.let-me-in"
	KMSReader = "hvs.let-me-read"
)

// NewKMS starts one. Set and Make give it keys.
func NewKMS() *KMS {
	k := &KMS{keys: map[string]kmsKey{}}
	k.Vault = httptest.NewServer(k.Faults.Around(http.HandlerFunc(k.serveVault)))
	aws := k.Faults.Around(http.HandlerFunc(k.serveAWS))
	k.AWS = httptest.NewTLSServer(byOperation(aws))
	return k
}

// byOperation gives requests of AWS KMS the operation as path: h tells them by
// it.
func byOperation(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Path = "/" + r.Header.Get("X-Amz-Target")
		h.ServeHTTP(w, r)
	})
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
	fail := func(status int, errors ...string) {
		reply(w, status, map[string]any{"errors": append([]string{}, errors...)})
	}
	operation, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/transit/"), "/")
	name, hash, _ := strings.Cut(name, "/")
	who := r.Header.Get("X-Vault-Token")
	if !(operation == "keys" && who == KMSReader || (operation == "keys" || operation == "sign") && who == KMSToken) {
		fail(http.StatusForbidden, "permission denied")
		return
	}
	key, ok := k.key(name)
	if !ok {
		fail(http.StatusNotFound)
		return
	}
	if operation == "sign" {
		var in struct {
			Input     []byte `json:"input"`
			Prehashed bool   `json:"prehashed"`
		}
		if err := json.NewDecoder(io.LimitReader(r.Body, 64<<20)).Decode(&in); err != nil || key.private == nil {
			fail(http.StatusBadRequest, "unsupported key type")
			return
		}
		opts := crypto.Hash(0) // an Ed25519 key signs the input itself
		if _, whole := key.private.(ed25519.PrivateKey); !whole {
			if opts = crypto.SHA256; hash != "sha2-256" || !in.Prehashed {
				fail(http.StatusBadRequest, "unsupported hash")
				return
			}
		}
		sig, err := key.private.Sign(rand.Reader, in.Input, opts)
		if err != nil {
			fail(http.StatusInternalServerError, err.Error())
			return
		}
		reply(w, http.StatusOK, map[string]any{"data": map[string]any{"signature": "vault:v2:" + base64.StdEncoding.EncodeToString(sig)}})
		return
	}
	if key.public == nil { // a symmetric key: its versions are times
		reply(w, http.StatusOK, map[string]any{"data": map[string]any{"latest_version": 1, "type": "aes256-gcm96", "keys": map[string]any{"1": 1442851412}}})
		return
	}
	kind, public := "P-256", string(key.public)
	if key.private != nil {
		if raw, ok := key.private.Public().(ed25519.PublicKey); ok {
			kind, public = "ed25519", base64.StdEncoding.EncodeToString(raw)
		}
	}
	reply(w, http.StatusOK, map[string]any{"data": map[string]any{
		"latest_version": 2, "type": "ecdsa-p256",
		"keys": map[string]any{"1": map[string]string{"name": kind, "public_key": "an older one"}, "2": map[string]string{"name": kind, "public_key": public}},
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
	_, id, ok := strings.Cut(in.KeyId, ":key/")
	if !ok {
		id = strings.TrimPrefix(in.KeyId, "alias/")
	}
	key, ok := k.key(id)
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
	ts.Setenv(args[0]+"_READER", KMSReader)
}

// cmdLocalKMS starts local-kms, somebody else's AWS KMS, behind TLS, and has it
// make keys of the kinds that AWS names (ECC_NIST_P256, RSA_2048, …), each under
// an alias. VAR can be broken. It is the address, whose certificate is in $VAR_CA,
// and VAR_NAME the ARN of a key.
func cmdLocalKMS(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) >= 2 && !neg, "localkms VAR NAME=KIND...")
	child := exec.Command(filepath.Join(peersOf(ts), "local-kms"))
	child.Env = []string{"PORT=0", "KMS_REGION=eu-central-1", "KMS_SEED_PATH=/nowhere", "KMS_DATA_PATH=" + ts.MkAbs(".local-kms-"+args[0])}
	found, stop, err := startUntil(child, regexp.MustCompile(`started on 0\.0\.0\.0:(\d+)`))
	ts.Check(err)
	ts.Defer(stop)
	plain := &url.URL{Scheme: "http", Host: "127.0.0.1:" + found[1]}
	faults := new(Faults)
	ts.Value(faultsKey{}).(map[string]*Faults)[args[0]] = faults
	proxy := httputil.NewSingleHostReverseProxy(plain)
	front := httptest.NewTLSServer(byOperation(faults.Around(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Path = "/"
		proxy.ServeHTTP(w, r)
	}))))
	ts.Defer(front.Close)
	for _, arg := range args[1:] {
		name, kind, ok := strings.Cut(arg, "=")
		usage(ts, ok, "localkms VAR NAME=KIND...")
		key := map[string]string{"KeySpec": kind, "KeyUsage": "SIGN_VERIFY"}
		if kind == "SYMMETRIC_DEFAULT" {
			key["KeyUsage"] = "ENCRYPT_DECRYPT"
		}
		var made struct{ KeyMetadata struct{ Arn, KeyId string } }
		ts.Check(askAWS(plain.String(), "CreateKey", key, &made))
		ts.Check(askAWS(plain.String(), "CreateAlias", map[string]string{"AliasName": "alias/" + name, "TargetKeyId": made.KeyMetadata.KeyId}, nil))
		ts.Setenv(args[0]+"_"+name, made.KeyMetadata.Arn)
	}
	ca := ts.MkAbs(fmt.Sprintf(".ca-%s.pem", args[0]))
	ts.Check(os.WriteFile(ca, certificatePEM(front.Certificate()), 0o644))
	ts.Setenv(args[0], front.Listener.Addr().String())
	ts.Setenv(args[0]+"_CA", ca)
}

// askAWS sends a request of AWS KMS, signed by nobody but in form, and reads the
// answer into out where there is one.
func askAWS(addr, operation string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	r, err := http.NewRequest(http.MethodPost, addr, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	r.Header.Set("X-Amz-Target", "TrentService."+operation)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("asking for %s: %s: %s", operation, resp.Status, raw)
	}
	if err != nil || out == nil {
		return err
	}
	return json.Unmarshal(raw, out)
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
