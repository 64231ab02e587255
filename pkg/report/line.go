package report

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/verify"
)

// LineSchema names the form of a Line and a Trailer.
const LineSchema = "https://waxseal.dev/schemas/verdict-line/v1.json"

//go:embed verdict-line.schema.json
var verdictLineSchema string

// VerdictLineSchema is the JSON Schema of a line of a stream: a Line or a
// Trailer.
func VerdictLineSchema() []byte { return []byte(verdictLineSchema) }

// CodeUsage is the reason of a request that cannot be judged as it is.
const CodeUsage = "usage"

// maxLineReasons bounds the reasons of one line.
const maxLineReasons = 16

// Line is a verdict in one line of JSON, for whoever asks about many images.
// It says what the verdict says, without the evidence.
type Line struct {
	Schema   string        `json:"schema"`
	ID       string        `json:"id,omitempty"` // the request's own
	Image    string        `json:"image"`        // as it was asked about
	Digest   attest.Digest `json:"digest,omitempty"`
	Decision gate.Decision `json:"decision"`
	Declared verify.Demand `json:"declared"`
	Reached  gate.Levels   `json:"reached"`
	// Properties are the verified ones that every part has.
	Properties []string     `json:"properties"`
	Reasons    []LineReason `json:"reasons"`
	// MoreReasons is how many there are beside Reasons.
	MoreReasons  int            `json:"moreReasons,omitempty"`
	For          *gate.Workload `json:"for,omitempty"`
	PolicyDigest attest.Digest  `json:"policyDigest,omitempty"`
	TrustDigest  attest.Digest  `json:"trustDigest,omitempty"`
	DecidedAt    time.Time      `json:"decidedAt"`
	ValidUntil   time.Time      `json:"validUntil,omitzero"`
}

// LineReason is a gate.Reason, as short as a program needs it.
type LineReason struct {
	Code        string `json:"code"`
	Requirement string `json:"requirement,omitempty"`
	Platform    string `json:"platform,omitempty"`
	Message     string `json:"message"`
}

// Trailer is the last line of a stream. Without one, the stream broke off.
type Trailer struct {
	Schema string `json:"schema"`
	Tally
	// Earlier is what was answered before the run that this ends, where it is
	// one that was resumed.
	Earlier *Tally `json:"earlier,omitempty"`
	// Complete: everything that was asked has its line.
	Complete bool `json:"complete"`
}

// Tally counts answers.
type Tally struct {
	Done      int `json:"done"` // all of them
	Passed    int `json:"passed"`
	Denied    int `json:"denied"`
	Undecided int `json:"undecided"`
}

// Count adds an answer.
func (t *Tally) Count(d gate.Decision) {
	t.Done++
	switch d {
	case gate.Pass:
		t.Passed++
	case gate.Deny:
		t.Denied++
	default:
		t.Undecided++
	}
}

// NewLine is the line of a verdict; id and image are the request's.
func NewLine(id, image string, v *gate.Verdict) Line {
	l := Line{
		Schema: LineSchema, ID: id, Image: image, Digest: v.Digest, Decision: v.Decision, Declared: v.Declared, Reached: v.Reached, Properties: append([]string{}, v.Properties...),
		Reasons: []LineReason{}, For: v.For, PolicyDigest: v.PolicyDigest, TrustDigest: v.TrustDigest, DecidedAt: v.DecidedAt, ValidUntil: v.ValidUntil,
	}
	for i, r := range v.Reasons {
		if i == maxLineReasons {
			l.MoreReasons = len(v.Reasons) - i
			break
		}
		l.Reasons = append(l.Reasons, LineReason{Code: r.Code, Requirement: r.Requirement, Platform: r.Platform, Message: r.Message})
	}
	return l
}

// Unanswered is the line of a request that could not be judged, with a code of
// gate's, or CodeUsage for one that cannot be judged as it is.
func Unanswered(id, image, code string, cause error, at time.Time) Line {
	return Line{Schema: LineSchema, ID: id, Image: clean(image), Decision: gate.Undecided, Properties: []string{}, DecidedAt: at.UTC().Truncate(time.Second),
		Reasons: []LineReason{{Code: code, Message: clean(cause.Error())}}}
}

// Marshal is a Line or a Trailer as one line, with its end.
func Marshal[T Line | Trailer](line T) ([]byte, error) {
	raw, err := json.Marshal(line)
	if err != nil {
		return nil, fmt.Errorf("writing JSON: %w", err)
	}
	return append(raw, '\n'), nil
}

// LineText is a line for people: the answer, the level, the image by digest, and
// the first reason.
func LineText(l Line, opts TextOptions) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s%s %-9s %s", opts.decision(l.Decision), strings.Repeat(" ", 9-len(l.Decision)), levels(l.Reached), clean(l.Image))
	if l.Digest != "" && !strings.Contains(l.Image, string(l.Digest)) {
		b.WriteString("@" + string(l.Digest))
	}
	b.WriteByte('\n')
	for i, r := range l.Reasons {
		if i == 2 {
			fmt.Fprintf(&b, "          and %s\n", more(len(l.Reasons)+l.MoreReasons-i, "reason"))
			break
		}
		fmt.Fprintf(&b, "          - %s\n", on(clean(r.Platform), clean(r.Message)))
	}
	return Tame(b.String())
}

// Counts is a tally in words.
func Counts(t Tally) string {
	return fmt.Sprintf("%d judged: %d passed, %d denied, %d undecided", t.Done, t.Passed, t.Denied, t.Undecided)
}
