package lock

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

const (
	// header is the first line; the number grows when a reader of the old form
	// would misread the new one.
	header = "waxseal-lock 1"
	remark = `# What this build takes in, by digest. Written by "waxseal build" (--inputs record
# updates it), enforced by "waxseal build --inputs locked". Commit it, and read
# what changed with "waxseal lock diff OLD NEW".
`
)

// Marshal writes a lock file: the same inputs give the same bytes.
func (f *File) Marshal() []byte {
	f = f.clone()
	f.sort()
	var b bytes.Buffer
	b.WriteString(header + "\n" + remark)
	if f.Replay != "" {
		fmt.Fprintf(&b, "replay %s\n", word(string(f.Replay)))
	}
	for i, s := range f.Sources {
		if i == 0 || s.Kind != f.Sources[i-1].Kind {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s %s %s", s.Kind, word(s.Ref), word(s.Digest))
		option(&b, "platform", s.Platform)
		option(&b, "tree", string(s.Tree))
		if s.Size > 0 {
			fmt.Fprintf(&b, " size=%d", s.Size)
		}
		b.WriteByte('\n')
	}
	for i := range f.Steps {
		s := &f.Steps[i]
		fmt.Fprintf(&b, "\nstep %s", strconv.Quote(s.Name))
		option(&b, "stage", s.Stage)
		option(&b, "platform", s.Platform)
		b.WriteByte('\n')
		for _, e := range s.Entries {
			e.line(&b)
		}
	}
	return b.Bytes()
}

// line is an exchange as it stands in the file.
func (e *Entry) line(b *bytes.Buffer) {
	fmt.Fprintf(b, "  %s %s %d %s %d", word(e.Method), word(e.URI), e.Status, word(string(e.Digest)), e.Size)
	option(b, "body", string(e.RequestDigest))
	option(b, "range", e.Range)
	if e.Cut {
		b.WriteString(" cut")
	}
	if e.Location != "" {
		b.WriteString(" -> " + word(e.Location))
	}
	b.WriteByte('\n')
}

// digest is that of a step's exchanges, without their headers.
func (s *Step) digest() attest.Digest {
	var b bytes.Buffer
	for i := range s.Entries {
		s.Entries[i].line(&b)
	}
	return attest.DigestOf(b.Bytes())
}

func option(b *bytes.Buffer, name, value string) {
	if value != "" {
		fmt.Fprintf(b, " %s=%s", name, word(value))
	}
}

// word writes a text so that it is one word of one line, whatever it holds.
func word(s string) string {
	plain := s != "" && s[0] != '#'
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == '"' {
			plain = false
		}
	}
	if plain {
		return s
	}
	return strconv.Quote(s)
}

func (f *File) clone() *File {
	c := &File{Sources: slices.Clone(f.Sources), Steps: slices.Clone(f.Steps), Replay: f.Replay}
	for i := range c.Steps {
		c.Steps[i].Entries = slices.Clone(c.Steps[i].Entries)
	}
	return c
}

// Parse reads a lock file. It is strict: what it does not know is an error that
// names the line.
func Parse(raw []byte) (*File, error) {
	if len(raw) > attest.MaxLock {
		return nil, fmt.Errorf("reading the lock: it is larger than the %d bytes allowed", attest.MaxLock)
	}
	p := parser{sources: map[[3]string]bool{}, steps: map[[3]string]bool{}}
	for number := 1; len(raw) > 0 || number == 1; number++ {
		line, rest, _ := bytes.Cut(raw, []byte("\n"))
		raw = rest
		if err := p.line(number, strings.TrimSuffix(string(line), "\r")); err != nil {
			return nil, fmt.Errorf("reading the lock, line %d: %w", number, err)
		}
	}
	p.f.sort()
	return &p.f, nil
}

type parser struct {
	f              File
	sources, steps map[[3]string]bool
}

func (p *parser) line(number int, line string) error {
	if number == 1 {
		name, version, _ := strings.Cut(line, " ")
		if name != "waxseal-lock" {
			return fmt.Errorf("this is no lock file: it begins with %q, not %q", clip(line), header)
		}
		if version != "1" {
			return fmt.Errorf("version %q is not known to this waxseal, which reads 1", clip(version))
		}
		return nil
	}
	if t := strings.TrimLeft(line, " "); t == "" || t[0] == '#' {
		return nil
	}
	indented := strings.HasPrefix(line, "  ")
	words, err := split(strings.TrimPrefix(line, "  "))
	if err != nil {
		return err
	}
	if indented {
		return p.entry(words)
	}
	switch words[0] {
	case "replay":
		if len(words) != 2 || p.f.Replay != "" {
			return errors.New("replay has one digest and stands once")
		}
		p.f.Replay, err = attest.ParseDigest(words[1])
		return err
	case KindImage, KindGit, KindHTTP:
		return p.source(words)
	case "step":
		return p.step(words)
	}
	return fmt.Errorf("%q is not known: image, git, http, step or replay", clip(words[0]))
}

// split takes a line apart at single spaces. A word, or what follows the first
// "=" in it, may be a quoted string.
func split(line string) ([]string, error) {
	var words []string
	for {
		end := strings.IndexByte(line, ' ')
		if end < 0 {
			end = len(line)
		}
		var w string
		if q := strings.IndexByte(line[:end], '"'); q == 0 || q > 0 && strings.IndexByte(line, '=') == q-1 {
			quoted, err := strconv.QuotedPrefix(line[q:])
			if err != nil {
				return nil, fmt.Errorf("the quotes of %q do not close", clip(line))
			}
			text, err := strconv.Unquote(quoted)
			if err != nil {
				return nil, fmt.Errorf("reading %s: %w", clip(quoted), err)
			}
			w = line[:q] + text
			end = q + len(quoted)
		} else {
			w = line[:end]
			if word(w) != w {
				return nil, fmt.Errorf("%q must stand in quotes, and words be one space apart", clip(w))
			}
		}
		words = append(words, w)
		if end == len(line) {
			return words, nil
		}
		if line[end] != ' ' {
			return nil, fmt.Errorf("text follows the quotes in %q", clip(line))
		}
		line = line[end+1:]
	}
}

func (p *parser) source(words []string) error {
	if len(words) < 3 {
		return fmt.Errorf("%s has a reference and a digest", words[0])
	}
	s := Source{Kind: words[0], Ref: words[1], Digest: words[2]}
	if err := checkSourceDigest(s.Kind, s.Digest); err != nil {
		return err
	}
	o, err := options(words[3:], "platform", "tree", "size")
	if err != nil {
		return err
	}
	s.Platform = o["platform"]
	if o["tree"] != "" {
		if s.Tree, err = attest.ParseDigest(o["tree"]); err != nil {
			return err
		}
	}
	if o["size"] != "" {
		if s.Size, err = count(o["size"]); err != nil || s.Size == 0 {
			return fmt.Errorf("size %q is not a number of bytes", clip(o["size"]))
		}
	}
	key := [3]string{s.Kind, s.Ref, s.Platform}
	if s.Ref == "" || p.sources[key] {
		return fmt.Errorf("%s %q has no name or stands twice", s.Kind, clip(s.Ref))
	}
	p.sources[key] = true
	p.f.Sources = append(p.f.Sources, s)
	return nil
}

func checkSourceDigest(kind, digest string) error {
	if kind == KindGit {
		commit, ok := strings.CutPrefix(digest, "gitCommit:")
		if !ok || len(commit) != 40 && len(commit) != 64 || strings.Trim(commit, "0123456789abcdef") != "" {
			return fmt.Errorf("reading digest %q: want gitCommit: and 40 or 64 lower-case hex digits", clip(digest))
		}
		return nil
	}
	_, err := attest.ParseDigest(digest)
	return err
}

func (p *parser) step(words []string) error {
	if len(words) < 2 {
		return errors.New("a step has a name")
	}
	o, err := options(words[2:], "stage", "platform")
	if err != nil {
		return err
	}
	s := Step{Name: words[1], Stage: o["stage"], Platform: o["platform"]}
	key := [3]string{s.Name, s.Stage, s.Platform}
	if p.steps[key] {
		return fmt.Errorf("step %q stands twice", clip(s.Name))
	}
	p.steps[key] = true
	p.f.Steps = append(p.f.Steps, s)
	return nil
}

// options reads name=value words.
func options(words []string, names ...string) (map[string]string, error) {
	o := map[string]string{}
	for _, w := range words {
		name, value, ok := strings.Cut(w, "=")
		if !ok || !slices.Contains(names, name) {
			return nil, fmt.Errorf("field %q is not known here: %s", clip(w), strings.Join(names, ", "))
		}
		if o[name] != "" || value == "" {
			return nil, fmt.Errorf("field %q is empty or stands twice", name)
		}
		o[name] = value
	}
	return o, nil
}

func (p *parser) entry(words []string) error {
	if len(p.f.Steps) == 0 {
		return errors.New("an exchange stands below a step")
	}
	if len(words) < 5 {
		return errors.New("an exchange has a method, URL, status, digest and size")
	}
	e := Entry{Method: words[0], URI: Shape(words[1])}
	if e.Method == "" || e.URI == "" {
		return errors.New("an exchange has a method and a URL")
	}
	status, err := count(words[2])
	if err != nil || status < 100 || status > 999 {
		return fmt.Errorf("%q is not an HTTP status", clip(words[2]))
	}
	e.Status = int(status)
	if e.Digest, err = bodyDigest(words[3]); err != nil {
		return err
	}
	if e.Size, err = count(words[4]); err != nil {
		return fmt.Errorf("%q is not a number of bytes", clip(words[4]))
	}
	rest := words[5:]
	if n := len(rest); n >= 2 && rest[n-2] == "->" {
		if e.Location, rest = unhash(rest[n-1]), rest[:n-2]; e.Location == "" {
			return errors.New("the redirect leads nowhere")
		}
	}
	if n := len(rest); n >= 1 && rest[n-1] == "cut" {
		e.Cut, rest = true, rest[:n-1]
	}
	o, err := options(rest, "body", "range")
	if err != nil {
		return err
	}
	e.Range = o["range"]
	if o["body"] != "" {
		if e.RequestDigest, err = bodyDigest(o["body"]); err != nil {
			return err
		}
	}
	s := &p.f.Steps[len(p.f.Steps)-1]
	s.Entries = append(s.Entries, e)
	return nil
}

// bodyDigest is a digest, or the keyed one of a body that is withheld.
func bodyDigest(s string) (attest.Digest, error) {
	if rest, ok := strings.CutPrefix(s, "hmac-"); ok {
		d, err := attest.ParseDigest(rest)
		return "hmac-" + d, err
	}
	return attest.ParseDigest(s)
}

func count(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != s {
		return 0, fmt.Errorf("%q is not a number", clip(s))
	}
	return n, nil
}

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

// FromInputs makes the lock of one or more records (one for each platform) and
// puts the replay blob into s, which may be nil: then Replay stays empty.
func FromInputs(s *Store, records ...*attestations.Inputs) (*File, error) {
	f := &File{}
	sources := map[[3]string]int{}
	seen := map[string]bool{} // a step that several platforms share is one
	for _, rec := range records {
		for i := range rec.Sources {
			src, ok, err := fromSource(&rec.Sources[i])
			if err != nil {
				return nil, err
			}
			key := [3]string{src.Kind, src.Ref, src.Platform}
			at, known := sources[key]
			switch {
			case !ok:
			case !known:
				sources[key] = len(f.Sources)
				f.Sources = append(f.Sources, src)
			case f.Sources[at].Digest != src.Digest || f.Sources[at].Tree != "" && src.Tree != "" && f.Sources[at].Tree != src.Tree:
				return nil, fmt.Errorf("making the lock: %s %q was %s and then %s; build again", src.Kind, src.Ref, f.Sources[at].Digest, src.Digest)
			default:
				f.Sources[at].Tree = max(f.Sources[at].Tree, src.Tree)
				f.Sources[at].Size = max(f.Sources[at].Size, src.Size)
			}
		}
		for i := range rec.Steps {
			st := &rec.Steps[i]
			id := strings.Join([]string{st.ID, st.Name, st.Stage, st.Platform}, "\x00")
			if st.ID != "" && seen[id] {
				continue
			}
			seen[id] = true
			to := f.step(st.Name, st.Stage, st.Platform)
			if to == nil {
				f.Steps = append(f.Steps, Step{Name: st.Name, Stage: st.Stage, Platform: st.Platform})
				to = &f.Steps[len(f.Steps)-1]
			}
			for j := range st.Requests {
				if st.Requests[j].Unanswered != "" {
					continue // there is no answer to expect
				}
				e, err := fromRequest(&st.Requests[j])
				if err != nil {
					return nil, fmt.Errorf("making the lock: step %q: %w", clip(st.Name), err)
				}
				to.Entries = append(to.Entries, e)
			}
		}
	}
	f.sort()
	for i := range f.Steps {
		f.Steps[i].Entries = withoutRepeats(f.Steps[i].Entries)
	}
	if s == nil {
		return f, nil
	}
	return f, f.storeReplay(s)
}

func fromSource(in *attestations.InputSource) (Source, bool, error) {
	s := Source{Kind: in.Kind, Ref: in.Ref, Platform: in.Platform, Digest: in.Digest, Size: max(in.Size, 0)}
	switch {
	case in.Kind == "named-context" && in.Tree == "":
		// An image of a layout: its place on a machine says nothing elsewhere.
		s.Kind, s.Ref = KindImage, in.URI
	case sourceRank(in.Kind) < 0:
		return Source{}, false, nil // the context: not locked, it is what changes
	case s.Ref == "":
		s.Ref = in.URI
	}
	s.Ref = unhash(s.Ref)
	err := checkSourceDigest(s.Kind, s.Digest)
	if err == nil && s.Ref == "" {
		err = errors.New("it has no name")
	}
	if err == nil && in.Tree != "" {
		s.Tree, err = attest.ParseDigest(in.Tree)
	}
	if err != nil {
		err = fmt.Errorf("making the lock: %s %q: %w", in.Kind, clip(s.Ref), err)
	}
	return s, true, err
}

func fromRequest(r *attestations.InputRequest) (Entry, error) {
	e := Entry{
		Method: r.Method, URI: Shape(r.URI), Range: r.Range,
		Status: r.Status, Size: r.Size, Cut: r.Cut,
	}
	var err error
	if e.Digest, err = bodyDigest(r.Digest); err == nil && r.RequestDigest != "" {
		e.RequestDigest, err = bodyDigest(r.RequestDigest)
	}
	if err == nil && (e.Method == "" || e.URI == "" || e.Status < 100 || e.Status > 999 || e.Size < 0) {
		err = errors.New("the exchange has no method, URL, status or size")
	}
	if e.RequestDigest.Hex() == emptyHex {
		e.RequestDigest = ""
	}
	if len(r.Headers) > 0 {
		e.Headers = make(map[string]string, len(r.Headers))
		for k, v := range r.Headers {
			e.Headers[strings.ToLower(k)] = unhash(v)
		}
	}
	if e.Status >= 300 && e.Status < 400 {
		e.Location = e.Headers["location"]
	}
	return e, err
}

// withoutRepeats drops from the end of each sequence what the last answer
// stands for anyway, so that a client's retries do not change the lock.
func withoutRepeats(entries []Entry) []Entry {
	var out []Entry
	for i := range entries {
		out = append(out, entries[i])
		if i+1 < len(entries) && entries[i].compare(&entries[i+1]) == 0 {
			continue
		}
		for n := len(out); n >= 2 && out[n-1].compare(&out[n-2]) == 0 && out[n-1].same(&out[n-2]); n = len(out) {
			out = out[:n-1]
		}
	}
	return out
}

// replay is the blob that Replay names: for every entry, in the lock's order,
// the headers of its answer.
type replay struct {
	Steps []replayStep `json:"steps"`
}

type replayStep struct {
	Name     string              `json:"name"`
	Stage    string              `json:"stage,omitempty"`
	Platform string              `json:"platform,omitempty"`
	Of       attest.Digest       `json:"of"` // Step.digest: the exchanges that the headers belong to
	Headers  []map[string]string `json:"headers"`
}

func (f *File) storeReplay(s *Store) error {
	raw, err := f.replay()
	if err != nil {
		return err
	}
	f.Replay, err = s.Put(raw)
	return err
}

// RestoreReplay puts the headers that f was recorded with into s, where those
// of a build that f held are the same. Whether they are, s.Has(f.Replay) says.
func (f *File) RestoreReplay(s *Store, records ...*attestations.Inputs) error {
	made, err := FromInputs(nil, records...)
	if err != nil {
		return err
	}
	raw, err := made.replay()
	if err != nil || attest.DigestOf(raw) != f.Replay {
		return err
	}
	_, err = s.Put(raw)
	return err
}

func (f *File) replay() ([]byte, error) {
	r := replay{Steps: []replayStep{}}
	for i := range f.Steps {
		st := &f.Steps[i]
		rs := replayStep{Name: st.Name, Stage: st.Stage, Platform: st.Platform, Of: st.digest(), Headers: []map[string]string{}}
		for _, e := range st.Entries {
			h := e.Headers
			if h == nil {
				h = map[string]string{}
			}
			rs.Headers = append(rs.Headers, h)
		}
		r.Steps = append(r.Steps, rs)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return nil, fmt.Errorf("making the lock: %w", err)
	}
	if b.Len() > attest.MaxLock {
		return nil, fmt.Errorf("making the lock: the headers have %d bytes, and %d are allowed", b.Len(), attest.MaxLock)
	}
	return b.Bytes(), nil
}

// LoadReplay fills in the headers of all entries from the store. On an error,
// fs.ErrNotExist where the store lacks them, no entry has any: those of another
// lock, as a merged one may name, must not be given with these answers.
func (f *File) LoadReplay(s *Store) error {
	if f.Replay == "" {
		if slices.ContainsFunc(f.Steps, func(st Step) bool { return len(st.Entries) > 0 }) {
			return errors.New("reading the lock's headers: it names none; record again")
		}
		return nil
	}
	blob, err := s.OpenVerified(f.Replay)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the store lacks %s, the headers that the lock was recorded with: %w", f.Replay, fs.ErrNotExist)
	}
	if err != nil {
		return fmt.Errorf("reading the lock's headers: %w", err)
	}
	defer blob.Close()
	if blob.Size > attest.MaxLock {
		return fmt.Errorf("reading the lock's headers: they have %d bytes, and %d are allowed", blob.Size, attest.MaxLock)
	}
	var r replay
	dec := json.NewDecoder(io.LimitReader(blob, attest.MaxLock))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return fmt.Errorf("reading the lock's headers: %w", err)
	}
	if len(r.Steps) != len(f.Steps) {
		return fmt.Errorf("reading the lock's headers: they are of another lock, with %d steps instead of %d: this one was edited or merged since; record again with --inputs record", len(r.Steps), len(f.Steps))
	}
	of := make(map[*Step][]map[string]string, len(f.Steps))
	for i := range r.Steps {
		rs := &r.Steps[i]
		st := f.step(rs.Name, rs.Stage, rs.Platform)
		if st == nil || of[st] != nil || len(st.Entries) != len(rs.Headers) || st.digest() != rs.Of {
			return fmt.Errorf("reading the lock's headers: they are of another lock (step %q): this one was edited or merged since; record again with --inputs record", clip(rs.Name))
		}
		of[st] = rs.Headers
	}
	for st, headers := range of {
		for j, h := range headers {
			st.Entries[j].Headers = h
		}
	}
	return nil
}
