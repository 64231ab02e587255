package build

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// writeCertificates makes an authority and one certificate for 127.0.0.1, as
// Docker's client finds them in a folder.
func writeCertificates(t *testing.T, dir string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "daemon.example"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, b := range map[string][]byte{"ca.pem": cert, "cert.pem": cert, "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// writeContext writes one of Docker's contexts below a folder of its
// configuration and returns where the certificates belong.
func writeContext(t *testing.T, config, name, meta string) string {
	t.Helper()
	sum := sha256.Sum256([]byte(name))
	id := hex.EncodeToString(sum[:])
	dir := filepath.Join(config, "contexts", "meta", id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "meta.json"), []byte(meta), 0o600); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(config, "contexts", "tls", id, "docker")
}

func TestFindDaemon(t *testing.T) {
	config := t.TempDir()
	writeContext(t, config, "far", `{"Name":"far","Endpoints":{"docker":{"Host":"tcp://far.example:2375","SkipTLSVerify":false}}}`)
	writeContext(t, config, "shell", `{"Name":"shell","Endpoints":{"docker":{"Host":"ssh://far.example"}}}`)
	writeContext(t, config, "empty", `{"Name":"empty","Endpoints":{}}`)
	writeCertificates(t, writeContext(t, config, "safe", `{"Endpoints":{"docker":{"Host":"tcp://safe.example","SkipTLSVerify":false}}}`))
	certs := t.TempDir()
	writeCertificates(t, certs)
	for name, x := range map[string]struct {
		env             map[string]string
		network, addr   string
		secure, skipped bool
		why             string
	}{
		"nothing":              {nil, "unix", "/var/run/docker.sock", false, false, ""},
		"a socket":             {map[string]string{"DOCKER_HOST": "unix:///d.sock", "DOCKER_CONTEXT": "far", "DOCKER_TLS_VERIFY": "1"}, "unix", "/d.sock", false, false, ""},
		"TCP":                  {map[string]string{"DOCKER_HOST": "tcp://127.0.0.1:9"}, "tcp", "127.0.0.1:9", false, false, ""},
		"TCP without a port":   {map[string]string{"DOCKER_HOST": "tcp://127.0.0.1"}, "tcp", "127.0.0.1:2375", false, false, ""},
		"TLS":                  {map[string]string{"DOCKER_HOST": "tcp://[::1]", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": certs}, "tcp", "[::1]:2376", true, false, ""},
		"TLS without a look":   {map[string]string{"DOCKER_HOST": "tcp://h.example:1", "DOCKER_TLS": "1", "DOCKER_CERT_PATH": certs}, "tcp", "h.example:1", true, true, ""},
		"certificates alone":   {map[string]string{"DOCKER_HOST": "tcp://h.example:1", "DOCKER_CERT_PATH": certs}, "tcp", "h.example:1", false, false, ""},
		"a context":            {map[string]string{"DOCKER_CONTEXT": "far"}, "tcp", "far.example:2375", false, false, ""},
		"a context with TLS":   {map[string]string{"DOCKER_CONTEXT": "safe"}, "tcp", "safe.example:2376", true, false, ""},
		"a context over ssh":   {map[string]string{"DOCKER_CONTEXT": "shell"}, "", "", false, false, `"ssh://far.example"`},
		"a context of nothing": {map[string]string{"DOCKER_CONTEXT": "empty"}, "", "", false, false, "names no daemon"},
		"no such context":      {map[string]string{"DOCKER_CONTEXT": "none"}, "", "", false, false, `docker's context "none"`},
		"ssh":                  {map[string]string{"DOCKER_HOST": "ssh://far.example"}, "", "", false, false, "neither a socket"},
		"a path":               {map[string]string{"DOCKER_HOST": "tcp://far.example/path"}, "", "", false, false, "no tcp://HOST:PORT"},
		"no certificate":       {map[string]string{"DOCKER_HOST": "tcp://far.example", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "meta"}, "tcp", "far.example:2376", true, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := findDaemon(func(name string) string {
				if name == "DOCKER_CONFIG" {
					return config
				}
				return x.env[name]
			})
			if x.why != "" {
				if err == nil || !strings.Contains(err.Error(), x.why) {
					t.Fatalf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d.network != x.network || d.address != x.addr || (d.tls != nil) != x.secure || d.tls != nil && d.tls.InsecureSkipVerify != x.skipped || d.local() != (x.network == "unix") {
				t.Errorf("got %+v", d)
			}
		})
	}
}

func TestLegacyBuildOfADaemonBehindTLS(t *testing.T) {
	dir := t.TempDir()
	cert, pool := writeCertificates(t, dir)
	id := "sha256:" + strings.Repeat("c", 64)
	asked := ""
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		asked = r.URL.Query().Get("networkmode")
		_, _ = io.WriteString(w, `{"stream":"Step 1/1 : RUN x"}`+"\n"+`{"aux":{"ID":"`+id+`"}}`+"\n")
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	srv.StartTLS()
	defer srv.Close()
	d, err := findDaemon(func(name string) string {
		return map[string]string{"DOCKER_HOST": "tcp://" + srv.Listener.Addr().String(), "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": dir}[name]
	})
	if err != nil {
		t.Fatal(err)
	}
	p, host, err := newLegacyProxy(t.TempDir(), d, InputsPlan{}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	plain := newDockerDaemon("unix", strings.TrimPrefix(host, "unix://"), nil)
	defer plain.close()
	post(t, plain.client, "/build?networkmode=default", strings.NewReader("no archive"))
	builds, notes := p.list()
	if len(builds) != 1 || len(notes) != 0 || builds[0].image != id || asked != "default" {
		t.Fatalf("%d builds, %q, network %q", len(builds), notes, asked)
	}
	seen, watched, err := p.observe(t.Context(), builds[0])
	if err != nil || watched || !strings.Contains(seen.Gaps[0].Detail, "the daemon is reached over TCP") {
		t.Errorf("%+v, %t, %v", seen, watched, err)
	}
}

func FuzzParseDockerContext(f *testing.F) {
	f.Add([]byte(`{"Name":"far","Metadata":{},"Endpoints":{"docker":{"Host":"tcp://far.example:2375","SkipTLSVerify":true}}}`))
	f.Add([]byte(`{"Endpoints":{"docker":{"Host":""}}}`))
	f.Add([]byte(`{"Endpoints":[]}`))
	f.Add([]byte(`{"Endpoints":{"docker":{"Host":"ssh://user@host.example"}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		host, _, err := parseDockerContext(raw)
		if (err == nil) == (host == "") {
			t.Errorf("%q, %v", host, err)
		}
		if d, err := daemonAt(host, tlsFiles{}); err == nil && d.address == "" {
			t.Errorf("%q has no address", host)
		}
	})
}
