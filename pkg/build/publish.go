package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/store"
)

// evidence is one signed statement about one manifest of the image.
type evidence struct {
	file    string // name in --out, without extension
	subject attest.Digest
	bundle  *attest.Bundle
}

// publication is one place that gets the image: first its content, then the
// evidence, the tags last.
type publication struct {
	to   store.Reference
	tags []string
}

// publications are the places a request asks for, without --out: home is
// waxseal's own image folder.
func publications(r *Request, home string) ([]publication, error) {
	var out []publication
	add := func(to store.Reference, tag string) {
		for i := range out {
			if out[i].to == to {
				if tag != "" {
					out[i].tags = append(out[i].tags, tag)
				}
				return
			}
		}
		p := publication{to: to}
		if tag != "" {
			p.tags = []string{tag}
		}
		out = append(out, p)
	}
	if r.keepsImage() {
		var names []string
		for _, o := range r.Outputs {
			if o.Kind == OutputImage && !o.Push {
				names = append(names, o.Names...)
			}
		}
		if len(names) == 0 {
			names = r.Image.Tags
		}
		for _, n := range names {
			add(store.Reference{Kind: store.Layout, Place: homeLayout(home, n)}, tagOf(n))
		}
		if len(names) == 0 {
			add(store.Reference{Kind: store.Layout, Place: filepath.Join(home, "untagged")}, "")
		}
	}
	for _, o := range r.Outputs {
		switch {
		case o.Kind == OutputOCI && !o.Tar:
			names := r.names(o)
			for _, n := range names {
				add(store.Reference{Kind: store.Layout, Place: o.Dest}, tagOf(n))
			}
			if len(names) == 0 {
				add(store.Reference{Kind: store.Layout, Place: o.Dest}, "")
			}
		case o.Push:
			for _, n := range r.names(o) {
				ref, tag, err := registryPlace(n)
				if err != nil {
					return nil, UsageError{err}
				}
				if o.PushByDigest {
					tag = ""
				}
				add(ref, tag)
			}
		}
	}
	return out, nil
}

// homeLayout is the layout of a repository in waxseal's own image folder. Each
// repository has one folder: neither "+" nor "~" is part of a name, so no two
// repositories share one.
func homeLayout(home, name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return filepath.Join(home, "untagged")
	}
	return filepath.Join(home, strings.NewReplacer("/", "+", ":", "~").Replace(reference.FamiliarName(named)))
}

func registryPlace(name string) (store.Reference, string, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return store.Reference{}, "", fmt.Errorf("name %q: %w", name, err)
	}
	// store reads Docker Hub's names as docker does.
	ref, err := store.Parse(reference.TrimNamed(named).Name())
	if err != nil {
		return store.Reference{}, "", err
	}
	ref.Tag, ref.Digest = "", ""
	return ref, tagOf(name), nil
}

// publisher puts one image into places.
type publisher struct {
	layout   string // where the image lies
	link     bool   // layout is temporary: its blobs may be linked to
	root     attest.Digest
	content  []ocispec.Descriptor
	evidence []evidence
	opts     store.Options
	beside   func(context.Context, store.Writable) error // puts more beside an image in a registry
}

// publish is safe to repeat, and a tag moves only after everything it leads to
// is there.
func (p *publisher) publish(ctx context.Context, to publication) error {
	from, err := store.Open(ctx, store.Reference{Kind: store.Layout, Place: p.layout, Digest: p.root}, p.opts)
	if err != nil {
		return err
	}
	image, err := from.Resolve(ctx)
	if err != nil {
		return err
	}
	dst, err := store.OpenWritable(ctx, to.to, p.opts)
	if err != nil {
		return err
	}
	same := to.to.Kind == store.Layout && sameFile(to.to.Place, p.layout)
	if to.to.Kind == store.Layout && p.link && !same {
		linkContent(p.layout, to.to.Place, p.content)
	}
	// An image that was exported right here only lacks its entry in the index.
	if err := store.Copy(ctx, from, dst, image, store.CopyOptions{}); err != nil {
		return err
	}
	if err := attachEvidence(ctx, dst, p.evidence); err != nil {
		return err
	}
	if p.beside != nil && to.to.Kind == store.Registry {
		if err := p.beside(ctx, dst); err != nil {
			return err
		}
	}
	for _, tag := range to.tags {
		if err := dst.PutTag(ctx, tag, image); err != nil {
			return err
		}
	}
	return nil
}

// linkContent brings blobs into another layout without copying, where the file
// system allows it. What it cannot link is copied by who comes after.
func linkContent(from, to string, all []ocispec.Descriptor) {
	for _, d := range all {
		name := filepath.FromSlash(blobPath(d.Digest))
		_ = os.Link(filepath.Join(from, name), filepath.Join(to, name))
	}
}

func sameFile(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return errors.Join(err1, err2) == nil && os.SameFile(x, y)
}
