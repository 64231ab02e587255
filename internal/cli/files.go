package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/waxseal/waxseal/pkg/store"
)

// readSmall reads a regular file of at most limit bytes.
func readSmall(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("it is larger than the %d bytes allowed", limit)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// writeNew writes a file that must not exist yet; an error leaves none.
func writeNew(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("writing %q: it is there already; move it away or choose another name", path)
	}
	if err != nil {
		return fmt.Errorf("writing %q: %w", path, errors.Unwrap(err))
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("writing %q: %w", path, err), os.Remove(path))
	}
	return nil
}

// writeWhole puts data under a name all at once, or leaves the name alone.
func writeWhole(name string, data []byte) error {
	err := store.WriteWhole(name, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
	if err != nil {
		return fmt.Errorf("writing %q: %w", name, err)
	}
	return nil
}
