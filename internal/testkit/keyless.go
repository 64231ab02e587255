package testkit

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	ct "github.com/google/certificate-transparency-go"
	cttls "github.com/google/certificate-transparency-go/tls"
	"github.com/rogpeppe/go-internal/testscript"
	prototrustroot "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

// Instance is a Sigstore instance of the real servers on loopback: Fulcio, a
// time-stamping authority and a Rekor v2 log, behind one address that can be
// broken. The OpenID Connect issuer that Fulcio trusts, and the CT log that it
// writes to, are our own.
type Instance struct {
	Addr   string // of all services: /fulcio, /tsa, /rekor and /rekor1
	Issuer string // the address of the OpenID Connect issuer

	dir    string
	key    *ecdsa.PrivateKey            // of the issuer and of the CT log
	logs   map[string]*ecdsa.PrivateKey // by their paths: rekor, rekor1
	logins logins
	stop   []func()
}

// InstanceOptions configures StartInstance.
type InstanceOptions struct {
	// Faults break the services; default: none.
	Faults *Faults
	// Rekor1 adds a Rekor v1 log at /rekor1. rekor1_signing_config.json names it
	// alone, without a time-stamping authority.
	Rekor1 bool
}

// StartInstance starts the programs fulcio, timestamp-server and
// rekor-server-posix of the folder peers and writes into dir trusted_root.json
// and signing_config.json, as unlogged_* what has no log, and tsa.pem with the
// certificates of the time-stamping authority. The
// time-stamping authority takes the fixed port 2112 for its metrics, so that
// one instance runs on a machine at a time: the next one waits.
func StartInstance(ctx context.Context, peers, dir string, opts InstanceOptions) (_ *Instance, err error) {
	// The servers have it as their working folder.
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	i := &Instance{dir: dir}
	defer func() {
		if err != nil {
			i.Close()
		}
	}()
	unlock, err := lock(filepath.Join(os.TempDir(), "waxseal-sigstore-instance"))
	if err != nil {
		return nil, err
	}
	i.stop = append(i.stop, unlock)
	if i.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	own := httptest.NewServer(http.HandlerFunc(i.serveOwn))
	i.stop = append(i.stop, own.Close)
	i.Issuer = own.URL
	ports, err := freePorts(7)
	if err != nil {
		return nil, err
	}
	if err := i.write(); err != nil {
		return nil, err
	}
	front := http.NewServeMux()
	for name, args := range map[string][]string{
		"fulcio": {"fulcio", "serve", "--ca=ephemeralca", "--config-path=" + filepath.Join(dir, "fulcio.yaml"), "--ct-log-url=" + own.URL + "/ct",
			"--host=127.0.0.1", "--port=" + ports[0], "--grpc-host=127.0.0.1", "--grpc-port=" + ports[1], "--metrics-port=" + ports[2],
			"--legacy-unix-domain-socket=@waxseal-" + ports[0]},
		"tsa": {"timestamp-server", "serve", "--timestamp-signer=memory", "--disable-ntp-monitoring", "--host=127.0.0.1", "--port=" + ports[3]},
		"rekor": {"rekor-server-posix", "serve", "--storage-dir=" + filepath.Join(dir, "rekor"), "--signer-filepath=" + filepath.Join(dir, "rekor.pem"),
			"--hostname=127.0.0.1", "--http-port=" + ports[4], "--grpc-port=" + ports[5], "--http-metrics-port=" + ports[6],
			"--checkpoint-interval=250ms", "--batch-max-age=100ms", "--log-level=warn"},
	} {
		behind := &url.URL{Scheme: "http", Host: "127.0.0.1:" + map[string]string{"fulcio": ports[0], "tsa": ports[3], "rekor": ports[4]}[name]}
		if err := i.start(ctx, peers, args, behind.Host); err != nil {
			return nil, err
		}
		front.Handle("/"+name+"/", http.StripPrefix("/"+name, httputil.NewSingleHostReverseProxy(behind)))
	}
	if opts.Rekor1 {
		port, err := i.startRekor1(ctx, peers)
		if err != nil {
			return nil, err
		}
		front.Handle("/rekor1/", http.StripPrefix("/rekor1", httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "127.0.0.1:" + port})))
	}
	if opts.Faults == nil {
		opts.Faults = new(Faults)
	}
	open, err := serve(opts.Faults.Around(front), "127.0.0.1")
	if err != nil {
		return nil, err
	}
	i.stop = append(i.stop, open.Close)
	i.Addr = open.Addr
	return i, i.publish(ctx, opts)
}

// Close ends all of it.
func (i *Instance) Close() {
	for n := len(i.stop) - 1; n >= 0; n-- {
		i.stop[n]()
	}
	i.stop = nil
}

func freePorts(n int) ([]string, error) {
	var out []string
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close() // all at once, so that no two are the same
		out = append(out, strconv.Itoa(ln.Addr().(*net.TCPAddr).Port))
	}
	return out, nil
}

// write makes what the servers read.
func (i *Instance) write() error {
	if err := os.MkdirAll(i.dir, 0o755); err != nil {
		return err
	}
	i.logs = map[string]*ecdsa.PrivateKey{}
	for _, name := range []string{"rekor", "rekor1"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(i.dir, name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
			return err
		}
		i.logs[name] = key
	}
	config := fmt.Sprintf("oidc-issuers:\n  %q:\n    issuer-url: %q\n    client-id: sigstore\n    type: email\n"+
		"  %q:\n    issuer-url: %q\n    client-id: sigstore\n    type: spiffe\n    spiffe-trust-domain: acme.example\n", i.Issuer, i.Issuer, i.Issuer+"/spire", i.Issuer+"/spire")
	return os.WriteFile(filepath.Join(i.dir, "fulcio.yaml"), []byte(config), 0o644)
}

// start runs a program until it listens at addr, a port or a socket; what it
// says is kept in dir.
func (i *Instance) start(ctx context.Context, peers string, args []string, addr string) error {
	said, err := os.Create(filepath.Join(i.dir, filepath.Base(args[0])+".log"))
	if err != nil {
		return err
	}
	defer said.Close()
	network := "tcp"
	if filepath.IsAbs(addr) {
		network = "unix"
	}
	child := exec.Command(filepath.Join(peers, args[0]), args[1:]...)
	child.Dir, child.Stdout, child.Stderr = i.dir, said, said
	if err := startLeashed(child); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		child.Wait()
	}()
	i.stop = append(i.stop, func() {
		child.Process.Kill()
		<-ended
	})
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if conn, err := net.Dial(network, addr); err == nil {
			return conn.Close()
		}
		select {
		case <-ended:
		case <-ctx.Done():
		case <-tick.C:
			continue
		}
		text, _ := os.ReadFile(said.Name())
		return fmt.Errorf("starting %s: it is not there at %s:\n%s", args[0], addr, text)
	}
}

// publish writes the trusted root and the signing config.
func (i *Instance) publish(ctx context.Context, opts InstanceOptions) error {
	base := "http://" + i.Addr
	var bundle struct {
		Chains []struct{ Certificates []string }
	}
	raw, err := get(ctx, base+"/fulcio/api/v2/trustBundle")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, &bundle); err != nil || len(bundle.Chains) != 1 {
		return fmt.Errorf("Fulcio's trust bundle is %s: %w", raw, err)
	}
	authority, err := cryptoutils.UnmarshalCertificatesFromPEM([]byte(strings.Join(bundle.Chains[0].Certificates, "\n")))
	if err != nil {
		return err
	}
	if raw, err = get(ctx, base+"/tsa/api/v1/timestamp/certchain"); err != nil {
		return err
	}
	stamps, err := cryptoutils.UnmarshalCertificatesFromPEM(raw)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(i.dir, "tsa.pem"), raw, 0o644); err != nil {
		return err
	}
	// The servers made their certificates just now, and one whole second counts.
	from := time.Now().Add(-time.Minute)
	last := len(stamps) - 1
	logs := map[string]*root.TransparencyLog{}
	add := func(to map[string]*root.TransparencyLog, address string, key *ecdsa.PrivateKey) error {
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		sum := sha256.Sum256(der)
		to[hex.EncodeToString(sum[:])] = &root.TransparencyLog{
			BaseURL: address, ID: sum[:], HashFunc: crypto.SHA256, PublicKey: key.Public(), SignatureHashFunc: crypto.SHA256, ValidityPeriodStart: from,
		}
		return err
	}
	for name, key := range i.logs {
		if err := add(logs, base+"/"+name, key); err != nil {
			return err
		}
	}
	cts := map[string]*root.TransparencyLog{}
	if err := add(cts, i.Issuer+"/ct", i.key); err != nil {
		return err
	}
	authorities := []root.CertificateAuthority{&root.FulcioCertificateAuthority{
		Root: authority[len(authority)-1], Intermediates: authority[:len(authority)-1], ValidityPeriodStart: from, URI: base + "/fulcio",
	}}
	stampers := []root.TimestampingAuthority{&root.SigstoreTimestampingAuthority{
		Root: stamps[last], Intermediates: stamps[1:last], Leaf: stamps[0], ValidityPeriodStart: from, URI: base + "/tsa",
	}}
	one := func(path string, version uint32) []root.Service {
		return []root.Service{{URL: base + path, MajorAPIVersion: version, ValidityPeriodStart: from, Operator: "waxseal.example"}}
	}
	any := root.ServiceConfiguration{Selector: prototrustroot.ServiceSelector_ANY}
	stamp := one("/tsa/api/v1/timestamp", 1)
	provider := []root.Service{{URL: i.Issuer, MajorAPIVersion: 1, ValidityPeriodStart: from, Operator: "waxseal.example"}}
	files := map[string]json.Marshaler{}
	for prefix, known := range map[string]map[string]*root.TransparencyLog{"": logs, "unlogged_": nil} {
		if files[prefix+"trusted_root.json"], err = root.NewTrustedRoot(root.TrustedRootMediaType01, authorities, cts, stampers, known); err != nil {
			return err
		}
	}
	type asked struct{ logs, stamps []root.Service }
	configs := map[string]asked{"": {one("/rekor", 2), stamp}, "unlogged_": {nil, stamp}}
	if opts.Rekor1 {
		configs["rekor1_"] = asked{one("/rekor1", 1), nil}
	}
	for prefix, c := range configs {
		if files[prefix+"signing_config.json"], err = root.NewSigningConfig(root.SigningConfigMediaType02, one("/fulcio", 1), provider, c.logs, any, c.stamps, any); err != nil {
			return err
		}
	}
	for name, v := range files {
		raw, err := v.MarshalJSON()
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(i.dir, name), raw, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func get(ctx context.Context, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s %s", address, resp.Status, raw)
	}
	return raw, err
}

// Token is an identity token of the issuer for a mail address, good for ten
// minutes. claims replace those that it has otherwise.
func (i *Instance) Token(email string, claims map[string]any) (string, error) {
	now := time.Now()
	all := map[string]any{
		"iss": i.Issuer, "aud": "sigstore", "sub": email, "email": email, "email_verified": true,
		"iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(),
	}
	maps.Copy(all, claims)
	body, err := json.Marshal(all)
	if err != nil {
		return "", err
	}
	enc := base64.RawURLEncoding
	text := enc.EncodeToString([]byte(`{"alg":"ES256","kid":"1","typ":"JWT"}`)) + "." + enc.EncodeToString(body)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, sum[:])
	if err != nil {
		return "", err
	}
	sig := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	return text + "." + enc.EncodeToString(sig), nil
}

// serveOwn is the issuer (OpenID Connect Discovery 1.0, section 4) and the CT
// log (RFC 6962, section 4.2).
func (i *Instance) serveOwn(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/.well-known/openid-configuration", "/spire/.well-known/openid-configuration":
		reply(w, http.StatusOK, map[string]any{
			"issuer": i.Issuer + strings.TrimSuffix(r.URL.Path, "/.well-known/openid-configuration"), "jwks_uri": i.Issuer + "/keys", "authorization_endpoint": i.Issuer + "/auth", "token_endpoint": i.Issuer + "/token",
			"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"},
			"code_challenge_methods_supported": []string{"S256"}, "device_authorization_endpoint": i.Issuer + "/device",
		})
	case "/auth":
		i.logins.authorize(w, r)
	case "/device":
		i.logins.device(w, r)
	case "/token":
		i.logins.redeem(i, w, r)
	case "/keys":
		point, err := i.key.PublicKey.Bytes() // 4, x, y
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		enc := base64.RawURLEncoding
		reply(w, http.StatusOK, map[string]any{"keys": []any{map[string]string{
			"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "1", "x": enc.EncodeToString(point[1:33]), "y": enc.EncodeToString(point[33:]),
		}}})
	case "/ct/ct/v1/add-pre-chain":
		sct, err := i.promise(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		reply(w, http.StatusOK, sct)
	case "/platform":
		// What a CI platform answers, for the mail address in the query.
		token, err := i.Token(r.URL.Query().Get("email"), map[string]any{"aud": r.URL.Query().Get("audience")})
		if err != nil || r.Header.Get("Authorization") != "Bearer job" {
			reply(w, http.StatusForbidden, map[string]string{"message": "not for this job"})
			return
		}
		reply(w, http.StatusOK, map[string]string{"value": token, "token": token})
	case "/buildkite/jobs/7/oidc/tokens":
		// What Buildkite's agent API answers
		// (https://buildkite.com/docs/apis/agent-api/oidc).
		var asked struct{ Audience string }
		err := json.NewDecoder(r.Body).Decode(&asked)
		token, tokenErr := i.Token("buildkite@acme.example", map[string]any{"aud": asked.Audience})
		if err != nil || tokenErr != nil || r.Method != http.MethodPost || r.Header.Get("Authorization") != "Token job" {
			reply(w, http.StatusForbidden, map[string]string{"message": "not for this job"})
			return
		}
		reply(w, http.StatusOK, map[string]string{"token": token})
	case "/computeMetadata/v1/instance/service-accounts/default/identity":
		// What Google's metadata server answers.
		token, err := i.Token("google@acme.example", map[string]any{"aud": r.URL.Query().Get("audience")})
		if err != nil || r.Header.Get("Metadata-Flavor") != "Google" || r.URL.Query().Get("format") != "full" {
			http.Error(w, "not for you", http.StatusForbidden)
			return
		}
		_, _ = io.WriteString(w, token)
	default:
		http.NotFound(w, r)
	}
}

// promise is the CT log's signature for a certificate to come.
func (i *Instance) promise(body io.Reader) (*ct.AddChainResponse, error) {
	var req struct{ Chain [][]byte }
	if err := json.NewDecoder(body).Decode(&req); err != nil {
		return nil, err
	}
	var chain []ct.ASN1Cert
	for _, der := range req.Chain {
		chain = append(chain, ct.ASN1Cert{Data: der})
	}
	at := uint64(time.Now().UnixMilli())
	leaf, err := ct.MerkleTreeLeafFromRawChain(chain, ct.PrecertLogEntryType, at)
	if err != nil {
		return nil, err
	}
	input, err := ct.SerializeSCTSignatureInput(ct.SignedCertificateTimestamp{SCTVersion: ct.V1, Timestamp: at}, ct.LogEntry{Leaf: *leaf})
	if err != nil {
		return nil, err
	}
	signed, err := cttls.CreateSignature(*i.key, cttls.SHA256, input)
	if err != nil {
		return nil, err
	}
	sig, err := cttls.Marshal(ct.DigitallySigned(signed))
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(i.key.Public())
	sum := sha256.Sum256(der)
	return &ct.AddChainResponse{SCTVersion: ct.V1, ID: bytes.Clone(sum[:]), Timestamp: at, Signature: sig}, err
}

// cmdInstance starts a Sigstore instance: DIR has its trusted root and its
// signing configs, VAR is the address of its services, for fault, and VAR_ISSUER
// that of its issuer.
func cmdInstance(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, (len(args) == 2 || len(args) == 3 && args[2] == "rekor1") && !neg, "instance VAR DIR [rekor1]")
	faults := new(Faults)
	i, err := StartInstance(context.Background(), peersOf(ts), ts.MkAbs(args[1]), InstanceOptions{Faults: faults, Rekor1: len(args) == 3})
	ts.Check(err)
	ts.Defer(i.Close)
	ts.Value(faultsKey{}).(map[string]*Faults)[args[0]] = faults
	ts.Value(instancesKey{}).(map[string]*Instance)[args[0]] = i
	ts.Setenv(args[0], i.Addr)
	ts.Setenv(args[0]+"_ISSUER", i.Issuer)
}

// cmdToken writes an identity token of an instance into a file. A claim that is
// a time is in seconds from now.
func cmdToken(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) >= 3 && !neg, "token VAR FILE EMAIL [CLAIM=VALUE]...")
	i := ts.Value(instancesKey{}).(map[string]*Instance)[args[0]]
	if i == nil {
		ts.Fatalf("no instance %s", args[0])
	}
	claims := map[string]any{}
	for _, c := range args[3:] {
		name, value, _ := strings.Cut(c, "=")
		claims[name] = value
		if name == "exp" || name == "iat" {
			n, err := strconv.Atoi(value)
			ts.Check(err)
			claims[name] = time.Now().Unix() + int64(n)
		}
	}
	token, err := i.Token(args[2], claims)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(token), 0o600))
}

type instancesKey struct{}
