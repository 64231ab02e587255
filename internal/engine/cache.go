package engine

import (
	"strings"

	"github.com/moby/buildkit/solver"
	"github.com/opencontainers/go-digest"
)

// watchedCache is BuildKit's index of results by cache key, without those that
// have no record of what went into them. It is below BuildKit's cache manager,
// because that one is asked behind the back of a wrapper where a build imports
// a cache.
type watchedCache struct {
	solver.CacheKeyStorage
	rec *recorder
}

func (c *watchedCache) WalkResults(id string, fn func(solver.CacheResult) error) error {
	return c.CacheKeyStorage.WalkResults(id, func(res solver.CacheResult) error {
		if !c.rec.offered(refIn(res.ID), isRoot(id)) {
			return nil
		}
		return fn(res)
	})
}

func (c *watchedCache) Load(id, resultID string) (solver.CacheResult, error) {
	res, err := c.CacheKeyStorage.Load(id, resultID)
	if err == nil && !isRoot(id) {
		c.rec.used(edge{Ref: refIn(res.ID)})
	}
	return res, err
}

func (c *watchedCache) AddResult(id string, res solver.CacheResult) error {
	c.rec.kept(refIn(res.ID), isRoot(id))
	return c.CacheKeyStorage.AddResult(id, res)
}

// refIn is the reference in a result's id, which names the worker, too.
func refIn(id string) string {
	_, ref, _ := strings.Cut(id, "::")
	return ref
}

// isRoot reports whether a cache key is that of something without inputs: it
// is a digest then, where others are random.
func isRoot(id string) bool {
	_, err := digest.Parse(id)
	return err == nil || strings.HasPrefix(id, "random:")
}
