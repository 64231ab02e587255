package lock

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/pkg/attest"
)

const (
	keySize    = 32
	maxReserve = 256 << 20 // bytes kept free on the store's disk, at most
	staleAfter = time.Hour // age at which what a dead process left is removed by the next to come
	batchSize  = 128       // blobs made durable at once
	workers    = 2
	spaceEvery = 16 << 20 // bytes written between two looks at the free space
	smallBlob  = 64 << 10 // kept in memory until Commit, so that a duplicate costs no file
	emptyHex   = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

// ErrCorrupt is what a blob gives whose bytes are not those of its digest, or
// that is no plain file of the store's own.
var ErrCorrupt = errors.New("the store's copy is damaged")

// Store is a folder of bytes by sha256 digest. Safe for concurrent use, also by
// several processes: every one that has it open holds a shared lock, and what
// removes blobs waits until it is alone.
//
//	blobs/sha256/ab/abcdef…  the blobs, never changed once in place
//	tmp/                     a folder for each process that is writing
//	heads/                   which blob began so, see twin
//	key                      of the Redactor, 0600
//	lock                     what the processes lock
//
// The empty blob is always there.
type Store struct {
	dir string
	use *os.File // shared lock, nil on a file system that cannot be written

	mu      sync.Mutex
	session *os.File                 // our folder below tmp, locked while we live
	pending map[attest.Digest]string // committed, not yet in place: where it is
	queue   []attest.Digest
	running int
	idle    chan struct{} // closed when nothing is pending
	err     error         // the first that made a blob not durable
	checked map[attest.Digest]stamp
	damaged map[attest.Digest]bool // found so; the next commit replaces it
}

// stamp is a file's identity: as long as it is the same, so are the bytes.
type stamp struct {
	ino         uint64
	size        int64
	mtim, ctime unix.Timespec
}

// OpenStore opens the store in dir, which is made if it is not there.
func OpenStore(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("opening store %q: %w", dir, err)
	}
	for _, sub := range []string{"", "blobs", "blobs/sha256", "tmp"} {
		if err := makeFolder(filepath.Join(dir, sub), sub == ""); err != nil {
			return nil, fmt.Errorf("opening store %q: %w", dir, err)
		}
	}
	s := &Store{dir: dir, pending: map[attest.Digest]string{}, checked: map[attest.Digest]stamp{}, damaged: map[attest.Digest]bool{}}
	name := filepath.Join(dir, "lock")
	s.use, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission) {
		s.use, err = os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	}
	if err != nil {
		if errors.Is(err, unix.EROFS) || (errors.Is(err, fs.ErrNotExist) && unix.Access(dir, unix.W_OK) != nil) {
			s.use = nil // nothing can be removed from it either
			return s, nil
		}
		return nil, fmt.Errorf("opening store %q: %w", dir, err)
	}
	if err := flock(s.use, unix.LOCK_SH); err != nil {
		s.use.Close()
		return nil, fmt.Errorf("opening store %q: locking it: %w", dir, err)
	}
	s.sweepTemps(time.Now().Add(-staleAfter))
	return s, nil
}

func makeFolder(path string, parents bool) error {
	info, err := os.Lstat(path)
	if err == nil && parents && info.Mode()&fs.ModeSymlink != 0 {
		info, err = os.Stat(path) // the store's own folder may be one
	}
	switch {
	case err == nil && !info.IsDir():
		return fmt.Errorf("%q is not a folder", path)
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case parents:
		return os.MkdirAll(path, 0o700)
	}
	if err := os.Mkdir(path, 0o700); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			return err
		}
	}
}

// sweepTemps removes what processes that no longer live left behind before a
// time. A live one holds a lock on its folder.
func (s *Store) sweepTemps(before time.Time) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "tmp"))
	if err != nil {
		return
	}
	for _, e := range entries {
		name := filepath.Join(s.dir, "tmp", e.Name())
		info, err := e.Info()
		if err != nil || info.ModTime().After(before) {
			continue
		}
		if info.IsDir() {
			f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_DIRECTORY, 0)
			if err != nil {
				continue
			}
			if flock(f, unix.LOCK_EX|unix.LOCK_NB) == nil {
				_ = os.RemoveAll(name)
			}
			f.Close()
			continue
		}
		_ = os.Remove(name)
	}
}

// Dir is the store's folder.
func (s *Store) Dir() string { return s.dir }

// Close waits for what was committed and lets go of the store. What a process
// does not close is let go of when it ends.
func (s *Store) Close() error {
	err := s.Sync(context.Background())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session != nil {
		_ = os.RemoveAll(s.session.Name())
		s.session.Close()
		s.session = nil
	}
	if s.use != nil {
		s.use.Close()
		s.use = nil
	}
	return err
}

func (s *Store) path(d attest.Digest) string {
	h := d.Hex()
	return filepath.Join(s.dir, "blobs", "sha256", h[:2], h)
}

// temp makes an empty file in our folder below tmp.
func (s *Store) temp() (*os.File, error) {
	s.mu.Lock()
	if s.session == nil {
		name := filepath.Join(s.dir, "tmp", fmt.Sprintf("%d-%s", os.Getpid(), rand.Text()))
		err := os.Mkdir(name, 0o700)
		if err == nil {
			s.session, err = os.Open(name)
		}
		if err == nil {
			err = flock(s.session, unix.LOCK_SH)
		}
		if err != nil {
			s.mu.Unlock()
			return nil, err
		}
	}
	name := filepath.Join(s.session.Name(), rand.Text())
	s.mu.Unlock()
	return os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o400)
}

// room refuses to write into the last of the disk: a step could fill it, and
// the engine, the logs and the result want some too.
func (s *Store) room(want int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return fmt.Errorf("looking at the free space of %q: %w", s.dir, err)
	}
	free := int64(st.Bavail) * st.Bsize
	keep := min(maxReserve, int64(st.Blocks)*st.Bsize/100)
	if free-want < keep {
		return s.full(fmt.Sprintf("its disk has %s left, of which %s are kept free", size(free), size(keep)))
	}
	return nil
}

func (s *Store) full(what string) error {
	return fmt.Errorf("writing to the store %q: %s: make room (waxseal store gc removes what no lock needs), or name another folder with --store: %w", s.dir, what, unix.ENOSPC)
}

// clear puts the way out into an error of writing.
func (s *Store) clear(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return s.full("its disk is full")
	}
	return fmt.Errorf("writing to the store %q: %w", s.dir, err)
}

// Writer writes one blob, hashing as it goes. It is for one goroutine.
type Writer struct {
	s      *Store
	small  []byte
	f      *os.File
	sum    hash.Hash
	head   attest.Digest // of the first smallBlob bytes of a large blob
	aside  *hasher       // of a large blob: hashes beside the writing
	twin   *twin         // what the blob is compared with instead of being written
	parted attest.Digest // of the twin there was until the blob went on otherwise
	size   int64
	next   int64 // look at the free space again at this size
	done   bool
}

// NewWriter begins a blob whose digest is not known yet. The caller calls
// Commit or Abort.
func (s *Store) NewWriter() (*Writer, error) {
	return &Writer{s: s, sum: sha256.New()}, nil
}

// Write adds to the blob. Memory stays the same however much is written.
func (w *Writer) Write(p []byte) (int, error) {
	if w.done {
		return 0, errors.New("writing to the store: the blob is finished")
	}
	had := 0
	if w.aside == nil {
		had = min(smallBlob-len(w.small), len(p))
		w.small = append(w.small, p[:had]...)
		w.sum.Write(p[:had])
		w.size += int64(had)
		if had == len(p) {
			return had, nil
		}
		if err := w.grow(); err != nil {
			return had, err
		}
	}
	if w.twin != nil {
		if had += w.follow(p[had:]); had == len(p) {
			return had, nil
		}
		if err := w.part(); err != nil {
			return had, err
		}
	}
	n, err := w.append(p[had:])
	return had + n, err
}

// grow makes a large blob of a small one.
func (w *Writer) grow() error {
	w.head = sumOf(w.sum)
	if w.twin = w.s.twin(w.small, w.head); w.twin != nil {
		w.small = nil
	} else if err := w.spill(); err != nil {
		return err
	}
	w.aside = newHasher(w.sum)
	return nil
}

// append writes to the file and hashes beside it.
func (w *Writer) append(p []byte) (int, error) {
	if w.size+int64(len(p)) > w.next {
		if err := w.s.room(int64(len(p))); err != nil {
			return 0, err
		}
		w.next = w.size + int64(len(p)) + spaceEvery
	}
	n, err := w.f.Write(p)
	w.aside.write(p[:n])
	w.size += int64(n)
	if err != nil {
		return n, w.s.clear(err)
	}
	return n, nil
}

// spill moves what is in memory to a file.
func (w *Writer) spill() error {
	if err := w.s.room(int64(len(w.small))); err != nil {
		return err
	}
	f, err := w.s.temp()
	if err == nil {
		w.f = f
		_, err = f.Write(w.small)
	}
	if err != nil {
		return w.s.clear(err)
	}
	w.small = nil
	return nil
}

// hasher feeds a hash from a goroutine of its own, so that a large body is
// hashed while the next part of it is fetched.
type hasher struct {
	full, free chan []byte
	done       chan struct{}
}

const (
	hasherBuffer  = 128 << 10
	hasherBuffers = 4
)

func newHasher(sum hash.Hash) *hasher {
	h := &hasher{make(chan []byte, hasherBuffers), make(chan []byte, hasherBuffers), make(chan struct{})}
	for range hasherBuffers {
		h.free <- nil // made when it is needed
	}
	go func() {
		defer close(h.done)
		for b := range h.full {
			sum.Write(b)
			h.free <- b
		}
	}()
	return h
}

func (h *hasher) write(p []byte) {
	for part := range slices.Chunk(p, hasherBuffer) {
		b := <-h.free
		h.full <- append(b[:0], part...)
	}
}

// wait returns when all that was written is hashed.
func (h *hasher) wait() {
	taken := make([][]byte, 0, hasherBuffers)
	for range hasherBuffers {
		taken = append(taken, <-h.free)
	}
	for _, b := range taken {
		h.free <- b
	}
}

func (h *hasher) end() {
	close(h.full)
	<-h.done
}

// Digest is of what was written so far.
func (w *Writer) Digest() attest.Digest {
	if w.aside != nil && !w.done {
		w.aside.wait()
	}
	return sumOf(w.sum)
}

func sumOf(h hash.Hash) attest.Digest {
	return attest.Digest("sha256:" + hex.EncodeToString(h.Sum(nil)))
}

// Size is of what was written so far.
func (w *Writer) Size() int64 { return w.size }

// Reader reads the blob from its start before it is committed: in locked mode
// it is checked first and handed on after.
func (w *Writer) Reader() (io.Reader, error) {
	switch {
	case w.done:
		return nil, errors.New("reading from the store: the blob is finished")
	case w.twin != nil:
		return io.NewSectionReader(w.twin.f, 0, w.size), nil
	case w.f == nil:
		return strings.NewReader(string(w.small)), nil
	}
	return io.NewSectionReader(w.f, 0, w.size), nil
}

// Commit puts the blob in place under its digest. It is durable after Sync.
func (w *Writer) Commit() (attest.Digest, error) {
	d := w.Digest()
	if w.done {
		return d, nil
	}
	if d == w.parted {
		// The store's copy under this name has other bytes.
		w.s.mu.Lock()
		w.s.damaged[d] = true
		w.s.mu.Unlock()
	}
	if w.head != "" {
		defer w.s.note(w.head, d)
	}
	if w.s.holds(d, w.size) {
		w.Abort()
		return d, nil
	}
	if w.f == nil {
		whole := w.spill
		if w.twin != nil {
			whole = w.part
		}
		if err := whole(); err != nil {
			w.Abort()
			return "", err
		}
	}
	w.done = true
	if w.aside != nil {
		w.aside.end()
	}
	name := w.f.Name()
	if err := w.f.Close(); err != nil {
		_ = os.Remove(name)
		return "", w.s.clear(err)
	}
	w.s.enqueue(d, name)
	return d, nil
}

// Abort drops the blob; after Commit it does nothing.
func (w *Writer) Abort() {
	if w.done {
		return
	}
	w.done = true
	w.small = nil
	if w.aside != nil {
		w.aside.end()
	}
	if w.twin != nil {
		w.twin.f.Close()
	}
	if w.f != nil {
		_ = os.Remove(w.f.Name())
		// Giving up the pages of a large file takes the kernel a while, and a
		// body that was there already is the common case of a second build.
		go w.f.Close()
	}
}

// holds reports whether the store has d as a file of that size, which nobody
// found to be damaged, and marks it as used.
func (s *Store) holds(d attest.Digest, size int64) bool {
	if d.Hex() == emptyHex {
		return true
	}
	f, st, err := s.open(d)
	if err != nil {
		return false
	}
	defer f.Close()
	s.mu.Lock()
	damaged := s.damaged[d]
	s.mu.Unlock()
	if damaged || st.Size != size {
		return false
	}
	now := time.Now()
	if now.Sub(time.Unix(st.Mtim.Unix())) > staleAfter {
		// For gc, which goes by age. On a store that cannot be written it
		// does not matter.
		_ = os.Chtimes(s.path(d), now, now)
	}
	return true
}

func (s *Store) enqueue(d attest.Digest, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, twice := s.pending[d]; twice {
		_ = os.Remove(name)
		return
	}
	if len(s.pending) == 0 {
		s.idle = make(chan struct{})
	}
	s.pending[d] = name
	s.queue = append(s.queue, d)
	if s.running < workers {
		s.running++
		go s.settle()
	}
}

// settle makes blobs durable, in batches, until none is left. Flushing many
// files and then asking for each costs one commit of the file system's
// journal instead of one for each.
func (s *Store) settle() {
	for {
		s.mu.Lock()
		n := min(len(s.queue), batchSize)
		if n == 0 {
			s.running--
			s.mu.Unlock()
			return
		}
		batch := make(map[attest.Digest]string, n)
		for _, d := range s.queue[:n] {
			batch[d] = s.pending[d]
		}
		s.queue = s.queue[n:]
		s.mu.Unlock()

		failed := s.place(batch)

		s.mu.Lock()
		for d := range batch {
			if err := failed[d]; err != nil && s.err == nil {
				s.err = s.clear(err)
			}
			delete(s.pending, d)
			delete(s.damaged, d)
		}
		if len(s.pending) == 0 {
			close(s.idle)
		}
		s.mu.Unlock()
	}
}

// place flushes a batch and renames it into place.
func (s *Store) place(batch map[attest.Digest]string) map[attest.Digest]error {
	failed := map[attest.Digest]error{}
	files := make(map[attest.Digest]*os.File, len(batch))
	for d, name := range batch {
		f, err := os.Open(name)
		if err != nil {
			failed[d] = err
			continue
		}
		files[d] = f
		_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	folders := map[string][]attest.Digest{}
	for d, f := range files {
		err := f.Sync()
		f.Close()
		if err == nil {
			folder := filepath.Dir(s.path(d))
			if err = makeFolder(folder, false); err == nil {
				if err = os.Rename(batch[d], s.path(d)); errors.Is(err, unix.EISDIR) || errors.Is(err, fs.ErrExist) {
					// Somebody put a folder there.
					err = errors.Join(os.RemoveAll(s.path(d)), os.Rename(batch[d], s.path(d)))
				}
				folders[folder] = append(folders[folder], d)
			}
		}
		if err != nil {
			_ = os.Remove(batch[d])
			failed[d] = err
		}
	}
	above := filepath.Join(s.dir, "blobs", "sha256")
	for folder, ds := range folders {
		if err := errors.Join(syncFolder(folder), syncFolder(above)); err != nil {
			for _, d := range ds {
				failed[d] = err
			}
		}
	}
	return failed
}

func syncFolder(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Sync returns when everything committed so far is on the disk, with the first
// error there was.
func (s *Store) Sync(ctx context.Context) error {
	for {
		s.mu.Lock()
		if len(s.pending) == 0 {
			defer s.mu.Unlock()
			return s.err
		}
		idle := s.idle
		s.mu.Unlock()
		select {
		case <-idle:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Blob is an open blob.
type Blob struct {
	io.ReadSeekCloser
	Size int64
}

type nothing struct{ *strings.Reader }

func (nothing) Close() error { return nil }

// Open returns a blob for reading, fs.ErrNotExist if the store has it not. A
// blob that Commit returned is there at once, synced or not. The bytes are as
// they lie on the disk: whoever hands them to a step or into a result uses
// OpenVerified.
func (s *Store) Open(d attest.Digest) (*Blob, error) {
	f, info, err := s.open(d)
	if err != nil {
		return nil, fmt.Errorf("opening %s in the store %q: %w", d, s.dir, err)
	}
	if f == nil {
		return &Blob{ReadSeekCloser: nothing{strings.NewReader("")}}, nil
	}
	return &Blob{ReadSeekCloser: f, Size: info.Size}, nil
}

// open gives a plain file that nothing else names, or nil for the empty blob.
func (s *Store) open(d attest.Digest) (*os.File, *unix.Stat_t, error) {
	if _, err := attest.ParseDigest(string(d)); err != nil {
		return nil, nil, err
	}
	if d.Hex() == emptyHex {
		return nil, nil, nil
	}
	s.mu.Lock()
	name, pending := s.pending[d]
	s.mu.Unlock()
	var f *os.File
	err := fs.ErrNotExist
	if pending {
		f, err = openPlain(name)
	}
	if errors.Is(err, fs.ErrNotExist) { // or just now put in place
		f, err = openPlain(s.path(d))
	}
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return nil, nil, fmt.Errorf("%w: it is a symbolic link or a socket", ErrCorrupt)
	}
	if err != nil {
		return nil, nil, bare(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, nil, err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = fmt.Errorf("%w: it is no plain file", ErrCorrupt)
	case st.Nlink > 1:
		err = fmt.Errorf("%w: it has another name, through which it could be changed", ErrCorrupt)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, &st, nil
}

// openPlain opens without following a link and without waiting for a pipe.
func openPlain(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

// bare is the cause of an error that names a path its reader does not need.
func bare(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// OpenVerified is Open for bytes that are handed on: the whole blob is hashed
// first, once for each process and version of the file, and ErrCorrupt returned
// when it is not what its name says. The next commit of the right bytes then
// takes its place.
func (s *Store) OpenVerified(d attest.Digest) (*Blob, error) {
	f, st, err := s.open(d)
	if err != nil {
		return nil, fmt.Errorf("opening %s in the store %q: %w", d, s.dir, err)
	}
	if f == nil {
		return s.Open(d)
	}
	now := stamp{st.Ino, st.Size, st.Mtim, st.Ctim}
	s.mu.Lock()
	known := s.checked[d] == now
	s.mu.Unlock()
	if !known {
		if err := hashes(f, d); err != nil {
			f.Close()
			s.mu.Lock()
			s.damaged[d] = s.damaged[d] || errors.Is(err, ErrCorrupt)
			s.mu.Unlock()
			return nil, fmt.Errorf("opening %s in the store %q: %w", d, s.dir, err)
		}
		s.mu.Lock()
		s.checked[d] = now
		s.mu.Unlock()
	}
	return &Blob{ReadSeekCloser: f, Size: st.Size}, nil
}

// hashes checks a file against a digest and rewinds it.
func hashes(f *os.File, d attest.Digest) error {
	sum := sha256.New()
	buf := make([]byte, 256<<10)
	if _, err := io.CopyBuffer(sum, struct{ io.Reader }{f}, buf); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != d.Hex() {
		return fmt.Errorf("%w: its bytes are sha256:%s", ErrCorrupt, got)
	}
	_, err := f.Seek(0, io.SeekStart)
	return err
}

// Check hashes a blob: nil, fs.ErrNotExist or ErrCorrupt.
func (s *Store) Check(d attest.Digest) error {
	b, err := s.OpenVerified(d)
	if err != nil {
		return err
	}
	return b.Close()
}

// Discard removes a blob that is damaged, so that the right bytes can be
// committed in its place. One that is not damaged stays.
func (s *Store) Discard(d attest.Digest) error {
	err := s.Check(d)
	if !errors.Is(err, ErrCorrupt) {
		return err
	}
	if err := os.RemoveAll(s.path(d)); err != nil {
		return fmt.Errorf("removing %s from the store %q: %w", d, s.dir, bare(err))
	}
	return nil
}

// Has reports whether the store has a blob.
func (s *Store) Has(d attest.Digest) bool {
	f, _, err := s.open(d)
	if f != nil {
		f.Close()
	}
	return err == nil
}

// Put stores b.
func (s *Store) Put(b []byte) (attest.Digest, error) {
	w, err := s.NewWriter()
	if err != nil {
		return "", err
	}
	defer w.Abort()
	if _, err := w.Write(b); err != nil {
		return "", err
	}
	return w.Commit()
}

// Take stores the file at path under d. The bytes are copied (without cost
// where the file system can share them) and checked; a link would leave a
// second name through which they could be changed.
func (s *Store) Take(path string, d attest.Digest) error {
	src, err := openPlain(path)
	if err != nil {
		return fmt.Errorf("taking %q into the store: %w", path, bare(err))
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return fmt.Errorf("taking %q into the store: %w", path, bare(err))
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("taking %q into the store: not a regular file", path)
	}
	if s.holds(d, info.Size()) {
		return nil
	}
	return s.Fill(d, src)
}

// Fill stores what r gives, which must be d.
func (s *Store) Fill(d attest.Digest, r io.Reader) error {
	if _, err := attest.ParseDigest(string(d)); err != nil {
		return err
	}
	w, err := s.NewWriter()
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, 256<<10)); err != nil {
		return err
	}
	if got := w.Digest(); got != d {
		return fmt.Errorf("storing %s: its bytes are %s", d, got)
	}
	_, err = w.Commit()
	return err
}

// Redactor returns the redactor whose key this store keeps (0600, made once).
func (s *Store) Redactor() (*Redactor, error) {
	name := filepath.Join(s.dir, "key")
	key, err := readKey(name)
	if errors.Is(err, fs.ErrNotExist) {
		if err = s.makeKey(name); err == nil {
			key, err = readKey(name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reading the key of the store %q: %w", s.dir, err)
	}
	return NewRedactor(key), nil
}

func readKey(name string) ([]byte, error) {
	f, err := openPlain(name)
	if err != nil {
		return nil, bare(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, bare(err)
	}
	if !info.Mode().IsRegular() || info.Size() != keySize {
		return nil, fmt.Errorf("%q is not a key of %d bytes; remove it for a new one", name, keySize)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%q can be read by others; chmod 600 it, or remove it for a new one", name)
	}
	key := make([]byte, keySize)
	if _, err := io.ReadFull(f, key); err != nil {
		return nil, err
	}
	return key, nil
}

// makeKey makes the key under a name of its own and links it, so that of two
// processes one wins and none sees half of it.
func (s *Store) makeKey(name string) error {
	f, err := s.temp()
	if err != nil {
		return s.clear(err)
	}
	defer os.Remove(f.Name())
	key := make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		f.Close()
		return err
	}
	_, err = f.Write(key)
	if err := errors.Join(err, f.Chmod(0o600), f.Sync(), f.Close()); err != nil {
		return s.clear(err)
	}
	if err := os.Link(f.Name(), name); err != nil && !errors.Is(err, fs.ErrExist) {
		return s.clear(err)
	}
	return syncFolder(s.dir)
}

// size is a number of bytes for people.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	div, exp := int64(unit), 0
	for m := n / unit; m >= unit; m /= unit {
		div *= unit
		exp++
	}
	return fmt.Sprintf("%.1f %ciB", float64(n)/float64(div), "KMGTPE"[exp])
}
