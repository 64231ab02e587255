package attest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// UnmarshalStrict decodes exactly one JSON value into v (nil: only check).
// Errors, each with its place as a JSON pointer: a duplicate key, a key that
// differs only in case from a field of the struct it would land in (other
// readers would see a different document), trailing data, invalid UTF-8 or
// half a surrogate pair, nesting beyond MaxJSONDepth. Keys of a map are data
// and may differ in case only ("http_proxy", "HTTP_PROXY"). Fields unknown to
// v are allowed.
func UnmarshalStrict(data []byte, v any) error {
	var t reflect.Type
	if v != nil {
		t = reflect.TypeOf(v)
		if t.Kind() != reflect.Pointer || reflect.ValueOf(v).IsNil() {
			return fmt.Errorf("decoding JSON into %s: not a pointer", t)
		}
	}
	if _, err := scan(data, t); err != nil {
		return err
	}
	if v == nil {
		return nil
	}
	if err := json.Unmarshal(data, v); err != nil {
		var ute *json.UnmarshalTypeError
		if errors.As(err, &ute) {
			return fmt.Errorf("decoding JSON at %q: found %s where %s is expected", "/"+strings.ReplaceAll(ute.Field, ".", "/"), ute.Value, ute.Type)
		}
		return fmt.Errorf("decoding JSON: %w", err)
	}
	return nil
}

// member is one key of a document's top object and its value, as received.
type member struct {
	key   string
	value []byte
}

// scan checks data and returns the members of its top object (nil when the top
// is no object). The values are slices of data.
func scan(data []byte, t reflect.Type) ([]member, error) {
	if !utf8.Valid(data) {
		n := 0
		for rest := data; len(rest) > 0; {
			r, size := utf8.DecodeRune(rest)
			if r == utf8.RuneError && size <= 1 {
				break
			}
			n, rest = n+size, rest[size:]
		}
		return nil, fmt.Errorf("reading JSON: invalid UTF-8 at byte %d", n)
	}
	s := scanner{data: data, fields: map[reflect.Type][]field{}}
	s.space()
	if err := s.value(t); err != nil {
		return nil, err
	}
	s.space()
	if s.pos != len(data) {
		return nil, fmt.Errorf("reading JSON: data after the end of the value, at byte %d", s.pos)
	}
	return s.top, nil
}

// scanner walks one document. It keeps nothing of it but the keys of the
// objects it is inside of.
type scanner struct {
	data   []byte
	pos    int
	path   []step
	keys   []string // of all open objects, innermost last
	top    []member
	fields map[reflect.Type][]field
}

// step is one token of the JSON pointer to where the scanner stands.
type step struct {
	key   string
	index int // used when key is not
	isKey bool
}

type field struct {
	name string
	typ  reflect.Type
}

func (s *scanner) fail(format string, args ...any) error {
	return fmt.Errorf("reading JSON at %q: %s", s.pointer(), fmt.Sprintf(format, args...))
}

// pointer is RFC 6901's form of the path, cut to what a line can show.
func (s *scanner) pointer() string {
	var b strings.Builder
	for _, p := range s.path {
		b.WriteByte('/')
		if p.isKey {
			b.WriteString(strings.NewReplacer("~", "~0", "/", "~1").Replace(p.key))
		} else {
			b.WriteString(strconv.Itoa(p.index))
		}
		if b.Len() > 200 {
			b.WriteString("/…")
			break
		}
	}
	return b.String()
}

func (s *scanner) space() {
	for s.pos < len(s.data) {
		switch s.data[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return
		}
	}
}

func (s *scanner) peek() byte {
	if s.pos < len(s.data) {
		return s.data[s.pos]
	}
	return 0
}

func (s *scanner) value(t reflect.Type) error {
	switch c := s.peek(); {
	case c == '{':
		return s.object(t)
	case c == '[':
		return s.array(t)
	case c == '"':
		_, err := s.str()
		return err
	case c == '-' || c >= '0' && c <= '9':
		return s.number()
	case c == 0 && s.pos >= len(s.data):
		return s.fail("the document ends early")
	}
	for _, word := range []string{"true", "false", "null"} {
		if bytes.HasPrefix(s.data[s.pos:], []byte(word)) {
			s.pos += len(word)
			return nil
		}
	}
	return s.fail("unexpected %q at byte %d", s.peek(), s.pos)
}

// enter counts one level of nesting.
func (s *scanner) enter(p step) error {
	if len(s.path) >= MaxJSONDepth {
		return s.fail("nested deeper than %d levels", MaxJSONDepth)
	}
	s.path = append(s.path, p)
	return nil
}

func (s *scanner) object(t reflect.Type) error {
	known := s.known(t)
	first := len(s.keys)
	var many map[string]bool // takes over when there are too many to compare
	s.pos++
	s.space()
	if s.peek() == '}' {
		s.pos++
		return nil
	}
	for {
		if s.peek() != '"' {
			return s.fail("a key is expected at byte %d", s.pos)
		}
		key, err := s.str()
		if err != nil {
			return err
		}
		if err := s.enter(step{key: key, isKey: true}); err != nil {
			return err
		}
		if many, err = s.fresh(key, first, many); err != nil {
			return err
		}
		elem, err := s.elem(t, key, known)
		if err != nil {
			return err
		}
		s.space()
		if s.peek() != ':' {
			return s.fail("a colon is expected at byte %d", s.pos)
		}
		s.pos++
		s.space()
		start := s.pos
		if err := s.value(elem); err != nil {
			return err
		}
		s.path = s.path[:len(s.path)-1]
		if len(s.path) == 0 {
			s.top = append(s.top, member{key, s.data[start:s.pos]})
		}
		s.space()
		switch s.peek() {
		case ',':
			s.pos++
			s.space()
		case '}':
			s.pos++
			s.keys = s.keys[:first]
			return nil
		default:
			return s.fail("a comma or a closing brace is expected at byte %d", s.pos)
		}
	}
}

// fresh notes key in the object whose keys begin at first, and refuses it when
// the object has it already.
func (s *scanner) fresh(key string, first int, many map[string]bool) (map[string]bool, error) {
	if many == nil {
		for _, k := range s.keys[first:] {
			if k == key {
				return nil, s.fail("duplicate key")
			}
		}
		s.keys = append(s.keys, key)
		if len(s.keys)-first > 24 {
			many = make(map[string]bool, 64)
			for _, k := range s.keys[first:] {
				many[k] = true
			}
		}
		return many, nil
	}
	if many[key] {
		return nil, s.fail("duplicate key")
	}
	many[key] = true
	return many, nil
}

// elem returns the type that the value of key decodes into, and refuses a
// wrong spelling of a known field: encoding/json would take it for the field.
func (s *scanner) elem(t reflect.Type, key string, known []field) (reflect.Type, error) {
	var near string
	for _, f := range known {
		if f.name == key {
			return f.typ, nil
		}
		if strings.EqualFold(f.name, key) {
			near = f.name
		}
	}
	if near != "" {
		return nil, s.fail("the key is spelled %q here", near)
	}
	if t = indirect(t); t != nil && t.Kind() == reflect.Map {
		return t.Elem(), nil
	}
	return nil, nil
}

func (s *scanner) array(t reflect.Type) error {
	var elem reflect.Type
	if t = indirect(t); t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
		elem = t.Elem()
	}
	s.pos++
	s.space()
	if s.peek() == ']' {
		s.pos++
		return nil
	}
	for i := 0; ; i++ {
		if err := s.enter(step{index: i}); err != nil {
			return err
		}
		if err := s.value(elem); err != nil {
			return err
		}
		s.path = s.path[:len(s.path)-1]
		s.space()
		switch s.peek() {
		case ',':
			s.pos++
			s.space()
		case ']':
			s.pos++
			return nil
		default:
			return s.fail("a comma or a closing bracket is expected at byte %d", s.pos)
		}
	}
}

// str passes over a string and returns its value; only keys with escapes cost
// a decode.
func (s *scanner) str() (string, error) {
	start := s.pos
	escaped := false
	for s.pos++; s.pos < len(s.data); s.pos++ {
		switch c := s.data[s.pos]; {
		case c == '"':
			s.pos++
			if !escaped {
				return string(s.data[start+1 : s.pos-1]), nil
			}
			var v string
			if err := json.Unmarshal(s.data[start:s.pos], &v); err != nil {
				return "", s.fail("bad string at byte %d", start)
			}
			return v, nil
		case c < 0x20:
			return "", s.fail("control character in a string at byte %d", s.pos)
		case c == '\\':
			escaped = true
			if err := s.escape(); err != nil {
				return "", err
			}
		}
	}
	return "", s.fail("a string does not end")
}

// escape passes over one escape sequence, or the two of a surrogate pair, and
// leaves the position on its last byte.
func (s *scanner) escape() error {
	at := s.pos
	s.pos++
	switch s.peek() {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return nil
	case 'u':
	default:
		return s.fail("unknown escape at byte %d", at)
	}
	unit, ok := s.hex4(at + 2)
	if !ok {
		return s.fail("unknown escape at byte %d", at)
	}
	s.pos = at + 5
	if unit < 0xd800 || unit > 0xdfff {
		return nil
	}
	low, ok := s.hex4(at + 8)
	if unit > 0xdbff || !ok || !bytes.HasPrefix(s.data[at+6:], []byte(`\u`)) || low < 0xdc00 || low > 0xdfff {
		return s.fail("half of a surrogate pair at byte %d", at)
	}
	s.pos = at + 11
	return nil
}

func (s *scanner) hex4(at int) (uint64, bool) {
	if at+4 > len(s.data) {
		return 0, false
	}
	n, err := strconv.ParseUint(string(s.data[at:at+4]), 16, 16)
	return n, err == nil
}

func (s *scanner) number() error {
	start := s.pos
	for s.pos < len(s.data) && strings.IndexByte("+-0123456789.eE", s.data[s.pos]) >= 0 {
		s.pos++
	}
	if !json.Valid(s.data[start:s.pos]) {
		return s.fail("bad number at byte %d", start)
	}
	return nil
}

// indirect follows pointers. A type that decodes itself is opaque: its keys
// are its own matter.
func indirect(t reflect.Type) reflect.Type {
	for t != nil {
		if t.Implements(reflect.TypeFor[json.Unmarshaler]()) || reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
			return nil
		}
		if t.Kind() != reflect.Pointer {
			return t
		}
		t = t.Elem()
	}
	return nil
}

// known lists the JSON names of a struct's fields, those of embedded structs
// included.
func (s *scanner) known(t reflect.Type) []field {
	t = indirect(t)
	if t == nil || t.Kind() != reflect.Struct {
		return nil
	}
	if fs, ok := s.fields[t]; ok {
		return fs
	}
	fs := []field{}
	for _, f := range reflect.VisibleFields(t) {
		tag := f.Tag.Get("json")
		name, _, _ := strings.Cut(tag, ",")
		if tag == "-" || !f.IsExported() || f.Anonymous && name == "" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		fs = append(fs, field{name, f.Type})
	}
	s.fields[t] = fs
	return fs
}
