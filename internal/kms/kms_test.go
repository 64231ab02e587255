package kms

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	vault "github.com/hashicorp/vault/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/keys"
)

type awsError string

func (e awsError) Error() string     { return "operation error KMS: " + string(e) }
func (e awsError) ErrorCode() string { return string(e) }

// The services answer in these forms; a script has them do it.
func TestClasses(t *testing.T) {
	for _, c := range []struct {
		err  error
		want keys.Class
	}{
		{errors.New("dial tcp: connection refused"), keys.ClassUnanswered},
		{&tls.CertificateVerificationError{Err: errors.New("unknown authority")}, keys.ClassUntrusted},
		{&refused{keys.ClassReference, errors.New("x")}, keys.ClassReference},
		{awsError("NotFoundException"), keys.ClassNotFound},
		{awsError("AccessDeniedException"), keys.ClassPermission},
		{awsError("ExpiredTokenException"), keys.ClassLogin},
		{awsError("UnsupportedOperationException"), keys.ClassReference},
		{awsError("ThrottlingException"), keys.ClassUnanswered},
		{&vault.ResponseError{StatusCode: 403}, keys.ClassPermission},
		{&vault.ResponseError{StatusCode: 503}, keys.ClassUnanswered},
		{&azcore.ResponseError{StatusCode: 404}, keys.ClassNotFound},
		{&azcore.ResponseError{StatusCode: 401}, keys.ClassPermission},
		{&azcore.ResponseError{StatusCode: 429}, keys.ClassUnanswered},
		{status.Error(codes.NotFound, "x"), keys.ClassNotFound},
		{status.Error(codes.PermissionDenied, "x"), keys.ClassPermission},
		{status.Error(codes.Unauthenticated, "x"), keys.ClassLogin},
		{status.Error(codes.InvalidArgument, "x"), keys.ClassReference},
		{status.Error(codes.Unavailable, "x"), keys.ClassUnanswered},
		{status.Error(codes.DeadlineExceeded, "x"), keys.ClassUnanswered},
	} {
		if got := classOf(fmt.Errorf("public key: %w", c.err)); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
}

// Azure's client shapes an RSA signature as one of ECDSA, whatever its bytes.
func TestAnRSASignatureIsPutTogetherAgain(t *testing.T) {
	for _, want := range [][]byte{
		bytes.Repeat([]byte{0xff}, 256), append(make([]byte, 130), bytes.Repeat([]byte{7}, 126)...), append(bytes.Repeat([]byte{9}, 128), make([]byte, 128)...),
	} {
		shaped, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(want[:128]), new(big.Int).SetBytes(want[128:])})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := whole(shaped, 256); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%x: %x, %v", want, got, err)
		}
		if got, err := whole(want, 256); err != nil || !bytes.Equal(got, want) {
			t.Errorf("a plain one: %x, %v", got, err)
		}
		if _, err := whole(shaped, 64); err == nil {
			t.Error("one that is too long is accepted")
		}
	}
}

// sigstore's client reads the latest version only; a pin may want another.
func TestAnOlderVersionOfAKeyInVault(t *testing.T) {
	der := func(pub any) []byte {
		raw, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	versions := map[string]any{"0": 7, "9": map[string]string{"public_key": "no key"}}
	var public []any
	for i, name := range []string{"1", "2"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		edwards, _, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		public = append(public, key.Public(), edwards)
		versions[name] = map[string]string{"public_key": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der(key.Public())}))}
		versions[fmt.Sprint(3+i)] = map[string]string{"public_key": base64.StdEncoding.EncodeToString(edwards)}
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/transit/keys/release" || r.Header.Get("X-Vault-Token") != "token" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"keys": versions}})
	}))
	defer server.Close()
	t.Setenv("VAULT_ADDR", server.URL)
	t.Setenv("VAULT_TOKEN", "token")
	for i, pub := range public {
		r := keys.Request{Ref: "hashivault://release", ID: string(attest.DigestOf(der(pub)))}
		got := olderVersion(t.Context(), r, public[2])
		if i == 2 && got != nil || i != 2 && (got == nil || keyID(got) != r.ID) {
			t.Errorf("%d: %v", i, got)
		}
	}
	for _, r := range []keys.Request{{Ref: "hashivault://release"}, {Ref: "hashivault://release", ID: "sha256:00"}, {Ref: "hashivault://other", ID: keyID(public[0])}, {Ref: "awskms:///alias/x", ID: keyID(public[0])}} {
		if got := olderVersion(t.Context(), r, public[2]); got != nil {
			t.Errorf("%+v: %v", r, got)
		}
	}
}

func TestAVaultIsAskedOverHTTPSOnly(t *testing.T) {
	for address, ok := range map[string]bool{
		"https://vault.example": true, "http://127.0.0.1:8200": true, "http://localhost:8200": true,
		"": false, "http://vault.example": false, "http://localhost.example": false, "vault.example:8200": false, "unix:///run/vault": false,
	} {
		t.Setenv("VAULT_ADDR", address)
		if err := onTheWire("hashivault://k"); (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
	}
	t.Setenv("VAULT_ADDR", "http://vault.example")
	if err := onTheWire("gcpkms://projects/p"); err != nil {
		t.Error(err)
	}
}
