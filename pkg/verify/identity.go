package verify

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Identity is whom a certificate must have been issued to for its signature to
// count. Make one with NewIdentity; the zero Identity is nobody.
type Identity struct {
	issuer string
	san    string // as it was written
	form   form
	match  *regexp.Regexp
	anchor attest.Digest
	window Window

	outages []Outage
}

type form string

const (
	exactly form = "exact"
	pattern form = "pattern"
	regular form = "regexp"
)

// IdentityOptions is what NewIdentity makes an Identity of. Exactly one of SAN,
// Pattern and Regexp is given.
type IdentityOptions struct {
	// Issuer is the OpenID Connect issuer that the certificate must name,
	// compared byte by byte. It may be left out only with a CA as Anchor: a
	// private CA vouches for the name itself.
	Issuer string
	// SAN is the certificate's subject alternative name, exactly.
	SAN string
	// Pattern is the whole of that name with wildcards: * stands for anything
	// but "/" and "@", ** for anything. Whatever else it holds stands for
	// itself.
	Pattern string
	// Regexp is a regular expression of the whole name, written with ^ and $.
	// Nothing repeated in it may match an @ before one that is written out, but in
	// an expression that ends in @HOST, as of mail addresses.
	Regexp string
	// Anchor is the ID of the Root or CA that the certificate must lead to;
	// empty: any that is trusted.
	Anchor attest.Digest
	// AnchorIsCA says that Anchor is a private CA.
	AnchorIsCA bool
	// Window is when a signature of this identity counts; zero: always.
	Window Window
	// Outages are when its signatures need no entry in a log.
	Outages []Outage
}

// Outage is a span of time in which a transparency log could not be asked, both
// ends within it. A signature whose every proven time lies in it counts without
// an entry: a time-stamping authority must prove one.
type Outage struct {
	From, Until time.Time
	Reason      string // shown in verdicts
}

const maxPattern = 512

// NewIdentity checks that the identity is anchored: that it cannot match a name
// which merely contains, begins like, or looks like the one that was meant.
func NewIdentity(o IdentityOptions) (Identity, error) {
	id := Identity{issuer: o.Issuer, anchor: o.Anchor, window: o.Window, outages: slices.Clone(o.Outages)}
	given := 0
	for _, f := range []struct {
		form form
		text string
	}{{exactly, o.SAN}, {pattern, o.Pattern}, {regular, o.Regexp}} {
		if f.text != "" {
			given++
			id.form, id.san = f.form, f.text
		}
	}
	switch {
	case given == 0:
		return Identity{}, errors.New("reading an identity: it names nobody")
	case given > 1:
		return Identity{}, errors.New("reading an identity: give its name once, exactly, as a pattern or as a regular expression")
	case o.Issuer == "" && !(o.AnchorIsCA && o.Anchor != ""):
		return Identity{}, fmt.Errorf("reading identity %q: it has no issuer; whoever runs another one could take the same name there", clip(id.san))
	case strings.ContainsAny(o.Issuer, "*^$\\()|"):
		return Identity{}, fmt.Errorf("reading identity %q: issuer %q must be the exact address, without wildcards", clip(id.san), clip(o.Issuer))
	case len(id.san) > maxPattern:
		return Identity{}, fmt.Errorf("reading an identity: its name is longer than %d bytes", maxPattern)
	}
	for _, out := range id.outages {
		if out.From.IsZero() || !out.From.Before(out.Until) || out.Reason == "" {
			return Identity{}, fmt.Errorf("reading identity %q: an outage must have a beginning, a later end and a reason", clip(id.san))
		}
	}
	var err error
	switch id.form {
	case pattern:
		id.match, err = compilePattern(id.san)
	case regular:
		id.match, err = compileRegexp(id.san)
	}
	if err != nil {
		return Identity{}, fmt.Errorf("reading identity %q: %w", clip(id.san), err)
	}
	return id, nil
}

// Pattern is a name, or all names of one form: * stands for anything but "/" and
// "@", ** for anything, or where an "@" comes after it for anything but "@", and
// whatever else it holds for itself. Make one with NewPattern.
type Pattern struct {
	text  string
	match *regexp.Regexp // nil: the text itself
}

// NewPattern checks that a pattern is anchored, as NewIdentity does. A text
// without * is itself alone.
func NewPattern(text string) (Pattern, error) {
	p := Pattern{text: text}
	if len(text) == 0 || len(text) > maxPattern {
		return p, fmt.Errorf("reading a pattern: it must have 1 to %d bytes", maxPattern)
	}
	if !strings.Contains(text, "*") {
		return p, nil
	}
	var err error
	if p.match, err = compilePattern(text); err != nil {
		return p, fmt.Errorf("reading pattern %q: %w", clip(text), err)
	}
	return p, nil
}

// Match reports whether the pattern covers the whole of s.
func (p Pattern) Match(s string) bool {
	if p.match != nil {
		return p.match.MatchString(s)
	}
	return s == p.text
}

// String is the pattern as it was written.
func (p Pattern) String() string { return p.text }

// compilePattern turns a pattern into an expression of the whole name, and
// refuses one that could match more than its writer can have meant.
func compilePattern(p string) (*regexp.Regexp, error) {
	if i := strings.IndexAny(p, `^$()[]{}|\`); i >= 0 {
		return nil, fmt.Errorf("%q is of a regular expression; a name may have the wildcards * and ** only", p[i:i+1])
	}
	for _, s := range []string{".*", ".+", ".?"} {
		// "v1.*" is a fair pattern of a tag; ".*" where a part begins is not.
		if i := strings.Index(p, s); i == 0 || i > 0 && strings.ContainsAny(p[i-1:i], "/@") {
			return nil, fmt.Errorf("%q is of a regular expression; a name may have the wildcards * and ** only", s)
		}
	}
	if strings.Contains(p, "***") {
		return nil, errors.New("more than two stars in a row")
	}
	begin := strings.IndexByte(p, '*')
	if begin < 0 {
		begin = len(p)
	}
	if begin == 0 && (strings.HasPrefix(p, "**") || !strings.HasPrefix(p, "*@") || strings.Contains(p[2:], "*")) {
		return nil, errors.New(`it begins with a wildcard, so it is not anchored; only "*@HOST" may`)
	}
	if scheme := strings.Index(p, "://"); scheme >= 0 {
		host, _, path := strings.Cut(p[scheme+3:], "/")
		if begin < scheme+3 || strings.Contains(host, "*") || host == "" || !path {
			return nil, errors.New("the scheme and the host must be written out, with a / after them")
		}
	}
	var b strings.Builder
	b.WriteString(`\A`)
	for i := 0; i < len(p); {
		switch {
		case strings.HasPrefix(p[i:], "**"):
			// "org/repo**" would match "org/repo-evil/...".
			if before, after := p[i-1], p[i+2:]; before != '/' && before != '@' || after != "" && after[0] != '/' && after[0] != '@' {
				return nil, errors.New(`** must stand between "/" or "@": it would match names that only begin alike`)
			}
			// Where the pattern goes on to an "@", that is the name's first: what
			// stands behind it is the revision, and a branch may be called x@refs/tags/v1.
			if strings.Contains(p[i+2:], "@") {
				b.WriteString(`[^@]*`)
			} else {
				b.WriteString(`(?s:.*)`)
			}
			i += 2
		case p[i] == '*':
			b.WriteString(`[^/@]*`)
			i++
		default:
			n := strings.IndexByte(p[i:], '*')
			if n < 0 {
				n = len(p) - i
			}
			b.WriteString(regexp.QuoteMeta(p[i : i+n]))
			i += n
		}
	}
	b.WriteString(`\z`)
	return regexp.Compile(b.String())
}

// compileRegexp takes an expression that says itself that it is anchored, and
// anchors it all the same.
func compileRegexp(p string) (*regexp.Regexp, error) {
	tree, err := syntax.Parse(p, syntax.Perl)
	if err != nil {
		return nil, err
	}
	if !anchored(tree) {
		return nil, errors.New(`the expression is not anchored: it must begin with ^ and end with $, and an alternative must stand in ( )`)
	}
	if loose(tree, false) {
		return nil, errors.New(`a dot that is not repeated matches any character; write \. for a dot`)
	}
	if !literal(tree) {
		return nil, errors.New("the expression matches everybody")
	}
	if !mail(tree) {
		if begins(tree.Sub[1]) {
			return nil, errors.New("it begins with a wildcard, so it is not anchored; only one that ends in @HOST may")
		}
		if _, bad := swallows(tree, false); bad {
			return nil, errors.New("something repeated in it can match the @ before the revision, and a branch may be called x@refs/tags/v1: write [^@]* for .* and the @ itself, after which .* may stand")
		}
	}
	return regexp.Compile(`\A(?:` + p + `)\z`)
}

func anchored(t *syntax.Regexp) bool {
	if t.Op != syntax.OpConcat || len(t.Sub) < 2 {
		return false
	}
	first, last := t.Sub[0].Op, t.Sub[len(t.Sub)-1].Op
	return first == syntax.OpBeginText && last == syntax.OpEndText
}

// loose reports a dot that stands for one character.
func loose(t *syntax.Regexp, repeated bool) bool {
	switch t.Op {
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return !repeated
	case syntax.OpStar, syntax.OpPlus, syntax.OpRepeat:
		repeated = true
	default:
		repeated = false
	}
	for _, s := range t.Sub {
		if loose(s, repeated) {
			return true
		}
	}
	return false
}

// literal reports whether something in the expression must be there.
func literal(t *syntax.Regexp) bool {
	switch t.Op {
	case syntax.OpLiteral:
		return true
	case syntax.OpConcat, syntax.OpCapture, syntax.OpPlus:
		for _, s := range t.Sub {
			if literal(s) {
				return true
			}
		}
	case syntax.OpAlternate:
		for _, s := range t.Sub {
			if !literal(s) {
				return false
			}
		}
		return true
	}
	return false
}

// mail reports whether an expression ends in @HOST, written out, and writes no /
// anywhere, as one of mail addresses does: they have no revision.
func mail(t *syntax.Regexp) bool {
	last := t.Sub[len(t.Sub)-2]
	return last.Op == syntax.OpLiteral && slices.Contains(last.Rune, '@') && !writes(t, '/')
}

// writes reports whether c is written out in a part of an expression.
func writes(t *syntax.Regexp, c rune) bool {
	if t.Op == syntax.OpLiteral {
		return slices.Contains(t.Rune, c)
	}
	return slices.ContainsFunc(t.Sub, func(s *syntax.Regexp) bool { return writes(s, c) })
}

// begins reports whether a part of an expression begins with something repeated
// that could be a scheme and a host.
func begins(t *syntax.Regexp) bool {
	switch t.Op {
	case syntax.OpConcat, syntax.OpCapture:
		return begins(t.Sub[0])
	case syntax.OpAlternate:
		return slices.ContainsFunc(t.Sub, begins)
	case syntax.OpStar, syntax.OpPlus, syntax.OpRepeat:
		return holds(t, '/')
	}
	return false
}

// swallows reports whether something repeated in a part of an expression can
// match an @ where none was before it; at: one was, or is, whatever matches.
func swallows(t *syntax.Regexp, before bool) (at, bad bool) {
	at = before
	switch t.Op {
	case syntax.OpConcat, syntax.OpCapture:
		for _, s := range t.Sub {
			var b bool
			at, b = swallows(s, at)
			bad = bad || b
		}
	case syntax.OpAlternate:
		at = true
		for _, s := range t.Sub {
			a, b := swallows(s, before)
			at, bad = at && a, bad || b
		}
	case syntax.OpQuest:
		_, bad = swallows(t.Sub[0], before)
	case syntax.OpStar, syntax.OpPlus, syntax.OpRepeat:
		bad = !before && holds(t, '@')
	case syntax.OpLiteral:
		at = before || holds(t, '@')
	}
	return at, bad
}

// holds reports whether what a part of an expression matches can have c in it.
func holds(t *syntax.Regexp, c rune) bool {
	switch t.Op {
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return true
	case syntax.OpLiteral:
		return slices.Contains(t.Rune, c)
	case syntax.OpCharClass: // pairs of a first and a last
		for i := 0; i+1 < len(t.Rune); i += 2 {
			if t.Rune[i] <= c && c <= t.Rune[i+1] {
				return true
			}
		}
	}
	return slices.ContainsFunc(t.Sub, func(s *syntax.Regexp) bool { return holds(s, c) })
}

// Issuer is the OpenID Connect issuer, or "" for a private CA's.
func (id Identity) Issuer() string { return id.issuer }

// SAN is the name or the pattern, as it was written.
func (id Identity) SAN() string { return id.san }

// Window is when the identity's signatures count.
func (id Identity) Window() Window { return id.window }

func (id Identity) String() string {
	s := fmt.Sprintf("%q", id.san)
	if id.form == regular {
		s = "the expression " + s
	}
	if id.issuer != "" {
		s += fmt.Sprintf(" of %q", id.issuer)
	}
	return s + id.window.String()
}

// digestLine says all of the identity that a verdict could depend on.
func (id Identity) digestLine() string {
	line := fmt.Sprintf("identity %s %q issuer %q anchor %s%s", id.form, id.san, id.issuer, id.anchor, id.window)
	for _, o := range id.outages {
		line += fmt.Sprintf(" unlogged from %s until %s (%q)", o.From.UTC().Format(time.RFC3339Nano), o.Until.UTC().Format(time.RFC3339Nano), o.Reason)
	}
	return line
}

// logs reports whether a signature is in a log, or need not be, and then why.
func (id Identity) logs(s Signer) (reason string, ok bool) {
	if !s.unlogged {
		return "", true
	}
	for _, o := range id.outages {
		if w := (Window{From: o.From, Until: o.Until}); w.Holds(s.first) && w.Holds(s.last) {
			return o.Reason, true
		}
	}
	return "", false
}

// names reports whether the identity is that of a verified certificate,
// whenever it signed.
func (id Identity) names(s Signer) bool {
	switch {
	case s.SAN == "", id.issuer != "" && s.Issuer != id.issuer, id.anchor != "" && s.anchor != id.anchor:
		return false
	// Without an issuer only the CA itself vouches for the name.
	case id.issuer == "" && id.anchor == "":
		return false
	}
	switch id.form {
	case exactly:
		return s.SAN == id.san
	case pattern, regular:
		return id.match.MatchString(s.SAN)
	}
	return false
}

// Window is a span of time, both ends within it. A zero end is open.
type Window struct {
	From, Until time.Time
	// Revoked is the moment from which on the signer's secret may be in other
	// hands; zero: never. What was signed at or after it does not count, nor does
	// what nothing proves the time of: a thief writes whatever date is wanted.
	Revoked time.Time
	Reason  string // of the revocation, for people
}

// Holds reports whether t lies within the window.
func (w Window) Holds(t time.Time) bool {
	return (w.From.IsZero() || !t.Before(w.From)) && (w.Until.IsZero() || !t.After(w.Until)) && (w.Revoked.IsZero() || t.Before(w.Revoked))
}

// IsZero reports whether the window holds always.
func (w Window) IsZero() bool { return w.From.IsZero() && w.Until.IsZero() && w.Revoked.IsZero() }

// revocation says when and why the signer was revoked.
func (w Window) revocation() string {
	return fmt.Sprintf("revoked at %s (%s)", w.Revoked.UTC().Format(time.RFC3339), clip(w.Reason))
}

// String is the window in words that follow a name; empty for one without
// ends.
func (w Window) String() string {
	s := ""
	if !w.From.IsZero() {
		s += " from " + w.From.UTC().Format(time.RFC3339)
	}
	if !w.Until.IsZero() {
		s += " until " + w.Until.UTC().Format(time.RFC3339)
	}
	if !w.Revoked.IsZero() {
		s += " " + w.revocation()
	}
	return s
}
