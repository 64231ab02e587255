package build

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
	"github.com/waxseal/waxseal/pkg/store"
)

// maxContextLine bounds one line of a context manifest: a name, and extended
// attributes in hex.
const maxContextLine = 1 << 20

// keptContext checks that the store has what the engine says that it kept of a
// folder, and returns what the provenance says of it.
func keptContext(st *lock.Store, src *attestations.InputSource) (map[string]any, error) {
	if src.Tree == "" {
		return map[string]any{"bytes": src.Size}, nil
	}
	tree, err := attest.ParseDigest(src.Tree)
	if err != nil {
		return nil, err
	}
	src.Stored = src.Stored && st.Has(tree) && st.Has(attest.Digest(src.Digest))
	if !src.Stored {
		return map[string]any{"layer": src.Tree}, nil
	}
	list, err := st.OpenVerified(attest.Digest(src.Digest))
	if err != nil {
		return nil, err
	}
	defer list.Close()
	files, size := 0, int64(0)
	err = parseContextManifest(list, func(f attestations.ContextFile) {
		if f.SHA256 != "" {
			files++
			size += f.Size
		}
	})
	return map[string]any{"files": files, "bytes": size, "layer": src.Tree}, err
}

// isUpload reports whether a URL stands for what a client sends over its
// session, under a name that is another each time.
func isUpload(uri string) bool { return strings.HasPrefix(uri, "http://buildkit-session/") }

// pushInputs puts the bytes that a rebuild needs beside an image that a command
// pushed, where that was asked for.
func (s *sealer) pushInputs(ctx context.Context, to store.Reference, opts store.Options, w *sealedImage) error {
	if !s.req.Inputs.Push {
		return nil
	}
	dst, err := store.OpenWritable(ctx, to, opts)
	if err != nil {
		return err
	}
	return s.intake.push(ctx, dst, w.sealed, w.run.notes)
}

// parseContextManifest shows visit every line of a context manifest.
func parseContextManifest(r io.Reader, visit func(attestations.ContextFile)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxContextLine)
	n := 0
	for lines.Scan() {
		if n++; n > attest.MaxContextFiles {
			return fmt.Errorf("reading the list of files: more than %d", attest.MaxContextFiles)
		}
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			return fmt.Errorf("reading the list of files: line %d is empty", n)
		}
		var f attestations.ContextFile
		if err := attest.UnmarshalStrict(lines.Bytes(), &f); err != nil {
			return fmt.Errorf("reading the list of files: line %d: %w", n, err)
		}
		if f.Path == "" || f.Size < 0 {
			return fmt.Errorf("reading the list of files: line %d names no file", n)
		}
		visit(f)
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return fmt.Errorf("reading the list of files: a line of more than %d bytes", maxContextLine)
	}
	return lines.Err()
}
