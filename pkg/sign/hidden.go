package sign

import (
	"sync"

	"golang.org/x/sys/unix"
)

// Hidden is a secret that has to wait, in memory of its own: out of the reach of
// every other process, root's too, where the kernel has memfd_secret(2), else
// locked against swapping and left out of core dumps.
type Hidden struct {
	mu   sync.Mutex
	page []byte // nil: forgotten
	size int
	heap bool // there was nothing better
}

// Hide takes a secret over, and overwrites it where it was.
func Hide(secret []byte) *Hidden {
	defer scrub(widest)
	defer clear(secret)
	h := &Hidden{size: len(secret)}
	if h.page = secretMemory(max(len(secret), 1)); h.page == nil {
		h.page, h.heap = make([]byte, max(len(secret), 1)), true
	}
	copy(h.page, secret)
	return h
}

// secretMemory returns zeroed memory that is mapped for it alone; nil where none
// can be had.
func secretMemory(size int) []byte {
	if fd, err := unix.MemfdSecret(unix.O_CLOEXEC); err == nil {
		defer unix.Close(fd) // the mapping stays
		if unix.Ftruncate(fd, int64(size)) == nil {
			if page, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
				return page
			}
		}
	}
	page, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil
	}
	// What a limit or an old kernel denies is denied: it is memory all the same.
	_ = unix.Mlock(page)
	_ = unix.Madvise(page, unix.MADV_DONTDUMP)
	return page
}

// Reveal returns a copy of the secret, which the caller overwrites; nil once it
// is forgotten.
func (h *Hidden) Reveal() []byte {
	defer scrub(widest)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.page == nil {
		return nil
	}
	return append(make([]byte, 0, max(h.size, 1)), h.page[:h.size]...)
}

// widest is the most that is copied by way of registers.
const widest = 256

// scrub has the registers by which bytes are copied hold zeros: what a secret's
// copying left there the system may put onto some thread's stack.
//
//go:noinline
func scrub(size int) {
	zeros := make([]byte, 2*size)
	copy(zeros[:size], zeros[size:])
}

// Forget overwrites the secret. It may be called more than once, and on nil.
func (h *Hidden) Forget() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.page)
	if h.page != nil && !h.heap {
		_ = unix.Munmap(h.page) // it is empty by now
	}
	h.page = nil
}
