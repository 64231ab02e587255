package egress

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"strings"
	"sync"

	"github.com/waxseal/waxseal/pkg/lock"
)

// minSecret is the shortest value that is looked for: a shorter one stands in
// every body by chance.
const minSecret = 4

// needles are the forms in which a step's secrets are looked for.
type needles struct {
	values []string // the secrets as they are, for the redactor
	forms  [][]byte // every encoding of each
	long   int      // length of the longest form
	folded *needles // the forms that are looked for in an unfolded body; nil in itself
}

// minFolded is the shortest form that is looked for in an unfolded body, where
// the end of one line meets the start of the next.
const minFolded = 8

func newNeedles(secrets [][]byte) *needles {
	n := &needles{}
	seen := map[string]bool{}
	add := func(form string) {
		if len(form) >= minSecret && !seen[form] {
			seen[form] = true
			n.forms = append(n.forms, []byte(form))
			n.long = max(n.long, len(form))
		}
	}
	one := func(v string) {
		add(v)
		add(url.QueryEscape(v))
		add(url.PathEscape(v))
		add(lowerEscapes(url.QueryEscape(v)))
		add(hex.EncodeToString([]byte(v)))
		add(strings.ToUpper(hex.EncodeToString([]byte(v))))
		if j, err := json.Marshal(v); err == nil {
			add(strings.Trim(string(j), `"`))
		}
		// base64 of a text around the secret: at each of the three offsets, only
		// the characters that no neighbour has a bit in.
		for offset := range 3 {
			for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				e := enc.EncodeToString(append(make([]byte, offset), v...))
				if e = e[(offset*8+5)/6 : (offset+len(v))*8/6]; len(e) >= 6 {
					add(e)
				}
			}
		}
	}
	for _, s := range secrets {
		n.values = append(n.values, string(s))
	}
	for _, v := range lock.SecretValues(n.values) {
		one(v)
	}
	n.folded = &needles{}
	for _, f := range n.forms {
		if len(f) >= minFolded {
			n.folded.forms = append(n.folded.forms, f)
			n.folded.long = max(n.folded.long, len(f))
		}
	}
	return n
}

// lowerEscapes writes %2F as %2f.
func lowerEscapes(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:i+3], bytes.ToLower(b[i+1:i+3]))
		}
	}
	return string(b)
}

func (n *needles) none() bool { return len(n.forms) == 0 }

func (n *needles) in(b []byte) bool {
	for _, f := range n.forms {
		if bytes.Contains(b, f) {
			return true
		}
	}
	return false
}

// scrub takes the secrets out of a text, in any case of ASCII letters: host
// names come in lower case. What is put in is not looked at again.
func (n *needles) scrub(s string) string {
	low := lowerASCII(s)
	hide := make([]bool, len(s))
	for _, f := range n.forms {
		form := lowerASCII(string(f))
		for from := 0; ; from++ {
			i := strings.Index(low[from:], form)
			if i < 0 {
				break
			}
			from += i
			for j := range len(form) {
				hide[from+j] = true
			}
		}
	}
	var out strings.Builder
	for i := range len(s) {
		switch {
		case !hide[i]:
			out.WriteByte(s[i])
		case i == 0 || !hide[i-1]:
			out.WriteString("(secret)")
		}
	}
	return out.String()
}

// lowerASCII lowers what has one byte in both cases: what is found in it stands
// at the same place in s.
func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// maxDecoded bounds what a compressed body is unpacked to for the search.
const maxDecoded = 2 << 30

// unfolder takes out of a body what stands between the parts of a secret in it:
// the line ends of base64 and xxd, a form's percent-encoding, JSON's backslashes.
type unfolder struct {
	rest []byte // an escape whose end is to come
	out  []byte
}

// unfold returns what p comes to; good until it is called again.
func (u *unfolder) unfold(p []byte) []byte {
	if len(u.rest) > 0 {
		p = append(u.rest, p...)
		u.rest = nil
	}
	out := u.out[:0]
	for i := 0; i < len(p); i++ {
		from := i
		for i < len(p) && p[i] != '%' && p[i] != '\\' && p[i] != '\n' && p[i] != '\r' {
			i++
		}
		if out = append(out, p[from:i]...); i == len(p) {
			break
		}
		c := p[i]
		switch {
		case c == '%' && i+2 >= len(p), c == '\\' && i+1 >= len(p):
			u.rest, u.out = bytes.Clone(p[i:]), out
			return out
		case c == '%':
			var b [1]byte
			if _, err := hex.Decode(b[:], p[i+1:i+3]); err == nil {
				c = b[0]
				i += 2
			}
		case c == '\\':
			i++
			if c = p[i]; c == 'n' || c == 'r' {
				c = '\n'
			}
		}
		if c != '\n' && c != '\r' {
			out = append(out, c)
		}
	}
	u.out = out
	return out
}

// scanner looks for secrets in a body as it passes, across the borders of its
// chunks, as it is and unfolded, and in what a compressed body unpacks to.
type scanner struct {
	n    *needles
	tail []byte
	hit  bool

	unfolder
	flat *scanner // of what is unfolded; nil in itself, or where no form is long enough

	pipe *io.PipeWriter
	wg   sync.WaitGroup
	deep bool // what the goroutine found; read after wg
	odd  bool // it could not be unpacked to its end
}

// newScanner returns nil where there is nothing to look for.
func newScanner(n *needles, contentEncoding string) *scanner {
	if n.none() {
		return nil
	}
	s := newFlatScanner(n)
	zipped := false
	switch strings.ToLower(strings.TrimSpace(contentEncoding)) {
	case "", "identity":
		return s
	case "gzip", "x-gzip":
		zipped = true
	case "deflate":
	default:
		s.odd = true
		return s
	}
	pr, pw := io.Pipe()
	s.pipe = pw
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		defer func() { _, _ = io.Copy(io.Discard, pr) }() // the writer must never wait for a broken body
		r := flate.NewReader(pr)
		if zipped {
			var err error
			if r, err = gzip.NewReader(pr); err != nil {
				s.odd = true
				return
			}
		}
		inner := newFlatScanner(n)
		buf := make([]byte, 64<<10)
		left := int64(maxDecoded)
		for left > 0 && !inner.hit {
			m, err := r.Read(buf)
			inner.write(buf[:m])
			left -= int64(m)
			if err != nil {
				s.odd = !errors.Is(err, io.EOF)
				break
			}
		}
		s.odd = s.odd || left <= 0
		s.deep = inner.hit
	}()
	return s
}

// newFlatScanner is for a body that is not compressed.
func newFlatScanner(n *needles) *scanner {
	s := &scanner{n: n}
	if len(n.folded.forms) > 0 {
		s.flat = &scanner{n: n.folded}
	}
	return s
}

func (s *scanner) write(p []byte) {
	if s == nil || s.hit {
		return
	}
	if s.pipe != nil {
		_, _ = s.pipe.Write(p) // its reader takes everything
	}
	keep := s.n.long - 1
	if len(s.tail) > 0 {
		edge := append(s.tail, p[:min(len(p), keep)]...)
		s.hit = s.n.in(edge)
		s.tail = edge
	}
	s.hit = s.hit || s.n.in(p)
	if s.flat != nil && !s.hit {
		s.flat.write(s.unfold(p))
		s.hit = s.flat.hit
	}
	if len(p) >= keep {
		s.tail = append(s.tail[:0], p[len(p)-keep:]...)
	} else {
		if len(s.tail) == 0 {
			s.tail = append(s.tail, p...)
		}
		if len(s.tail) > keep {
			s.tail = append(s.tail[:0], s.tail[len(s.tail)-keep:]...)
		}
	}
}

// end reports whether the body held a secret, or may have: what could not be
// looked into counts as one.
func (s *scanner) end() bool {
	if s == nil {
		return false
	}
	if s.pipe != nil {
		s.pipe.Close()
		s.wg.Wait()
	}
	return s.hit || s.deep || s.odd
}
