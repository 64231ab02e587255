package build

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
	"github.com/waxseal/waxseal/pkg/store"
)

// lockName is the default name of a lock file, and with a dot before it the
// end of the name of one that belongs to another Dockerfile.
const lockName = "waxseal.lock"

// intake is what a build may take in: the lock and the store in force, and
// what came of them.
type intake struct {
	choice    InputChoice
	place     string     // of the lock file; "" for a build that has none
	raw       []byte     // the lock file as it was found; nil where there is none
	held      *lock.File // what the build is held to; nil but for locked and offline
	store     *lock.Store
	storeDir  string
	authority []byte // the PEM of InputChoice.UpstreamCA

	made  []byte // the lock of this build, in mode record
	blind bool   // there is none, because nobody watched
}

// lockPlace is where the lock of a request lies: beside its Dockerfile, unless
// it is named. A build whose Dockerfile is not a file here has none by default.
func lockPlace(r *Request) string {
	if r.Inputs.Lock != "" {
		return r.Inputs.Lock
	}
	dir := r.contextArg()
	if dir == "-" || !isFolder(dir) || r.Source.Dockerfile == "-" {
		return ""
	}
	name := dockerfilePath(dir, r.Source.Dockerfile)
	if strings.EqualFold(filepath.Base(name), "Dockerfile") {
		return filepath.Join(filepath.Dir(name), lockName)
	}
	return name + "." + lockName
}

// dockerfilePath finds the Dockerfile of a folder as docker does; where there
// is none it returns the first place to look at.
func dockerfilePath(dir, file string) string {
	there := func(name string) bool {
		_, err := os.Lstat(name)
		return !errors.Is(err, fs.ErrNotExist)
	}
	if file != "" {
		if inside := filepath.Join(dir, file); !there(file) && !filepath.IsAbs(file) && there(inside) {
			// A path that is not below the working directory may be meant from
			// the context.
			return inside
		}
		return file
	}
	name := filepath.Join(dir, "Dockerfile")
	if lower := filepath.Join(dir, "dockerfile"); !there(name) && there(lower) {
		return lower
	}
	return name
}

// openIntake reads the lock and opens the store, before anything runs.
func openIntake(r *Request, deps *Deps) (*intake, error) {
	t := &intake{choice: r.Inputs, place: lockPlace(r), storeDir: cmp.Or(r.Inputs.Store, deps.Store)}
	if t.storeDir == "" {
		t.storeDir = filepath.Join(filepath.Dir(deps.Home), "store")
	}
	if err := t.readLock(); err != nil {
		return nil, UsageError{err}
	}
	if name := r.Inputs.UpstreamCA; name != "" {
		var err error
		if t.authority, err = readSmall(name, attest.MaxKey); err != nil {
			return nil, UsageError{fmt.Errorf("reading --upstream-ca: %w", err)}
		}
		if !bytes.Contains(t.authority, []byte("-----BEGIN CERTIFICATE-----")) {
			return nil, UsageError{fmt.Errorf("reading --upstream-ca %q: there is no certificate in PEM in it", name)}
		}
	}
	var err error
	if t.storeDir, err = filepath.Abs(t.storeDir); err != nil {
		return nil, err
	}
	if t.store, err = lock.OpenStore(t.storeDir); err != nil {
		return nil, hinted(fmt.Errorf("opening the store of inputs: %w", err), "choose another folder with --store DIR")
	}
	return t, nil
}

// readLock reads the lock file. Where it is to be enforced it must be there;
// where it is going to be written it must not be something else.
func (t *intake) readLock() error {
	mode := t.choice.mode()
	if t.place == "" {
		if t.choice.enforced() {
			return hinted(fmt.Errorf("--inputs %s needs a lock file: there is no default place for one where the Dockerfile is not a file on this machine", mode),
				"name it with --lock FILE; a build with --inputs record --lock FILE makes it")
		}
		return nil
	}
	raw, err := readSmall(t.place, attest.MaxLock)
	switch {
	case errors.Is(err, fs.ErrNotExist) && t.choice.enforced():
		return hinted(fmt.Errorf("--inputs %s needs the lock file %q, and it is not there", mode, t.place),
			"the same command with --inputs record makes it; commit it beside the Dockerfile, or name another with --lock FILE")
	case errors.Is(err, fs.ErrNotExist) || mode == attestations.InputsNone:
		return nil
	case err != nil:
		return fmt.Errorf("reading the lock file: %w", err)
	}
	held, err := lock.Parse(raw)
	if err != nil {
		way := "repair it, or make it anew: move it away and build with --inputs record"
		if !t.choice.enforced() {
			way = "what is there would be overwritten: move it away if it is a broken lock, or name another with --lock FILE"
		}
		return hinted(fmt.Errorf("%q: %w", t.place, err), way)
	}
	t.raw = raw
	if t.choice.enforced() {
		t.held = held
	}
	return nil
}

// plan is what the engine is told.
func (t *intake) plan() InputsPlan {
	p := InputsPlan{
		Mode: t.choice.mode(), Store: t.storeDir, AllowHosts: t.choice.AllowHosts,
		UpstreamCA: t.authority, Upstreams: t.choice.Upstreams,
	}
	if t.held != nil {
		p.Lock = t.raw
	}
	return p
}

// lockDigest is the digest of the lock that is enforced, "" for none.
func (t *intake) lockDigest() string {
	if t.held == nil {
		return ""
	}
	return string(attest.DigestOf(t.raw))
}

// taken is the record of one platform.
type taken struct {
	platform string
	record   *attestations.Inputs
	digest   attest.Digest // of the statement's payload
}

// relock says how a lock is renewed.
const relock = "if this change is meant, the same command with --inputs record writes the lock anew; \"waxseal lock diff OLD NEW\" says what changed"

// LockError is a build that took in, or would have taken in, something else
// than its lock lists. Nothing of it was signed.
type LockError struct {
	Lock     string   // the lock file
	Problems []string // each in words: which step, what was expected, what came
	cause    error
}

func (e *LockError) Error() string {
	return fmt.Sprintf("the build is not what the lock %q lists; nothing was signed:\n  %s", e.Lock, strings.Join(e.Problems, "\n  "))
}

func (e *LockError) Unwrap() error { return e.cause }

// Hint says how the lock is brought up to date.
func (e *LockError) Hint() string {
	return relock
}

// holdToLock compares what was taken in with the lock, whatever the engine has
// done about it. It is the last word before signing.
func (t *intake) holdToLock(all []taken) error {
	if t.held == nil {
		return nil
	}
	var records []*attestations.Inputs
	var problems []string
	add := func(p string) {
		if !slices.Contains(problems, p) {
			problems = append(problems, p)
		}
	}
	for _, x := range all {
		records = append(records, x.record)
		for i := range x.record.Steps {
			if why := t.held.AdmitsRun(&x.record.Steps[i]); len(why) > 0 {
				add("step " + clipLine(x.record.Steps[i].Name) + ":\n    " + strings.Join(why, "\n    "))
			}
		}
	}
	// The sources as a new lock would list them must be those of the old.
	now, err := lock.FromInputs(nil, records...)
	if err != nil {
		return fmt.Errorf("comparing the build with its lock: %w", err)
	}
	for _, s := range now.Sources {
		if p := sourceProblem(t.held, s); p != "" {
			add(p)
		}
	}
	if len(problems) > 0 {
		return &LockError{Lock: t.place, Problems: problems}
	}
	return nil
}

// holdGiven holds the images that are given from this machine to the lock,
// before anything is built of them.
func (t *intake) holdGiven(in *inputs) error {
	var r attestations.Inputs
	for _, g := range in.given {
		r.Sources = append(r.Sources, g.source)
	}
	return t.holdToLock([]taken{{record: &r}})
}

// sourceProblem says in words how a source is not the lock's, "" where it is.
func sourceProblem(held *lock.File, s lock.Source) string {
	name := s.Kind + " " + s.Ref
	if s.Platform != "" {
		name += " for " + s.Platform
	}
	expected := ""
	for _, l := range held.Sources {
		if l.Kind != s.Kind || lock.Shape(l.Ref) != lock.Shape(s.Ref) || l.Platform != s.Platform {
			continue
		}
		if l.Digest == s.Digest {
			return ""
		}
		expected = l.Digest
	}
	if expected == "" {
		return fmt.Sprintf("%s: not in the lock; got %s", name, s.Digest)
	}
	return fmt.Sprintf("%s: expected %s, got %s", name, expected, s.Digest)
}

// makeLock makes this build's own lock, in mode record. In another it completes
// the store with the headers that go with the lock in force.
func (t *intake) makeLock(all []taken) error {
	records := make([]*attestations.Inputs, len(all))
	for i, x := range all {
		records[i] = x.record
	}
	if t.choice.mode() != attestations.InputsRecord {
		if t.headers() != nil {
			return t.held.RestoreReplay(t.store, records...)
		}
		return nil
	}
	f, err := lock.FromInputs(t.store, records...)
	if err != nil {
		return fmt.Errorf("making the lock: %w", err)
	}
	if worstOf(all) == attestations.VerdictUnobserved {
		// A lock of what was seen would forbid what nobody saw.
		t.blind = true
		return nil
	}
	t.made = f.Marshal()
	return nil
}

// headers says why the store has not what the lock in force needs for a build
// offline, nil where it has.
func (t *intake) headers() error {
	if t.held == nil {
		return nil
	}
	return t.held.LoadReplay(t.store)
}

// mediaType is the one among the headers of a remote file that the engine put
// into the store; "" where there are none.
func (t *intake) mediaType(tree string) string {
	if t.store == nil || tree == "" {
		return ""
	}
	b, err := t.store.OpenVerified(attest.Digest(tree))
	if err != nil {
		return ""
	}
	defer b.Close()
	headers := map[string]string{}
	if err := json.NewDecoder(io.LimitReader(b, attest.MaxInputText)).Decode(&headers); err != nil {
		return ""
	}
	for k, v := range headers {
		if strings.EqualFold(k, "content-type") {
			return v
		}
	}
	return ""
}

// inForce is the lock that belongs to this build: the one it was held to, or
// the one it made.
func (t *intake) inForce() []byte {
	if t.held != nil {
		return t.raw
	}
	return t.made
}

// lacking is what a lock just made needs and the store has not: bytes that a
// reused step took in long ago, and that somebody removed since.
func (t *intake) lacking() []lock.Need {
	if t.store == nil || t.made == nil {
		return nil
	}
	f, err := lock.Parse(t.made)
	if err != nil {
		return nil
	}
	all, err := t.store.Needs(f)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(all, func(n lock.Need) bool {
		return n.Has || strings.HasPrefix(string(n.Digest), "hmac-") // nobody keeps a secret
	})
}

// writeLock puts the lock of this build in its place, whole, and only where it
// says something new. A place that cannot be written must not cost the build.
func (t *intake) writeLock(n *notes) bool {
	if t.blind && t.place != "" {
		n.add("no lock was written: some of what came in nobody watched, and a lock would forbid it")
	}
	if lacks := t.lacking(); len(lacks) > 0 {
		n.add("the store lacks %s of reused steps, %s first: --inputs offline and waxseal rebuild will not work from it; --no-cache fetches them again", count(len(lacks), "input"), lacks[0].For)
	}
	switch err := t.headers(); {
	case errors.Is(err, fs.ErrNotExist):
		n.add("--inputs offline will not work from this store: it lacks the headers that the lock was recorded with, and the ones that came now are others; waxseal store import brings them")
	case err != nil:
		n.add("the headers of answers were upstream's and not held to the lock, and --inputs offline will not work with it: %v", err)
	}
	if t.made == nil || t.place == "" || bytes.Equal(t.made, t.raw) {
		return false
	}
	err := store.WriteWhole(t.place, func(w io.Writer) error {
		_, err := w.Write(t.made)
		return err
	})
	if err != nil {
		n.add("the lock file %q could not be written: %v; name another place with --lock FILE", t.place, err)
		return false
	}
	return true
}

// push puts the bytes that a replay needs beside the manifests of an image in
// a registry.
func (t *intake) push(ctx context.Context, dst store.Writable, s *sealed, n *notes) error {
	for i, x := range s.taken {
		found, err := needs(t.store, x.record)
		if err != nil {
			return err
		}
		if k := len(found.missing); k > 0 {
			n.add("the store lacks %s of %s, which could not be pushed, %s first: another machine cannot rebuild the image from there", count(k, "input"), x.platform, found.missing[0].What)
		}
		var blobs []store.InputBlob
		for _, d := range found.there {
			b, err := t.store.Open(d)
			if err != nil {
				return fmt.Errorf("pushing inputs: %w", err)
			}
			blob := store.InputBlob{Digest: d, Size: b.Size, Open: func() (io.ReadCloser, error) { return t.store.Open(d) }}
			blob.From = found.from(d)
			blobs = append(blobs, blob)
			b.Close()
		}
		_, subject, err := dst.Manifest(ctx, s.platforms[i].Digest)
		if err != nil {
			return err
		}
		if _, err := store.AttachInputs(ctx, dst, subject, blobs); err != nil {
			return err
		}
	}
	return nil
}

// keep puts what the build is given from this machine into the store: the
// Dockerfile, packed contexts, images of layouts.
func (in *inputs) keep(ctx context.Context, st *lock.Store) error {
	for i := range in.given {
		g := &in.given[i]
		if err := g.keep(ctx, st); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("keeping %s in the store: %w", g.source.URI, err)
		}
		g.source.Stored = true
	}
	return nil
}

// given is an input that was handed to the engine from here.
type given struct {
	source attestations.InputSource
	raw    []byte // a Dockerfile
	layer  *layer // a folder or archive
	images string // a layout, of which source.Digest is the image
}

func (g *given) keep(ctx context.Context, st *lock.Store) error {
	switch {
	case g.raw != nil:
		return putOnce(ctx, st, attest.DigestOf(g.raw), bytes.NewReader(g.raw))
	case g.layer != nil:
		l, r := g.layer, g.layer.reader()
		defer r.Close()
		if err := putOnce(ctx, st, l.digest, io.NewSectionReader(r, 0, l.size)); err != nil {
			return err
		}
		if st.Has(l.manifest) {
			return nil
		}
		var names bytes.Buffer
		if err := l.tree.writeManifest(&names); err != nil {
			return err
		}
		return putOnce(ctx, st, l.manifest, &names)
	case g.images != "":
		return keepImage(ctx, st, g.images, ocispec.Descriptor{Digest: digest.Digest(g.source.Digest)}, 0)
	}
	return nil
}

// putOnce stores bytes under the digest they must have, unless they are there.
func putOnce(ctx context.Context, st *lock.Store, d attest.Digest, r io.Reader) error {
	if st.Has(d) {
		return nil
	}
	w, err := st.NewWriter()
	if err != nil {
		return err
	}
	defer w.Abort()
	// A cancelled build does not wait for a large context.
	for err == nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		_, err = io.CopyN(w, r, 4<<20)
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	if w.Digest() != d {
		return errChanged
	}
	_, err = w.Commit()
	return err
}

// keepImage stores what an image of a layout consists of. A blob that the
// layout has not, a platform that was left out of it, is not needed.
func keepImage(ctx context.Context, st *lock.Store, layout string, d ocispec.Descriptor, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	path := filepath.Join(layout, filepath.FromSlash(blobPath(d.Digest)))
	if !st.Has(attest.Digest(d.Digest)) {
		err := st.Take(path, attest.Digest(d.Digest))
		if errors.Is(err, fs.ErrNotExist) && depth > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	// The first is named by its digest alone, and is what the layout says it is.
	if depth > 0 && !strings.Contains(d.MediaType, "manifest") && !strings.Contains(d.MediaType, ".index.") || depth > 3 {
		return nil
	}
	raw, err := readSmall(path, attest.MaxManifest)
	if err != nil {
		return err
	}
	var m struct {
		Config    *ocispec.Descriptor  `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := attest.UnmarshalStrict(raw, &m); err != nil {
		return err
	}
	parts := slices.Concat(m.Layers, m.Manifests)
	if m.Config != nil {
		parts = append(parts, *m.Config)
	}
	for _, p := range parts {
		if err := p.Digest.Validate(); err != nil {
			return err
		}
		if err := keepImage(ctx, st, layout, p, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// external is what the provenance says of it.
func (t *intake) external() *attestations.ContainerInputs {
	x := &attestations.ContainerInputs{
		Mode: t.choice.mode(), Lock: t.lockDigest(), AllowHosts: t.choice.AllowHosts, Upstreams: sortedKeys(t.choice.Upstreams),
	}
	if t.authority != nil {
		x.UpstreamCA = string(attest.DigestOf(t.authority))
	}
	return x
}

// assemble makes the record of one platform: what the engine saw, and what was
// handed to it from here.
func (t *intake) assemble(in *inputs, rec *record, seen *EngineInputs, e attestations.ContainerEngine) (*attestations.Inputs, error) {
	r := &attestations.Inputs{
		Mode: t.choice.mode(), Lock: t.lockDigest(), AllowHosts: t.choice.AllowHosts,
		Steps: seen.Steps, Gaps: slices.Clone(seen.Gaps), Gateway: seen.Gateway, Engine: e,
		Sources: []attestations.InputSource{},
	}
	if r.Steps == nil {
		r.Steps = []attestations.InputStep{}
	}
	for _, g := range in.given {
		r.Sources = append(r.Sources, g.source)
	}
	known := func(x attestations.InputSource) bool {
		_, hex, _ := strings.Cut(x.Digest, ":")
		_, ours := in.ours[hex]
		return ours || slices.ContainsFunc(r.Sources, func(s attestations.InputSource) bool { return s.Digest == x.Digest }) ||
			slices.ContainsFunc(r.Steps, func(st attestations.InputStep) bool {
				return slices.ContainsFunc(st.Requests, func(q attestations.InputRequest) bool { return q.Digest == x.Digest })
			})
	}
	for _, s := range seen.Sources {
		if _, hex, _ := strings.Cut(s.Digest, ":"); in.ours[hex] == "" {
			r.Sources = append(r.Sources, s)
		}
	}
	// What stands in BuildKit's own record and nowhere else came in as well.
	for _, d := range rec.Dependencies {
		if s, ok := d.source(); ok && !known(s) {
			r.Sources = append(r.Sources, s)
		} else if !ok {
			r.Gaps = append(r.Gaps, attestations.InputGap{Kind: attestations.GapSource, Detail: "no digest of " + s.URI})
		}
	}
	for _, name := range rec.Locals {
		if name != "dockerfile" {
			r.Gaps = append(r.Gaps, attestations.InputGap{Kind: attestations.GapSource, Detail: "the engine read " + name + " from this machine without a digest"})
		}
	}
	r.Verdict, r.Hermetic = r.Judge()
	return r, attest.CheckInputs(r)
}

// source is an input of BuildKit's record in the form of ours; false where it
// has no digest that pins it.
func (d recordedInput) source() (attestations.InputSource, bool) {
	s := attestations.InputSource{Kind: "http", URI: cleanURL(d.URI)}
	if strings.HasPrefix(d.URI, "pkg:") {
		s.Kind, s.URI = "image", d.URI
		// pkg:docker/NAME@TAG?digest=…&platform=… names what was asked for.
		if base, query, ok := strings.Cut(strings.TrimPrefix(d.URI, "pkg:docker/"), "?"); ok || base != d.URI {
			name, version, _ := strings.Cut(base, "@")
			q, _ := url.ParseQuery(query)
			v, _ := url.QueryUnescape(version)
			switch {
			case strings.HasPrefix(v, "sha256:"):
				name += "@" + v
			case v != "":
				name += ":" + v
			case q.Get("digest") != "":
				name += "@" + q.Get("digest")
			}
			s.Ref = familiar(name)
			s.Platform = q.Get("platform")
		}
	}
	if commit := d.Digest["sha1"]; commit != "" {
		s.Kind, s.Digest = "git", "gitCommit:"+commit
		return s, true
	}
	if sum := d.Digest["sha256"]; sum != "" {
		s.Digest = "sha256:" + sum
		return s, true
	}
	return s, false
}

// worstOf is the verdict on several images together.
func worstOf(all []taken) string {
	if len(all) == 0 {
		return attestations.VerdictUnobserved
	}
	var each []attestations.InputStep
	for _, t := range all {
		each = append(each, attestations.InputStep{Verdict: t.record.Verdict})
	}
	return attestations.WorstVerdict(each, nil)
}

// InputsResult is what a build says at its end of what it took in.
type InputsResult struct {
	Mode     string   `json:"mode"`
	Verdict  string   `json:"verdict"`
	Hermetic bool     `json:"hermetic"`
	Recorded int      `json:"recorded"` // what was fetched: by steps, and by the engine
	Gaps     int      `json:"gaps"`
	Refused  int      `json:"refused"`        // attempts that were denied
	Denied   []string `json:"-"`              // them in words, each once, at most maxTold
	Lock     string   `json:"lock,omitempty"` // digest of the lock: enforced, or made
	LockFile string   `json:"-"`              // where it lies, or was written to; "" for none
	Written  bool     `json:"-"`              // the lock file is new or has changed
}

// Line is the whole in one line.
func (r InputsResult) Line() string {
	return fmt.Sprintf("%s; hermetic: %s", r.Counts(), r.hermetic())
}

// Counts is what came in, in numbers.
func (r InputsResult) Counts() string {
	return fmt.Sprintf("%d recorded, %s, %d refused", r.Recorded, count(r.Gaps, "gap"), r.Refused)
}

func (r InputsResult) hermetic() string {
	switch {
	case r.Hermetic:
		return "yes (" + r.Mode + ")"
	case r.Verdict == attestations.VerdictUnobserved:
		return "no (unobserved: some of it nobody watched)"
	case r.Verdict == attestations.VerdictGaps || r.Gaps > 0:
		return "no (the record has gaps)"
	case r.Mode == attestations.InputsNone:
		return "no (a base image was taken by its tag; name it by its digest alone, or build with --inputs locked)"
	case r.Mode == attestations.InputsRecord && r.LockFile == "":
		return "no (recorded; write a lock with --lock FILE, then build with --inputs locked)"
	}
	return "no (" + r.Verdict + "; build again with --inputs locked)"
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// result counts what was taken in. A step that several platforms share counts
// once.
func (t *intake) result(all []taken) InputsResult {
	r := InputsResult{Mode: t.choice.mode(), Verdict: worstOf(all), Hermetic: len(all) > 0, LockFile: t.place}
	if raw := t.inForce(); raw != nil {
		r.Lock = string(attest.DigestOf(raw))
	}
	steps, sources, gaps := map[string]bool{}, map[attestations.InputSource]bool{}, map[attestations.InputGap]bool{}
	for _, x := range all {
		r.Hermetic = r.Hermetic && x.record.Hermetic
		for _, s := range x.record.Sources {
			sources[s] = true
		}
		for _, g := range x.record.Gaps {
			gaps[g] = true
		}
		for i := range x.record.Steps {
			st := &x.record.Steps[i]
			if steps[st.ID] {
				continue
			}
			steps[st.ID] = true
			r.Recorded += len(st.Requests)
			r.Gaps += len(st.Gaps)
			for _, n := range st.Refusals {
				r.Refused += n.Count
				if text := n.Destination + ": " + n.Reason; !slices.Contains(r.Denied, text) && len(r.Denied) < maxTold {
					r.Denied = append(r.Denied, text)
				}
			}
		}
	}
	for x := range sources {
		if x.Kind == "image" || x.Kind == "git" || x.Kind == "http" {
			r.Recorded++
		}
	}
	r.Gaps += len(gaps)
	return r
}

// maxTold bounds the notes about gaps: the record has them all.
const maxTold = 8

// tell says in words what the record does not hold.
func (t *intake) tell(all []taken, n *notes) {
	var lines []string
	add := func(text string) {
		if !slices.Contains(lines, text) {
			lines = append(lines, text)
		}
	}
	for _, x := range all {
		for _, g := range x.record.Gaps {
			add(gapText(g))
		}
		for _, st := range x.record.Steps {
			for _, g := range st.Gaps {
				add(clipLine(st.Name) + ": " + gapText(g))
			}
			if st.Verdict == attestations.VerdictUnobserved && len(st.Gaps) == 0 {
				add(clipLine(st.Name) + ": nobody watched this step")
			}
		}
	}
	for i, l := range lines {
		if i == maxTold && len(lines) > maxTold+1 {
			n.add("%d more gaps stand in the record of inputs", len(lines)-maxTold)
			return
		}
		n.add("gap: %s", l)
	}
}

// gapText is a gap for people.
func gapText(g attestations.InputGap) string {
	what := map[string]string{
		attestations.GapHostNetwork: "it had the host's network, where nobody watches",
		attestations.GapInsecure:    "it ran without the sandbox, out of which it could have reached anything",
		attestations.GapCacheMount:  "what a cache mount held was not recorded",
		attestations.GapCacheImport: "results of an imported cache were used, and how they were made is not recorded",
		attestations.GapSSH:         "what an ssh agent answered was not recorded",
		attestations.GapWithheld:    "a body that held a secret was not stored",
		attestations.GapWatchLoss:   "some of what it tried to reach was not counted",
		attestations.GapOverflow:    "there was more than the record can hold",
		attestations.GapNoRecord:    "its result was in the build cache, and no record with it",
	}[g.Kind]
	switch {
	case what == "":
		return g.Detail
	case g.Detail == "":
		return what
	}
	return what + " (" + g.Detail + ")"
}

// clipLine is the first line of a text, short enough to read.
func clipLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if r := []rune(s); len(r) > 80 {
		s = string(r[:79]) + "…"
	}
	return s
}
