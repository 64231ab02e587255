package attest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
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
	s := newScanner(data)
	if err := s.document(t); err != nil {
		return err
	}
	if v == nil {
		return nil
	}
	if err := json.Unmarshal(data, v); err != nil {
		var ute *json.UnmarshalTypeError
		if errors.As(err, &ute) {
			want := ute.Type.String()
			if ute.Type.Kind() == reflect.Struct { // its name is for us alone
				want = "an object"
			}
			return fmt.Errorf("decoding JSON at %q: found %s where %s is expected", "/"+strings.ReplaceAll(ute.Field, ".", "/"), ute.Value, want)
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

// Limits on the members of objects in evidence.
const (
	maxMembers = 1024    // of the top object
	maxDigests = 64      // of the digests of one subject
	maxObject  = 1 << 18 // of any other: some predicates list files
)

// scan checks data and returns the members of its top object (nil when the top
// is no object). The values are slices of data. An array type stands for a list
// of at most so many, which is refused before anything is decoded.
func scan(data []byte, t reflect.Type) ([]member, error) {
	s := newScanner(data)
	s.keep = true
	err := s.document(t)
	return s.top, err
}

func newScanner(data []byte) *scanner {
	// Of a bytes.Buffer the decoder takes the bytes themselves, not a copy.
	return &scanner{data: data, dec: jsontext.NewDecoder(bytes.NewBuffer(data)), fields: map[reflect.Type][]field{}}
}

// document reads one value that is for t, and nothing after it.
func (s *scanner) document(t reflect.Type) error {
	if err := s.value(t); err != nil {
		return s.place(err)
	}
	end := s.dec.InputOffset()
	if _, err := s.dec.ReadToken(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading JSON: data after the end of the value, at byte %d", end)
	}
	return nil
}

// scanner walks one document beside the type it is for. Syntax, duplicate
// names and UTF-8 are the decoder's matter.
type scanner struct {
	data   []byte
	dec    *jsontext.Decoder
	keep   bool // the members of the top object
	top    []member
	fields map[reflect.Type][]field
}

type field struct {
	name string
	typ  reflect.Type
}

// place says where in the document err arose.
func (s *scanner) place(err error) error {
	pointer, at := s.dec.StackPointer(), s.dec.InputOffset()
	var syntax *jsontext.SyntacticError
	if errors.As(err, &syntax) {
		pointer, at, err = syntax.JSONPointer, syntax.ByteOffset, syntax.Err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the document ends early")
	}
	if len(pointer) > 200 {
		pointer = pointer[:200] + "…"
	}
	return fmt.Errorf("reading JSON at %q: %w at byte %d", pointer, err, at)
}

func (s *scanner) value(t reflect.Type) error {
	if s.dec.StackDepth() > MaxJSONDepth {
		return fmt.Errorf("nested deeper than %d levels", MaxJSONDepth)
	}
	token, err := s.dec.ReadToken()
	if err != nil {
		return err
	}
	switch token.Kind() {
	case jsontext.KindBeginObject:
		return s.object(indirect(t))
	case jsontext.KindBeginArray:
		return s.array(indirect(t))
	}
	return nil
}

func (s *scanner) object(t reflect.Type) error {
	top := s.keep && s.dec.StackDepth() == 1
	known := s.known(t)
	most := 0 // without a limit
	switch {
	case top:
		most = maxMembers
	case t == reflect.TypeFor[digestSet]():
		most = maxDigests
	case s.keep:
		most = maxObject
	}
	// What PeekKind stumbles over is reported by the read that follows.
	for n := 1; s.dec.PeekKind() != jsontext.KindEndObject; n++ {
		if most > 0 && n > most {
			return fmt.Errorf("more than the %d members allowed", most)
		}
		name, err := s.dec.ReadToken()
		if err != nil {
			return err
		}
		var elem reflect.Type
		var key string
		if top || known != nil {
			key = name.String()
		}
		if known != nil {
			if elem, err = match(known, key); err != nil {
				return err
			}
		} else if t != nil && t.Kind() == reflect.Map {
			elem = t.Elem()
		}
		start := s.dec.InputOffset()
		if err := s.value(elem); err != nil {
			return err
		}
		if top {
			value := s.data[start:s.dec.InputOffset()]
			s.top = append(s.top, member{key, bytes.TrimLeft(value, ": \t\r\n")})
		}
	}
	_, err := s.dec.ReadToken()
	return err
}

func (s *scanner) array(t reflect.Type) error {
	var elem reflect.Type
	if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
		elem = t.Elem()
	}
	for n := 1; s.dec.PeekKind() != jsontext.KindEndArray; n++ {
		if t != nil && t.Kind() == reflect.Array && n > t.Len() {
			return fmt.Errorf("more than the %d allowed", t.Len())
		}
		if err := s.value(elem); err != nil {
			return err
		}
	}
	_, err := s.dec.ReadToken()
	return err
}

// match returns the type that the value of key decodes into, and refuses a
// wrong spelling of a known field: encoding/json would take it for the field.
func match(known []field, key string) (reflect.Type, error) {
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
		return nil, fmt.Errorf("the key is spelled %q here", near)
	}
	return nil, nil
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
// included. It is not nil for a struct.
func (s *scanner) known(t reflect.Type) []field {
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
