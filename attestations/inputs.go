package attestations

import (
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// InputsV1 is the predicate type of the record of everything that reached a
// build from outside; inputs/v1/spec.md says what its fields mean.
const InputsV1 = "https://waxseal.dev/attestations/inputs/v1"

// ByproductInputs names the entry of a provenance's byproducts that binds the
// inputs record: the digest of the InputsV1 predicate's statement.
const ByproductInputs = "inputs"

// The modes of a build's inputs.
const (
	InputsRecord  = "record"  // everything goes through and is written down
	InputsLocked  = "locked"  // only what the lock lists, with its digest
	InputsOffline = "offline" // the same, and nothing is fetched: all from the store
	InputsNone    = "none"    // no network at all
)

// The verdicts on a step's inputs, best first. An image has that of its worst
// step; a reused step counts as what it was when it ran.
const (
	VerdictIsolated   = "isolated"   // nothing could reach the step and nothing did
	VerdictRecorded   = "recorded"   // every byte that reached it is in the record
	VerdictGaps       = "gaps"       // recorded, but for what Gaps lists
	VerdictUnobserved = "unobserved" // nobody watched
)

// Inputs is the predicate InputsV1: what reached one image from outside, step
// by step. It is made of what the gateway saw, never of what somebody claims.
type Inputs struct {
	Mode       string          `json:"mode"`
	Verdict    string          `json:"verdict"`        // the worst step's
	Hermetic   bool            `json:"hermetic"`       // isolated or recorded, and held to a lock, or to no network and to images by digest
	Lock       string          `json:"lock,omitempty"` // "sha256:…" of the lock that was enforced; absent in mode record
	AllowHosts []string        `json:"allowHosts,omitempty"`
	Sources    []InputSource   `json:"sources"`
	Steps      []InputStep     `json:"steps"`
	Gaps       []InputGap      `json:"gaps,omitempty"` // of the build as a whole
	Gateway    InputGateway    `json:"gateway"`
	Engine     ContainerEngine `json:"engine"`
}

// InputSource is an input that the engine fetched itself: a base image, a git
// commit, a remote file, the build context.
type InputSource struct {
	Kind     string `json:"kind"` // "image", "git", "http", "context", "named-context", "dockerfile"
	URI      string `json:"uri"`  // credentials removed
	Platform string `json:"platform,omitempty"`
	Digest   string `json:"digest"`           // "sha256:…", for git "gitCommit:…"
	Tree     string `json:"tree,omitempty"`   // for git: "sha256:…" of the checked-out tree as the store keeps it
	Size     int64  `json:"size,omitempty"`   // bytes, where known
	Ref      string `json:"ref,omitempty"`    // what was asked for, where URI is not it: an image's tag
	Stored   bool   `json:"stored,omitempty"` // the store has all bytes a replay needs
}

// InputStep is the record of one step.
type InputStep struct {
	ID         string         `json:"id"`   // "sha256:…": the step's definition and, through its inputs, all before it
	Name       string         `json:"name"` // "RUN apt-get update", without the counters of the progress
	Stage      string         `json:"stage,omitempty"`
	Platform   string         `json:"platform,omitempty"`
	Verdict    string         `json:"verdict"`
	Reused     bool           `json:"reused,omitempty"` // its result came from the build cache, its record with it
	StartedOn  *time.Time     `json:"startedOn,omitempty"`
	FinishedOn *time.Time     `json:"finishedOn,omitempty"`
	Requests   []InputRequest `json:"requests,omitempty"` // in the order the gateway saw them
	Refusals   []InputRefusal `json:"refusals,omitempty"` // what was tried and denied, counted by destination
	Names      []string       `json:"names,omitempty"`    // host names asked of the step's DNS, sorted
	Gaps       []InputGap     `json:"gaps,omitempty"`
}

// InputRequest is one HTTP exchange of a step. Digests and sizes are of the
// bytes on the wire, before any content decoding.
type InputRequest struct {
	Ordinal       int               `json:"ordinal"` // from 1, in the order in which the step asked
	Method        string            `json:"method"`
	URI           string            `json:"uri"`                     // redacted: see lock.Redactor
	RequestDigest string            `json:"requestDigest,omitempty"` // of a request body that was not empty
	RequestSize   int64             `json:"requestSize,omitempty"`
	Range         string            `json:"range,omitempty"` // the request's Range header
	Status        int               `json:"status"`          // 0 where there was no answer
	Digest        string            `json:"digest"`          // "sha256:…", of the empty body too; "hmac-sha256:…" for a withheld one
	Size          int64             `json:"size"`
	Cut           bool              `json:"cut,omitempty"`        // the body ended early: Digest is of what reached the step
	Withheld      bool              `json:"withheld,omitempty"`   // it held a secret: not stored, and a gap
	Headers       map[string]string `json:"headers,omitempty"`    // of the response, what a replay needs; lower-case names
	FromStore     bool              `json:"fromStore,omitempty"`  // answered without asking upstream
	Unanswered    string            `json:"unanswered,omitempty"` // why no answer came to what was sent: none reached the step
}

// InputRefusal is something a step tried and was denied.
type InputRefusal struct {
	Kind        string `json:"kind"`        // "dns", "tcp", "udp", "icmp", "ip", "tls", "http", "policy", "lock"
	Destination string `json:"destination"` // "name:port" or "address:port", "[name] type" for DNS
	Reason      string `json:"reason"`
	Technique   string `json:"technique,omitempty"` // of MITRE ATT&CK, where one fits: "T1572"
	Count       int    `json:"count"`
}

// The kinds of InputGap.
const (
	GapHostNetwork   = "host-network"   // the step had the machine's network
	GapInsecure      = "insecure"       // the step had the machine's privileges, and could get around the gateway
	GapCacheMount    = "cache-mount"    // what earlier builds left in a cache mount was there
	GapCacheImport   = "cache-import"   // results made elsewhere were used, with all that went into them
	GapWithheld      = "withheld"       // a body held a secret: its bytes are not kept
	GapWatchLoss     = "watch-loss"     // more refused packets than could be counted
	GapOverflow      = "overflow"       // more than a record may hold
	GapNoRecord      = "no-record"      // a step of which there is no record
	GapForeignEngine = "foreign-engine" // another engine's word for what happened
	GapSSH           = "ssh"            // the step could ask an ssh agent, and what it answered is not kept
	GapTLS           = "tls"            // TLS was passed on without being opened: what came in is not known, but from where and how much
	GapSource        = "source"         // an input of the engine's own that is not known by digest
)

// InputGap is something about a step or build that the record does not hold.
type InputGap struct {
	Kind   string `json:"kind"` // GapHostNetwork and so on
	Detail string `json:"detail"`
}

// GatewayName is the Name of our own gateway.
const GatewayName = "waxseal"

// InputGateway says what watched.
type InputGateway struct {
	Name     string    `json:"name"` // GatewayName or "buildkit-proxy", or "" for none
	Version  string    `json:"version,omitempty"`
	CA       string    `json:"ca,omitempty"` // "sha256:…" of the CA certificate of this build, DER
	NotAfter time.Time `json:"caNotAfter,omitzero"`
}

//go:embed inputs/v1/schema.json
var inputsSchema []byte

// InputsSchema returns the JSON Schema of the predicate InputsV1.
func InputsSchema() []byte { return slices.Clone(inputsSchema) }

// verdictRank orders the verdicts, the best first. What is not known ranks
// with the worst.
func verdictRank(verdict string) int {
	switch verdict {
	case VerdictIsolated:
		return 0
	case VerdictRecorded:
		return 1
	case VerdictGaps:
		return 2
	}
	return 3
}

func knownVerdict(verdict string) bool {
	return verdictRank(verdict) < 3 || verdict == VerdictUnobserved
}

// gapVerdict is the best verdict that a gap of a kind leaves.
func gapVerdict(kind string) string {
	switch kind {
	case GapCacheMount, GapInsecure, GapWithheld, GapWatchLoss, GapOverflow, GapSSH, GapTLS, GapSource:
		return VerdictGaps
	}
	return VerdictUnobserved
}

func worse(a, b string) string {
	if verdictRank(b) > verdictRank(a) {
		return b
	}
	return a
}

func withGaps(verdict string, gaps []InputGap) string {
	for _, g := range gaps {
		verdict = worse(verdict, gapVerdict(g.Kind))
	}
	return verdict
}

// StepVerdict is the best verdict that what a step's record holds allows:
// isolated without an exchange, recorded with them, and what its gaps leave.
func StepVerdict(st *InputStep) string {
	verdict := VerdictIsolated
	if len(st.Requests) > 0 {
		verdict = VerdictRecorded
	}
	return withGaps(verdict, st.Gaps)
}

// WorstVerdict is the verdict of an image: that of its worst step, and no
// better than the gaps of the build as a whole leave it. An image without a
// step is isolated.
func WorstVerdict(steps []InputStep, gaps []InputGap) string {
	verdict := withGaps(VerdictIsolated, gaps)
	for i := range steps {
		verdict = worse(verdict, worse(steps[i].Verdict, StepVerdict(&steps[i])))
	}
	if !knownVerdict(verdict) {
		return VerdictUnobserved
	}
	return verdict
}

// Judge computes what Verdict and Hermetic must say. Hermetic is a build whose
// every step was isolated or recorded, without a gap, and was held to a lock
// or to no network at all, with base images by their digests.
func (in *Inputs) Judge() (verdict string, hermetic bool) {
	verdict = WorstVerdict(in.Steps, in.Gaps)
	held := in.Mode == InputsNone && !in.undecided() || (in.Mode == InputsLocked || in.Mode == InputsOffline) && in.Lock != ""
	return verdict, held && verdictRank(verdict) <= verdictRank(VerdictRecorded)
}

// undecided reports whether the engine fetched what nothing had decided on
// before: a file, a repository, an image by its tag.
func (in *Inputs) undecided() bool {
	return slices.ContainsFunc(in.Sources, func(s InputSource) bool {
		return s.Kind == "http" || s.Kind == "git" || s.Kind == "image" && !strings.Contains(s.Ref, "@sha256:")
	})
}

// Count is what the last line of a build says: the exchanges recorded, the gaps
// of the build and its steps, and how often something was tried and refused.
func (in *Inputs) Count() (recorded, gaps, refused int) {
	gaps = len(in.Gaps)
	for i := range in.Steps {
		st := &in.Steps[i]
		recorded += len(st.Requests)
		gaps += len(st.Gaps)
		for _, r := range st.Refusals {
			refused += r.Count
		}
	}
	return recorded, gaps, refused
}

// InputLimits bounds a record that comes from another process. Zero allows
// none of a thing; the limits in force are those of pkg/attest.
type InputLimits struct {
	Requests int // of the build
	Refusals int // different ones of a step
	Names    int // of a step
	Steps    int // and sources, and gaps
	URI      int // bytes of a URI
	Text     int // bytes of any other text
}

// Check refuses a record that is over the limits, has a field whose form is
// not that of spec.md, or says more than what it holds allows.
func (in *Inputs) Check(limits InputLimits) error {
	if err := in.check(limits); err != nil {
		return fmt.Errorf("checking the record of inputs: %w", err)
	}
	return nil
}

func (in *Inputs) check(limits InputLimits) error {
	if !slices.Contains([]string{InputsRecord, InputsLocked, InputsOffline, InputsNone}, in.Mode) {
		return fmt.Errorf("mode %q is not known", clip(in.Mode))
	}
	if in.Lock != "" && !isDigest(in.Lock) {
		return fmt.Errorf("lock %q is not a digest", clip(in.Lock))
	}
	switch locked := in.Mode == InputsLocked || in.Mode == InputsOffline; {
	case locked && in.Lock == "":
		return fmt.Errorf("mode %s has no lock", in.Mode)
	case !locked && in.Lock != "":
		return fmt.Errorf("mode %s has a lock", in.Mode)
	}
	if max(len(in.Steps), len(in.Sources), len(in.Gaps), len(in.AllowHosts)) > limits.Steps {
		return fmt.Errorf("it has more than %d steps, sources, gaps or hosts", limits.Steps)
	}
	if err := checkGaps(in.Gaps, limits); err != nil {
		return err
	}
	for i := range in.Sources {
		if err := in.Sources[i].check(limits); err != nil {
			return fmt.Errorf("source %d: %w", i+1, err)
		}
	}
	requests := 0
	for i := range in.Steps {
		st := &in.Steps[i]
		if requests += len(st.Requests); requests > limits.Requests {
			return fmt.Errorf("it has more than %d requests", limits.Requests)
		}
		err := st.check(limits)
		if err == nil && in.Mode == InputsNone && len(st.Requests) > 0 {
			err = errors.New("it has requests, and the build had no network")
		}
		if err != nil {
			return fmt.Errorf("step %d %q: %w", i+1, clip(st.Name), err)
		}
	}
	if in.Gateway.CA != "" && !isDigest(in.Gateway.CA) {
		return fmt.Errorf("the gateway's CA %q is not a digest", clip(in.Gateway.CA))
	}
	if in.Gateway.Name == "" && requests > 0 {
		return errors.New("it has requests, and no gateway that saw them")
	}
	verdict, hermetic := in.Judge()
	if in.Verdict != verdict {
		return fmt.Errorf("its verdict is %q, and what it holds makes it %q", clip(in.Verdict), verdict)
	}
	if in.Hermetic != hermetic {
		return fmt.Errorf("it says hermetic: %t, and what it holds makes that %t", in.Hermetic, hermetic)
	}
	return nil
}

func (src *InputSource) check(limits InputLimits) error {
	if !slices.Contains([]string{"image", "git", "http", "context", "named-context", "dockerfile"}, src.Kind) {
		return fmt.Errorf("kind %q is not known", clip(src.Kind))
	}
	for _, u := range []string{src.URI, src.Ref} {
		if len(u) > limits.URI || strings.ContainsFunc(u, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return fmt.Errorf("URI %q is too long or holds control characters", clip(u))
		}
		if user := userinfo(u); strings.Contains(user, ":") && !isKeyedHash(user) {
			return errors.New("a URI has a password in it")
		}
	}
	if src.URI == "" && slices.Contains([]string{"image", "git", "http"}, src.Kind) || len(src.Platform) > limits.Text {
		return errors.New("its URI is missing, or its platform too long")
	}
	commit, git := strings.CutPrefix(src.Digest, "gitCommit:")
	switch {
	case git && slices.Contains([]string{"git", "context", "named-context"}, src.Kind):
		if len(commit) != 40 && len(commit) != 64 || !isHex(commit) {
			return fmt.Errorf("digest %q is not a commit", clip(src.Digest))
		}
	case src.Kind == "git" || !isDigest(src.Digest):
		return fmt.Errorf("digest %q is not one of a %s source", clip(src.Digest), src.Kind)
	}
	if src.Tree != "" && !isDigest(src.Tree) {
		return fmt.Errorf("tree %q is not a digest", clip(src.Tree))
	}
	if src.Size < 0 {
		return errors.New("its size is below zero")
	}
	return nil
}

func (st *InputStep) check(limits InputLimits) error {
	if !isDigest(st.ID) {
		return fmt.Errorf("id %q is not a digest", clip(st.ID))
	}
	if st.Name == "" || max(len(st.Name), len(st.Stage), len(st.Platform)) > limits.Text {
		return errors.New("its name, stage or platform is missing or too long")
	}
	if !knownVerdict(st.Verdict) {
		return fmt.Errorf("verdict %q is not known", clip(st.Verdict))
	}
	if best := StepVerdict(st); verdictRank(st.Verdict) < verdictRank(best) {
		return fmt.Errorf("its verdict is %q, and what it holds allows no better than %q", st.Verdict, best)
	}
	if st.Verdict == VerdictGaps && len(st.Gaps) == 0 {
		return errors.New("its verdict is gaps, and none is listed")
	}
	if len(st.Refusals) > limits.Refusals || len(st.Names) > limits.Names || len(st.Gaps) > limits.Steps {
		return errors.New("it has too many refusals, names or gaps")
	}
	ordinals := make(map[int]bool, len(st.Requests))
	for i := range st.Requests {
		r := &st.Requests[i]
		if r.Ordinal < 1 || ordinals[r.Ordinal] {
			return fmt.Errorf("request %d: its ordinal %d is below 1 or stands twice", i+1, r.Ordinal)
		}
		ordinals[r.Ordinal] = true
		if err := r.check(limits); err != nil {
			return fmt.Errorf("request %d: %w", r.Ordinal, err)
		}
		if r.Withheld && !slices.ContainsFunc(st.Gaps, func(g InputGap) bool { return g.Kind == GapWithheld }) {
			return fmt.Errorf("request %d: its body was withheld, and no gap says so", r.Ordinal)
		}
	}
	for _, r := range st.Refusals {
		if !slices.Contains([]string{"dns", "tcp", "udp", "icmp", "ip", "tls", "http", "policy", "lock"}, r.Kind) {
			return fmt.Errorf("refusal kind %q is not known", clip(r.Kind))
		}
		if r.Count < 1 || r.Destination == "" || len(r.Destination) > limits.URI || max(len(r.Reason), len(r.Technique)) > limits.Text {
			return errors.New("a refusal has no destination or count, or is too long")
		}
	}
	for _, n := range st.Names {
		if n == "" || len(n) > limits.Text {
			return errors.New("a host name is empty or too long")
		}
	}
	return checkGaps(st.Gaps, limits)
}

func (r *InputRequest) check(limits InputLimits) error {
	if r.Method == "" || len(r.Method) > limits.Text || len(r.Range) > limits.Text {
		return errors.New("its method or range is missing or too long")
	}
	if err := checkURI(r.URI, limits); err != nil {
		return err
	}
	if r.Unanswered != "" {
		if r.Status != 0 || r.Size != 0 || r.Digest != emptyDigest || r.Cut || r.Withheld || r.FromStore || len(r.Headers) > 0 {
			return errors.New("it has an answer, and says that none came")
		}
	} else if r.Status < 100 || r.Status > 999 {
		return errors.New("its status is out of range")
	}
	if r.Size < 0 || r.RequestSize < 0 || len(r.Unanswered) > limits.Text {
		return errors.New("its size is out of range, or why it was not answered too long")
	}
	if r.RequestDigest != "" && !isDigest(strings.TrimPrefix(r.RequestDigest, "hmac-")) {
		return fmt.Errorf("request digest %q is not one", clip(r.RequestDigest))
	}
	plain, keyed := strings.CutPrefix(r.Digest, "hmac-")
	if !isDigest(plain) || keyed != r.Withheld {
		return fmt.Errorf("digest %q is not one of a body that was kept, or keyed and withheld", clip(r.Digest))
	}
	sum := 0
	for k, v := range r.Headers {
		if k == "" || k != strings.ToLower(k) {
			return fmt.Errorf("header %q is not in lower case", clip(k))
		}
		sum += len(k) + len(v)
	}
	if sum > limits.Text {
		return fmt.Errorf("its headers have %d bytes, and %d are allowed", sum, limits.Text)
	}
	return nil
}

// checkURI also sees that no password stands where everybody looks for one.
func checkURI(uri string, limits InputLimits) error {
	if uri == "" || len(uri) > limits.URI {
		return fmt.Errorf("URI %q is missing or too long", clip(uri))
	}
	for i := range len(uri) {
		if uri[i] <= ' ' || uri[i] >= 0x7f {
			return fmt.Errorf("URI %q is not one word of plain text", clip(uri))
		}
	}
	if user := userinfo(uri); user != "" && user != "git" && !isKeyedHash(user) {
		return errors.New("a URI has user or password in it")
	}
	return nil
}

// userinfo is what stands before the "@" of a URL's authority.
func userinfo(uri string) string {
	_, rest, ok := strings.Cut(uri, "://")
	if !ok {
		return ""
	}
	authority := rest[:strings.IndexAny(rest+"/", "/?#")]
	return authority[:max(strings.LastIndexByte(authority, '@'), 0)]
}

func isKeyedHash(s string) bool {
	hash, ok := strings.CutPrefix(s, "{hmac:")
	return ok && len(hash) == 17 && hash[16] == '}' && isHex(hash[:16])
}

func checkGaps(gaps []InputGap, limits InputLimits) error {
	for _, g := range gaps {
		if g.Kind == "" || g.Detail == "" || max(len(g.Kind), len(g.Detail)) > limits.Text {
			return errors.New("a gap has no kind or detail, or is too long")
		}
	}
	return nil
}

// emptyDigest is that of a body without a byte.
const emptyDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func isDigest(s string) bool {
	hex, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(hex) == 64 && isHex(hex)
}

func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
