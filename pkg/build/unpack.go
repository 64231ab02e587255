package build

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// unpacker lays the files of an archive that is written to it into a folder,
// which belong to whoever runs this, as BuildKit's client has it. BuildKit's own
// way of sending a folder stops for good where thousands of files are asked for
// faster than they are sent; our engine's does not, but that is not the only one.
type unpacker struct {
	*io.PipeWriter
	done chan error
}

func newUnpacker(dir string) io.WriteCloser {
	r, w := io.Pipe()
	u := &unpacker{w, make(chan error, 1)}
	go func() {
		err := unpack(r, dir)
		if err == nil {
			_, err = io.Copy(io.Discard, r) // what pads an archive
		}
		r.CloseWithError(err)
		u.done <- err
	}()
	return u
}

// Close returns when all lies there.
func (u *unpacker) Close() error {
	u.PipeWriter.Close()
	return <-u.done
}

// unpack lays the files of an archive into dir. Nothing gets out of it.
func unpack(r io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	type folder struct {
		h    *tar.Header
		name string
	}
	var folders []folder // they are closed last: one may not be written to
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if err == io.EOF { //nolint:errorlint // the end of an archive is io.EOF itself
			break
		}
		if err != nil {
			return fmt.Errorf("reading the files: %w", err)
		}
		name := path.Clean(h.Name)
		if name == "." {
			continue
		}
		switch err := layDown(root, h, name, in); {
		case err != nil:
			return fmt.Errorf("writing %.200q: %w", h.Name, err)
		case h.Typeflag == tar.TypeDir:
			folders = append(folders, folder{h, name})
		case h.Typeflag != tar.TypeLink: // it is the other's
			if err := dress(root, h, name); err != nil {
				return fmt.Errorf("writing %.200q: %w", h.Name, err)
			}
		}
	}
	for i := len(folders) - 1; i >= 0; i-- {
		if err := dress(root, folders[i].h, folders[i].name); err != nil {
			return fmt.Errorf("writing %.200q: %w", folders[i].h.Name, err)
		}
	}
	return nil
}

// layDown makes one file.
func layDown(root *os.Root, h *tar.Header, name string, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.Mkdir(name, 0o700); !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		return errors.Join(err, f.Close())
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(path.Clean(h.Linkname), name)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
		return within(root, name, func(dir int, base string) error {
			return unix.Mknodat(dir, base, kind|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
		})
	}
	return fmt.Errorf("it is of a kind %q that no image has", h.Typeflag)
}

// dress gives a file its attributes, mode and time.
func dress(root *os.Root, h *tar.Header, name string) error {
	return within(root, name, func(dir int, base string) error {
		fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		self := fmt.Sprintf("/proc/self/fd/%d", fd)
		if h.Typeflag != tar.TypeSymlink {
			for k, v := range h.PAXRecords {
				if k, ok := strings.CutPrefix(k, xattrRecord); ok {
					_ = unix.Setxattr(self, k, []byte(v), 0) // a file system may know none
				}
			}
			if err := unix.Chmod(self, uint32(h.Mode)&0o7777); err != nil {
				return err
			}
		}
		at := unix.NsecToTimespec(h.ModTime.UnixNano())
		return unix.UtimesNanoAt(dir, base, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// within calls do with the folder that a file is in, open.
func within(root *os.Root, name string, do func(dir int, base string) error) error {
	d, err := root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer d.Close()
	return do(int(d.Fd()), path.Base(name))
}
