package attestations

import "time"

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
	Hermetic   bool            `json:"hermetic"`       // isolated or recorded, and held to a lock or to nothing at all
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
	Status        int               `json:"status"`
	Digest        string            `json:"digest"` // "sha256:…", of the empty body too; "hmac-sha256:…" for a withheld one
	Size          int64             `json:"size"`
	Cut           bool              `json:"cut,omitempty"`       // the body ended early: Digest is of what reached the step
	Withheld      bool              `json:"withheld,omitempty"`  // it held a secret: not stored, and a gap
	Headers       map[string]string `json:"headers,omitempty"`   // of the response, what a replay needs; lower-case names
	FromStore     bool              `json:"fromStore,omitempty"` // answered without asking upstream
}

// InputRefusal is something a step tried and was denied.
type InputRefusal struct {
	Kind        string `json:"kind"`        // "dns", "tcp", "udp", "icmp", "ip", "tls", "http", "policy", "lock"
	Destination string `json:"destination"` // "name:port" or "address:port", "[name] type" for DNS
	Reason      string `json:"reason"`
	Technique   string `json:"technique,omitempty"` // of MITRE ATT&CK, where one fits: "T1572"
	Count       int    `json:"count"`
}

// InputGap is something about a step or build that the record does not hold.
type InputGap struct {
	Kind   string `json:"kind"` // "host-network", "insecure", "cache-mount", "cache-import", "withheld", "watch-loss", "overflow", "no-record", "foreign-engine", "source"
	Detail string `json:"detail"`
}

// InputGateway says what watched.
type InputGateway struct {
	Name     string    `json:"name"` // "waxseal" or "buildkit-proxy", or "" for none
	Version  string    `json:"version,omitempty"`
	CA       string    `json:"ca,omitempty"` // "sha256:…" of the CA certificate of this build, DER
	NotAfter time.Time `json:"caNotAfter,omitzero"`
}
