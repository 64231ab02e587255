package lock_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

// TestMain lets the test be another process that uses a store.
func TestMain(m *testing.M) {
	if dir := os.Getenv("WAXSEAL_TEST_STORE"); dir != "" {
		os.Exit(otherProcess(dir, os.Getenv("WAXSEAL_TEST_DO")))
	}
	os.Exit(m.Run())
}

// otherProcess opens the store, says so, and holds or writes until it is told
// to end by the end of its input, or killed.
func otherProcess(dir, do string) int {
	s, err := lock.OpenStore(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	switch do {
	case "hold":
		w, _ := s.NewWriter()
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin)
		w.Abort()
	case "write": // without end
		for i := 0; ; i++ {
			w, _ := s.NewWriter()
			for range 4 {
				if _, err := w.Write(bytes.Repeat([]byte(fmt.Sprint(i%64, " ")), 20<<10)); err != nil {
					fmt.Fprintln(os.Stderr, err)
					return 1
				}
			}
			if _, err := w.Commit(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			if i == 100 {
				fmt.Println("ready")
			}
		}
	case "key":
		r, err := s.Redactor()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println(r.Hash(nil))
	}
	if err := s.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

type process struct {
	*exec.Cmd
	in io.WriteCloser
}

// start runs another process up to the point where it says it is ready.
func start(t *testing.T, dir, do string) process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "WAXSEAL_TEST_STORE="+dir, "WAXSEAL_TEST_DO="+do)
	cmd.Stderr = os.Stderr
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
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if _, err := io.ReadFull(out, make([]byte, len("ready"))); err != nil {
		t.Fatal(err)
	}
	return process{cmd, in}
}

func read(t *testing.T, s *lock.Store, d attest.Digest) []byte {
	t.Helper()
	b, err := s.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	raw, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(raw)) != b.Size {
		t.Fatalf("%s has %d bytes, and says %d", d, len(raw), b.Size)
	}
	return raw
}

func blobPath(s *lock.Store, d attest.Digest) string {
	return filepath.Join(s.Dir(), "blobs", "sha256", d.Hex()[:2], d.Hex())
}

func put(t *testing.T, s *lock.Store, b []byte) attest.Digest {
	t.Helper()
	d, err := s.Put(b)
	if err == nil {
		err = s.Sync(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestWriter(t *testing.T) {
	s := open(t)
	for _, n := range []int{0, 1, 64 << 10, 64<<10 + 1, 3 << 20} {
		want := bytes.Repeat([]byte("seal"), n/4+1)[:n]
		w, err := s.NewWriter()
		if err != nil {
			t.Fatal(err)
		}
		for part := range slices.Chunk(want, 32<<10) {
			if _, err := w.Write(part); err != nil {
				t.Fatal(err)
			}
		}
		if w.Size() != int64(n) || w.Digest() != attest.DigestOf(want) {
			t.Errorf("%d bytes: %d, %s", n, w.Size(), w.Digest())
		}
		for range 2 {
			r, err := w.Reader()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes: read %d before the commit (%v)", n, len(got), err)
			}
		}
		d, err := w.Commit()
		if err != nil {
			t.Fatal(err)
		}
		w.Abort()
		// There at once, and still after it is in place.
		if !s.Has(d) || !bytes.Equal(read(t, s, d), want) {
			t.Errorf("%d bytes: not there after Commit", n)
		}
		if err := s.Sync(context.Background()); err != nil {
			t.Fatal(err)
		}
		if !s.Has(d) || !bytes.Equal(read(t, s, d), want) || s.Check(d) != nil {
			t.Errorf("%d bytes: not there after Sync", n)
		}
		if _, err := w.Write([]byte("more")); err == nil {
			t.Error("a blob that is finished takes more")
		}
		if _, err := w.Reader(); err == nil {
			t.Error("a blob that is finished is read through its writer")
		}
	}
	w, _ := s.NewWriter()
	if _, err := w.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	d := w.Digest()
	w.Abort()
	if s.Has(d) || len(temps(t, s)) != 0 {
		t.Errorf("after Abort: has %t, temporary files %v", s.Has(d), temps(t, s))
	}
	if _, err := s.Open(d); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := s.Open("sha256:../../../etc/passwd"); err == nil {
		t.Error("a digest that is none was opened")
	}
}

func temps(t *testing.T, s *lock.Store) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.Dir(), "tmp", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestStoreInParallel(t *testing.T) {
	dir := t.TempDir()
	var stores []*lock.Store
	for range 2 {
		s, err := lock.OpenStore(dir)
		if err != nil {
			t.Fatal(err)
		}
		stores = append(stores, s)
	}
	var group sync.WaitGroup
	for g := range 8 {
		group.Go(func() {
			s := stores[g%2]
			for i := range 40 {
				want := bytes.Repeat([]byte{byte(i)}, (i%5)*40<<10+i+1)
				d, err := s.Put(want)
				if err != nil {
					t.Error(err)
					return
				}
				b, err := s.OpenVerified(d)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(b)
				b.Close()
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("blob %d: %d bytes, %v", i, len(got), err)
				}
				if i%10 == 0 {
					if err := s.Sync(context.Background()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	group.Wait()
	for _, s := range stores {
		if err := s.Sync(context.Background()); err != nil {
			t.Error(err)
		}
	}
	n := 0
	if err := stores[0].Verify(context.Background(), func(it lock.Item) error { n++; return it.Bad }); err != nil || n != 40 {
		t.Errorf("%d blobs, %v; want 40", n, err)
	}
	if left := temps(t, stores[0]); len(left) != 0 {
		t.Errorf("temporary files are left: %v", left)
	}
	for _, s := range stores {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestKilled: of a process that is killed while it writes nothing is left but
// temporary files, and those go, though not those of one that lives.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	dead := start(t, dir, "write")
	alive := start(t, dir, "hold")
	if err := dead.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = dead.Wait()
	s, err := lock.OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := s.Verify(context.Background(), func(it lock.Item) error { n++; return it.Bad }); err != nil {
		t.Errorf("after %d blobs: %v", n, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}

	// Old ones of the dead are removed by whoever opens the store next.
	old := time.Now().Add(-3 * time.Hour)
	sessions, err := os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	if len(sessions) != 2 {
		t.Fatalf("folders below tmp: %v", sessions)
	}
	for _, e := range sessions {
		if err := os.Chtimes(filepath.Join(dir, "tmp", e.Name()), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = lock.OpenStore(dir); err != nil {
		t.Fatal(err)
	}
	sessions, err = os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil || len(sessions) != 1 || !strings.HasPrefix(sessions[0].Name(), fmt.Sprint(alive.Process.Pid)) {
		t.Errorf("left below tmp: %v, %v; want that of %d", sessions, err, alive.Process.Pid)
	}

	// And gc waits for the living.
	waited := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		_, err := s.GC(context.Background(), lock.GCOptions{Waiting: func() { close(waited) }})
		done <- err
	}()
	select {
	case <-waited:
	case err := <-done:
		t.Fatalf("gc did not wait: %v", err)
	}
	alive.in.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if left := temps(t, s); len(left) != 0 {
		t.Errorf("left after gc: %v", left)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestGCGivesUpAndKeepsItsShare(t *testing.T) {
	s := open(t)
	start(t, s.Dir(), "hold")
	ctx, cancel := context.WithCancel(context.Background())
	_, err := s.GC(ctx, lock.GCOptions{Waiting: cancel})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	other, err := lock.OpenStore(s.Dir())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithCancel(context.Background())
	if _, err := other.Alone(ctx, cancel); err == nil {
		t.Error("alone with two others")
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
}

// TestPoisoned: what somebody put in the store's folder is not taken for a blob.
func TestPoisoned(t *testing.T) {
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	text := []byte("what the digest says")
	if err := os.WriteFile(elsewhere, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, poison := range map[string]func(path string) error{
		"a symbolic link":  func(p string) error { return os.Symlink(elsewhere, p) },
		"a dangling link":  func(p string) error { return os.Symlink("/nowhere", p) },
		"a hard link":      func(p string) error { return os.Link(elsewhere, p) },
		"a folder":         func(p string) error { return os.MkdirAll(filepath.Join(p, "x"), 0o700) },
		"a pipe":           func(p string) error { return unix.Mkfifo(p, 0o600) },
		"a socket's place": func(p string) error { return unix.Mknod(p, unix.S_IFSOCK|0o600, 0) },
		"other bytes":      func(p string) error { return os.WriteFile(p, bytes.ToUpper(text), 0o600) },
		"fewer bytes":      func(p string) error { return os.WriteFile(p, text[1:], 0o600) },
		"no bytes":         func(p string) error { return os.WriteFile(p, nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			d := put(t, s, text)
			if err := s.Check(d); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(blobPath(s, d)); err != nil {
				t.Fatal(err)
			}
			if err := poison(blobPath(s, d)); err != nil {
				t.Fatal(err)
			}
			if b, err := s.OpenVerified(d); err == nil {
				b.Close()
				t.Error("it is handed on")
			}
			if err := s.Check(d); err == nil {
				t.Error("it is found to be right")
			}
			bad := 0
			if err := s.Verify(context.Background(), func(it lock.Item) error {
				if it.Bad != nil {
					bad++
				}
				return nil
			}); err != nil || bad != 1 {
				t.Errorf("%d found bad, %v", bad, err)
			}
			if err := s.Export(context.Background(), io.Discard, []attest.Digest{d}); err == nil {
				t.Error("it is exported")
			}
			// The way out: the right bytes again.
			if put(t, s, text) != d || s.Check(d) != nil || !bytes.Equal(read(t, s, d), text) {
				t.Error("it is not healed")
			}
			if err := s.Discard(d); err != nil || !s.Has(d) {
				t.Errorf("a good blob was discarded (%v)", err)
			}
			if got, err := os.ReadFile(elsewhere); err != nil || !bytes.Equal(got, text) {
				t.Errorf("the file elsewhere: %q, %v", got, err)
			}
		})
	}
}

// TestFlipped: a bit that flips after a blob was checked is seen, too.
func TestFlipped(t *testing.T) {
	s := open(t)
	d := put(t, s, []byte("as it should be"))
	if err := s.Check(d); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(blobPath(s, d), []byte("As it should be"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(d); !errors.Is(err, lock.ErrCorrupt) {
		t.Error(err)
	}
	if put(t, s, []byte("as it should be")) != d || s.Check(d) != nil {
		t.Error("it is not healed")
	}
	if err := os.WriteFile(blobPath(s, d), []byte("As it should be"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Discard(d); err != nil || s.Has(d) {
		t.Errorf("it is still there (%v)", err)
	}
}

func TestTake(t *testing.T) {
	s := open(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "layer")
	text := bytes.Repeat([]byte("layer "), 100<<10)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	d := attest.DigestOf(text)
	for range 2 {
		if err := s.Take(file, d); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	// Whoever writes the file afterwards does not write the store.
	if err := os.WriteFile(file, []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(d); err != nil {
		t.Error(err)
	}
	if err := s.Take(file, attest.DigestOf([]byte("x"))); err == nil {
		t.Error("a file of another digest was taken")
	}
	if err := os.Symlink(file, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"link", "none", "."} {
		if err := s.Take(filepath.Join(dir, bad), attest.DigestOf([]byte("changed"))); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
	if left := temps(t, s); len(left) != 0 {
		t.Errorf("temporary files are left: %v", left)
	}
}

func TestRedactorKey(t *testing.T) {
	dir := t.TempDir()
	// Several processes that make it at once have one.
	var got [4]string
	var group sync.WaitGroup
	for i := range got {
		group.Go(func() {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "WAXSEAL_TEST_STORE="+dir, "WAXSEAL_TEST_DO=key")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v: %s", err, out)
			}
			got[i] = string(out)
		})
	}
	group.Wait()
	if got[0] == "" || slices.ContainsFunc(got[:], func(k string) bool { return k != got[0] }) {
		t.Errorf("keys %q", got)
	}
	key := filepath.Join(dir, "key")
	info, err := os.Stat(key)
	if err != nil || info.Mode() != 0o600 || info.Size() != 32 {
		t.Errorf("the key is %v, %v", info, err)
	}
	s, err := lock.OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Redactor(); err == nil || !strings.Contains(err.Error(), "read by others") {
		t.Error(err)
	}
	if err := errors.Join(os.Remove(key), os.WriteFile(key, []byte("short"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Redactor(); err == nil || !strings.Contains(err.Error(), "not a key of 32 bytes") {
		t.Error(err)
	}
}

func TestOpenStoreRefuses(t *testing.T) {
	for name, prepare := range map[string]func(dir string) error{
		"a file in its place": func(dir string) error { return os.WriteFile(dir, nil, 0o600) },
		"blobs elsewhere": func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o700), os.Symlink("/tmp", filepath.Join(dir, "blobs")))
		},
		"a lock elsewhere": func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o700), os.Symlink("/tmp/x", filepath.Join(dir, "lock")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "store")
			if err := prepare(dir); err != nil {
				t.Fatal(err)
			}
			if s, err := lock.OpenStore(dir); err == nil {
				s.Close()
				t.Error("opened")
			}
		})
	}
}

// BenchmarkSmall is what a build with many small requests pays until all is on
// the disk.
func BenchmarkSmall(b *testing.B) {
	s, err := lock.OpenStore(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 2000)
	seed := rand.NewChaCha8(sha256.Sum256(nil))
	for b.Loop() {
		_, _ = seed.Read(body)
		if _, err := s.Put(body); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkLarge(b *testing.B) {
	s, err := lock.OpenStore(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 256<<10)
	b.SetBytes(64 << 20)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		body[i%len(body)]++
		w, _ := s.NewWriter()
		for range 256 {
			if _, err := w.Write(body); err != nil {
				b.Fatal(err)
			}
		}
		w.Abort()
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkLargeAgain is of a body that the store has.
func BenchmarkLargeAgain(b *testing.B) {
	s, err := lock.OpenStore(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 256<<10)
	b.SetBytes(64 << 20)
	b.ReportAllocs()
	for b.Loop() {
		w, _ := s.NewWriter()
		for range 256 {
			if _, err := w.Write(body); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := w.Commit(); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}
