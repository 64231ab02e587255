package verify

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"
)

// maxCached bounds each cache of what was proved once.
const maxCached = 1024

// cache remembers what was proved of bytes, by their digest. Only what stays true
// is kept: what depends on a time, with the times it holds for. The zero cache is
// ready, and safe for concurrent use.
type cache[V any] struct {
	mu  sync.Mutex
	all map[[sha256.Size]byte]V
}

func (c *cache[V]) get(key [sha256.Size]byte) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.all[key]
	return v, ok
}

func (c *cache[V]) put(key [sha256.Size]byte, v V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[[sha256.Size]byte]V{}
	}
	// Any will do: what falls out is proved again.
	for old := range c.all {
		if len(c.all) < maxCached {
			break
		}
		delete(c.all, old)
	}
	c.all[key] = v
}

// cacheKey is the digest of parts, with their lengths, so that no two lists of
// parts have the same bytes.
func cacheKey(parts ...[]byte) (key [sha256.Size]byte) {
	h := sha256.New()
	for _, p := range parts {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
	h.Sum(key[:0])
	return key
}
