package sandbox

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// traceHere traces what this machine's processes open from now on.
func traceHere(t *testing.T, dir string, unrecorded ...string) *tracer {
	t.Helper()
	needRoot(t)
	tr, err := startTrace(dir, unrecorded)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.close)
	var known []Node
	err = filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(name, &st) == nil {
			known = append(known, Node{st.Dev, st.Ino})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	tr.follow(1, known)
	return tr
}

func write(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(filepath.Base(name)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTrace(t *testing.T) {
	dir := newDir(t)
	work := filepath.Join(dir, "work")
	write(t, dir, "outside/in", "outside/log", "outside/tree/bound", "outside/lower/overlaid", "outside/lower/copied", "outside/gone", "outside/holes", "outside/moved", "outside/linked", "outside/folder/below",
		"work/in", "work/.git/blob", "work/sub/.git/blob2", "work/evidence/kept", "work/unread")
	for _, d := range []string{"work/inc", "work/o", "outside/upper", "outside/temporary"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(dir, "outside/holes"), 1<<41); err != nil {
		t.Fatal(err)
	}
	tr := traceHere(t, work, filepath.Join(work, "evidence"))
	cmd := exec.Command("unshare", "-m", "sh", "-ec", `
mount --make-rprivate /
mount --bind outside/tree work/inc
mount -t overlay -o lowerdir=outside/lower,upperdir=outside/upper,workdir=outside/temporary none work/o
chmod +x work/o/copied
echo made >work/o/made
cat work/o/copied work/o/made
cat outside/in work/in work/.git/blob work/sub/.git/blob2 work/evidence/kept work/inc/bound work/o/overlaid
echo more >>outside/log
echo new >outside/made
cat outside/made outside/gone
mv outside/moved outside/folder work
ln outside/linked work
mv work/in work/renamed
cat work/moved work/linked work/folder/below work/renamed
head -c 1 outside/holes
rm outside/gone`)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	seen := tr.finish()
	got := map[string]TracedFile{}
	for _, f := range seen.Files {
		if name, ok := strings.CutPrefix(f.Path, dir+"/"); ok {
			got[name] = f
		} else if name, ok := strings.CutPrefix(f.Path, elsewhere); ok {
			got[filepath.Base(name)] = f // the rest goes with the mount
		}
	}
	if f, ok := got["outside/gone"]; ok { // it was seen before it went
		got["gone"] = f
	}
	for _, name := range []string{"outside/in", "work/.git/blob", "work/sub/.git/blob2", "work/evidence/kept", "bound", "gone", "overlaid", "copied",
		"work/moved", "work/linked", "work/folder/below"} {
		sum := sha256.Sum256([]byte(filepath.Base(name)))
		if f := got[name]; f.SHA256 != hex.EncodeToString(sum[:]) || f.Written && name != "gone" { // another file can have its number
			t.Errorf("%s: %+v", name, f)
		}
	}
	if f := got["outside/in"]; f.Path != filepath.Join(dir, "outside/in") {
		t.Errorf("a file is said to be at %q", f.Path)
	}
	if f := got["outside/log"]; !f.Written {
		t.Errorf("what was written to: %+v", f)
	}
	for _, name := range []string{"work/in", "work/renamed", "work/unread", "outside/made", "made", "outside/holes"} {
		if f, ok := got[name]; ok {
			t.Errorf("%s: %+v", name, f)
		}
	}
	if seen.Unread == 0 {
		t.Error("nothing was unread, and one file has more holes than anybody reads")
	}
}

// What the kernel could not hand over is counted.
func TestTraceCountsWhatItLost(t *testing.T) {
	event := func(mask uint64, fd, pid int32) []byte {
		var b bytes.Buffer
		e := unix.FanotifyEventMetadata{Event_len: eventSize, Vers: unix.FANOTIFY_METADATA_VERSION, Metadata_len: eventSize, Mask: mask, Fd: fd, Pid: pid}
		if err := binary.Write(&b, binary.NativeEndian, &e); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	const another = 1 << 22 // no process has it
	for name, x := range map[string]struct {
		event        []byte
		lost, unread int
	}{
		"a full queue":        {event(unix.FAN_Q_OVERFLOW, unix.FAN_NOFD, 0), 1, 0},
		"no descriptor":       {event(unix.FAN_OPEN, -int32(unix.EMFILE), another), 1, 0},
		"none on the machine": {event(unix.FAN_OPEN, -int32(unix.ENFILE), another), 1, 0},
		"none for others":     {event(unix.FAN_OPEN, -int32(unix.EMFILE), 0), 0, 0},
		"not allowed":         {event(unix.FAN_OPEN, -int32(unix.EACCES), another), 0, 1},
		"a device":            {event(unix.FAN_OPEN, -int32(unix.ENXIO), another), 0, 0},
		"half an event":       {event(unix.FAN_Q_OVERFLOW, unix.FAN_NOFD, 0)[:20], 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTracer("/work", nil)
			tr.follow(1, nil)
			tr.events(x.event)
			if tr.lost != x.lost || tr.unread != x.unread {
				t.Errorf("lost %d, unread %d", tr.lost, tr.unread)
			}
		})
	}
}

// Without a descriptor for what was opened there is no digest, and it goes on.
func TestTraceWithoutDescriptors(t *testing.T) {
	dir := newDir(t)
	write(t, dir, "outside/in", "outside/later")
	tr := traceHere(t, filepath.Join(dir, "work"))
	cmd := exec.Command("sh", "-c", "while read -r name; do cat $name; echo; done")
	cmd.Dir = filepath.Join(dir, "outside")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	lost := func() int {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		return tr.lost
	}
	few := was
	few.Cur = 3
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	for lost() == 0 {
		_, _ = io.WriteString(in, "in\n")
		_, _ = out.Read(make([]byte, 8))
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(in, "later\n")
	in.Close()
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	seen := tr.finish()
	for _, f := range seen.Files {
		if f.Path == filepath.Join(dir, "outside/later") {
			return
		}
	}
	t.Errorf("after %d losses nothing more was seen", seen.Lost)
}
