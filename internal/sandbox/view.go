package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/pkg/egress"
)

// view is what a confined command sees of the machine: its files as they are,
// but for what leads out of the sandbox or is none of its business. What is
// mounted here the command cannot take away: it is in a user namespace below.
type view struct {
	dir         string   // the working folder, seen wherever it lies
	files       string   // comes to egress.MountPoint
	sockets     []string // that others listen at
	hide        []string
	expose      []string // sockets, files and folders that stay
	unpacks     bool     // what is not mounted comes into an image, see Plan
	user, group int

	own     []string // of covered
	mounted []string // in those that are not the command's own
}

// covered are the folders that a command has for itself, empty.
func covered() []string { return []string{"/run", "/var/run"} }

// kept are folders below those that hold programs: on NixOS all of PATH.
func kept() []string {
	return []string{"/run/current-system", "/run/wrappers", "/run/booted-system", "/run/opengl-driver"}
}

// devices are those that a command has.
func devices() []string {
	return []string{"null", "zero", "full", "random", "urandom", "tty"}
}

// piece is a mount that is taken aside and put back where others cover it.
type piece struct {
	fd int
	at string
}

// take clones what is mounted at path.
func take(path, at string, deep bool) (piece, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if deep {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
	if err != nil {
		return piece{}, noSandbox(fmt.Sprintf("taking %q along", path), err)
	}
	return piece{fd, at}, nil
}

// put mounts it; what it is put on is made.
func (p piece) put(folder bool) error {
	defer unix.Close(p.fd)
	err := os.MkdirAll(filepath.Dir(p.at), 0o755)
	if err == nil && folder {
		err = os.MkdirAll(p.at, 0o755)
	} else if err == nil {
		err = touch(p.at)
	}
	if err == nil {
		err = unix.MoveMount(p.fd, "", unix.AT_FDCWD, p.at, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	if err != nil {
		return noSandbox(fmt.Sprintf("mounting %q", p.at), err)
	}
	return nil
}

func touch(name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// below reports whether path is dir or lies in it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

func (v *view) make() error {
	if err := v.chooseFolders(); err != nil {
		return err
	}
	// What is taken along has on it what covers it.
	if err := v.cover(); err != nil {
		return err
	}
	nodes, folders, err := v.takeAlong()
	if err != nil {
		return err
	}
	// Nobody opens a disk by a device file somewhere.
	if err := setMount("/", unix.MOUNT_ATTR_NODEV); err != nil {
		return err
	}
	if err := v.nameServer(); err != nil {
		return err
	}
	if err := v.runFolders(); err != nil {
		return err
	}
	if err := v.deviceFolder(); err != nil {
		return err
	}
	for _, p := range nodes {
		if err := p.put(false); err != nil {
			return err
		}
	}
	for _, p := range folders {
		if err := p.put(true); err != nil {
			return err
		}
	}
	return v.kernelFiles()
}

// chooseFolders says which folders the command has for itself. One that comes
// into an image is the image's; what is mounted in it does not, and is none of
// the command's business.
func (v *view) chooseFolders() error {
	v.own = covered()
	if !v.unpacks {
		return nil
	}
	here, err := mountsOf("/proc/thread-self")
	if err != nil {
		return err
	}
	v.own = nil
	for _, dir := range covered() {
		if slices.ContainsFunc(here, func(m mount) bool { return m.at == dir }) {
			v.own = append(v.own, dir)
			continue
		}
		for _, m := range here {
			if below(m.at, dir) && !below(v.dir, m.at) && !slices.Contains(v.expose, m.at) {
				v.mounted = append(v.mounted, m.at)
			}
		}
	}
	return nil
}

// kernelFiles makes what the kernel takes orders by unwritable.
func (v *view) kernelFiles() error {
	if os.TempDir() == "/sys" { // nothing needs the keeper's files by name any more
		if err := unix.Unmount("/sys", unix.MNT_DETACH); err != nil {
			return noSandbox("showing /sys", err)
		}
	}
	if err := setMount("/sys", unix.MOUNT_ATTR_RDONLY); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return restrictKernel()
}

// takeAlong takes aside what is going to be covered and stays.
func (v *view) takeAlong() (nodes, folders []piece, err error) {
	add := func(list *[]piece, path, at string, deep bool) {
		if err != nil {
			return
		}
		var p piece
		if p, err = take(path, at, deep); err == nil {
			*list = append(*list, p)
		}
	}
	for _, name := range devices() {
		add(&nodes, "/dev/"+name, "/dev/"+name, false)
	}
	if tty := terminalOf(); tty != "" {
		// So that the terminal has a name in here, too.
		add(&nodes, tty, "/dev/console", false)
	}
	// What others make in it from now on is no concern of the command, and what
	// the command does there none of the machine's.
	add(&folders, v.files, egress.MountPoint, false)
	for _, p := range folders {
		if err == nil {
			err = setMountAt(p.fd, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
		}
	}
	keep := []string{v.dir}
	for _, dir := range kept() {
		if isFolder(dir) {
			keep = append(keep, dir)
		}
	}
	for _, dir := range keep {
		if !slices.ContainsFunc(append(v.own, "/dev"), func(c string) bool { return below(dir, c) }) {
			continue
		}
		add(&folders, dir, dir, true)
		if err == nil {
			err = setMountAt(folders[len(folders)-1].fd, unix.MOUNT_ATTR_NODEV)
		}
	}
	for _, s := range v.expose {
		switch {
		case !slices.ContainsFunc(append(v.own, "/dev"), func(c string) bool { return below(s, c) }):
		case isFolder(s):
			add(&folders, s, s, true)
		default:
			add(&nodes, s, s, false)
		}
	}
	return nodes, folders, err
}

// terminalOf is the path of the terminal among the streams, "" for none.
func terminalOf() string {
	for fd := range 3 {
		if _, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err != nil {
			continue
		}
		name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		if err == nil && strings.HasPrefix(name, "/dev/") {
			return name
		}
	}
	return ""
}

func isFolder(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// setMount sets attributes of all that is mounted at path and below.
func setMount(path string, attr uint64) error {
	err := unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attr})
	if errors.Is(err, unix.EINVAL) { // no mount itself
		if err = unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attr})
		}
	}
	if err != nil {
		return noSandbox(fmt.Sprintf("restricting %q", path), err)
	}
	return nil
}

func setMountAt(fd int, attr uint64) error {
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attr}); err != nil {
		return noSandbox("restricting a mount", err)
	}
	return nil
}

// cover lays nothing over what the command must not see: sockets of others,
// and what was named.
func (v *view) cover() error {
	empty, none := filepath.Join(os.TempDir(), "empty"), filepath.Join(os.TempDir(), "none")
	err := os.WriteFile(empty, nil, 0o400)
	if err == nil {
		err = os.Mkdir(none, 0o555)
	}
	if err != nil {
		return err
	}
	lay := func(path string, whatever bool) error {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ENOTDIR) {
			return nil // the command cannot get there either
		}
		if err != nil {
			return fmt.Errorf("hiding %q: %w", path, err)
		}
		over := empty
		switch {
		case info.IsDir() && below(v.dir, path):
			return &insideHidden{path}
		case info.IsDir():
			over = none
		case !whatever && info.Mode()&fs.ModeSocket == 0:
			return nil
		}
		err = unix.Mount(over, path, "", unix.MS_BIND, "")
		if err == nil {
			err = unix.MountSetattr(unix.AT_FDCWD, path, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV})
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return noSandbox(fmt.Sprintf("hiding %q", path), err)
		}
		return nil
	}
	here, err := mountsOf("/proc/thread-self")
	if err != nil {
		return err
	}
	// All names first: what is covered shows no other name of what lies there.
	sockets, named := v.places(v.sockets, here), v.places(v.hide, here)
	expose := append(v.places(v.expose, here), v.expose...)
	for _, s := range sockets {
		if slices.Contains(expose, s) || v.goes(s) {
			continue
		}
		if err := lay(s, false); err != nil {
			return err
		}
	}
	for _, h := range append(named, v.mounted...) {
		if err := lay(h, true); err != nil {
			return err
		}
	}
	return nil
}

// places are all that show what the names lead to.
func (v *view) places(names []string, here []mount) []string {
	var out []string
	for _, name := range names {
		if real, err := filepath.EvalSymlinks(name); err == nil { // else it is not there
			out = append(out, everywhere(real, here)...)
		}
	}
	return out
}

// goes reports whether a path is one that the command's own folders cover, but
// for the working folder, which comes back.
func (v *view) goes(path string) bool {
	return !below(path, v.dir) && slices.ContainsFunc(append(v.own, "/dev"), func(c string) bool { return below(path, c) })
}

// insideHidden is a working folder in a place that must be hidden.
type insideHidden struct{ path string }

func (e *insideHidden) Error() string {
	return fmt.Sprintf("confining the command: it works inside %q, which it must not see", e.path)
}

func (e *insideHidden) Hint() string {
	return "work in another folder, or keep waxseal's own files elsewhere"
}

// resolvConf makes the gateway the command's name server.
const resolvConf = "nameserver " + egress.Resolver + "\nsearch .\n"

const resolvPath = "/etc/resolv.conf"

// nameServer puts our resolv.conf over the machine's, unless that lies in a
// folder that is going to be covered: see runFolders.
func (v *view) nameServer() error {
	real, err := filepath.EvalSymlinks(resolvPath)
	if err != nil || slices.ContainsFunc(v.own, func(c string) bool { return below(real, c) }) {
		return nil // without the file, programs ask 127.0.0.1
	}
	ours := filepath.Join(os.TempDir(), "resolv.conf")
	if err := os.WriteFile(ours, []byte(resolvConf), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(ours, real, "", unix.MS_BIND, ""); err != nil {
		return noSandbox("replacing "+resolvPath, err)
	}
	return nil
}

// runFolders gives the command folders of its own for what programs keep while
// they run, where the machine has its services' sockets.
func (v *view) runFolders() error {
	resolv, _ := filepath.EvalSymlinks(resolvPath)
	for _, dir := range v.own {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() {
			continue // a link to the other, mostly
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return noSandbox("mounting "+dir, err)
		}
		if below(resolv, dir) {
			err = os.MkdirAll(filepath.Dir(resolv), 0o755)
			if err == nil {
				err = os.WriteFile(resolv, []byte(resolvConf), 0o644)
			}
			if err != nil {
				return err
			}
		}
	}
	if !slices.Contains(v.own, "/run") {
		return nil
	}
	own := fmt.Sprintf("/run/user/%d", v.user)
	err := os.MkdirAll(own, 0o755)
	if err == nil {
		err = os.Mkdir("/run/lock", 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err == nil {
		err = errors.Join(os.Chmod("/run/lock", 0o777|os.ModeSticky), os.Chmod(own, 0o700))
	}
	if err != nil {
		return fmt.Errorf("making the command's /run: %w", err)
	}
	return nil
}

// deviceFolder makes a /dev with nothing in it but what every program has.
func (v *view) deviceFolder() error {
	if err := unix.Mount("tmpfs", "/dev", "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755"); err != nil {
		return noSandbox("mounting /dev", err)
	}
	var err error
	for _, dir := range []string{"/dev/pts", "/dev/shm", "/dev/mqueue"} {
		if err == nil {
			err = os.Mkdir(dir, 0o755)
		}
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"} {
		if err == nil {
			err = os.Symlink(to, "/dev/"+name)
		}
	}
	if err == nil {
		err = unix.Mount("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
	}
	if err == nil {
		err = unix.Mount("tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
	}
	if err != nil {
		return noSandbox("making /dev", err)
	}
	return nil
}
