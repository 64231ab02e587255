package build

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/waxseal/waxseal/pkg/store"
)

// folderSchema marks a folder that --out wrote, which the next build may
// replace.
const folderSchema = "https://waxseal.dev/build-output/v1"

// outFolder is a --out folder in the making: everything is written beside its
// name, and moved there when all of it is.
type outFolder struct {
	final string
	tmp   string
}

// CheckOut refuses an --out folder that something else is in. Run does so too,
// before it builds.
func CheckOut(name string) error {
	entries, err := os.ReadDir(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("writing --out folder: %w", err)
	case len(entries) > 0 && !isOutFolder(name):
		return hinted(fmt.Errorf("--out folder %q is not empty, and no earlier build wrote it", name), "name a new folder")
	}
	return nil
}

func newOutFolder(name string) (*outFolder, error) {
	if err := CheckOut(name); err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	tmp, err := tempBeside(abs, true)
	if err != nil {
		return nil, err
	}
	o := &outFolder{final: abs, tmp: tmp}
	for _, d := range []string{"statements", "bundles", "sboms"} {
		if err := os.Mkdir(filepath.Join(tmp, d), 0o755); err != nil {
			o.abandon()
			return nil, fmt.Errorf("writing --out folder: %w", err)
		}
	}
	return o, nil
}

func isOutFolder(dir string) bool {
	raw, err := readSmall(filepath.Join(dir, "metadata.json"), 16<<20)
	if err != nil {
		return false
	}
	var m struct {
		Schema string `json:"waxseal.schema"`
	}
	return json.Unmarshal(raw, &m) == nil && m.Schema == folderSchema
}

func (o *outFolder) path(parts ...string) string {
	return filepath.Join(append([]string{o.tmp}, parts...)...)
}

func (o *outFolder) write(raw []byte, parts ...string) error {
	return os.WriteFile(o.path(parts...), raw, 0o644)
}

// bundle writes a signed statement, and what is stapled to it.
func (o *outFolder) bundle(e evidence) error {
	name := e.file + ".sigstore.json"
	if stapled := bytes.Join(e.bundle.Stapled(), nil); len(stapled) > 0 {
		if err := o.write(stapled, "bundles", store.StapleFile(name)); err != nil {
			return err
		}
	}
	return o.write(e.bundle.Raw(), "bundles", name)
}

func (o *outFolder) stream(write func(io.Writer) error, parts ...string) error {
	f, err := os.Create(o.path(parts...))
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// finish moves the folder to its name. An earlier build's folder makes way for
// it in one step before.
func (o *outFolder) finish() error {
	if err := os.Chmod(o.tmp, 0o755); err != nil {
		return err
	}
	old := o.tmp + ".old"
	err := os.Rename(o.final, old)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replacing --out folder: %w", err)
	}
	if err := os.Rename(o.tmp, o.final); err != nil {
		_ = os.Rename(old, o.final)
		return fmt.Errorf("writing --out folder: %w", err)
	}
	o.tmp = ""
	return os.RemoveAll(old)
}

func (o *outFolder) abandon() {
	if o.tmp != "" {
		os.RemoveAll(o.tmp)
	}
}
