package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is a line of a mountinfo.
type mount struct {
	id   uint64
	dev  string // of its file system
	root string // what of that is mounted, as a path in it
	at   string
	kind string
}

// mountsOf lists what is mounted where a process is: proc is its folder in /proc.
func mountsOf(proc string) ([]mount, error) {
	raw, err := os.ReadFile(filepath.Join(proc, "mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	return parseMounts(raw), nil
}

func parseMounts(raw []byte) []mount {
	var out []mount
	for line := range strings.Lines(string(raw)) {
		head, tail, ok := strings.Cut(line, " - ")
		f, kind := strings.Fields(head), strings.Fields(tail)
		if !ok || len(f) < 5 || len(kind) == 0 {
			continue
		}
		id, err := strconv.ParseUint(f[0], 10, 64)
		if err != nil {
			continue
		}
		out = append(out, mount{id, f[2], unescape(f[3]), unescape(f[4]), kind[0]})
	}
	return out
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// kernelKinds are file systems of which the kernel makes the files up as they
// are read, and takes what is written as an order.
func kernelKinds() []string {
	return []string{"proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "pstore", "bpf", "fusectl", "configfs",
		"binfmt_misc", "efivarfs", "selinuxfs"}
}

// mountOf is the mount that an open file is on.
func mountOf(fd int, all []mount) (mount, bool) {
	var x unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &x) != nil {
		return mount{}, false
	}
	i := slices.IndexFunc(all, func(m mount) bool { return m.id == x.Mnt_id })
	if i < 0 {
		return mount{}, false
	}
	return all[i], true
}

// shows reports whether what is seen at path is of this mount, and no other
// lies over it.
func (m *mount) shows(path string) bool {
	var x unix.Statx_t
	return unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &x) == nil && x.Mnt_id == m.id
}

// aliases are all places of here that show what lies at path, which is on a
// mount of here or of elsewhere, or a part of what is below it.
func aliases(on mount, path string, here []mount) []string {
	inner := filepath.Join(on.root, strings.TrimPrefix(path, strings.TrimSuffix(on.at, "/")))
	var out []string
	for _, m := range here {
		at := m.at
		switch {
		case m.dev != on.dev:
			continue
		case below(inner, m.root):
			at = filepath.Join(m.at, strings.TrimPrefix(inner, strings.TrimSuffix(m.root, "/")))
		case !below(m.root, inner):
			continue
		}
		if m.shows(at) {
			out = append(out, at)
		}
	}
	return out
}

// everywhere are all places that show what lies at path, path among them.
func everywhere(path string, here []mount) []string {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // nobody can get there
	}
	defer unix.Close(fd)
	out := []string{path}
	if on, ok := mountOf(fd, here); ok {
		out = append(out, aliases(on, path, here)...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// restrictKernel makes the files of the kernel's own that are mounted anywhere
// but in /proc unwritable.
func restrictKernel() error {
	mounts, err := mountsOf("/proc/thread-self")
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if !slices.Contains(kernelKinds(), m.kind) || below(m.at, "/proc") || !m.shows(m.at) {
			continue
		}
		if err := unix.MountSetattr(unix.AT_FDCWD, m.at, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return noSandbox(fmt.Sprintf("restricting %q", m.at), err)
		}
	}
	return nil
}
