package sign

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/rekor/pkg/generated/client/entries"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/waxseal/waxseal/pkg/attest"
)

const (
	// tries is how often a service is asked that fails or does not answer.
	tries = 3
	// tryTime bounds each of them; a Rekor v2 log answers when the entry is in.
	tryTime = 20 * time.Second
	// firstWait is before the second try; each later wait is twice as long.
	firstWait = 500 * time.Millisecond
	// clockOff is how far two clocks may be apart before it is worth a word.
	clockOff = 2 * time.Minute

	maxAnswer = 4 << 20

	theLog = "the transparency log"
)

func usualTransport() http.RoundTripper {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		ForceAttemptHTTP2:   true,
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: 16,
	}
}

// checkAddress refuses one over which an identity token could be read on its
// way.
func checkAddress(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return fmt.Errorf("%q is no address of a service", address)
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()) {
		return nil
	}
	return fmt.Errorf("%q: only https is asked, or http on this machine", address)
}

// answer is what a service says that refuses or cannot.
type answer struct {
	who     string
	status  int // 0: no answer
	message string
	tried   int
}

func (a *answer) Error() string {
	switch {
	case a.status == 0:
		return fmt.Sprintf("no answer in %d tries, at last: %s", a.tried, a.message)
	case a.status >= 500 || a.status == http.StatusTooManyRequests:
		return fmt.Sprintf("it failed %d times, at last with %d %s", a.tried, a.status, a.message)
	}
	return fmt.Sprintf("it refused (%d): %s", a.status, a.message)
}

// wire is how one signature speaks with the services. sigstore-go's clients
// stand on it: they know no context, and lose what a failing service said.
type wire struct {
	ctx  context.Context
	base http.RoundTripper
	tell func(string)
	now  func() time.Time
	flag string        // that names another service; default: --signing-config
	off  time.Duration // how far this machine's clock is ahead of a service's
}

func (w *wire) to(who string) http.RoundTripper { return &line{w, who} }

type line struct {
	*wire
	who string
}

// RoundTrip asks until there is an answer, at most tries times. It returns
// answers of success only.
func (l *line) RoundTrip(req *http.Request) (*http.Response, error) {
	who := fmt.Sprintf("%s at %s://%s", l.who, req.URL.Scheme, req.URL.Host)
	wait := firstWait
	for n := 1; ; n++ {
		resp, err := l.once(req)
		if err := l.ctx.Err(); err != nil {
			return nil, err
		}
		a := &answer{who: who, tried: n}
		switch {
		case err != nil:
			a.message = said(err)
		case resp.StatusCode/100 == 2:
			return resp, nil
		default:
			a.status, a.message = resp.StatusCode, message(resp.Body)
		}
		again := err != nil || a.status >= 500 || a.status == http.StatusTooManyRequests
		if !again || n == tries {
			return nil, a
		}
		l.tell(fmt.Sprintf("%s: %s; asking again", who, strings.TrimSpace(fmt.Sprintf("%s %s", statusText(a.status), a.message))))
		timer := time.NewTimer(wait)
		select {
		case <-l.ctx.Done():
			timer.Stop()
			return nil, l.ctx.Err()
		case <-timer.C:
		}
		wait *= 2
	}
}

func statusText(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// once reads the whole answer, so that a slow one counts as none.
func (l *line) once(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(l.ctx, tryTime)
	defer cancel()
	again := req.Clone(ctx)
	if req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return nil, err
		}
		again.Body = body
	}
	again.Header.Set("User-Agent", "waxseal")
	resp, err := l.base.RoundTrip(again)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxAnswer {
		return nil, fmt.Errorf("its answer is larger than the %d bytes allowed", maxAnswer)
	}
	if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		l.off = l.now().Sub(at)
	}
	resp.Body = io.NopCloser(bytes.NewReader(raw))
	return resp, nil
}

func said(err error) string {
	var op *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("nothing came within %s", tryTime)
	case errors.As(err, &op):
		return op.Error()
	}
	return clip(err.Error())
}

// message is what an answer says of itself: Fulcio and Rekor answer with
// google.rpc.Status.
func message(body io.Reader) string {
	raw, err := io.ReadAll(body)
	if err != nil {
		return clip(err.Error())
	}
	var status struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(raw, &status) == nil && status.Message != "" {
		return clip(status.Message)
	}
	return clip(strings.TrimSpace(string(raw)))
}

// clip makes somebody else's text one short printable line.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd"))
	if r := []rune(s); len(r) > 300 {
		return string(r[:300]) + "…"
	}
	return s
}

// explain says an error of a service with the way out of it. refused is the way
// where the service would not.
func (w *wire) explain(err error, refused string) error {
	var a *answer
	switch {
	case w.ctx.Err() != nil:
		return w.ctx.Err()
	case !errors.As(err, &a):
		return err
	case a.status == 0 || a.status >= 500 || a.status == http.StatusTooManyRequests:
		way := "nothing was signed; run it again when the service is up, or name another with " + cmp.Or(w.flag, "--signing-config")
		if strings.HasPrefix(a.who, theLog) {
			way += "; --unlogged leaves the log out, for a policy that makes allowance for the outage"
		}
		return &KeylessError{"asking " + a.who, a, w.clock(way)}
	case refused == "":
		refused = "see what the service says; nothing was signed"
	}
	return &KeylessError{"asking " + a.who, a, w.clock(refused)}
}

// clock says it where this machine's clock may be the reason.
func (w *wire) clock(way string) string {
	if w.off.Abs() < clockOff {
		return way
	}
	where := "ahead of"
	if w.off < 0 {
		where = "behind"
	}
	return fmt.Sprintf("set this machine's clock: it is %s %s the service's; %s", w.off.Abs().Round(time.Second), where, way)
}

// logWriter puts entries into a transparency log. It is sigstore-go's
// RekorV2Client and RekorClient.
type logWriter struct {
	ctx     context.Context
	address string
	http    *http.Client
}

// Add is POST /api/v2/log/entries
// (https://github.com/sigstore/rekor-tiles/blob/v2.3.0/api/proto/rekor/v2/rekor_service.proto).
func (l *logWriter) Add(_ context.Context, entry any) (*protorekor.TransparencyLogEntry, error) {
	m, ok := entry.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("an entry of type %T", entry)
	}
	inner, err := protojson.Marshal(m)
	if err != nil {
		return nil, err
	}
	raw, err := l.post("/api/v2/log/entries", map[string]json.RawMessage{"hashedRekordRequestV002": inner})
	if err != nil {
		return nil, err
	}
	// A later version of the log may say more.
	out := new(protorekor.TransparencyLogEntry)
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, out); err != nil {
		return nil, fmt.Errorf("reading the log's entry: %w", err)
	}
	return out, nil
}

// CreateLogEntry is POST /api/v1/log/entries
// (https://github.com/sigstore/rekor/blob/v1.5.3/openapi.yaml).
func (l *logWriter) CreateLogEntry(params *entries.CreateLogEntryParams, _ ...entries.ClientOption) (*entries.CreateLogEntryCreated, error) {
	raw, err := l.post("/api/v1/log/entries", params.ProposedEntry)
	if err != nil {
		return nil, err
	}
	out := new(entries.CreateLogEntryCreated)
	if err := json.Unmarshal(raw, &out.Payload); err != nil || len(out.Payload) != 1 {
		return nil, fmt.Errorf("reading the log's entry: want one, by its name (%v)", err)
	}
	for name, entry := range out.Payload {
		// What follows takes for granted all that the log must give.
		if err := entry.Validate(nil); err != nil {
			return nil, fmt.Errorf("reading the log's entry: %s", clip(err.Error()))
		}
		if entry.Verification == nil || entry.Verification.InclusionProof == nil {
			return nil, errors.New("reading the log's entry: it has no inclusion proof")
		}
		out.ETag = name
	}
	return out, nil
}

// GetLogEntryByUUID is never reached: an entry that is there already is signed
// anew.
func (l *logWriter) GetLogEntryByUUID(*entries.GetLogEntryByUUIDParams, ...entries.ClientOption) (*entries.GetLogEntryByUUIDOK, error) {
	return nil, errors.New("entries are not looked up")
}

func (l *logWriter) post(path string, body any) ([]byte, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(l.ctx, http.MethodPost, strings.TrimRight(l.address, "/")+path, bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	resp, err := l.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// fetchToken asks a platform for a token: one request, and a field of the
// answer, or all of it where field is empty.
func fetchToken(req *http.Request, base http.RoundTripper, field string) (string, error) {
	w := &wire{ctx: req.Context(), base: base, tell: func(string) {}, now: time.Now}
	resp, err := w.to("the platform").RoundTrip(req)
	if err != nil {
		return "", err
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, attest.MaxKey))
	if err != nil || field == "" {
		return strings.TrimSpace(string(raw)), err
	}
	var all map[string]json.RawMessage
	var token string
	if err := json.Unmarshal(raw, &all); err != nil {
		return "", fmt.Errorf("reading the platform's answer: %w", err)
	}
	if err := json.Unmarshal(all[field], &token); err != nil || token == "" {
		return "", fmt.Errorf("the platform's answer has no %q", field)
	}
	return token, nil
}
