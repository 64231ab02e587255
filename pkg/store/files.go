package store

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/waxseal/waxseal/pkg/attest"
)

// bundlesDir is where a folder as `waxseal build --out` writes it keeps its
// bundles, and imageDir its image.
const (
	bundlesDir = "bundles"
	imageDir   = "image"
)

// readFiles takes the evidence that the caller named. A file speaks of c.about
// when its statement does; one that cannot be read is shown with every digest.
func (c *collector) readFiles(ctx context.Context) error {
	var paths []string
	for _, p := range c.opts.Evidence {
		more, err := evidenceFiles(p)
		if err != nil {
			return err
		}
		paths = append(paths, more...)
	}
	if len(paths) > attest.MaxEvidence {
		return &tooMuch{c.about}
	}
	if len(paths) == 0 {
		return nil
	}
	family, err := c.family(ctx)
	if err != nil {
		return err
	}
	count := 0
	for _, path := range paths {
		limit := int64(attest.MaxBundle)
		if strings.HasSuffix(path, ".jsonl") {
			limit = attest.MaxEvidenceSum
		}
		raw, err := readFile(path, limit)
		if err != nil {
			if err := c.unreadable(ctx, Piece{Source: SourceFile, Where: path}, err); err != nil {
				return err
			}
			continue
		}
		for where, piece := range split(path, raw) {
			if count++; count > attest.MaxEvidence {
				return &tooMuch{c.about}
			}
			if err := c.readFilePiece(ctx, where, piece, family); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *collector) readFilePiece(ctx context.Context, where string, raw []byte, family []attest.Digest) error {
	p := Piece{Source: SourceFile, Where: where, Digest: attest.DigestOf(raw)}
	if len(raw) > attest.MaxBundle {
		return c.unreadable(ctx, p, &oversize{int64(len(raw)), attest.MaxBundle})
	}
	st := statementOf(raw)
	if st == nil && attest.LooksLikeGCB(raw) {
		return c.readGCB(ctx, where, raw, family)
	}
	if st == nil {
		p.Skipped = "neither a bundle, nor a DSSE envelope, nor a statement"
		c.add(p)
		return nil
	}
	if !st.Binds(c.about) && slices.ContainsFunc(family, st.Binds) {
		return nil // about another manifest of this image
	}
	if c.unwanted(&p, st.PredicateType) {
		c.add(p)
		return nil
	}
	if c.bytes.Add(int64(len(raw))) > attest.MaxEvidenceSum {
		return &tooMuch{c.about}
	}
	p.Raw = raw
	c.add(p)
	return nil
}

// readGCB takes the signed envelopes in what Google Cloud says of an image, a
// piece for each signature.
func (c *collector) readGCB(ctx context.Context, where string, raw []byte, family []attest.Digest) error {
	p := Piece{Source: SourceFile, Where: where, Digest: attest.DigestOf(raw)}
	envelopes, err := attest.ParseGCB(raw)
	if err != nil {
		p.Skipped = err.Error()
		c.add(p)
		return nil
	}
	for _, e := range envelopes {
		p.Where = where + " " + e.Pointer
		if e.DSSE == nil {
			p.Skipped = e.Problem
			c.add(p)
			continue
		}
		if err := c.readFilePiece(ctx, p.Where, e.DSSE, family); err != nil {
			return err
		}
	}
	return nil
}

func statementOf(raw []byte) *attest.Statement {
	if b, err := attest.ParseBundle(raw); err == nil {
		return b.Statement()
	}
	if st, err := attest.ParseStatement(raw); err == nil {
		return st
	}
	return nil
}

// family is the image that was asked for and its platforms.
func (c *collector) family(ctx context.Context) ([]attest.Digest, error) {
	top, err := c.Resolve(ctx)
	if err != nil {
		return nil, err
	}
	out := []attest.Digest{attest.Digest(top.Digest.String())}
	platforms, err := Platforms(ctx, c, top)
	if err != nil {
		return nil, err
	}
	for _, p := range platforms {
		out = append(out, attest.Digest(p.Descriptor.Digest.String()))
	}
	return out, nil
}

// evidenceFiles lists the files that path means.
func evidenceFiles(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, pathError("reading evidence", path, err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	dir := path
	if sub, err := os.Stat(filepath.Join(path, bundlesDir)); err == nil && sub.IsDir() {
		dir = filepath.Join(path, bundlesDir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, pathError("reading evidence", dir, err)
	}
	var out []string
	for _, e := range entries {
		n := e.Name()
		if e.Type().IsRegular() && !strings.HasPrefix(n, ".") && (strings.HasSuffix(n, ".json") || strings.HasSuffix(n, ".jsonl")) {
			out = append(out, filepath.Join(dir, n))
		}
	}
	if len(out) == 0 {
		return nil, &Error{Place: path, Action: "reading evidence", Cause: "the folder holds no .json or .jsonl file",
			Way: "give a folder as \"waxseal build --out\" writes it, or a file with a bundle"}
	}
	return out, nil
}

// split yields the documents of a file: one, or with JSON lines one a line.
// The last line counts with or without its newline.
func split(path string, raw []byte) func(yield func(string, []byte) bool) {
	return func(yield func(string, []byte) bool) {
		lines := strings.HasSuffix(path, ".jsonl")
		if !lines && len(raw) <= attest.MaxBundle {
			// A document over several lines is one document.
			lines = attest.UnmarshalStrict(raw, nil) != nil && bytes.Contains(bytes.TrimSpace(raw), []byte("\n"))
		}
		if !lines {
			yield(path, raw)
			return
		}
		n := 0
		for line := range bytes.Lines(raw) {
			n++
			if line = bytes.TrimSpace(line); len(line) == 0 {
				continue
			}
			if !yield(fmt.Sprintf("%s:%d", path, n), line) {
				return
			}
		}
	}
}
