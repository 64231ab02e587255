package egress

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

// record is what a step's evidence is made of. Safe for concurrent use.
type record struct {
	scrub    func(string) string // takes secrets out of what the step said
	unopened string              // why TLS is not opened

	mu         sync.Mutex
	requests   []attestations.InputRequest
	ordinal    int
	refusals   map[refusal]int
	more       map[string]int // by kind: refusals beyond the bound
	gaps       []attestations.InputGap
	passed     map[string]passage // by "host:port"
	violations []Violation
	unsettled  map[string]Violation // by exchange: taken back when it succeeds after all
	order      []string             // of unsettled
}

// refusal is one thing denied; equal ones are counted.
type refusal struct {
	kind, dest, reason, technique string
}

func newRecord(scrub func(string) string) *record {
	return &record{scrub: scrub, refusals: map[refusal]int{}, more: map[string]int{}, passed: map[string]passage{}, unsettled: map[string]Violation{}}
}

// next returns the ordinal of a request that begins.
func (r *record) next() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ordinal++
	return r.ordinal
}

// add takes in a finished exchange and counts its bytes as they will stand in
// the statement. What is under way when the record is full still gets in.
func (s *Step) add(req attestations.InputRequest) {
	if raw, err := json.Marshal(req); err == nil {
		s.g.recorded.Add(int64(len(raw)))
	}
	s.rec.add(req)
}

// add takes in a finished exchange.
func (r *record) add(req attestations.InputRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, req)
}

// text is one as it is written down. It is clipped when the secrets are out of
// it: half of one would not be found.
func (r *record) text(s string) string { return printable(clip(r.scrub(s))) }

// refuse counts a refusal.
func (r *record) refuse(x refusal) {
	x.dest, x.reason = r.text(x.dest), r.text(x.reason)
	r.mu.Lock()
	defer r.mu.Unlock()
	// Room is left for one entry of each kind that stands for the rest.
	if _, ok := r.refusals[x]; !ok && len(r.refusals) >= attest.MaxRefusals-16 {
		r.more[x.kind]++
		return
	}
	r.refusals[x]++
}

// gap notes what the record does not hold, once for each text.
func (r *record) gap(kind, format string, args ...any) {
	g := attestations.InputGap{Kind: kind, Detail: r.scrub(fmt.Sprintf(format, args...))}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.gaps, g) && len(r.gaps) < 256 {
		r.gaps = append(r.gaps, g)
	}
}

// pass counts a connection that was not opened.
func (r *record) pass(dest string, p passage) {
	dest = r.scrub(dest)
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.passed[dest]; !ok && len(r.passed) >= maxPassed {
		dest = "further places"
	}
	all := r.passed[dest]
	all.conns += p.conns
	all.toStep += p.toStep
	all.toAll += p.toAll
	r.passed[dest] = all
}

// maxPassed is how many places the record names to which TLS was not opened.
const maxPassed = 256

// passages are the gaps that such connections leave.
func (r *record) passages() []attestations.InputGap {
	var out []attestations.InputGap
	for _, dest := range slices.Sorted(maps.Keys(r.passed)) {
		p := r.passed[dest]
		out = append(out, attestations.InputGap{Kind: attestations.GapTLS, Detail: fmt.Sprintf(
			"TLS to %s was not opened: %s; connections: %d, bytes in: %d, bytes out: %d", dest, r.unopened, p.conns, p.toStep, p.toAll)})
	}
	return out
}

// violate notes what must fail the build.
func (r *record) violate(v Violation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.violations) < 256 && !slices.Contains(r.violations, v) {
		r.violations = append(r.violations, v)
	}
}

// unsettle notes what must fail the build unless the same exchange succeeds
// later: clients try again.
func (r *record) unsettle(key string, v Violation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.unsettled[key]; !ok && len(r.order) < 256 {
		r.order = append(r.order, key)
		r.unsettled[key] = v
	}
}

func (r *record) settle(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.unsettled[key]; ok {
		delete(r.unsettled, key)
		r.order = slices.DeleteFunc(r.order, func(k string) bool { return k == key })
	}
}

func (r *record) allViolations() []Violation {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := slices.Clone(r.violations)
	for _, k := range r.order {
		out = append(out, r.unsettled[k])
	}
	return out
}

// fill puts the record into st.
func (r *record) fill(st *attestations.InputStep) {
	r.mu.Lock()
	defer r.mu.Unlock()
	st.Requests = slices.Clone(r.requests)
	slices.SortFunc(st.Requests, func(a, b attestations.InputRequest) int { return a.Ordinal - b.Ordinal })
	for i := range st.Requests {
		st.Requests[i].Ordinal = i + 1 // what was refused after it had begun leaves no hole
	}
	st.Gaps = append(slices.Clone(r.gaps), r.passages()...)
	knocks := map[string]map[string]bool{}
	for x := range r.refusals {
		if x.kind == "tcp" || x.kind == "udp" {
			host, port := cutPort(x.dest)
			if knocks[host] == nil {
				knocks[host] = map[string]bool{}
			}
			knocks[host][port] = true
		}
	}
	for x, n := range r.refusals {
		if host, _ := cutPort(x.dest); x.technique == "" && (x.kind == "tcp" || x.kind == "udp") && len(knocks[host]) >= knockPorts {
			x.technique = "T1205" // a sequence of ports says something to who listens
		}
		st.Refusals = append(st.Refusals, attestations.InputRefusal{Kind: x.kind, Destination: x.dest, Reason: x.reason, Technique: x.technique, Count: n})
	}
	for kind, n := range r.more {
		st.Refusals = append(st.Refusals, attestations.InputRefusal{Kind: kind, Destination: "(more)", Reason: "further destinations than the record lists", Count: n})
	}
	slices.SortFunc(st.Refusals, func(a, b attestations.InputRefusal) int {
		if c := strings.Compare(a.Kind, b.Kind); c != 0 {
			return c
		}
		if c := strings.Compare(a.Destination, b.Destination); c != 0 {
			return c
		}
		return strings.Compare(a.Reason+a.Technique, b.Reason+b.Technique)
	})
}

// knockPorts is how many different ports of one destination are port knocking.
const knockPorts = 4

// cutPort takes "host:port" apart at the last colon.
func cutPort(dest string) (host, port string) {
	if i := strings.LastIndexByte(dest, ':'); i >= 0 {
		return dest[:i], dest[i+1:]
	}
	return dest, ""
}

// printable keeps a step from writing control characters into the record.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			return '?'
		}
		return r
	}, s)
}

const (
	maxHeaderValue = 4 << 10  // bytes of one recorded header value
	maxHeaderSum   = 16 << 10 // bytes of all of one response
)

// replayHeader reports whether a response header is passed on and recorded. A
// step sees no other header, so that everything it sees can be replayed.
func replayHeader(name string) bool {
	switch name {
	case "content-type", "content-encoding", "content-range", "content-disposition", "content-language", "content-location", "content-md5",
		"accept-ranges", "location", "etag", "last-modified", "cache-control", "expires", "age", "vary", "link", "retry-after", "allow",
		"www-authenticate", "digest", "repr-digest", "content-digest", "want-digest", "refresh",
		"git-protocol", "x-pypi-last-serial", "x-goog-hash", "x-goog-stored-content-length", "x-goog-stored-content-encoding",
		"x-error-code", "x-error-message", "x-served-by-mirror", "x-amz-version-id", "x-ms-blob-type", "x-ms-version",
		"x-total-count", "x-next-page", "x-page", "x-per-page", "x-total", "x-total-pages", "npm-notice",
		"x-xet-hash", "x-xet-cas-url", "x-xet-refresh-route", "x-xet-access-token", "x-xet-token-expiration",
		"grpc-encoding", "grpc-accept-encoding", "grpc-status", "grpc-message", "grpc-status-details-bin":
		return true
	case "x-amz-meta-mtime":
		return true
	}
	for _, p := range []string{"x-checksum-", "docker-", "x-repo-", "x-linked-", "x-terraform-", "x-oss-meta-", "x-artifactory-filename"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// keepHeaders returns the headers of a response that reach the step, by
// lower-case name, and what of them differs when written down.
func (s *Step) keepHeaders(h http.Header) (pass, written map[string]string) {
	pass, written = map[string]string{}, map[string]string{}
	sum := 0
	for name, values := range h {
		low := strings.ToLower(name)
		if !replayHeader(low) || low == "age" {
			continue
		}
		v := strings.Join(values, ", ")
		if len(v) > maxHeaderValue || sum+len(v) > maxHeaderSum || !plainHeader(v) {
			s.rec.gap("overflow", "a response header %q was too large or malformed and was left out", low)
			continue
		}
		sum += len(v)
		pass[low] = v
		switch w := v; low {
		case "location", "content-location":
			written[low] = s.redact(w)
		case "refresh", "link", "x-terraform-get", "x-xet-cas-url", "x-xet-refresh-route":
			written[low] = s.needles.scrub(uriWord.ReplaceAllStringFunc(w, s.redact))
		case "x-xet-access-token": // a credential as a whole, which its answers do not depend on
			written[low] = s.g.redactor.Mark(w)
		default:
			written[low] = s.needles.scrub(w)
		}
	}
	return pass, written
}

// uriWord is a URL in a header that has more than one, or other words as well.
var uriWord = regexp.MustCompile(`[^\s<>"]*[/?][^\s<>"]*`)

func plainHeader(v string) bool {
	for i := range len(v) {
		if v[i] < ' ' && v[i] != '\t' || v[i] == 0x7f {
			return false
		}
	}
	return true
}

// redact is lock.Redactor.URI with the step's secrets.
func (s *Step) redact(uri string) string { return s.g.redactor.URI(uri, s.needles.values...) }

// describeEntries says in words what a lock has for a URI.
func describeEntries(es []lock.Entry) string {
	var out []string
	for i, e := range es {
		if i == 5 {
			out = append(out, fmt.Sprintf("and %d more", len(es)-i))
			break
		}
		what := e.Method
		if e.Range != "" {
			what += " (" + e.Range + ")"
		}
		if e.RequestDigest != "" {
			what += " with body " + e.RequestDigest.String()
		}
		out = append(out, fmt.Sprintf("%s -> %d %s", what, e.Status, e.Digest))
	}
	return strings.Join(out, "; ")
}
