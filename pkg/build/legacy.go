package build

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/docker/cli/cli/config"
	"github.com/moby/buildkit/identity"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Bounds of what is kept of builds by the daemon's legacy builder.
const (
	maxLegacyBuilds = 1024
	maxLegacyLine   = 1 << 20 // bytes of one message of the daemon
	maxLegacySteps  = 4096
)

// legacyProxy stands before the Docker daemon where there is no buildx: it
// passes everything on, and notes what its legacy builder is asked and what it
// answers. What the builder's steps do it cannot see.
type legacyProxy struct {
	daemon string // the daemon's socket
	server *http.Server
	local  *http.Client // to the daemon

	mu     sync.Mutex
	builds []*legacyBuild
	pushed map[string]attest.Digest // by full name
	blind  int                      // builds by the daemon's own BuildKit
}

// legacyBuild is one build by the legacy builder.
type legacyBuild struct {
	id       string
	query    url.Values
	started  time.Time
	finished time.Time

	context    hash.Hash // of the archive as it was sent
	size       int64
	dockerfile []byte // nil where it was not found in the archive
	steps      []string
	froms      []legacyFrom
	image      string // "" where the build failed
}

// legacyFrom is a base image as the builder named and found it.
type legacyFrom struct{ step, id string }

// legacyDaemon is the socket of the Docker daemon that a command with this
// environment reaches; false where that is no socket of this machine.
func legacyDaemon(env func(string) string) (string, bool) {
	if host := env("DOCKER_HOST"); host != "" {
		return strings.CutPrefix(host, "unix://")
	}
	if c := env("DOCKER_CONTEXT"); c != "" && c != "default" {
		return "", false
	}
	folder := env("DOCKER_CONFIG")
	if folder == "" {
		folder = config.Dir()
	}
	if c, err := config.Load(folder); err != nil || c.CurrentContext != "" && c.CurrentContext != "default" {
		return "", false
	}
	return "/var/run/docker.sock", true
}

// newLegacyProxy serves the daemon's API on a socket in dir and returns what
// DOCKER_HOST must be.
func newLegacyProxy(dir, daemon string) (*legacyProxy, string, error) {
	name := filepath.Join(dir, "d")
	l, err := net.Listen("unix", name)
	if err != nil {
		return nil, "", fmt.Errorf("opening a socket before the Docker daemon: %w", err)
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", daemon)
	}
	p := &legacyProxy{daemon: daemon, pushed: map[string]attest.Digest{}, local: &http.Client{Transport: &http.Transport{DialContext: dial}}}
	forward := &httputil.ReverseProxy{
		Transport:      &http.Transport{DialContext: dial, DisableCompression: true},
		FlushInterval:  -1,
		ModifyResponse: p.answered,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", "docker", "docker"
		},
	}
	p.server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		forward.ServeHTTP(w, p.asked(r))
	})}
	go func() { _ = p.server.Serve(l) }()
	return p, "unix://" + name, nil
}

func (p *legacyProxy) built() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.builds) > 0 || p.blind > 0
}

func (p *legacyProxy) close() {
	_ = p.server.Close()
	p.local.CloseIdleConnections()
}

type legacyKey struct{}

// call matches the calls that matter: a build, and the push of an image.
func call(r *http.Request) (what, name string) {
	if r.Method != http.MethodPost {
		return "", ""
	}
	rest := regexp.MustCompile(`^/v[0-9.]+`).ReplaceAllString(r.URL.Path, "")
	if rest == "/build" {
		return "build", ""
	}
	if name, ok := strings.CutPrefix(rest, "/images/"); ok {
		if name, ok := strings.CutSuffix(name, "/push"); ok {
			return "push", name
		}
	}
	return "", ""
}

// asked notes a build as it is asked for.
func (p *legacyProxy) asked(r *http.Request) *http.Request {
	what, _ := call(r)
	if what != "build" {
		return r
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	q := r.URL.Query()
	if q.Get("version") == "2" || len(p.builds) >= maxLegacyBuilds {
		p.blind++
		return r
	}
	b := &legacyBuild{id: identity.NewID(), query: q, started: time.Now(), context: sha256.New()}
	p.builds = append(p.builds, b)
	r = r.WithContext(context.WithValue(r.Context(), legacyKey{}, b))
	r.Body = newContextTee(r.Body, b)
	return r
}

// contextTee hashes the context as it passes, and picks the Dockerfile out of
// it.
type contextTee struct {
	io.ReadCloser
	build *legacyBuild
	pipe  *io.PipeWriter
	done  chan struct{}
}

func newContextTee(body io.ReadCloser, b *legacyBuild) *contextTee {
	r, w := io.Pipe()
	t := &contextTee{ReadCloser: body, build: b, pipe: w, done: make(chan struct{})}
	go func() {
		defer close(t.done)
		b.dockerfile = dockerfileIn(r, b.query.Get("dockerfile"))
		_, _ = io.Copy(io.Discard, r)
	}()
	return t
}

func (t *contextTee) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	t.build.context.Write(p[:n])
	t.build.size += int64(n)
	_, _ = t.pipe.Write(p[:n])
	if err != nil {
		t.end()
	}
	return n, err
}

func (t *contextTee) Close() error {
	t.end()
	return t.ReadCloser.Close()
}

func (t *contextTee) end() {
	_ = t.pipe.Close()
	<-t.done
}

// dockerfileIn finds the Dockerfile in an archive that is not compressed; nil
// where there is none.
func dockerfileIn(r io.Reader, name string) []byte {
	if name == "" {
		name = "Dockerfile"
	}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err != nil {
			return nil
		}
		if path.Clean("/"+h.Name) != path.Clean("/"+name) {
			continue
		}
		raw, err := readAtMost(tr, maxDockerfile)
		if err != nil {
			return nil
		}
		return raw
	}
}

// answered reads along what the daemon says.
func (p *legacyProxy) answered(resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return nil
	}
	switch what, name := call(resp.Request); what {
	case "build":
		if b, ok := resp.Request.Context().Value(legacyKey{}).(*legacyBuild); ok {
			resp.Body = newLineTee(resp.Body, func(line []byte) { p.said(b, line) }, func() {
				p.mu.Lock()
				defer p.mu.Unlock()
				b.finished = time.Now()
			})
		}
	case "push":
		tag := resp.Request.URL.Query().Get("tag")
		resp.Body = newLineTee(resp.Body, func(line []byte) { p.pushedTo(name, tag, line) }, func() {})
	}
	return nil
}

// said takes in one message of a build.
func (p *legacyProxy) said(b *legacyBuild, line []byte) {
	var m struct {
		Stream string `json:"stream"`
		Aux    struct {
			ID string `json:"ID"` //nolint:tagliatelle // Docker's own
		} `json:"aux"`
	}
	if json.Unmarshal(line, &m) != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if d, err := attest.ParseDigest(m.Aux.ID); err == nil {
		b.image = string(d)
	} else if d, err := attest.ParseDigest(strings.TrimSpace(m.Stream)); err == nil && b.query.Get("q") != "" {
		b.image = string(d) // all that a quiet build says
	}
	if _, step, ok := strings.Cut(m.Stream, " : "); ok && strings.HasPrefix(m.Stream, "Step ") && len(b.steps) < maxLegacySteps {
		b.steps = append(b.steps, strings.TrimSpace(step))
	}
	if id, ok := strings.CutPrefix(m.Stream, " ---> "); ok && len(b.steps) > 0 {
		last := b.steps[len(b.steps)-1]
		id = strings.TrimSpace(id)
		isFrom := strings.HasPrefix(strings.ToUpper(last), "FROM ")
		if isHex(id) && isFrom && !slices.ContainsFunc(b.froms, func(f legacyFrom) bool { return f.step == last }) {
			b.froms = append(b.froms, legacyFrom{last, id})
		}
	}
}

// pushedTo takes in one message of a push.
func (p *legacyProxy) pushedTo(name, tag string, line []byte) {
	var m struct {
		Aux struct {
			Tag    string `json:"Tag"`    //nolint:tagliatelle // Docker's own
			Digest string `json:"Digest"` //nolint:tagliatelle // Docker's own
		} `json:"aux"`
	}
	if json.Unmarshal(line, &m) != nil {
		return
	}
	d, err := attest.ParseDigest(m.Aux.Digest)
	if err != nil {
		return
	}
	if tag == "" {
		tag = m.Aux.Tag
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pushed[fullName(name+":"+tag)] = d
}

// lineTee gives every line that passes to each, and calls end once.
type lineTee struct {
	io.ReadCloser
	buf  bytes.Buffer
	each func([]byte)
	end  func()
	once sync.Once
}

func newLineTee(r io.ReadCloser, each func([]byte), end func()) *lineTee {
	return &lineTee{ReadCloser: r, each: each, end: end}
}

func (t *lineTee) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	t.buf.Write(p[:n])
	for {
		line, rest, ok := bytes.Cut(t.buf.Bytes(), []byte("\n"))
		if !ok {
			break
		}
		t.each(bytes.TrimSpace(line))
		t.buf = *bytes.NewBuffer(slices.Clone(rest))
	}
	if t.buf.Len() > maxLegacyLine {
		t.buf.Reset() // no message is as long; what it was is not known
	}
	if err != nil {
		t.once.Do(t.end)
	}
	return n, err
}

func (t *lineTee) Close() error {
	t.once.Do(t.end)
	return t.ReadCloser.Close()
}

// inspected is what the daemon knows of an image.
type inspected struct {
	ID          string   `json:"Id"`          //nolint:tagliatelle // Docker's own
	RepoTags    []string `json:"RepoTags"`    //nolint:tagliatelle // Docker's own
	RepoDigests []string `json:"RepoDigests"` //nolint:tagliatelle // Docker's own
}

// get asks the daemon itself.
func (p *legacyProxy) get(ctx context.Context, where string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+where, nil)
	if err != nil {
		return err
	}
	resp, err := p.local.Do(req)
	if err != nil {
		return fmt.Errorf("asking the Docker daemon: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("asking the Docker daemon for %s: %s", where, resp.Status)
	}
	raw, err := readAtMost(bufio.NewReader(resp.Body), attest.MaxManifest)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}

// list returns the builds that gave an image, and says of the others.
func (p *legacyProxy) list() (builds []*legacyBuild, notes []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.builds {
		switch {
		case b.finished.IsZero():
			notes = append(notes, "a build by docker's legacy builder had not ended when the command did, and is not sealed")
		case b.image == "":
			notes = append(notes, "a build by docker's legacy builder gave no image")
		default:
			builds = append(builds, b)
		}
	}
	if p.blind > 0 {
		notes = append(notes, count(p.blind, "build")+" by the daemon's own BuildKit, of which nothing was seen, and nothing is sealed")
	}
	return builds, notes
}

// digest is that of the context as it was sent.
func (b *legacyBuild) digest() attest.Digest {
	return attest.Digest("sha256:" + hex.EncodeToString(b.context.Sum(nil)))
}

var errNoLegacyImage = errors.New("the daemon's image has no manifest")
