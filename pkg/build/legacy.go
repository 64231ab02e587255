package build

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/identity"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Bounds of what is kept of builds by the daemon's legacy builder.
const (
	maxLegacyBuilds = 1024
	maxLegacyPushes = 4096
	maxLegacyLine   = 1 << 20 // bytes of one message of the daemon
	maxLegacySteps  = 4096
	maxLegacyLinks  = 1 << 20 // symbolic links in a context
	maxAhead        = 4 << 20 // bytes of a context in which its Dockerfile is looked for before it is sent
)

// legacyProxy stands before the Docker daemon where there is no buildx, and
// before that of a confined command: it
// passes on what docker asks, and of what a confined command asks that which
// starts no container of its own and shows nothing of the machine, and notes what its legacy builder is asked and what it
// answers. Where the daemon allows it, it has the steps run where the gateway
// is the only way out.
type legacyProxy struct {
	daemon   *dockerDaemon
	server   *http.Server
	gateway  *legacyGateway
	confined bool         // who asks is in the sandbox
	redirect func() error // is told that a confined command has made a builder

	mu      sync.Mutex
	builds  []*legacyBuild
	pushed  []legacyPush
	blind   int      // builds by the daemon's own BuildKit
	did     []string // what else a confined command had the daemon do
	refused []string // and what it may not have
}

// legacyPush is a manifest that the daemon put into a registry.
type legacyPush struct {
	name   string // full
	digest attest.Digest
}

// legacyBuild is one build by the legacy builder.
type legacyBuild struct {
	id       string
	query    url.Values // as the client asked
	started  time.Time
	finished time.Time

	network   *legacyNetwork // that its steps run in; nil where unwatched says why
	unwatched string

	context    hash.Hash // of the archive as it was sent
	size       int64
	dockerfile []byte // nil where it is not known
	total      string // how many steps there are, in the builder's words
	steps      []legacyStep
	confused   bool // which step something was said of is not known
	froms      []legacyFrom
	image      string // "" where the build failed
}

// legacyStep is a step as it was announced.
type legacyStep struct {
	text   string
	ran    bool // a container was made for it
	cached bool // its result was there
}

// legacyFrom is a base image as the builder named and found it.
type legacyFrom struct{ step, id string }

// newLegacyProxy serves the daemon's API on a socket in dir, the run's own
// folder, and returns what DOCKER_HOST must be.
func newLegacyProxy(dir string, daemon *dockerDaemon, plan InputsPlan, confined bool) (*legacyProxy, string, error) {
	name := filepath.Join(dir, "d")
	l, err := net.Listen("unix", name)
	if err != nil {
		return nil, "", fmt.Errorf("opening a socket before the Docker daemon: %w", err)
	}
	p := &legacyProxy{daemon: daemon, gateway: newLegacyGateway(daemon, dir, plan), confined: confined}
	forward := &httputil.ReverseProxy{
		Transport:      daemon.transport(),
		FlushInterval:  -1,
		ModifyResponse: p.answered,
		ErrorHandler:   p.unanswered,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", "docker", "docker"
		},
	}
	p.server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.confined && isBuilder(r) && p.redirect() == nil {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"message":"waxseal run: no such container: this builder leads to waxseal's engine from now on"}`+"\n")
			return
		}
		if p.confined && !p.admit(r) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"message":"waxseal run: a confined command may have the daemon build, and store images: nobody would watch the rest. Make a builder without --bootstrap, and run containers outside of waxseal run"}`+"\n")
			return
		}
		// Else the server takes the rest of a request away as soon as an answer
		// begins, and what is being passed on breaks off.
		_ = http.NewResponseController(w).EnableFullDuplex()
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
	p.gateway.close()
	p.daemon.close()
}

type legacyKey struct{}

// isBuilder reports whether buildx looks for the container of a builder that it
// has just written down.
func isBuilder(r *http.Request) bool {
	return r.Method == http.MethodGet && regexp.MustCompile(`^/containers/buildx_buildkit_[\w.-]+/json$`).MatchString(apiPath(r))
}

// maxDaemonCalls is how many kinds of calls are told of.
const maxDaemonCalls = 8

// admit reports whether a confined command may ask that of the daemon, which is
// root of the machine, and notes what no record of a build will hold.
func (p *legacyProxy) admit(r *http.Request) bool {
	kind := daemonCall(r)
	note := &p.did
	switch kind {
	case "look", "build":
		return true
	case "":
		kind, note = r.Method+" "+clipLine(apiPath(r)), &p.refused
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Contains(*note, kind) && len(*note) < maxDaemonCalls {
		*note = append(*note, kind)
	}
	return note != &p.refused
}

// daemonCall says what a call of the daemon's API does: it answers ("look"),
// builds, or moves images about, in docker's word for it. "" is all that could
// run something, show the machine's files, or change what is others'.
func daemonCall(r *http.Request) string {
	at := apiPath(r)
	image, isImage := strings.CutPrefix(at, "/images/")
	get, post := r.Method == http.MethodGet || r.Method == http.MethodHead, r.Method == http.MethodPost
	switch {
	case path.Clean(r.URL.Path) != r.URL.Path, hasForm(r): // the daemon would read something else
	case get && (at == "/_ping" || at == "/version" || at == "/info"),
		get && isImage && (path.Base(image) == "json" || path.Base(image) == "history"):
		return "look"
	case get && isImage && path.Base(image) == "get":
		return "save"
	case !post:
	case at == "/build" && r.URL.Query().Get("version") != "2":
		return "build"
	case at == "/auth":
		return "login"
	case at == "/images/create" && r.URL.Query().Get("fromSrc") == "":
		return "pull"
	case at == "/images/load":
		return "load"
	case isImage && strings.HasSuffix(image, "/push"):
		return "push"
	case isImage && strings.HasSuffix(image, "/tag"):
		return "tag"
	}
	return ""
}

// hasForm reports whether a call brings parameters in its body, where docker's
// client puts none.
func hasForm(r *http.Request) bool {
	kind := r.Header.Get("Content-Type")
	if kind == "" {
		return false
	}
	kind, _, err := mime.ParseMediaType(kind)
	return err != nil || kind == "application/x-www-form-urlencoded" || strings.HasPrefix(kind, "multipart/")
}

// unseen is what a confined command had the daemon do besides building, in
// words; "" for nothing.
func (p *legacyProxy) unseen() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.did) == 0 {
		return ""
	}
	return "what it had the Docker daemon do: " + strings.Join(p.did, ", ")
}

// apiPath is the path of a call without the API's version.
func apiPath(r *http.Request) string {
	return regexp.MustCompile(`^/v[0-9.]+`).ReplaceAllString(r.URL.Path, "")
}

// call matches the calls that matter: a build, and the push of an image.
func call(r *http.Request) (what, name string) {
	if r.Method != http.MethodPost {
		return "", ""
	}
	rest := apiPath(r)
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

// asked notes a build as it is asked for, and leads its steps.
func (p *legacyProxy) asked(r *http.Request) *http.Request {
	what, _ := call(r)
	if what != "build" {
		return r
	}
	// As docker's client has it. The daemon would take parameters from a form, too,
	// and before those of the query.
	r.Header.Set("Content-Type", "application/x-tar")
	q := r.URL.Query()
	b := &legacyBuild{id: identity.NewID(), query: q, started: time.Now(), context: sha256.New()}
	p.mu.Lock()
	known := q.Get("version") != "2" && len(p.builds) < maxLegacyBuilds
	if known {
		p.builds = append(p.builds, b)
	} else {
		p.blind++
	}
	p.mu.Unlock()
	if !known {
		return r
	}
	r = r.WithContext(context.WithValue(r.Context(), legacyKey{}, b))
	p.lead(r, b)
	r.Body = newContextTee(r.Body, b)
	return r
}

// lead changes the request of a build so that its steps run in a network of
// ours.
func (p *legacyProxy) lead(r *http.Request, b *legacyBuild) {
	q := r.URL.Query()
	mode := q.Get("networkmode")
	if mode != "" && mode != "default" && mode != "none" {
		b.unwatched = fmt.Sprintf("the build asked for the network %q", clipLine(mode))
		return
	}
	hosts, err := parseExtraHosts(q["extrahosts"])
	if err != nil {
		b.unwatched = err.Error()
		return
	}
	ahead := bufio.NewReaderSize(r.Body, maxAhead)
	r.Body = &aheadBody{ahead, r.Body}
	// An error comes again to who reads on.
	head, _ := ahead.Peek(maxAhead)
	dockerfile := b.dockerfileIn(bytes.NewReader(head))
	args := map[string]*string{}
	wrong := false
	if raw := q.Get("buildargs"); raw != "" {
		wrong = json.Unmarshal([]byte(raw), &args) != nil || args == nil // the daemon's to refuse
	}
	free := !wrong && dockerfile != nil && !bytes.Contains(bytes.ToLower(dockerfile), []byte("_proxy"))
	if namesProxy(args) && !(free && p.gateway.proxied()) {
		b.unwatched = "its build arguments name a proxy, which it can reach only without waxseal"
		return
	}
	n, err := p.gateway.open(r.Context(), b.id, hosts, mode == "none")
	if err != nil {
		b.unwatched = err.Error()
		return
	}
	b.network = n
	if free {
		for name, value := range n.env {
			args[name] = &value
		}
		if raw, err := json.Marshal(args); err == nil {
			q.Set("buildargs", string(raw))
		}
	}
	q.Set("networkmode", "container:"+n.container)
	q.Del("extrahosts") // the container that holds the network has them
	r.URL.RawQuery = q.Encode()
}

// aheadBody is a request's body of which the first part has been looked at.
type aheadBody struct {
	io.Reader
	io.Closer
}

// namesProxy reports whether build arguments name a proxy. Docker's client adds
// those of its configuration to every build.
func namesProxy(args map[string]*string) bool {
	for name, value := range args {
		upper := strings.ToUpper(name)
		if strings.HasSuffix(upper, "_PROXY") && upper != "NO_PROXY" && value != nil && *value != "" {
			return true
		}
	}
	return false
}

// parseExtraHosts reads a build's additions to /etc/hosts, "NAME:ADDRESS".
func parseExtraHosts(list []string) (map[string]net.IP, error) {
	hosts := map[string]net.IP{}
	for _, h := range list {
		name, addr, _ := strings.Cut(h, ":")
		ip := net.ParseIP(strings.Trim(addr, "[]"))
		if name == "" || ip == nil {
			return nil, fmt.Errorf("which address the host %q has only docker knows", clipLine(h))
		}
		if hosts[name] != nil {
			return nil, fmt.Errorf("the host %q has two addresses", clipLine(name))
		}
		hosts[name] = ip
	}
	return hosts, nil
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
		b.dockerfile = b.dockerfileIn(r)
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

// dockerfileIn finds the Dockerfile in an archive: the one plain file of that
// name. It returns nil where the daemon may have built another, which unpacks
// all of the archive and reads what is there then: where there are two, or links
// on the way to one, where the archive is compressed or is not what is built.
func (b *legacyBuild) dockerfileIn(r io.Reader) []byte {
	name := path.Clean("/" + cmp.Or(b.query.Get("dockerfile"), "Dockerfile"))
	in := bufio.NewReader(r)
	head, _ := in.Peek(8)
	if zstdSkips := bytes.Contains(head, []byte("\x2a\x4d\x18")); b.query.Get("remote") != "" || compressionOf(head) != "" || zstdSkips {
		return nil
	}
	var found []byte
	links := map[string]bool{}
	for tr := tar.NewReader(in); ; {
		h, err := tr.Next()
		if err != nil {
			return found
		}
		at := path.Clean("/" + h.Name)
		for dir := at; dir != "/"; {
			if dir = path.Dir(dir); links[dir] {
				return nil
			}
		}
		if h.Typeflag == tar.TypeSymlink {
			links[at] = true
		}
		if len(links) > maxLegacyLinks || at == name && (found != nil || h.Typeflag != tar.TypeReg) {
			return nil
		}
		if at != name {
			continue
		}
		if found, err = readAtMost(tr, maxDockerfile); err != nil {
			return nil
		}
	}
}

// answered reads along what the daemon says.
func (p *legacyProxy) answered(resp *http.Response) error {
	what, name := call(resp.Request)
	b, ok := resp.Request.Context().Value(legacyKey{}).(*legacyBuild)
	switch {
	case ok && resp.StatusCode != http.StatusOK:
		p.ended(b)
	case ok:
		resp.Body = newLineTee(resp.Body, func(line []byte) { p.said(b, line) }, func() { p.ended(b) })
	case what == "push" && resp.StatusCode == http.StatusOK:
		tag := resp.Request.URL.Query().Get("tag")
		resp.Body = newLineTee(resp.Body, func(line []byte) { p.pushedTo(name, tag, line) }, func() {})
	}
	return nil
}

// unanswered says why the daemon did not answer.
func (p *legacyProxy) unanswered(w http.ResponseWriter, r *http.Request, err error) {
	if b, ok := r.Context().Value(legacyKey{}).(*legacyBuild); ok {
		p.ended(b)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadGateway)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": fmt.Sprintf("waxseal run: asking the Docker daemon: %v", err)})
}

// ended notes that a build is over: its containers are gone.
func (p *legacyProxy) ended(b *legacyBuild) {
	p.mu.Lock()
	b.finished = time.Now()
	p.mu.Unlock()
	if b.network != nil {
		p.gateway.end(b.id)
	}
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
	if step, ok := b.announced(m.Stream); ok && b.network != nil {
		p.gateway.step(b.id, step)
	}
	id, ok := strings.CutPrefix(m.Stream, " ---> ")
	if !ok || len(b.steps) == 0 {
		return
	}
	last := &b.steps[len(b.steps)-1]
	switch id = strings.TrimSpace(id); {
	case id == "Using cache":
		// What a step writes itself comes after its container is made.
		last.cached = last.cached || !last.ran || last.is("FROM")
	case strings.HasPrefix(id, "Running in "):
		last.ran = true
	case isHex(id) && last.is("FROM") && !slices.ContainsFunc(b.froms, func(f legacyFrom) bool { return f.step == last.text }):
		b.froms = append(b.froms, legacyFrom{last.text, id})
	}
}

// announced takes in the line by which the builder begins a step. A step can
// write such a line itself: then the builder's own comes twice, that of the last
// step at the latest.
func (b *legacyBuild) announced(line string) (string, bool) {
	m := announcement().FindStringSubmatch(line)
	if m == nil {
		return "", false
	}
	if b.total == "" {
		b.total = m[2]
	}
	number, err := strconv.Atoi(m[1])
	total, _ := strconv.Atoi(m[2]) // of five digits at most
	switch {
	case err != nil || m[2] != b.total || number > total:
		return "", false
	case number == len(b.steps) && number > 0, number > maxLegacySteps:
		b.confused = true
		return "", false
	case number != len(b.steps)+1:
		return "", false
	}
	b.steps = append(b.steps, legacyStep{text: strings.TrimSpace(m[3])})
	return clipLine(b.steps[len(b.steps)-1].text), true
}

func announcement() *regexp.Regexp {
	return regexp.MustCompile(`(?s)^Step ([0-9]{1,5})/([0-9]{1,5}) : (.+)$`)
}

// is reports whether a step is of an instruction.
func (st *legacyStep) is(verb string) bool {
	first, _, _ := strings.Cut(st.text, " ")
	return strings.EqualFold(first, verb)
}

// pushedTo takes in one message of a push.
func (p *legacyProxy) pushedTo(name, tag string, line []byte) {
	var m struct {
		Status string
		Aux    struct {
			Tag    string `json:"Tag"`    //nolint:tagliatelle // Docker's own
			Digest string `json:"Digest"` //nolint:tagliatelle // Docker's own
		} `json:"aux"`
	}
	if json.Unmarshal(line, &m) != nil {
		return
	}
	// All that a daemon with the store of containerd says.
	if said := regexp.MustCompile(`^(\S+): digest: (\S+) size: [0-9]+$`).FindStringSubmatch(m.Status); said != nil {
		m.Aux.Tag, m.Aux.Digest = said[1], said[2]
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
	if push := (legacyPush{fullName(name + ":" + tag), d}); len(p.pushed) < maxLegacyPushes && !slices.Contains(p.pushed, push) {
		p.pushed = append(p.pushed, push)
	}
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
	if len(p.refused) > 0 {
		notes = append(notes, "a confined command may have the Docker daemon build, and store images, and was refused: "+strings.Join(p.refused, ", "))
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
