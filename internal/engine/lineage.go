package engine

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/moby/buildkit/identity"
	bolt "go.etcd.io/bbolt"

	"github.com/waxseal/waxseal/attestations"
)

// Bounds of the records that are kept between builds.
const (
	keptRecords     = 100_000
	keptRecordBytes = 256 << 20
	keptNotes       = 10_000
)

// edge is a result as somebody took it: BuildKit may know one and the same
// files as the layers of a base image and as what a step made of them, so what
// a reference stands for depends on who asks.
type edge struct {
	Ref    string `json:"ref"`
	Source bool   `json:"source,omitempty"`
	// Missing describes the steps below where the result has no record.
	Missing []attestations.InputStep `json:"missing,omitempty"`
}

// result is what a cached result was made of.
type result struct {
	Inputs []edge `json:"inputs,omitempty"`
	// Step names the record of the step that made it; "" where none ran.
	Step string `json:"step,omitempty"`
	// Imported results came from another cache: nothing is known of them.
	Imported bool  `json:"imported,omitempty"`
	At       int64 `json:"at"`
}

// lineage knows for every result of the build cache what went into it and,
// where a step made it, the step's record. It lies beside the cache and is one
// itself: what it does not know is run again.
//
// A record is bound to the result, not to the definition of the step or to the
// run: BuildKit finds results by the content of their inputs, so the same step
// of another build, with another definition, can have them; and a later step
// can be reused where an earlier one ran anew.
type lineage struct {
	open func() *bolt.DB // nil where it cannot be opened

	mu      sync.Mutex
	results map[string]result // by edge key; what this engine wrote or read
	steps   map[string]*attestations.InputStep
	known   map[string]bool // edges that are complete
	ran     map[string]time.Time
	wrote   bool
}

func resultsBucket() []byte { return []byte("results") }
func stepsBucket() []byte   { return []byte("steps") }
func notesBucket() []byte   { return []byte("notes") }

func buckets() [][]byte { return [][]byte{resultsBucket(), stepsBucket(), notesBucket()} }

func (e edge) key() string {
	if e.Source {
		return "s" + e.Ref
	}
	return "o" + e.Ref
}

// newLineage opens the records of the cache in root when they are first asked
// for. A file that cannot be read is moved aside.
func newLineage(root string) *lineage {
	return &lineage{
		open:    sync.OnceValue(func() *bolt.DB { return openRecords(filepath.Join(root, "steps.db")) }),
		results: map[string]result{},
		steps:   map[string]*attestations.InputStep{},
		known:   map[string]bool{},
		ran:     map[string]time.Time{},
	}
}

func openRecords(path string) *bolt.DB {
	for range 2 {
		db, err := tryRecords(path)
		if err == nil {
			return db
		}
		if os.Rename(path, path+"."+identity.NewID()+".bak") != nil {
			return nil
		}
	}
	return nil
}

func tryRecords(path string) (db *bolt.DB, err error) {
	defer recovered(&err)
	// Our cache's lock is ours alone: nobody else has the file open.
	db, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return nil, err
	}
	err = db.View(func(tx *bolt.Tx) error {
		for _, name := range buckets() {
			if tx.Bucket(name) == nil {
				return os.ErrNotExist
			}
		}
		return nil
	})
	if err == nil {
		return db, nil
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets() {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}

// recovered makes an error of a panic: bolt's answer to pages that make no sense.
func recovered(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("reading the records: %v", r)
	}
}

func (l *lineage) view(f func(tx *bolt.Tx) error) (err error) {
	db := l.open()
	if db == nil {
		return os.ErrNotExist
	}
	defer recovered(&err)
	return db.View(f)
}

func (l *lineage) update(f func(tx *bolt.Tx) error) (err error) {
	db := l.open()
	if db == nil {
		return os.ErrNotExist
	}
	defer recovered(&err)
	return db.Update(f)
}

// put remembers a result, and the step that made it. What cannot be written
// holds for this engine only: then the next one runs the step again.
func (l *lineage) put(e edge, r result, step *attestations.InputStep) {
	r.At = time.Now().Unix()
	l.mu.Lock()
	l.results[e.key()] = r
	clear(l.known)
	if step != nil {
		l.steps[r.Step] = step
		l.ran[r.Step] = time.Now()
	}
	l.wrote = true
	l.mu.Unlock()
	raw, err := json.Marshal(r)
	if err != nil {
		return
	}
	var record []byte
	if step != nil {
		if record, err = json.Marshal(step); err != nil {
			return
		}
	}
	_ = l.update(func(tx *bolt.Tx) error {
		if record != nil {
			if err := tx.Bucket(stepsBucket()).Put([]byte(r.Step), record); err != nil {
				return err
			}
		}
		return tx.Bucket(resultsBucket()).Put([]byte(e.key()), raw)
	})
}

// get returns what is known of a result.
func (l *lineage) get(e edge) (result, bool) {
	l.mu.Lock()
	r, ok := l.results[e.key()]
	l.mu.Unlock()
	if ok {
		return r, true
	}
	err := l.view(func(tx *bolt.Tx) error {
		raw := tx.Bucket(resultsBucket()).Get([]byte(e.key()))
		if raw == nil {
			return os.ErrNotExist
		}
		return json.Unmarshal(raw, &r)
	})
	if err != nil {
		return result{}, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if newer, ok := l.results[e.key()]; ok {
		return newer, true
	}
	l.results[e.key()] = r
	return r, true
}

// step returns the record under key; nobody may change it.
func (l *lineage) step(key string) *attestations.InputStep {
	l.mu.Lock()
	st := l.steps[key]
	l.mu.Unlock()
	if st != nil {
		return st
	}
	err := l.view(func(tx *bolt.Tx) error {
		raw := tx.Bucket(stepsBucket()).Get([]byte(key))
		if raw == nil {
			return os.ErrNotExist
		}
		st = &attestations.InputStep{}
		return json.Unmarshal(raw, st)
	})
	if err != nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if newer := l.steps[key]; newer != nil {
		return newer
	}
	l.steps[key] = st
	return st
}

// ranSince reports whether a step ran in this engine after t.
func (l *lineage) ranSince(key string, t time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.ran[key]
	return ok && !at.Before(t)
}

// complete reports whether everything that a result was made of is known and
// allowed. What was imported is allowed where imports is true.
func (l *lineage) complete(e edge, imports bool, allowed func(*attestations.InputStep) bool) bool {
	if e.Source || e.Ref == "" {
		return true // a source is checked by itself; scratch is nothing
	}
	memo := e.key()
	if imports {
		memo += " with imports"
	}
	l.mu.Lock()
	known := l.known[memo]
	l.mu.Unlock()
	if known {
		return true
	}
	r, ok := l.get(e)
	if !ok || (r.Imported && !imports) {
		return false
	}
	if r.Step != "" {
		st := l.step(r.Step)
		if st == nil || !allowed(st) {
			return false
		}
	}
	for _, in := range r.Inputs {
		if len(in.Missing) > 0 && !imports {
			return false
		}
		if !l.complete(in, imports, allowed) {
			return false
		}
	}
	l.mu.Lock()
	l.known[memo] = true
	l.mu.Unlock()
	return true
}

// walk visits what a result was made of, inputs first, each once.
func (l *lineage) walk(e edge, visit func(edge, result, bool)) {
	seen := map[string]bool{}
	var walk func(e edge)
	walk = func(e edge) {
		if seen[e.key()] || e.Ref == "" {
			return
		}
		seen[e.key()] = true
		r, ok := l.get(e)
		for _, in := range r.Inputs {
			walk(in)
		}
		visit(e, r, ok)
	}
	walk(e)
}

// prune drops what no result of the cache depends on any more, and then the
// oldest beyond the bounds. BuildKit drops results in the middle of a chain;
// their records stay while something that was made of them is there.
func (l *lineage) prune(exists func(ref string) bool) error {
	l.mu.Lock()
	wrote := l.wrote
	l.mu.Unlock()
	if !wrote {
		return nil
	}
	return l.update(func(tx *bolt.Tx) error {
		results, steps := tx.Bucket(resultsBucket()), tx.Bucket(stepsBucket())
		all := map[string]result{}
		if err := results.ForEach(func(k, v []byte) error {
			var r result
			if json.Unmarshal(v, &r) == nil {
				all[string(k)] = r
			}
			return nil
		}); err != nil {
			return err
		}
		keep := map[string]bool{}
		var mark func(key string)
		mark = func(key string) {
			r, ok := all[key]
			if !ok || keep[key] {
				return
			}
			keep[key] = true
			for _, in := range r.Inputs {
				mark(in.key())
			}
		}
		for key := range all {
			if exists(key[1:]) {
				mark(key)
			}
		}
		keptSteps := l.bound(all, keep, func(step string) int { return len(steps.Get([]byte(step))) })
		if notes := tx.Bucket(notesBucket()); notes.Stats().KeyN > keptNotes {
			if err := drop(notes, func(string) bool { return false }); err != nil {
				return err
			}
		}
		if err := drop(results, func(k string) bool { return keep[k] }); err != nil {
			return err
		}
		return drop(steps, func(k string) bool { return keptSteps[k] })
	})
}

// bound takes the oldest beyond the bounds out of keep and returns the steps
// that what is left names.
func (l *lineage) bound(all map[string]result, keep map[string]bool, size func(step string) int) map[string]bool {
	newest := slices.SortedFunc(maps.Keys(keep), func(a, b string) int {
		return cmp.Or(cmp.Compare(all[b].At, all[a].At), cmp.Compare(a, b))
	})
	steps := map[string]bool{}
	total := 0
	for i, key := range newest {
		r := all[key]
		if r.Step != "" && !steps[r.Step] {
			total += size(r.Step)
		}
		if i >= keptRecords || total > keptRecordBytes {
			for _, key := range newest[i:] {
				delete(keep, key)
			}
			break
		}
		if r.Step != "" {
			steps[r.Step] = true
		}
	}
	return steps
}

func drop(b *bolt.Bucket, keep func(string) bool) error {
	var gone [][]byte
	if err := b.ForEach(func(k, _ []byte) error {
		if !keep(string(k)) {
			gone = append(gone, slices.Clone(k))
		}
		return nil
	}); err != nil {
		return err
	}
	for _, k := range gone {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// close prunes the records and lets go of the file.
func (l *lineage) close(exists func(ref string) bool) {
	_ = l.prune(exists)
	l.mu.Lock()
	wrote := l.wrote
	l.mu.Unlock()
	if !wrote {
		return // nobody may have opened it; the process ends anyway
	}
	if db := l.open(); db != nil {
		_ = db.Close()
	}
}

// keepNote writes down something small that is not a result.
func (l *lineage) keepNote(key string, v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		return
	}
	l.mu.Lock()
	l.wrote = true
	l.mu.Unlock()
	_ = l.update(func(tx *bolt.Tx) error { return tx.Bucket(notesBucket()).Put([]byte(key), raw) })
}

// note reads it into v; false where it is not there.
func (l *lineage) note(key string, v any) bool {
	return l.view(func(tx *bolt.Tx) error {
		raw := tx.Bucket(notesBucket()).Get([]byte(key))
		if raw == nil {
			return os.ErrNotExist
		}
		return json.Unmarshal(raw, v)
	}) == nil
}
