package store

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Kind is where a reference points.
type Kind string

// The kinds of place.
const (
	Registry Kind = "registry" // HOST/REPO[:TAG][@DIGEST]
	Layout   Kind = "oci"      // oci:PATH[:TAG][@DIGEST]
	Docker   Kind = "docker"   // docker:NAME, read-only
	Archive  Kind = "archive"  // archive:FILE[@DIGEST], read-only
	File     Kind = "file"     // file:PATH[@DIGEST], a plain file, read-only
)

// Reference is a parsed image reference. String gives it back in the form
// that Parse takes.
type Reference struct {
	Kind   Kind
	Place  string // "host/repo", the layout's, archive's or file's path, or the daemon's image name
	Tag    string
	Digest attest.Digest
}

// ReferenceError is a reference that Parse refuses.
type ReferenceError struct {
	Input string
	Cause string
	Way   string
}

func (e *ReferenceError) Error() string {
	in := e.Input
	if len(in) > 200 {
		in = in[:200] + "…"
	}
	return fmt.Sprintf("reading image reference %q: %s", in, e.Cause)
}

// Hint is the way out.
func (e *ReferenceError) Hint() string {
	if e.Way != "" {
		return e.Way
	}
	return "a reference is HOST/REPO[:TAG][@DIGEST], oci:PATH[:TAG][@DIGEST], docker:NAME, archive:FILE[@DIGEST] or file:PATH[@DIGEST]"
}

// validTag is the distribution specification's rule for tags. It is asked for
// every reference, which is why it is no regular expression.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pulling-manifests
func validTag(tag string) bool {
	for i, c := range []byte(tag) {
		word := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_'
		if !word && (i == 0 || c != '.' && c != '-') {
			return false
		}
	}
	return tag != "" && len(tag) <= 128
}

// Parse reads REF: a registry reference, oci:PATH[:TAG][@DIGEST], docker:NAME,
// archive:FILE[@DIGEST] or file:PATH[@DIGEST]. The error is a *ReferenceError: it says what is wrong and shows
// a right form. A registry reference without tag and digest means the tag
// "latest", as docker has it.
func Parse(s string) (Reference, error) {
	fail := func(way, format string, args ...any) (Reference, error) {
		return Reference{}, &ReferenceError{Input: s, Cause: fmt.Sprintf(format, args...), Way: way}
	}
	if s == "" {
		return fail("", "it is empty")
	}
	if len(s) > 8<<10 {
		return fail("", "it is %d bytes long", len(s))
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }); i >= 0 {
		return fail("", "it has a control character")
	}
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		switch scheme {
		case "oci", "oci-layout":
			return fail("write oci:"+rest, "%q is not a prefix that waxseal knows", scheme+"://")
		case "docker-daemon":
			return fail("write docker:"+rest, "%q is not a prefix that waxseal knows", scheme+"://")
		}
		return fail("leave "+scheme+":// out: "+rest, "a reference has no scheme, but this starts with %q", scheme+"://")
	}
	rest, digest := s, attest.Digest("")
	if i := strings.LastIndexByte(s, '@'); i >= 0 && (strings.HasPrefix(s[i:], "@sha") || !strings.HasPrefix(s, "oci:") && !strings.HasPrefix(s, "archive:") && !strings.HasPrefix(s, "file:")) {
		d, err := attest.ParseDigest(s[i+1:])
		if err != nil {
			return fail("", "%q is not a digest: want @sha256: and 64 lower-case hex digits", s[i:])
		}
		rest, digest = s[:i], d
	}
	switch {
	case strings.HasPrefix(rest, "oci:"):
		r, err := parseLayout(strings.TrimPrefix(rest, "oci:"), digest)
		if err != nil {
			return fail("an OCI layout is oci:PATH[:TAG][@DIGEST]", "%v", err)
		}
		return r, nil
	case strings.HasPrefix(rest, "archive:"):
		r := Reference{Kind: Archive, Place: strings.TrimPrefix(rest, "archive:"), Digest: digest}
		if r.Place == "" {
			return fail("an archive is archive:FILE[@DIGEST]", "it names no file")
		}
		return r, nil
	case strings.HasPrefix(rest, "file:"):
		r := Reference{Kind: File, Place: strings.TrimPrefix(rest, "file:"), Digest: digest}
		if r.Place == "" {
			return fail("a plain file is file:PATH[@DIGEST]", "it names no file")
		}
		return r, nil
	case strings.HasPrefix(rest, "docker:"):
		image := strings.TrimPrefix(rest, "docker:")
		if _, err := name.ParseReference(image, name.WeakValidation); err != nil {
			return fail("an image of the Docker daemon is docker:NAME[:TAG]", "%v", plain(err))
		}
		return Reference{Kind: Docker, Place: image, Digest: digest}, nil
	case strings.HasPrefix(rest, ".") || strings.HasPrefix(rest, "/") || strings.HasPrefix(rest, "~"):
		return fail("for an OCI layout write oci:"+rest+", for a plain file file:"+rest, "it looks like a path")
	}
	return parseRegistry(s, rest, digest)
}

func parseRegistry(input, rest string, digest attest.Digest) (Reference, error) {
	repo, tag := rest, ""
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		repo, tag = rest[:i], rest[i+1:]
		if !validTag(tag) {
			return Reference{}, &ReferenceError{Input: input, Cause: fmt.Sprintf("%q is not a tag: want up to 128 letters, digits, '.', '_' and '-'", tag)}
		}
	}
	if tag == "" && digest == "" {
		tag = name.DefaultTag
	}
	r, err := name.NewRepository(repo)
	if err != nil {
		return Reference{}, &ReferenceError{Input: input, Cause: plain(err).Error()}
	}
	for _, part := range strings.Split(r.RepositoryStr(), "/") {
		if part == "" || part == "." || part == ".." {
			return Reference{}, &ReferenceError{Input: input, Cause: fmt.Sprintf("the repository has a part %q", part)}
		}
	}
	if host := r.RegistryStr(); strings.Trim(host, ".:[]-") == "" || strings.HasSuffix(host, ":") {
		return Reference{}, &ReferenceError{Input: input, Cause: fmt.Sprintf("%q is not the name of a registry", host)}
	}
	return Reference{Kind: Registry, Place: r.Name(), Tag: tag, Digest: digest}, nil
}

// plain takes the library's preface out of its error.
func plain(err error) error {
	var bad *name.ErrBadName
	if errors.As(err, &bad) {
		return errors.New(strings.TrimPrefix(bad.Error(), "could not parse reference: "))
	}
	return err
}

func parseLayout(rest string, digest attest.Digest) (Reference, error) {
	r := Reference{Kind: Layout, Place: rest, Digest: digest}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		r.Place, r.Tag = rest[:i], rest[i+1:]
		if !validTag(r.Tag) {
			return r, fmt.Errorf("%q is not a tag", r.Tag)
		}
	}
	if r.Place == "" {
		return r, errors.New("it names no path")
	}
	return r, nil
}

func (r Reference) String() string {
	s := r.Place
	if r.Kind != Registry {
		s = string(r.Kind) + ":" + s
	}
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + string(r.Digest)
	}
	return s
}

// At returns the reference to one digest in the same place.
func (r Reference) At(d attest.Digest) Reference {
	return Reference{Kind: r.Kind, Place: r.Place, Digest: d}
}

// URI is the place, without tag and digest, as a verification summary names
// it: "oci://HOST/REPO", or the layout's folder, the archive or the file as a file URI.
func (r Reference) URI() string {
	switch r.Kind {
	case Registry:
		return "oci://" + r.Place
	case Layout, Archive, File:
		path, err := filepath.Abs(r.Place)
		if err != nil {
			path = r.Place
		}
		return (&url.URL{Scheme: "file", Path: path}).String()
	}
	return "docker:" + r.Place
}

// host and repository of a registry reference.
func (r Reference) host() string {
	h, _, _ := strings.Cut(r.Place, "/")
	return h
}

// loopback reports whether host, with or without a port, is this machine.
func loopback(host string) bool {
	h := host
	if bare, _, err := net.SplitHostPort(host); err == nil {
		h = bare
	}
	h = strings.Trim(h, "[]")
	if h == "localhost" || strings.HasSuffix(h, ".localhost") {
		return true
	}
	ip := net.ParseIP(h)
	return ip != nil && ip.IsLoopback()
}
