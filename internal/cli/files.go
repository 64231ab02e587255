package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

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

// uninterrupted runs write, which is short and leaves half of something when it is
// broken off: the second Ctrl-C, which ends everything else at once, waits for its
// end as the first does. A context that is done already is an error instead.
func uninterrupted(ctx context.Context, write func() error) error {
	held := make(chan os.Signal, 1)
	signal.Notify(held, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(held)
	if err := ctx.Err(); err != nil {
		return err
	}
	return write()
}

// writeNew writes a file that must not exist yet, all at once; an error leaves
// none.
func writeNew(path string, data []byte, mode os.FileMode) error {
	there := fmt.Errorf("writing %q: it is there already; move it away or choose another name", path)
	if _, err := os.Lstat(path); err == nil {
		return there
	}
	err := writeBeside(path, data, mode, func(f *os.File) error {
		err := unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // NFS, for one
			if err = os.Link(f.Name(), path); err == nil {
				err = os.Remove(f.Name())
			}
		}
		return err
	})
	if errors.Is(err, fs.ErrExist) {
		return there
	}
	return err
}

// writeBeside writes data to a file of its own in the folder of path, and has put
// give it that name. Nothing is left of it where that fails.
func writeBeside(path string, data []byte, mode os.FileMode, put func(*os.File) error) error {
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"-"+rand.Text()[:8])
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("writing %q: %w", path, errors.Unwrap(err))
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = put(f)
	}
	err = errors.Join(err, f.Close())
	if err != nil {
		os.Remove(temporary)
		// The path in them is not the one that the user knows.
		var pe *fs.PathError
		var le *os.LinkError
		if errors.As(err, &pe) {
			err = pe.Err
		} else if errors.As(err, &le) {
			err = le.Err
		}
		return fmt.Errorf("writing %q: %w", path, err)
	}
	if d, err := os.Open(filepath.Dir(path)); err == nil {
		_ = d.Sync() // some systems cannot sync folders
		d.Close()
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
