package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

// Rotation is one key of a policy that another follows.
type Rotation struct {
	Old attest.Digest // Key.ID of the one that goes
	// New is the one that comes, as the policy is to name it: a file beside it,
	// or with KMS a reference. PEM is its public half.
	New string
	KMS bool
	PEM []byte
	// From is when the new one begins to count, Until when the old one ends to.
	From, Until time.Time
	// Reason, if given, is why the old one is revoked as of Until: what nothing
	// proves to be older counts no more.
	Reason string
}

// OldFields and NewFields are what the entries of the two say, as YAML between
// braces.
func (r Rotation) OldFields() string { return r.ending("until", "revoked") }

// NewFields: see OldFields.
func (r Rotation) NewFields() string {
	return r.field() + ", from: " + r.From.UTC().Format(time.RFC3339)
}

func (r Rotation) field() string {
	if r.KMS {
		return "kms: " + quote(r.New)
	}
	return "key: " + quote(r.New)
}

// ending is the field that ends the old key's entry, unless there is one that
// may be written.
func (r Rotation) ending(free ...string) string {
	at := r.Until.UTC().Format(time.RFC3339)
	switch {
	case r.Reason != "" && slices.Contains(free, "revoked"):
		return fmt.Sprintf("revoked: {at: %s, reason: %s}", at, quote(r.Reason))
	case r.Reason == "" && slices.Contains(free, "until"):
		return "until: " + at
	}
	return ""
}

// SignerLine is a signer as a policy names it, as YAML on a line: field is key or
// kms.
func SignerLine(field, name string) string {
	return fmt.Sprintf("{%s: %s}", field, quote(name))
}

// RotateFile is Rotate for the policy file at path and the keys it names,
// relative to it. It writes nothing.
func RotateFile(path string, r Rotation, opts LoadOptions) ([]byte, int, error) {
	raw, err := opts.read(path, attest.MaxPolicy)
	if err != nil {
		return nil, 0, fmt.Errorf("reading policy %q: %w", path, err)
	}
	return Rotate(raw, r, fileOptions(path, opts))
}

// Rotate writes a rotation into a policy: every entry of the old key ends, and
// below each stands the same for the new key. All else, comments and layout
// too, stays as it is, byte for byte. It returns how many entries it found, and
// parses what it wrote before it returns it.
func Rotate(raw []byte, r Rotation, opts ParseOptions) ([]byte, int, error) {
	if opts.Name == "" {
		opts.Name = "policy"
	}
	out, n, err := rotate(raw, r, opts)
	if err != nil {
		var at *lineError
		if errors.As(err, &at) {
			return nil, 0, fmt.Errorf("rotating a key in policy %s:%d: %w", opts.Name, at.line, err)
		}
		return nil, 0, fmt.Errorf("rotating a key in policy %q: %w", opts.Name, err)
	}
	return out, n, nil
}

func rotate(raw []byte, r Rotation, opts ParseOptions) ([]byte, int, error) {
	if _, err := parse(raw, opts); err != nil {
		return nil, 0, err
	}
	isNew, err := verify.ParseKey(r.New, r.PEM)
	if err != nil {
		return nil, 0, err
	}
	opts = r.reading(opts)
	e, err := newEditor(raw)
	if err != nil {
		return nil, 0, err
	}
	found := e.entriesOf(r.Old, opts)
	switch {
	case isNew.ID() == r.Old:
		return nil, 0, errors.New("the new key is the old one")
	case len(e.entriesOf(isNew.ID(), opts)) > 0:
		return nil, 0, fmt.Errorf("it has the new key %q already", clip(r.New))
	case len(found) == 0:
		return nil, 0, fmt.Errorf("it has no signer with the key %s; a policy that it extends may", verify.Short(r.Old))
	}
	for _, f := range found {
		if err := e.rotate(f, r); err != nil {
			return nil, 0, err
		}
	}
	out := []byte(e.apply(0, len(e.text)))
	// What was meant is what is there now, or nothing is written.
	after, err := newEditor(out)
	if err != nil {
		return nil, 0, err
	}
	if _, err := parse(out, opts); err != nil {
		return nil, 0, err
	}
	if len(after.entriesOf(r.Old, opts)) != len(found) || len(after.entriesOf(isNew.ID(), opts)) != len(found) {
		return nil, 0, fmt.Errorf("this version cannot edit its layout; write by hand: %s; and in an entry below each: %s", r.OldFields(), r.NewFields())
	}
	return out, len(found), nil
}

// reading makes the new key readable before it is there.
func (r Rotation) reading(o ParseOptions) ParseOptions {
	instead := func(read func(string) ([]byte, error)) func(string) ([]byte, error) {
		return func(name string) ([]byte, error) {
			if name == r.New {
				return slices.Clone(r.PEM), nil
			}
			if read == nil {
				return nil, errors.New("there is nowhere to read it from")
			}
			return read(name)
		}
	}
	if r.KMS {
		o.ReadKMS = instead(o.ReadKMS)
	} else {
		o.ReadKey = instead(o.ReadKey)
	}
	return o
}

// editor changes the text of a YAML file at the places of its nodes.
type editor struct {
	text    string
	newline string
	top     *yaml.Node
	order   []*yaml.Node // as they stand in the file
	changes []change
}

// change puts text in the place of the bytes from begin to end.
type change struct {
	begin, end int
	text       string
}

func newEditor(raw []byte) (*editor, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	e := &editor{text: string(raw), newline: "\n", top: doc.Content[0]}
	if strings.Contains(e.text, "\r\n") {
		e.newline = "\r\n"
	}
	var walk func(*yaml.Node)
	walk = func(n *yaml.Node) {
		e.order = append(e.order, n)
		for _, c := range n.Content {
			walk(c)
		}
	}
	walk(e.top)
	return e, nil
}

// entry of trust that a key signs for.
type keyed struct {
	list, entry *yaml.Node
	signer      *yaml.Node // the entry itself, where the signer's fields stand in it
	key         *yaml.Node // its field key, pem or kms
	value       *yaml.Node
}

// entriesOf finds the entries whose signer is the key.
func (e *editor) entriesOf(id attest.Digest, opts ParseOptions) []keyed {
	var out []keyed
	trust := member(e.top, "trust")
	if trust == nil {
		return nil
	}
	for i := 1; i < len(trust.Content); i += 2 {
		list := trust.Content[i]
		for _, entry := range list.Content {
			k := keyed{list: list, entry: entry, signer: entry}
			if s := member(entry, "signer"); s != nil {
				k.signer = s
			}
			for j := 0; j+1 < len(k.signer.Content); j += 2 {
				d := decoder{opts: opts}
				name, value := k.signer.Content[j], k.signer.Content[j+1]
				var key verify.Key
				switch name.Value {
				case "key":
					if file, raw := d.file(value, "key"); d.err == nil {
						key = d.key(value, file, raw)
					}
				case "pem":
					key = d.key(value, "pem", []byte(value.Value))
				case "kms":
					key = d.kms(value)
				default:
					continue
				}
				if d.err == nil && key.ID() == id {
					k.key, k.value = name, value
					out = append(out, k)
				}
			}
		}
	}
	return out
}

// member is the value of a mapping's field, nil for none.
func member(n *yaml.Node, name string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i+1]
		}
	}
	return nil
}

// rotate notes the changes of one entry.
func (e *editor) rotate(k keyed, r Rotation) error {
	copied, where, lead, err := e.twin(k, r)
	if err != nil {
		return err
	}
	var free []string
	for _, name := range []string{"until", "revoked"} {
		if member(k.signer, name) == nil {
			free = append(free, name)
		}
	}
	if field := r.ending(free...); field != "" {
		if e.fieldEnd(k) < 0 {
			return odd(k, r)
		}
		e.after(k, field)
	}
	e.changes = append(e.changes, change{where, where, lead + copied})
	return nil
}

// odd is the error for an entry that cannot be edited.
func odd(k keyed, r Rotation) error {
	return at(k.entry, "this version cannot edit the layout of this entry; write by hand: %s; and in one below it: %s", r.OldFields(), r.NewFields())
}

// twin is the entry as one of the new key's, where to put it, and what to put
// before it.
func (e *editor) twin(k keyed, r Rotation) (copied string, where int, lead string, err error) {
	begin, end := e.begin(k.entry), e.end(k.entry)
	if end < 0 {
		return "", 0, "", odd(k, r)
	}
	where, lead = end, ", "
	if k.list.Style&yaml.FlowStyle == 0 {
		// From the line of its dash to the end of its last.
		line := strings.LastIndexByte(e.text[:begin], '\n') + 1
		rest, _, _ := strings.Cut(e.text[end:], "\n")
		if rest = strings.TrimSpace(rest); strings.TrimSpace(e.text[line:begin]) != "-" || rest != "" && rest[0] != '#' {
			return "", 0, "", odd(k, r)
		}
		begin, where, lead = line, e.lineEnd(end), e.newline
	}
	fields := []string{r.field(), "from: " + r.From.UTC().Format(time.RFC3339)}
	only := editor{text: e.text, newline: e.newline, order: e.order}
	switch {
	case k.signer != k.entry:
		only.changes = []change{{e.begin(k.signer), e.end(k.signer), e.mapping(k.signer, fields)}}
	case slices.ContainsFunc([]string{"from", "until", "revoked"}, func(name string) bool { return member(k.entry, name) != nil }):
		return "", 0, "", odd(k, r)
	default:
		only.changes = []change{{e.begin(k.key), e.fieldEnd(k), e.joined(k.signer, fields)}}
	}
	for _, c := range only.changes {
		if c.end < c.begin {
			return "", 0, "", odd(k, r)
		}
	}
	return only.apply(begin, end), where, lead, nil
}

// mapping is the text of a mapping in the place of n, in its layout.
func (e *editor) mapping(n *yaml.Node, fields []string) string {
	if n.Style&yaml.FlowStyle != 0 {
		return "{" + strings.Join(fields, ", ") + "}"
	}
	return e.joined(n, fields)
}

// joined are fields of n beside one another, or below.
func (e *editor) joined(n *yaml.Node, fields []string) string {
	if n.Style&yaml.FlowStyle != 0 {
		return strings.Join(fields, ", ")
	}
	return strings.Join(fields, e.newline+strings.Repeat(" ", n.Column-1))
}

// after adds a field behind the one that names the key.
func (e *editor) after(k keyed, field string) {
	end := e.fieldEnd(k)
	if k.signer.Style&yaml.FlowStyle != 0 {
		e.changes = append(e.changes, change{end, end, ", " + field})
		return
	}
	end = e.lineEnd(end)
	e.changes = append(e.changes, change{end, end, e.newline + strings.Repeat(" ", k.signer.Column-1) + field})
}

// fieldEnd is where the value ends that names the key.
func (e *editor) fieldEnd(k keyed) int {
	if v := k.value; v.Style&(yaml.LiteralStyle|yaml.FoldedStyle) == 0 {
		begin := e.begin(v)
		if v.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0 {
			return quotedEnd(e.text, begin)
		}
		if end := begin + len(v.Value); end <= len(e.text) && e.text[begin:end] == v.Value {
			return end
		}
		return -1
	}
	return e.end(k.value)
}

// begin is the offset of a node.
func (e *editor) begin(n *yaml.Node) int {
	at := 0
	for range n.Line - 1 {
		at += strings.IndexByte(e.text[at:], '\n') + 1
	}
	// A column counts characters.
	column := 1
	for i := range e.text[at:] {
		if column == n.Column {
			return at + i
		}
		column++
	}
	return len(e.text)
}

// end is the offset behind a mapping or a block of text, -1 where it cannot be
// told.
func (e *editor) end(n *yaml.Node) int {
	if n.Style&yaml.FlowStyle != 0 {
		return flowEnd(e.text, e.begin(n))
	}
	last := n
	for len(last.Content) > 0 {
		last = last.Content[len(last.Content)-1]
	}
	end := len(e.text)
	if i := slices.Index(e.order, last) + 1; i < len(e.order) {
		end = strings.LastIndexByte(e.text[:e.begin(e.order[i])], '\n') + 1
	}
	// What stands before the next node and says nothing is not of this one.
	for end > 0 {
		line := strings.LastIndexByte(e.text[:end-1], '\n') + 1
		if s := strings.TrimSpace(e.text[line:end]); s != "" && s[0] != '#' && s != "..." {
			return line + len(strings.TrimRight(e.text[line:end], "\r\n"))
		}
		end = line
	}
	return -1
}

// lineEnd is where the line of an offset ends, before what breaks it.
func (e *editor) lineEnd(at int) int {
	line, _, _ := strings.Cut(e.text[at:], "\n")
	return at + len(strings.TrimSuffix(line, "\r"))
}

// apply is the text between two offsets with the changes in it.
func (e *editor) apply(begin, end int) string {
	changes := slices.Clone(e.changes)
	slices.SortStableFunc(changes, func(a, b change) int { return a.begin - b.begin })
	var out strings.Builder
	for _, c := range changes {
		out.WriteString(e.text[begin:c.begin] + c.text)
		begin = c.end
	}
	out.WriteString(e.text[begin:end])
	return out.String()
}

// flowEnd is the offset behind the bracket that closes the one at i; -1: none
// does.
func flowEnd(text string, i int) int {
	depth, before := 0, byte(',')
	for i >= 0 && i < len(text) {
		c := text[i]
		switch {
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			if depth--; depth == 0 {
				return i + 1
			}
		case (c == '"' || c == '\'') && strings.IndexByte("{[,:", before) >= 0:
			if i = quotedEnd(text, i); i < 0 {
				return -1
			}
			before = c
			continue
		case c == '#' && strings.IndexByte(" \t\n", text[i-1]) >= 0:
			next := strings.IndexByte(text[i:], '\n')
			if next < 0 {
				return -1
			}
			i += next
		}
		if strings.IndexByte(" \t\r\n", c) < 0 {
			before = c
		}
		i++
	}
	return -1
}

// quotedEnd is the offset behind the quote that closes the one at i; -1: none
// does.
func quotedEnd(text string, i int) int {
	quote := text[i]
	for i++; i < len(text); i++ {
		switch {
		case text[i] == '\\' && quote == '"':
			i++
		case text[i] == quote && quote == '\'' && i+1 < len(text) && text[i+1] == quote:
			i++
		case text[i] == quote:
			return i + 1
		}
	}
	return -1
}
