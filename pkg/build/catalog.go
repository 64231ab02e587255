package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/sbom"
	"github.com/waxseal/waxseal/pkg/store"
)

// CatalogOptions configures CatalogLayout; the zero value asks for all formats.
type CatalogOptions struct {
	Formats []string // of package sbom; default all
	// Epoch is the documents' time, as SOURCE_DATE_EPOCH; default the image's own.
	Epoch string
	// Name is what the documents call the image; default "image".
	Name string
	// Stderr gets what the child logs; nil drops it.
	Stderr io.Writer
	// Program is the engine's program; default as in EngineOptions.
	Program string
}

// CatalogLayout has the image manifest d in an OCI layout catalogued by a
// child, which needs no root, and returns a checked document for each format.
// The child ends with this process.
func CatalogLayout(ctx context.Context, layoutDir string, d attest.Digest, opts CatalogOptions) (map[string][]byte, error) {
	program, err := engineProgram(opts.Program)
	if err != nil {
		return nil, err
	}
	formats := opts.Formats
	if len(formats) == 0 {
		formats = sbom.Formats()
	}
	args := []string{"catalog", "-lifetime", "-layout", layoutDir, "-digest", string(d), "-epoch", opts.Epoch, "-name", opts.Name}
	if len(formats) == 1 {
		args = append(args, "-format", formats[0])
	}
	lifeR, lifeW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("opening the lifetime pipe: %w", err)
	}
	defer lifeR.Close()
	defer lifeW.Close()
	said := &tail{next: opts.Stderr}
	out := &bytes.Buffer{}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = engineEnv(os.Environ())
	cmd.Stdout = &atMost{w: out, left: int64(len(formats))*attest.MaxSBOM + 1<<10}
	cmd.Stderr = said
	cmd.ExtraFiles = []*os.File{lifeR}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("cataloguing image %s: %w", d, context.Cause(ctx))
		}
		if t := strings.TrimPrefix(said.text(), engineName+": "); t != "" {
			err = errors.New(t)
		}
		return nil, fmt.Errorf("cataloguing image %s: %w", d, err)
	}
	docs := map[string]json.RawMessage{}
	if len(formats) == 1 {
		docs[formats[0]] = out.Bytes()
	} else if err := attest.UnmarshalStrict(out.Bytes(), &docs); err != nil {
		return nil, fmt.Errorf("cataloguing image %s: reading the engine's answer: %w", d, err)
	}
	checked := make(map[string][]byte, len(formats))
	for _, f := range formats {
		if _, err := sbom.Check(f, docs[f]); err != nil {
			return nil, fmt.Errorf("cataloguing image %s: %w", d, err)
		}
		checked[f] = docs[f]
	}
	return checked, nil
}

// atMost fails once more than left bytes were written.
type atMost struct {
	w    io.Writer
	left int64
}

func (a *atMost) Write(p []byte) (int, error) {
	if a.left -= int64(len(p)); a.left < 0 {
		return 0, errors.New("the documents are over their limit")
	}
	return a.w.Write(p)
}

// SBOMRequest is what ImageSBOM needs to know.
type SBOMRequest struct {
	Reference string // as package store parses it
	Format    string // of package sbom; default SPDX
	// Platform selects from an index: "linux/arm64"; default this machine's.
	Platform string
	Store    store.Options
	Program  string // as in EngineOptions
}

// ImageSBOM writes an SBOM of any image: one document, of one platform.
func ImageSBOM(ctx context.Context, req SBOMRequest) (_ []byte, err error) {
	if req.Format == "" {
		req.Format = sbom.SPDX
	}
	if sbom.PredicateType(req.Format) == "" {
		return nil, UsageError{fmt.Errorf("SBOM format %q is unknown, there are %s", req.Format, strings.Join(sbom.Formats(), " and "))}
	}
	ref, err := store.Parse(req.Reference)
	if err != nil {
		return nil, UsageError{err}
	}
	tmp := ""
	if ref.Kind != store.Layout {
		if tmp, err = os.MkdirTemp("", "waxseal-sbom-"); err != nil {
			return nil, fmt.Errorf("making a temporary folder: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	}
	name := path.Base(filepath.ToSlash(ref.Place))
	if ref.Kind == store.Docker {
		// The daemon's own image, whether or not a registry knows it. Its name has
		// the tag in it.
		name, _, _ = strings.Cut(name, ":")
		dir := filepath.Join(tmp, "docker")
		if err := saveFromDocker(ctx, ref.Place, dir); err != nil {
			return nil, err
		}
		ref = store.Reference{Kind: store.Layout, Place: dir}
	}
	repo, err := store.Open(ctx, ref, req.Store)
	if err != nil {
		return nil, err
	}
	d, err := onePlatform(ctx, repo, req.Platform, req.Reference)
	if err != nil {
		return nil, err
	}
	layout := ref.Place
	if ref.Kind != store.Layout {
		layout = filepath.Join(tmp, "image")
		if err := fetchImage(ctx, repo, d, layout); err != nil {
			return nil, err
		}
	}
	docs, err := CatalogLayout(ctx, layout, d, CatalogOptions{Formats: []string{req.Format}, Name: name, Program: req.Program})
	if err != nil {
		return nil, err
	}
	return docs[req.Format], nil
}

// onePlatform picks an image out of an index; an image is itself.
func onePlatform(ctx context.Context, repo store.Repository, want, ref string) (attest.Digest, error) {
	desc, err := repo.Resolve(ctx)
	if err != nil {
		return "", err
	}
	all, err := store.Platforms(ctx, repo, desc)
	if err != nil {
		return "", err
	}
	asked := want != ""
	if !desc.MediaType.IsIndex() {
		d, err := attest.ParseDigest(desc.Digest.String())
		if err != nil || !asked {
			return d, err
		}
		has, err := platformOf(ctx, repo, d)
		if err == nil && has != want {
			err = fmt.Errorf("choosing a platform of %s: it is for %s alone, not %s", ref, has, want)
		}
		return d, err
	}
	if !asked {
		want = "linux/" + runtime.GOARCH
	}
	var names []string
	for _, p := range all {
		if p.Name == want || strings.HasPrefix(p.Name, want+"/") {
			return attest.ParseDigest(p.Descriptor.Digest.String())
		}
		names = append(names, p.Name)
	}
	if len(names) == 0 {
		return "", fmt.Errorf("choosing a platform of %s: the index is empty", ref)
	}
	err = fmt.Errorf("choosing a platform of %s: there is no %s, only %s", ref, want, strings.Join(names, ", "))
	if !asked {
		return "", &EngineError{Text: err.Error(), Way: "choose one with --platform", cause: err}
	}
	return "", err
}

// platformOf reads an image's platform from its configuration.
func platformOf(ctx context.Context, repo store.Repository, d attest.Digest) (string, error) {
	raw, _, err := repo.Manifest(ctx, d)
	if err != nil {
		return "", err
	}
	var m struct {
		Config struct {
			Digest attest.Digest `json:"digest"`
		} `json:"config"`
	}
	if err := attest.UnmarshalStrict(raw, &m); err != nil {
		return "", fmt.Errorf("reading image %s: %w", d, err)
	}
	blob, err := repo.Blob(ctx, m.Config.Digest)
	if err != nil {
		return "", err
	}
	defer blob.Close()
	raw, err = readAtMost(blob, attest.MaxManifest)
	if err != nil {
		return "", fmt.Errorf("reading the configuration of image %s: %w", d, err)
	}
	var p struct{ OS, Architecture, Variant string }
	if err := json.Unmarshal(raw, &p); err != nil {
		return "", fmt.Errorf("reading the configuration of image %s: %w", d, err)
	}
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/"), nil
}

// fetchImage copies one image, without evidence, into a new OCI layout.
func fetchImage(ctx context.Context, repo store.Repository, d attest.Digest, dir string) error {
	out, err := store.OpenWritable(ctx, store.Reference{Kind: store.Layout, Place: dir}, store.Options{})
	if err != nil {
		return err
	}
	raw, desc, err := repo.Manifest(ctx, d)
	if err != nil {
		return err
	}
	var m struct {
		Config json.RawMessage   `json:"config"`
		Layers []json.RawMessage `json:"layers"`
	}
	if err := attest.UnmarshalStrict(raw, &m); err != nil {
		return fmt.Errorf("reading image %s: %w", d, err)
	}
	for _, part := range append([]json.RawMessage{m.Config}, m.Layers...) {
		var b store.Blob
		if err := json.Unmarshal(part, &b.Descriptor); err != nil {
			return fmt.Errorf("reading image %s: %w", d, err)
		}
		bd, err := attest.ParseDigest(b.Descriptor.Digest.String())
		if err != nil {
			return fmt.Errorf("reading image %s: %w", d, err)
		}
		b.Open = func() (io.ReadCloser, error) { return repo.Blob(ctx, bd) }
		if err := out.PutBlob(ctx, b); err != nil {
			return err
		}
	}
	_, err = out.PutManifest(ctx, desc.MediaType, raw)
	return err
}
