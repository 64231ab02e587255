package policy

import (
	"fmt"
	"path/filepath"

	"github.com/waxseal/waxseal/pkg/attest"
)

// File is a policy's own file, or one that it names.
type File struct {
	Kind string // FilePolicy, FileExtends, FileKey or FileKMS
	// Name is what the policy that names it calls it, NamedBy that policy's
	// digest. The first policy has its file's name and is named by nobody.
	Name    string
	NamedBy attest.Digest
	Raw     []byte
}

// The kinds of file.
const (
	FilePolicy  = "policy"  // the first
	FileExtends = "extends" // a policy that another extends
	FileKey     = "key"     // a signer's key, trusted root, CA or revocation file
	FileKMS     = "kms"     // the public key (PEM) of a key management service, named by reference
)

// LoadFiles is LoadWith, and returns every file that the policy consists of, so
// that ParseFiles gives the same policy elsewhere.
func LoadFiles(path string, opts LoadOptions) (*Policy, []File, error) {
	raw, err := opts.read(path, attest.MaxPolicy)
	if err != nil {
		return nil, nil, fmt.Errorf("reading policy %q: %w", path, err)
	}
	files := []File{{Kind: FilePolicy, Name: filepath.Base(path), Raw: raw}}
	p, err := Parse(raw, recording(fileOptions(path, opts), attest.DigestOf(raw), &files))
	if err != nil {
		return nil, nil, err
	}
	p.path = path
	return p, files, nil
}

// recording keeps what a policy reads.
func recording(inner ParseOptions, by attest.Digest, files *[]File) ParseOptions {
	keep := func(kind, name string, raw []byte) {
		for _, f := range *files {
			if f.Kind == kind && f.Name == name && f.NamedBy == by {
				return
			}
		}
		*files = append(*files, File{kind, name, by, raw})
	}
	out := inner
	out.ReadKey = func(name string) ([]byte, error) {
		raw, err := inner.ReadKey(name)
		if err == nil {
			keep(FileKey, name, raw)
		}
		return raw, err
	}
	if inner.ReadKMS != nil {
		out.ReadKMS = func(ref string) ([]byte, error) {
			raw, err := inner.ReadKMS(ref)
			if err == nil {
				keep(FileKMS, ref, raw)
			}
			return raw, err
		}
	}
	out.ReadPolicy = func(name string) ([]byte, ParseOptions, error) {
		raw, next, err := inner.ReadPolicy(name)
		if err != nil {
			return nil, next, err
		}
		keep(FileExtends, name, raw)
		return raw, recording(next, attest.DigestOf(raw), files), nil
	}
	return out
}

// ParseFiles parses a policy that LoadFiles took apart. It reads nothing else:
// a file that is not among them is an error.
func ParseFiles(name string, files []File) (*Policy, error) {
	var first *File
	for i, f := range files {
		if f.Kind != FilePolicy {
			continue
		}
		if first != nil {
			return nil, fmt.Errorf("reading policy %q: there are two", name)
		}
		first = &files[i]
	}
	if first == nil {
		return nil, fmt.Errorf("reading policy %q: there is none", name)
	}
	return Parse(first.Raw, gathered(files, name, attest.DigestOf(first.Raw)))
}

// gathered finds what a policy names in files.
func gathered(files []File, name string, by attest.Digest) ParseOptions {
	find := func(kind, name string) ([]byte, error) {
		for _, f := range files {
			if f.Kind == kind && f.Name == name && f.NamedBy == by {
				return f.Raw, nil
			}
		}
		return nil, fmt.Errorf("%q is not among the files that came along", clip(name))
	}
	return ParseOptions{
		Name:    name,
		ReadKey: func(name string) ([]byte, error) { return find(FileKey, name) },
		ReadKMS: func(ref string) ([]byte, error) { return find(FileKMS, ref) },
		ReadPolicy: func(next string) ([]byte, ParseOptions, error) {
			raw, err := find(FileExtends, next)
			return raw, gathered(files, filepath.Join(filepath.Dir(name), next), attest.DigestOf(raw)), err
		},
	}
}
