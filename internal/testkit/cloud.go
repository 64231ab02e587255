package testkit

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	rpc "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Cloud stands in for Google's and Azure's key management services, which cannot
// be had where tests run: it speaks as much of their documented APIs as using a key
// takes, and is no recording of them.
//
//	https://cloud.google.com/kms/docs/reference/rpc/google.cloud.kms.v1 (gRPC)
//	https://learn.microsoft.com/rest/api/keyvault/keys/operation-groups (REST)
//	https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow
//
// Their clients are the real ones, and ask for the names of the real services: who
// runs under Within finds them here.
type Cloud struct {
	// Within is a program that runs its arguments with those names.
	Within string
	// CA is a file (PEM) with who certifies them.
	CA string
	// Faults breaks all, and has the requests: Google's as "POST /SERVICE/METHOD".
	Faults Faults

	kmspb.UnimplementedKeyManagementServiceServer
	keys    map[string]cloudKey
	account *rsa.PrivateKey // of the service accounts
	server  *httptest.Server
}

type cloudKey struct {
	private crypto.Signer // nil: it is symmetric
	enabled bool
	pss     bool // at Google
}

// Who may do what: the first all, the second all but sign, the third nothing, and
// the last one's secret has expired.
const (
	cloudSigner  = "signer"
	cloudReader  = "reader"
	cloudOther   = "other"
	cloudExpired = "expired"
)

const (
	cloudProject = "acme"
	cloudRing    = "projects/acme/locations/europe/keyRings/ci/cryptoKeys/"
	cloudTenant  = "8a7d1b52-0f60-4f0c-9df2-4c1f6f3b7e11"
	cloudLogin   = "login.microsoftonline.com"
	cloudVault   = "acme.vault.azure.net"
	cloudGoogle  = "cloudkms.googleapis.com"
	// cloudVersion is that of every key; Google counts, and has an older one that is
	// disabled.
	cloudVersion = "78deebed173b48e48f55abf87ed4cf71"
)

// NewCloud starts one that keeps its files in dir. Keys are what MakeKey makes.
func NewCloud(dir string) (*Cloud, error) {
	c := &Cloud{keys: map[string]cloudKey{}, Within: filepath.Join(dir, "within"), CA: filepath.Join(dir, "ca.pem")}
	var err error
	if c.account, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		return nil, err
	}
	ln, err := privately()
	if err != nil {
		return nil, err
	}
	calls := grpc.NewServer()
	kmspb.RegisterKeyManagementServiceServer(calls, c)
	mux := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch strings.TrimSuffix(r.Host, ":443") {
		case cloudGoogle:
			calls.ServeHTTP(w, r)
		case cloudLogin:
			c.serveLogin(w, r)
		case cloudVault:
			c.serveVault(w, r)
		default:
			http.Error(w, r.Host, http.StatusMisdirectedRequest)
		}
	})
	c.server = httptest.NewUnstartedServer(c.Faults.Around(mux))
	c.server.Listener.Close()
	c.server.Listener = ln
	c.server.EnableHTTP2 = true
	names := []string{cloudGoogle, cloudLogin, cloudVault}
	cert, ca, err := certifyNames(names)
	if err == nil {
		c.server.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
		c.server.StartTLS()
		err = c.write(dir, ca, names)
	}
	if err != nil {
		ln.Close()
		return nil, err
	}
	return c, nil
}

// Close ends it.
func (c *Cloud) Close() { c.server.Close() }

// privately listens at the port of HTTPS of an address of this machine's own that
// nothing else has.
func privately() (net.Listener, error) {
	var ln net.Listener
	var err error
	for range 20 {
		at := make([]byte, 2)
		rand.Read(at)
		if ln, err = net.Listen("tcp", fmt.Sprintf("127.77.%d.%d:443", at[0], 1+at[1]%250)); err == nil {
			return ln, nil
		}
	}
	return nil, err
}

func (c *Cloud) write(dir string, ca []byte, names []string) error {
	files, err := within(dir, c.server.Listener.Addr(), ca, names)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.account)
	if err != nil {
		return err
	}
	for _, who := range []string{cloudSigner, cloudReader, cloudOther, cloudExpired} {
		// https://developers.google.com/workspace/guides/create-credentials#service-account
		if files[filepath.Join(dir, who+".json")], err = json.Marshal(map[string]string{
			"type": "service_account", "project_id": cloudProject, "private_key_id": who, "client_email": who + "@acme.iam.gserviceaccount.com",
			"client_id": who, "token_uri": "https://oauth2.googleapis.com/token", "private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		}); err != nil {
			return err
		}
	}
	for name, raw := range files {
		if err := os.WriteFile(name, raw, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// within are the files of dir that have a server answer by names that are not its
// own: "within" runs its arguments where they lead to at, and ca.pem is who
// certifies them.
func within(dir string, at net.Addr, ca []byte, names []string) (map[string][]byte, error) {
	host, _, err := net.SplitHostPort(at.String())
	hosts := filepath.Join(dir, "hosts")
	return map[string][]byte{
		filepath.Join(dir, "ca.pem"): ca,
		hosts:                        fmt.Appendf(nil, "127.0.0.1 localhost\n%s %s\n", host, strings.Join(names, " ")),
		filepath.Join(dir, "within"): fmt.Appendf(nil, "#!/bin/sh\nexec unshare -m sh -c 'mount --bind %s /etc/hosts && exec \"$@\"' sh \"$@\"\n", hosts),
	}, err
}

// certifyNames makes a CA, and a certificate by it for names of servers.
func certifyNames(names []string) (cert *tls.Certificate, ca []byte, err error) {
	var keys [2]*ecdsa.PrivateKey
	for i := range keys {
		if keys[i], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, nil, err
		}
	}
	now := time.Now()
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cloud"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, root, root, keys[0].Public(), keys[0])
	if err != nil {
		return nil, nil, err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	signed, err := x509.CreateCertificate(rand.Reader, leaf, root, keys[1].Public(), keys[0])
	if err != nil {
		return nil, nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{signed}, PrivateKey: keys[1]}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// hashOf is what both services sign with a key.
func hashOf(key crypto.PublicKey) crypto.Hash {
	if ec, ok := key.(*ecdsa.PublicKey); ok && ec.Curve == elliptic.P384() {
		return crypto.SHA384
	}
	return crypto.SHA256
}

// caller is which service account a call is by: a token that it signed itself
// (https://google.aip.dev/auth/4111).
func (c *Cloud) caller(ctx context.Context) (string, error) {
	refused := rpc.Error(codes.Unauthenticated, "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid authentication credential.")
	md, _ := metadata.FromIncomingContext(ctx)
	token := strings.TrimPrefix(strings.Join(md.Get("authorization"), ""), "Bearer ")
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", refused
	}
	raw := make([][]byte, 3)
	for i, p := range parts {
		var err error
		if raw[i], err = base64.RawURLEncoding.DecodeString(p); err != nil {
			return "", refused
		}
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	var claims struct {
		Iss, Aud, Scope string
		Exp             int64
	}
	if json.Unmarshal(raw[1], &claims) != nil || rsa.VerifyPKCS1v15(&c.account.PublicKey, crypto.SHA256, sum[:], raw[2]) != nil || time.Now().Unix() > claims.Exp ||
		!strings.Contains(claims.Scope, "https://www.googleapis.com/auth/cloud") && claims.Aud != "https://"+cloudGoogle+"/" {
		return "", refused
	}
	who, _, _ := strings.Cut(claims.Iss, "@")
	if who == cloudExpired {
		return "", refused
	}
	return who, nil
}

// google is the key that a resource names, for whoever may do what is asked.
func (c *Cloud) google(ctx context.Context, resource, permission string) (cloudKey, error) {
	who, err := c.caller(ctx)
	if err != nil {
		return cloudKey{}, err
	}
	if who != cloudSigner && (who != cloudReader || strings.HasSuffix(permission, "useToSign")) {
		return cloudKey{}, rpc.Errorf(codes.PermissionDenied, "Permission '%s' denied on resource '%s' (or it may not exist).", permission, resource)
	}
	name, version, _ := strings.Cut(strings.TrimPrefix(resource, cloudRing), "/cryptoKeyVersions/")
	key, ok := c.keys[name]
	if !ok || !strings.HasPrefix(resource, cloudRing) || version != "" && version != "1" && version != "2" {
		return cloudKey{}, rpc.Errorf(codes.NotFound, "%s not found.", resource)
	}
	key.enabled = key.enabled && version != "1"
	return key, nil
}

// GetCryptoKey is projects.locations.keyRings.cryptoKeys.get.
func (c *Cloud) GetCryptoKey(ctx context.Context, r *kmspb.GetCryptoKeyRequest) (*kmspb.CryptoKey, error) {
	key, err := c.google(ctx, r.GetName(), "cloudkms.cryptoKeys.get")
	if err != nil {
		return nil, err
	}
	purpose := kmspb.CryptoKey_ASYMMETRIC_SIGN
	if key.private == nil {
		purpose = kmspb.CryptoKey_ENCRYPT_DECRYPT
	}
	return &kmspb.CryptoKey{Name: r.GetName(), Purpose: purpose}, nil
}

func (k cloudKey) version(name string) *kmspb.CryptoKeyVersion {
	v := &kmspb.CryptoKeyVersion{Name: name, State: kmspb.CryptoKeyVersion_DISABLED}
	if k.enabled {
		v.State = kmspb.CryptoKeyVersion_ENABLED
	}
	switch pub := k.private.Public().(type) {
	case *ecdsa.PublicKey:
		v.Algorithm = kmspb.CryptoKeyVersion_EC_SIGN_P256_SHA256
		if pub.Curve == elliptic.P384() {
			v.Algorithm = kmspb.CryptoKeyVersion_EC_SIGN_P384_SHA384
		}
	case *rsa.PublicKey:
		v.Algorithm = kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256
		switch {
		case k.pss:
			v.Algorithm = kmspb.CryptoKeyVersion_RSA_SIGN_PSS_2048_SHA256
		case pub.Size() == 384:
			v.Algorithm = kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_3072_SHA256
		}
	default:
		v.Algorithm = kmspb.CryptoKeyVersion_EC_SIGN_ED25519
	}
	return v
}

// GetCryptoKeyVersion is cryptoKeyVersions.get.
func (c *Cloud) GetCryptoKeyVersion(ctx context.Context, r *kmspb.GetCryptoKeyVersionRequest) (*kmspb.CryptoKeyVersion, error) {
	key, err := c.google(ctx, r.GetName(), "cloudkms.cryptoKeyVersions.get")
	if err != nil {
		return nil, err
	}
	return key.version(r.GetName()), nil
}

// ListCryptoKeyVersions is cryptoKeyVersions.list, as far as it is asked for those
// that are enabled.
func (c *Cloud) ListCryptoKeyVersions(ctx context.Context, r *kmspb.ListCryptoKeyVersionsRequest) (*kmspb.ListCryptoKeyVersionsResponse, error) {
	out := &kmspb.ListCryptoKeyVersionsResponse{}
	for _, version := range []string{"2", "1"} {
		name := r.GetParent() + "/cryptoKeyVersions/" + version
		key, err := c.google(ctx, name, "cloudkms.cryptoKeyVersions.list")
		if err != nil {
			return nil, err
		}
		if key.enabled || r.GetFilter() != "state=ENABLED" {
			out.CryptoKeyVersions = append(out.CryptoKeyVersions, key.version(name))
		}
	}
	return out, nil
}

// GetPublicKey is cryptoKeyVersions.getPublicKey.
func (c *Cloud) GetPublicKey(ctx context.Context, r *kmspb.GetPublicKeyRequest) (*kmspb.PublicKey, error) {
	key, err := c.google(ctx, r.GetName(), "cloudkms.cryptoKeyVersions.viewPublicKey")
	if err != nil {
		return nil, err
	}
	if !key.enabled {
		return nil, rpc.Errorf(codes.FailedPrecondition, "%s is not enabled, current state is: DISABLED.", r.GetName())
	}
	der, err := x509.MarshalPKIXPublicKey(key.private.Public())
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	return &kmspb.PublicKey{Name: r.GetName(), Pem: string(text), PemCrc32C: wrapperspb.Int64(castagnoli(text)), Algorithm: key.version(r.GetName()).GetAlgorithm()}, nil
}

// castagnoli is the sum that both sides check what they got by:
// https://cloud.google.com/kms/docs/data-integrity-guidelines
func castagnoli(b []byte) int64 { return int64(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))) }

// AsymmetricSign is cryptoKeyVersions.asymmetricSign.
func (c *Cloud) AsymmetricSign(ctx context.Context, r *kmspb.AsymmetricSignRequest) (*kmspb.AsymmetricSignResponse, error) {
	key, err := c.google(ctx, r.GetName(), "cloudkms.cryptoKeyVersions.useToSign")
	if err != nil {
		return nil, err
	}
	hash := hashOf(key.private.Public())
	digest := r.GetDigest().GetSha256()
	if hash == crypto.SHA384 {
		digest = r.GetDigest().GetSha384()
	}
	switch {
	case !key.enabled:
		return nil, rpc.Errorf(codes.FailedPrecondition, "%s is not enabled, current state is: DISABLED.", r.GetName())
	case len(digest) != hash.Size():
		return nil, rpc.Error(codes.InvalidArgument, "Digest type is incompatible with the algorithm of the key.")
	case r.GetDigestCrc32C() != nil && r.GetDigestCrc32C().GetValue() != castagnoli(digest):
		return nil, rpc.Error(codes.InvalidArgument, "The checksum in field digest_crc32c did not match the data in field digest.")
	}
	opts := crypto.SignerOpts(hash)
	if key.pss {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	sig, err := key.private.Sign(rand.Reader, digest, opts)
	if err != nil {
		return nil, err
	}
	return &kmspb.AsymmetricSignResponse{Name: r.GetName(), Signature: sig, SignatureCrc32C: wrapperspb.Int64(castagnoli(sig)), VerifiedDigestCrc32C: r.GetDigestCrc32C() != nil}, nil
}

// serveLogin gives tokens for secrets, as Entra ID does.
func (c *Cloud) serveLogin(w http.ResponseWriter, r *http.Request) {
	base := "https://" + cloudLogin + "/" + cloudTenant
	switch r.URL.Path {
	case "/common/discovery/instance":
		reply(w, http.StatusOK, map[string]any{"tenant_discovery_endpoint": base + "/v2.0/.well-known/openid-configuration", "api-version": "1.1",
			"metadata": []any{map[string]any{"preferred_network": cloudLogin, "preferred_cache": "login.windows.net", "aliases": []string{cloudLogin}}}})
	case "/" + cloudTenant + "/v2.0/.well-known/openid-configuration":
		reply(w, http.StatusOK, map[string]string{"issuer": base + "/v2.0", "token_endpoint": base + "/oauth2/v2.0/token", "authorization_endpoint": base + "/oauth2/v2.0/authorize"})
	case "/" + cloudTenant + "/oauth2/v2.0/token":
		who := r.FormValue("client_id")
		fail := func(code int, text string) {
			reply(w, http.StatusUnauthorized, map[string]any{"error": "invalid_client", "error_description": fmt.Sprintf("AADSTS%d: %s", code, text), "error_codes": []int{code}})
		}
		switch {
		case who == cloudExpired:
			fail(7000222, "The provided client secret keys for app '"+who+"' are expired.")
		case r.FormValue("client_secret") != "secret" || r.FormValue("grant_type") != "client_credentials" || r.FormValue("scope") == "":
			fail(7000215, "Invalid client secret provided.")
		default:
			reply(w, http.StatusOK, map[string]any{"token_type": "Bearer", "expires_in": 3599, "access_token": "token of " + who})
		}
	default:
		http.NotFound(w, r)
	}
}

// serveVault is GET /keys/NAME/VERSION and POST /keys/NAME/VERSION/sign.
func (c *Cloud) serveVault(w http.ResponseWriter, r *http.Request) {
	fail := func(status int, code, message, inner string) {
		body := map[string]any{"code": code, "message": message}
		if inner != "" {
			body["innererror"] = map[string]string{"code": inner}
		}
		reply(w, status, map[string]any{"error": body})
	}
	who, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer token of ")
	if !ok {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer authorization=%q, resource=%q", "https://"+cloudLogin+"/"+cloudTenant, "https://vault.azure.net"))
		fail(http.StatusUnauthorized, "Unauthorized", "AKV10000: Request is missing a Bearer or PoP token.", "")
		return
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	signing := len(parts) > 2 && slices.Equal(parts[len(parts)-1:], []string{"sign"})
	if signing {
		parts = parts[:len(parts)-1]
	}
	key, ok := c.keys[append(parts, "")[min(1, len(parts))]]
	action := "get"
	if signing {
		action = "sign"
	}
	switch {
	case who != cloudSigner && (who != cloudReader || signing):
		fail(http.StatusForbidden, "Forbidden", "Caller is not authorized to perform action on resource. Action: 'Microsoft.KeyVault/vaults/keys/"+action+"/action'.", "ForbiddenByRbac")
	case !ok || len(parts) > 2 && parts[2] != "" && parts[2] != cloudVersion:
		fail(http.StatusNotFound, "KeyNotFound", "A key with (name/id) "+strings.Join(parts[1:], "/")+" was not found in this key vault.", "")
	case signing && !key.enabled:
		fail(http.StatusForbidden, "Forbidden", "Operation sign is not allowed on a disabled key.", "KeyDisabled")
	case signing:
		c.signVault(w, r, key, fail)
	default:
		reply(w, http.StatusOK, map[string]any{
			"key":        webKey("https://"+cloudVault+"/keys/"+parts[1]+"/"+cloudVersion, key.private.Public()),
			"attributes": map[string]any{"enabled": key.enabled, "recoveryLevel": "Recoverable"},
		})
	}
}

// webKey is a public key as Key Vault gives it, as one of an HSM.
func webKey(id string, key crypto.PublicKey) map[string]any {
	out := map[string]any{"kid": id, "key_ops": []string{"sign", "verify"}}
	switch pub := key.(type) {
	case *ecdsa.PublicKey:
		size := (pub.Curve.Params().BitSize + 7) / 8
		raw, _ := pub.Bytes()
		out["kty"], out["crv"] = "EC-HSM", pub.Curve.Params().Name
		out["x"], out["y"] = base64.RawURLEncoding.EncodeToString(raw[1:1+size]), base64.RawURLEncoding.EncodeToString(raw[1+size:])
	case *rsa.PublicKey:
		out["kty"] = "RSA-HSM"
		out["n"], out["e"] = base64.RawURLEncoding.EncodeToString(pub.N.Bytes()), base64.RawURLEncoding.EncodeToString(big.NewInt(int64(pub.E)).Bytes())
	}
	return out
}

func (c *Cloud) signVault(w http.ResponseWriter, r *http.Request, key cloudKey, fail func(int, string, string, string)) {
	var in struct{ Alg, Value string }
	err := json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&in)
	digest, bad := base64.RawURLEncoding.DecodeString(in.Value)
	hash, known := map[string]crypto.Hash{"ES256": crypto.SHA256, "ES384": crypto.SHA384, "RS256": crypto.SHA256, "RS384": crypto.SHA384}[in.Alg]
	ec, isEC := key.private.Public().(*ecdsa.PublicKey)
	if err != nil || bad != nil || !known || len(digest) != hash.Size() || isEC != strings.HasPrefix(in.Alg, "ES") {
		fail(http.StatusBadRequest, "BadParameter", "Property has invalid value.", "")
		return
	}
	sig, err := key.private.Sign(rand.Reader, digest, hash)
	if err == nil && isEC {
		// RFC 7518, section 3.4.
		var halves struct{ R, S *big.Int }
		_, err = asn1.Unmarshal(sig, &halves)
		size := (ec.Curve.Params().BitSize + 7) / 8
		sig = make([]byte, 2*size)
		halves.R.FillBytes(sig[:size])
		halves.S.FillBytes(sig[size:])
	}
	if err != nil {
		fail(http.StatusInternalServerError, "InternalServerError", err.Error(), "")
		return
	}
	reply(w, http.StatusOK, map[string]string{"kid": "https://" + cloudVault + "/keys/x/" + cloudVersion, "value": base64.RawURLEncoding.EncodeToString(sig)})
}

// cmdCloud starts a Cloud with keys of a KIND, which after - are disabled; without
// one a key is symmetric. rsa2048-pss is of another padding. VAR is the program to run commands under, VAR_DIR has
// the accounts' files, and VAR can be broken.
func cmdCloud(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) >= 2 && !neg, "cloud VAR NAME=[+KIND|-KIND]...")
	dir := ts.MkAbs(".cloud-" + args[0])
	ts.Check(os.Mkdir(dir, 0o700))
	c, err := NewCloud(dir)
	ts.Check(err)
	ts.Defer(c.Close)
	for _, arg := range args[1:] {
		name, kind, ok := strings.Cut(arg, "=")
		usage(ts, ok, "cloud VAR NAME=[+KIND|-KIND]...")
		var key cloudKey
		if kind != "" {
			key.enabled = kind[0] == '+'
			kind, key.pss = strings.CutSuffix(kind[1:], "-pss")
			key.private, err = MakeKey(kind)
			ts.Check(err)
		}
		c.keys[name] = key
	}
	ts.Value(faultsKey{}).(map[string]*Faults)[args[0]] = &c.Faults
	ts.Setenv(args[0], c.Within)
	ts.Setenv(args[0]+"_DIR", dir)
	ts.Setenv(args[0]+"_CA", c.CA)
	ts.Setenv(args[0]+"_TENANT", cloudTenant)
}
