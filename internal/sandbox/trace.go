package sandbox

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Trace is which files outside of its working folder a command opened.
type Trace struct {
	Files []TracedFile `json:"files"`
	// Lost counts the times that events were lost, and Unread the files of which
	// the content could not be had; Full says that there were more than are listed,
	// and Untold that of files in the working folder nothing tells whether the
	// command has made them.
	Lost   int  `json:"lost,omitempty"`
	Unread int  `json:"unread,omitempty"`
	Full   bool `json:"full,omitempty"`
	Untold bool `json:"untold,omitempty"`
}

// TracedFile is one of them, as it was when the command opened it.
type TracedFile struct {
	Path    string `json:"path"` // see elsewhere
	Mode    uint32 `json:"mode"` // as stat(2) has it
	Size    int64  `json:"size"`
	SHA256  string `json:"sha256"`
	Written bool   `json:"written,omitempty"` // the command wrote to it as well
}

// Node is the device and the inode of a file.
type Node [2]uint64

const (
	maxTraced  = 200_000 // files of one command
	traceQueue = 4096    // files that wait to be read
	maxSparse  = 1 << 30 // bytes of a file that is mostly holes
)

// elsewhere begins the path of a file that is not what the machine has there: it
// is the command's own name of it, in a mount of its own, or the file was
// replaced or removed since.
const elsewhere = "(elsewhere) "

// tracer watches all file systems of the machine that files can come from, and
// keeps what the command's processes open. Watched is the file system and not a
// mount, so that what the command mounts hides nothing; nothing waits for the
// tracer.
type tracer struct {
	dir     string
	own     []string // below dir, and in no record of it
	blind   []string
	file    *os.File
	started time.Time

	reading sync.WaitGroup
	hashing sync.WaitGroup
	waiting chan opened

	mu     sync.Mutex
	first  int           // the pid of the first process, which is no part of the command
	known  map[Node]bool // the files that were below dir before
	seen   map[fileKey]*tracedFile
	byNode map[Node][]*tracedFile // the same, by device and inode
	lost   int
	unread int
	full   bool
	untold bool
}

// fileKey is one content of one file.
type fileKey struct {
	dev, ino     uint64
	mtime, ctime unix.Timespec
	size         int64
}

type tracedFile struct {
	TracedFile
	made bool // by the command itself: no input
}

type opened struct {
	f    *os.File
	size int64
	into *tracedFile
}

// traceError is a kernel that traces nothing, or not for this user.
type traceError struct{ cause error }

func (e *traceError) Error() string {
	return fmt.Sprintf("tracing the command's files: fanotify: %v", e.cause)
}

func (e *traceError) Hint() string {
	return "run waxseal as root, on a kernel with fanotify; or leave out --trace"
}

// startTrace watches from now on. Files that were below dir before are left out,
// as waxseal has recorded them, but for what is below unrecorded and git's own.
func startTrace(dir string, unrecorded []string) (*tracer, error) {
	const how, files = unix.FAN_CLASS_NOTIF | unix.FAN_CLOEXEC | unix.FAN_NONBLOCK, unix.O_RDONLY | unix.O_LARGEFILE | unix.O_CLOEXEC
	fd, err := unix.FanotifyInit(how|unix.FAN_REPORT_FD_ERROR, files)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.13 a file that cannot be opened may go without a word
		fd, err = unix.FanotifyInit(how, files)
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		return nil, &traceError{err}
	}
	if err != nil {
		return nil, fmt.Errorf("tracing the command's files: %w", err)
	}
	t := newTracer(dir, unrecorded)
	t.file = os.NewFile(uintptr(fd), "fanotify")
	mounts, err := fileSystems()
	if err != nil {
		t.file.Close()
		return nil, err
	}
	const events = unix.FAN_OPEN | unix.FAN_OPEN_EXEC | unix.FAN_CLOSE_WRITE
	for _, m := range mounts {
		err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, events, unix.AT_FDCWD, m.at)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			t.blind = append(t.blind, fmt.Sprintf("files of %s (%s)", m.at, m.kind))
		}
	}
	t.reading.Go(t.read)
	for range 2 {
		t.hashing.Go(t.hash)
	}
	return t, nil
}

func newTracer(dir string, unrecorded []string) *tracer {
	return &tracer{
		dir: dir, own: unrecorded, started: time.Now(), known: map[Node]bool{}, seen: map[fileKey]*tracedFile{}, byNode: map[Node][]*tracedFile{},
		waiting: make(chan opened, openAtOnce()),
	}
}

// openAtOnce is how many files may wait to be read, and as many again come in
// one reading: the gateway, too, needs descriptors.
func openAtOnce() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return traceQueue / 4
	}
	return int(max(1, min(traceQueue, limit.Cur/4)))
}

// fileSystems are those of this machine that hold files, each once.
func fileSystems() ([]mount, error) {
	mounts, err := mountsOf("/proc/self")
	if err != nil {
		return nil, err
	}
	// What the kernel makes up as it is read is in no record.
	none := append(kernelKinds(), "devpts", "devtmpfs", "mqueue", "autofs", "rpc_pipefs", "nsfs")
	seen := map[string]bool{}
	var out []mount
	for _, m := range mounts {
		if seen[m.dev] || slices.Contains(none, m.kind) || below(m.at, "/dev") || m.at == "/sys" || slices.Contains(covered(), m.at) {
			continue // the command has its own there, or the keeper
		}
		seen[m.dev] = true
		out = append(out, m)
	}
	return out, nil
}

// tracerNice is how nice the keeper is to others while it traces.
const tracerNice = -10

// goFirst has all of this process go before others, where it may, and what it
// started as it was. An event that is not read yet keeps its file's mount busy,
// that of another build on the machine too, and one that is not read in time is
// lost.
func goFirst() {
	for range 2 { // threads come while others are looked at
		tasks, _ := os.ReadDir("/proc/self/task")
		for _, task := range tasks {
			id, err := strconv.Atoi(task.Name())
			if err != nil {
				continue
			}
			// The system call counts from 40, the nicest is 1.
			if p, err := unix.Getpriority(unix.PRIO_PROCESS, id); err == nil && 20-p > tracerNice {
				_ = unix.Setpriority(unix.PRIO_PROCESS, id, tracerNice)
			}
		}
	}
}

// follow says which process is the first of the sandbox, and which files the
// working folder had before the command.
func (t *tracer) follow(first int, known []Node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.first = first
	for _, n := range known {
		t.known[n] = true
	}
}

func (t *tracer) close() { t.file.Close() }

// read takes events until the file has a deadline, and then those that wait.
func (t *tracer) read() {
	defer close(t.waiting)
	buf := make([]byte, min(64<<10, eventSize*cap(t.waiting)))
	for {
		n, err := t.file.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed) {
			break
		}
		if err != nil {
			t.loss()
			time.Sleep(time.Millisecond) // descriptors come back as files are read
			continue
		}
		t.events(buf[:n])
	}
	conn, err := t.file.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) {
		for {
			n, err := unix.Read(int(fd), buf)
			switch {
			case errors.Is(err, unix.EINTR):
			case scarce(err):
				t.loss() // of one event; there may be more
			case errors.Is(err, unix.EAGAIN), err == nil && n == 0:
				return
			case err != nil:
				t.loss()
				return
			default:
				t.events(buf[:n])
			}
		}
	})
}

// scarce reports whether a file was not opened because too many are, or for
// want of memory.
func scarce(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)
}

func (t *tracer) loss() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lost++
}

const eventSize = 24 // of struct fanotify_event_metadata

func (t *tracer) events(buf []byte) {
	for len(buf) >= eventSize {
		var e unix.FanotifyEventMetadata
		if binary.Read(bytes.NewReader(buf), binary.NativeEndian, &e) != nil || e.Event_len < eventSize || int(e.Event_len) > len(buf) {
			return
		}
		buf = buf[e.Event_len:]
		if e.Mask&unix.FAN_Q_OVERFLOW != 0 {
			t.loss()
			continue
		}
		t.event(&e)
	}
}

// event looks at one: cheaply, because most are of files that are known.
func (t *tracer) event(e *unix.FanotifyEventMetadata) {
	t.mu.Lock()
	first := t.first
	t.mu.Unlock()
	// Processes outside of our namespace have no pid here.
	others := first == 0 || e.Pid == 0 || int(e.Pid) == os.Getpid() || int(e.Pid) == first
	if e.Fd < 0 {
		if !others {
			t.unopened(unix.Errno(-e.Fd))
		}
		return
	}
	f := os.NewFile(uintptr(e.Fd), "event")
	keep := false
	defer func() {
		if !keep {
			f.Close()
		}
	}()
	if others {
		return
	}
	var st unix.Stat_t
	if unix.Fstat(int(e.Fd), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	// The kernel makes one event of several of the same file and process.
	var into *tracedFile
	if e.Mask&(unix.FAN_OPEN|unix.FAN_OPEN_EXEC) != 0 {
		into = t.opened(int(e.Fd), &st)
	}
	if e.Mask&unix.FAN_CLOSE_WRITE != 0 {
		t.wrote(&st)
	}
	if into == nil {
		return
	}
	keep = true
	t.mu.Unlock()
	t.waiting <- opened{f, st.Size, into}
	t.mu.Lock()
}

// opened takes in a file, and returns what its digest is to come to; nil for
// none.
func (t *tracer) opened(fd int, st *unix.Stat_t) *tracedFile {
	key := fileKey{st.Dev, st.Ino, st.Mtim, st.Ctim, st.Size}
	if t.seen[key] != nil {
		return nil
	}
	into := &tracedFile{}
	var told bool
	into.made, told = t.isMade(fd)
	t.seen[key] = into
	if into.made {
		return nil
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		into.made = true
		t.unread++
		return nil
	}
	// The keeper sees none of the command's own mounts, by which a file of
	// anywhere can have a name in the working folder.
	there := lies(name, st)
	node := Node{st.Dev, st.Ino}
	if there && t.recorded(name) && (t.known[node] || !told) {
		t.untold = t.untold || !t.known[node]
		into.made = true
		return nil
	}
	if !there {
		name = elsewhere + strings.TrimSuffix(name, " (deleted)")
	}
	if len(t.seen) > maxTraced {
		t.full = true
		return nil
	}
	t.byNode[node] = append(t.byNode[node], into)
	into.Path, into.Mode, into.Size = name, st.Mode, st.Size
	if st.Size > maxSparse && st.Blocks*512 < st.Size/2 {
		into.made = true
		t.unread++
		return nil
	}
	return into
}

// unopened takes in that the kernel could not open for us what the command has
// opened.
func (t *tracer) unopened(errno unix.Errno) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case scarce(errno):
		t.lost++
	case errno != unix.ENXIO && errno != unix.ENODEV && errno != unix.EBUSY: // those are devices
		t.unread++
	}
}

// lies reports whether a file is what the machine has at a path.
func lies(name string, st *unix.Stat_t) bool {
	var there unix.Stat_t
	return unix.Lstat(name, &there) == nil && there.Dev == st.Dev && there.Ino == st.Ino
}

// recorded reports whether waxseal records what lies at a path before the
// command.
func (t *tracer) recorded(name string) bool {
	if !below(name, t.dir) || slices.ContainsFunc(t.own, func(o string) bool { return below(name, o) }) {
		return false
	}
	return !slices.Contains(strings.Split(strings.TrimPrefix(name, t.dir), "/"), ".git")
}

// wrote marks every content of a file that was written to.
func (t *tracer) wrote(st *unix.Stat_t) {
	for _, f := range t.byNode[Node{st.Dev, st.Ino}] {
		f.Written = true
	}
	// What it holds now is the command's own work, unless it was found like that
	// when it was opened: then nobody knows what that was before.
	if key := (fileKey{st.Dev, st.Ino, st.Mtim, st.Ctim, st.Size}); t.seen[key] == nil {
		t.seen[key] = &tracedFile{made: true}
	}
}

// isMade reports whether a file was made after the trace began, and whether
// its file system tells.
func (t *tracer) isMade(fd int) (made, told bool) {
	var x unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &x) != nil || x.Mask&unix.STATX_BTIME == 0 {
		return false, false
	}
	if !time.Unix(x.Btime.Sec, int64(x.Btime.Nsec)).After(t.started) {
		return false, true
	}
	copied, told := copiedUp(fd)
	return told && !copied, told
}

// copiedUp reports whether a file is one of an overlay's lower layers that was
// copied to the upper one, by a mere chmod, and has the time of that; and
// whether the kernel tells, as it does from Linux 6.6.
func copiedUp(fd int) (copied, told bool) {
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil || st.Type != unix.OVERLAYFS_SUPER_MAGIC {
		return false, true
	}
	// The handle of a file that was below is that of what is there; struct ovl_fh
	// in fs/overlayfs/overlayfs.h.
	const (
		handleFID = 0x200 // AT_HANDLE_FID
		kind      = 0xf8  // OVL_FILEID_V1
		magic     = 0xfb  // OVL_FH_MAGIC
		ofUpper   = 1 << 2
	)
	h, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH|handleFID)
	if err != nil || h.Type() != kind || h.Size() < 7 || h.Bytes()[4] != magic {
		return false, false
	}
	return h.Bytes()[6]&ofUpper == 0, true
}

// hash reads what was opened.
func (t *tracer) hash() {
	buf := make([]byte, 256<<10)
	for o := range t.waiting {
		t.sum(o, buf)
	}
}

func (t *tracer) sum(o opened, buf []byte) {
	sum := sha256.New()
	// Not what came to it since: that may have no end.
	n, err := io.CopyBuffer(struct{ io.Writer }{sum}, io.LimitReader(o.f, o.size), buf)
	o.f.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil || n != o.size {
		o.into.made = true
		t.unread++
	} else {
		o.into.SHA256 = hex.EncodeToString(sum.Sum(nil))
	}
}

// brought takes in the files that were moved or linked into the working folder
// from elsewhere, and that nobody has opened since.
func (t *tracer) brought() {
	buf := make([]byte, 256<<10)
	_ = filepath.WalkDir(t.dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // waxseal reads all of it, and says so
		}
		if !t.recorded(name) {
			return skip(d)
		}
		var st unix.Stat_t
		if !d.Type().IsRegular() || unix.Lstat(name, &st) != nil {
			return nil
		}
		if node := (Node{st.Dev, st.Ino}); t.known[node] || len(t.byNode[node]) > 0 {
			return nil
		}
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			t.unread++
			return nil
		}
		f := os.NewFile(uintptr(fd), name)
		t.mu.Lock()
		into := t.opened(fd, &st)
		t.mu.Unlock()
		if into == nil {
			return f.Close()
		}
		t.sum(opened{f, st.Size, into}, buf)
		return nil
	})
}

// skip leaves out a file, or a folder with all that is in it.
func skip(d fs.DirEntry) error {
	if d.IsDir() {
		return fs.SkipDir
	}
	return nil
}

// finish takes the events that still wait, and returns what was seen, by path.
func (t *tracer) finish() *Trace {
	_ = t.file.SetReadDeadline(time.Unix(1, 0))
	t.reading.Wait()
	t.hashing.Wait()
	t.brought()
	out := &Trace{Files: []TracedFile{}, Lost: t.lost, Unread: t.unread, Full: t.full, Untold: t.untold}
	for _, f := range t.seen {
		if !f.made {
			out.Files = append(out.Files, f.TracedFile)
		}
	}
	slices.SortFunc(out.Files, func(a, b TracedFile) int {
		if c := strings.Compare(a.Path, b.Path); c != 0 {
			return c
		}
		return strings.Compare(a.SHA256, b.SHA256)
	})
	return out
}
