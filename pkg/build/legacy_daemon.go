package build

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/cli/cli/config"

	"github.com/waxseal/waxseal/pkg/attest"
)

// maxDockerFile bounds a file of Docker's configuration: a context's, a
// certificate.
const maxDockerFile = 1 << 20

// dockerSocket is where a daemon listens unless somebody says otherwise.
const dockerSocket = "/var/run/docker.sock"

// dockerDaemon is where a Docker daemon listens. Its client speaks to it
// without a deadline: a build takes its time.
type dockerDaemon struct {
	network, address string      // "unix" and a path, or "tcp" and host:port
	tls              *tls.Config // nil for none

	client *http.Client
}

func newDockerDaemon(network, address string, secure *tls.Config) *dockerDaemon {
	d := &dockerDaemon{network: network, address: address, tls: secure}
	d.client = &http.Client{Transport: d.transport()}
	return d
}

func (d *dockerDaemon) transport() *http.Transport {
	return &http.Transport{DialContext: d.dial, DisableCompression: true}
}

func (d *dockerDaemon) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	var plain net.Dialer
	if d.tls == nil {
		return plain.DialContext(ctx, d.network, d.address)
	}
	return (&tls.Dialer{NetDialer: &plain, Config: d.tls}).DialContext(ctx, d.network, d.address)
}

// local reports whether the daemon's containers may be of this machine.
func (d *dockerDaemon) local() bool { return d.network == "unix" }

// findDaemon is the Docker daemon that a command with this environment reaches,
// as Docker's own client finds it: DOCKER_HOST, else a context. An error says
// why waxseal cannot stand before it.
func findDaemon(env func(string) string) (*dockerDaemon, error) {
	folder := dockerFolder(env)
	if host := env("DOCKER_HOST"); host != "" {
		files := tlsFiles{skip: env("DOCKER_TLS_VERIFY") == ""}
		if !files.skip || env("DOCKER_TLS") != "" {
			if files.dir = env("DOCKER_CERT_PATH"); files.dir == "" {
				files.dir = folder
			}
		}
		return daemonAt(host, files)
	}
	name, err := dockerContext(env)
	if err != nil {
		return nil, err
	}
	if name == "" || name == "default" {
		return newDockerDaemon("unix", dockerSocket, nil), nil
	}
	id := contextID(name)
	raw, err := readSmall(filepath.Join(folder, "contexts", "meta", id, "meta.json"), maxDockerFile)
	if err != nil {
		return nil, fmt.Errorf("reading docker's context %q: %w", name, err)
	}
	host, skip, err := parseDockerContext(raw)
	if err != nil {
		return nil, fmt.Errorf("reading docker's context %q: %w", name, err)
	}
	files := tlsFiles{skip: skip}
	dir := filepath.Join(folder, "contexts", "tls", id, "docker")
	if _, err := os.Stat(dir); err == nil || skip {
		files.dir = dir
	}
	return daemonAt(host, files)
}

// dockerFolder is where docker has its configuration.
func dockerFolder(env func(string) string) string { return cmp.Or(env("DOCKER_CONFIG"), config.Dir()) }

// dockerContext is the context that docker is in; "" for none.
func dockerContext(env func(string) string) (string, error) {
	if name := env("DOCKER_CONTEXT"); name != "" {
		return name, nil
	}
	c, err := config.Load(dockerFolder(env))
	if err != nil {
		return "", fmt.Errorf("reading the configuration of docker: %w", err)
	}
	return c.CurrentContext, nil
}

// contextID is how docker stores a context.
func contextID(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}

// otherContexts are the folders of docker's contexts, but of the one that it is in:
// builds of another would begin with images of a daemon that is not its.
func otherContexts(env func(string) string) []string {
	name, err := dockerContext(env)
	if env("DOCKER_HOST") != "" || err != nil {
		name = ""
	}
	var out []string
	for _, kind := range []string{"meta", "tls"} {
		dir := filepath.Join(dockerFolder(env), "contexts", kind)
		entries, _ := os.ReadDir(dir) // none, mostly
		for _, e := range entries {
			if e.Name() != contextID(name) {
				out = append(out, filepath.Join(dir, e.Name()))
			}
		}
	}
	return out
}

// parseDockerContext reads where a context's daemon is, and whether its
// certificate is of no interest.
func parseDockerContext(raw []byte) (host string, skipVerify bool, err error) {
	var meta struct {
		Endpoints map[string]struct {
			Host          string
			SkipTLSVerify bool //nolint:tagliatelle // Docker's own
		}
	}
	if err := json.Unmarshal(raw, &meta); err != nil {
		return "", false, err
	}
	e, ok := meta.Endpoints["docker"]
	if !ok || e.Host == "" {
		return "", false, errors.New("it names no daemon")
	}
	return e.Host, e.SkipTLSVerify, nil
}

// tlsFiles are what a client of a daemon shows and trusts.
type tlsFiles struct {
	dir  string // of ca.pem, cert.pem and key.pem; "" for no TLS
	skip bool   // does not verify the daemon
}

// daemonAt reads a host as DOCKER_HOST has it.
func daemonAt(host string, files tlsFiles) (*dockerDaemon, error) {
	scheme, rest, _ := strings.Cut(host, "://")
	switch {
	case scheme == "unix" && rest != "":
		return newDockerDaemon("unix", rest, nil), nil
	case scheme != "tcp" && scheme != "http" && scheme != "https":
		return nil, fmt.Errorf("standing before the Docker daemon %q: neither a socket of this machine nor tcp://", clipLine(host))
	}
	u, err := url.Parse(host)
	if err != nil || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("standing before the Docker daemon %q: it is no tcp://HOST:PORT", clipLine(host))
	}
	port, secure := u.Port(), (*tls.Config)(nil)
	if files.dir != "" || scheme == "https" {
		if secure, err = files.config(u.Hostname()); err != nil {
			return nil, err
		}
	}
	if port == "" {
		port = map[bool]string{true: "2376", false: "2375"}[secure != nil]
	}
	return newDockerDaemon("tcp", net.JoinHostPort(u.Hostname(), port), secure), nil
}

func (f tlsFiles) config(host string) (*tls.Config, error) {
	c := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, InsecureSkipVerify: f.skip} //nolint:gosec // the user's own choice, as docker's client takes it
	if f.dir == "" {
		return c, nil
	}
	read := func(name string) ([]byte, error) {
		raw, err := readSmall(filepath.Join(f.dir, name), maxDockerFile)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the certificates for the Docker daemon: %w", err)
		}
		return raw, nil
	}
	ca, err := read("ca.pem")
	if err != nil {
		return nil, err
	}
	cert, err := read("cert.pem")
	if err != nil {
		return nil, err
	}
	key, err := read("key.pem")
	if err != nil {
		return nil, err
	}
	if ca != nil {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("reading the certificates for the Docker daemon: no certificate in %q", filepath.Join(f.dir, "ca.pem"))
		}
	}
	if cert != nil && key != nil {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("reading the certificates for the Docker daemon: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// dockerError is an answer of the daemon that is no success.
type dockerError struct {
	code int
	text string
}

func (e *dockerError) Error() string { return e.text }

// unknownToDaemon reports whether the daemon does not know what it was asked about.
func unknownToDaemon(err error) bool {
	var d *dockerError
	return errors.As(err, &d) && d.code == http.StatusNotFound
}

// get asks the daemon for something in JSON.
func (d *dockerDaemon) get(ctx context.Context, where string, v any) error {
	raw, err := d.do(ctx, http.MethodGet, where, "", nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}

// post sends something in JSON, and reads the answer into v unless that is nil.
func (d *dockerDaemon) post(ctx context.Context, where string, what, v any) error {
	body, err := json.Marshal(what)
	if err != nil {
		return err
	}
	raw, err := d.do(ctx, http.MethodPost, where, "application/json", body)
	if err != nil || v == nil {
		return err
	}
	return json.Unmarshal(raw, v)
}

// do calls the daemon and returns the body of its answer.
func (d *dockerDaemon) do(ctx context.Context, method, where, form string, body []byte) ([]byte, error) {
	fail := func(err error) ([]byte, error) {
		path, _, _ := strings.Cut(where, "?")
		return nil, fmt.Errorf("asking the Docker daemon: %s %s: %w", method, path, err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://docker"+where, bytes.NewReader(body))
	if err != nil {
		return fail(err)
	}
	if form != "" {
		req.Header.Set("Content-Type", form)
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return fail(lastCause(err))
	}
	defer resp.Body.Close()
	raw, err := readAtMost(resp.Body, attest.MaxManifest)
	if err != nil {
		return fail(err)
	}
	if resp.StatusCode/100 != 2 {
		var said struct{ Message string }
		if json.Unmarshal(raw, &said) != nil || said.Message == "" {
			said.Message = resp.Status
		}
		return fail(&dockerError{resp.StatusCode, strconv.Quote(clipLine(said.Message))})
	}
	return raw, nil
}

// load gives the daemon an archive of images. What goes wrong with it comes in the
// answer, line by line.
func (d *dockerDaemon) load(ctx context.Context, in io.Reader) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://docker/images/load?quiet=1", in)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-tar")
	resp, err := d.client.Do(req)
	if err != nil {
		return lastCause(err)
	}
	defer resp.Body.Close()
	var failed string
	for answer := json.NewDecoder(resp.Body); ; {
		var line struct{ Error, Message string }
		if err := answer.Decode(&line); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("reading the daemon's answer: %w", err)
		}
		failed = cmp.Or(failed, line.Error, line.Message)
	}
	if resp.StatusCode != http.StatusOK || failed != "" {
		return errors.New(clipLine(cmp.Or(failed, resp.Status)))
	}
	return nil
}

func (d *dockerDaemon) close() { d.client.CloseIdleConnections() }
