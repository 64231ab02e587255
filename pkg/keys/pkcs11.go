package keys

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	pkcs11uri "github.com/stefanberger/go-pkcs11uri"

	"github.com/waxseal/waxseal/pkg/attest"
)

// tokenRef is what waxseal itself reads in the URI of a key on a token; which
// token and object are meant is the helper's to find out.
type tokenRef struct {
	module  string // path of the library; "": not said
	pinFile string // of pin-source
}

// parseToken reads a PKCS#11 URI (RFC 7512) without a PIN in it.
func parseToken(uri string) (tokenRef, error) {
	var t tokenRef
	u := pkcs11uri.New()
	if err := u.Parse(uri); err != nil {
		return t, fmt.Errorf("as a PKCS#11 URI: %s", strings.ToLower(strings.TrimPrefix(err.Error(), "Malformed pkcs11 URI: ")))
	}
	_, object := u.GetPathAttribute("object", false)
	_, id := u.GetPathAttribute("id", false)
	if !object && !id {
		return t, errors.New("it names no key: say which with object=LABEL or id=%01")
	}
	if kind, ok := u.GetPathAttribute("type", false); ok && kind != "private" && kind != "public" {
		return t, fmt.Errorf("it names an object of the type %q, which is no key", kind)
	}
	t.module, _ = u.GetQueryAttribute("module-path", false)
	if name, ok := u.GetQueryAttribute("module-name", false); ok && t.module == "" {
		return t, fmt.Errorf("it names the module %q: give its file with module-path=/…/%s.so", name, name)
	}
	source, ok := u.GetQueryAttribute("pin-source", false)
	if !ok {
		return t, nil
	}
	p, err := url.Parse(source)
	if err != nil || p.Scheme != "" && p.Scheme != "file" || !filepath.IsAbs(p.Path) {
		return t, errors.New("its pin-source is no absolute path of a file (pin-source=/run/secrets/pin)")
	}
	t.pinFile = p.Path
	return t, nil
}

// cutPIN takes the pin-value out of a PKCS#11 URI: it is shown to nobody, and
// given to the helper by a way of its own.
func cutPIN(ref string) (uri string, pin []byte) {
	path, query, ok := strings.Cut(ref, "?")
	if !ok || !strings.HasPrefix(ref, token+":") {
		return ref, nil
	}
	var rest []string
	end := ""
	for _, part := range strings.Split(query, "&") {
		name, value, _ := strings.Cut(part, "=")
		if name != "pin-value" {
			rest = append(rest, part)
			continue
		}
		// What pins the key stands at the end, whatever is before it.
		value, key, pinned := strings.Cut(value, "@sha256:")
		if pinned {
			end = "@sha256:" + key
		}
		if plain, err := url.PathUnescape(value); err == nil {
			value = plain
		}
		pin = []byte(value)
	}
	if len(rest) > 0 {
		path += "?" + strings.Join(rest, "&")
	}
	return path + end, pin
}

// Module is the library that a PKCS#11 URI names; "": none.
func Module(ref string) string {
	uri, _ := cutPIN(ref)
	t, _ := parseToken(uri)
	return t.module
}

// InFile is a reference to the key of this digest as a file may have it, see
// trust.KeyOptions: it pins the key, and of a PKCS#11 URI says neither the library
// nor where the PIN is.
func InFile(ref string, id attest.Digest) string {
	uri, _, pinned := strings.Cut(Name(ref), "@sha256:")
	switch {
	case strings.HasPrefix(uri, token+":"):
		uri, _, _ = strings.Cut(uri, "?")
	case pinned:
		return Name(ref)
	}
	return uri + "@" + string(id)
}

// PINFile is the file that a PKCS#11 URI has its PIN in; "": none.
func PINFile(ref string) string {
	uri, _ := cutPIN(ref)
	t, _ := parseToken(uri)
	return t.pinFile
}

// readPIN reads a PIN from a file that nobody else may read.
func readPIN(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the PIN: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading the PIN: %w", err)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("reading the PIN: others may use %q (mode %04o); make it 0600", path, perm)
	}
	raw, err := io.ReadAll(io.LimitReader(f, attest.MaxKey+1))
	if err != nil || len(raw) > attest.MaxKey {
		return nil, fmt.Errorf("reading the PIN: %q is no file with a PIN", path)
	}
	n := len(raw)
	for n > 0 && (raw[n-1] == '\n' || raw[n-1] == '\r') {
		n--
	}
	return raw[:n], nil
}
