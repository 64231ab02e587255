// Package rebuild compares an image with the one that was built again from its
// evidence, and says why bytes differ. Call Compare; it reads both images from
// where they are and changes nothing.
//
// Two images are reproduced when they have the same digest, equivalent when
// every difference is covered by a named normaliser, and different otherwise.
// What could not be looked into is a difference that nothing covers: what is
// not known never makes two images equal. Everything that is read is hostile
// and bounded by package attest's limits.
package rebuild

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/store"
)

// Image is an image, or an index, in a place.
type Image struct {
	Place  store.Repository
	Digest attest.Digest
}

// Options configures Compare.
type Options struct {
	// TempDir is where files that differ are kept while they are looked into;
	// "" is the system's. Nothing stays.
	TempDir string
}

// Compare finds what differs between original and rebuilt. An error means that
// one of them could not be read; what it would have found is not known then.
func Compare(ctx context.Context, original, rebuilt Image, opts Options) (c *attestations.RebuildComparison, err error) {
	defer func() {
		// Hostile files that find a bug must not end in somebody's exit code.
		if p := recover(); p != nil {
			c, err = nil, fmt.Errorf("comparing %s with %s: internal error: %v (please report it)\n%s", original.Digest, rebuilt.Digest, p, debug.Stack())
		}
	}()
	tmp, err := os.MkdirTemp(opts.TempDir, "waxseal-compare-")
	if err != nil {
		return nil, fmt.Errorf("comparing images: %w", err)
	}
	defer os.RemoveAll(tmp)
	p := &pair{a: original.Place, b: rebuilt.Place, tmp: tmp, t: newTally()}
	c = &attestations.RebuildComparison{Original: string(original.Digest), Rebuilt: string(rebuilt.Digest)}
	if err := p.images(ctx, c); err != nil {
		return nil, fmt.Errorf("comparing %s with %s: %w", original.Digest, rebuilt.Digest, err)
	}
	p.t.conclude(c)
	return c, nil
}

// Words says a verdict to a reader.
func Words(verdict string) string {
	switch verdict {
	case attestations.RebuildReproduced:
		return "the same image, bit for bit"
	case attestations.RebuildEquivalent:
		return "equal after leaving out what the named normalisers cover"
	case attestations.RebuildDifferent:
		return "not the same image"
	}
	return verdict
}

// tally gathers differences.
type tally struct {
	platform string
	open     []attestations.RebuildDifference // without a normaliser
	covered  []attestations.RebuildDifference
	uses     map[string]int
	opens    int
	total    int
	unpack   int64 // bytes that may still be unpacked
}

func newTally() *tally { return &tally{uses: map[string]int{}, unpack: attest.MaxUnpackedSum} }

func (t *tally) add(d attestations.RebuildDifference) {
	d.Platform = t.platform
	t.total++
	list := &t.covered
	if len(d.Normalisers) == 0 {
		t.opens++
		list = &t.open
	}
	for _, n := range d.Normalisers {
		t.uses[n]++
	}
	if len(*list) < attest.MaxDifferences {
		*list = append(*list, d)
	}
}

func (t *tally) verdict(same bool) string {
	switch {
	case same:
		return attestations.RebuildReproduced
	case t.opens == 0 && t.total > 0:
		return attestations.RebuildEquivalent
	}
	return attestations.RebuildDifferent
}

// conclude writes the tally into c. What nothing covers is listed first.
func (t *tally) conclude(c *attestations.RebuildComparison) {
	c.Verdict = t.verdict(c.Original == c.Rebuilt)
	c.Differences = append(t.open, t.covered...)
	if len(c.Differences) > attest.MaxDifferences {
		c.Differences = c.Differences[:attest.MaxDifferences]
	}
	if c.Differences == nil {
		c.Differences = []attestations.RebuildDifference{}
	}
	c.MoreDifferences = t.total - len(c.Differences)
	c.Normalisers = []attestations.RebuildNormaliser{}
	for _, n := range slices.Sorted(maps.Keys(t.uses)) {
		c.Normalisers = append(c.Normalisers, attestations.RebuildNormaliser{Name: n, Reason: normaliser(n).reason(), Uses: t.uses[n]})
	}
}

// merge takes over what another tally found.
func (t *tally) merge(o *tally) {
	t.open = append(t.open, o.open...)
	t.covered = append(t.covered, o.covered...)
	for n, uses := range o.uses {
		t.uses[n] += uses
	}
	t.opens += o.opens
	t.total += o.total
}

// descriptor is an OCI descriptor, as far as it matters here.
type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

// pair is two places that images are compared between.
type pair struct {
	a, b store.Repository
	tmp  string
	t    *tally
}

// images compares what c names, a manifest or an index.
func (p *pair) images(ctx context.Context, c *attestations.RebuildComparison) error {
	rawA, descA, err := p.a.Manifest(ctx, attest.Digest(c.Original))
	if err != nil {
		return err
	}
	rawB, descB, err := p.b.Manifest(ctx, attest.Digest(c.Rebuilt))
	if err != nil {
		return err
	}
	indexA, indexB := descA.MediaType.IsIndex(), descB.MediaType.IsIndex()
	switch {
	case c.Original == c.Rebuilt && !indexA:
		return nil
	case indexA != indexB:
		kind := map[bool]string{true: "an index of several platforms", false: "a single image"}
		p.t.add(attestations.RebuildDifference{Kind: attestations.DifferentManifest, Cause: "one is an index, the other a single image", Original: kind[indexA], Rebuilt: kind[indexB]})
		return nil
	case !indexA:
		return p.manifests(ctx, rawA, rawB)
	}
	platformsA, err := store.Platforms(ctx, p.a, descA)
	if err != nil {
		return err
	}
	platformsB, err := store.Platforms(ctx, p.b, descB)
	if err != nil {
		return err
	}
	p.document("", attestations.DifferentManifest, rawA, rawB, regexp.MustCompile(`^/manifests/\d+(/digest|/size)?$`))
	taken := map[int]bool{}
	for _, x := range platformsA {
		i := slices.IndexFunc(platformsB, func(y store.Platform) bool { return y.Name == x.Name })
		for i >= 0 && taken[i] {
			next := slices.IndexFunc(platformsB[i+1:], func(y store.Platform) bool { return y.Name == x.Name })
			if next < 0 {
				i = -1
				break
			}
			i += 1 + next
		}
		if i < 0 {
			p.t.add(attestations.RebuildDifference{Kind: attestations.DifferentManifest, Cause: "the rebuilt index lacks the platform", Original: clip(x.Name)})
			continue
		}
		taken[i] = true
		if err := p.platform(ctx, c, x, platformsB[i]); err != nil {
			return err
		}
	}
	for i, y := range platformsB {
		if !taken[i] {
			p.t.add(attestations.RebuildDifference{Kind: attestations.DifferentManifest, Cause: "only the rebuilt index has the platform", Rebuilt: clip(y.Name)})
		}
	}
	if p.t.total == 0 && c.Original != c.Rebuilt {
		p.t.add(attestations.RebuildDifference{Kind: attestations.DifferentManifest, Cause: "the indexes are written differently", Original: c.Original, Rebuilt: c.Rebuilt})
	}
	return nil
}

// platform compares one manifest below an index.
func (p *pair) platform(ctx context.Context, c *attestations.RebuildComparison, x, y store.Platform) error {
	one := attestations.RebuildPlatform{Name: clip(x.Name), Original: x.Descriptor.Digest.String(), Rebuilt: y.Descriptor.Digest.String()}
	inner := &pair{a: p.a, b: p.b, tmp: p.tmp, t: newTally()}
	inner.t.platform = one.Name
	if one.Original != one.Rebuilt {
		rawA, _, err := p.a.Manifest(ctx, attest.Digest(one.Original))
		if err != nil {
			return err
		}
		rawB, _, err := p.b.Manifest(ctx, attest.Digest(one.Rebuilt))
		if err != nil {
			return err
		}
		if err := inner.manifests(ctx, rawA, rawB); err != nil {
			return fmt.Errorf("platform %s: %w", one.Name, err)
		}
	}
	one.Verdict = inner.t.verdict(one.Original == one.Rebuilt)
	c.Platforms = append(c.Platforms, one)
	p.t.merge(inner.t)
	return nil
}

// manifests compares two images' manifests, configurations and layers.
func (p *pair) manifests(ctx context.Context, rawA, rawB []byte) error {
	before := p.t.total
	a, err := readManifest(rawA)
	if err != nil {
		return err
	}
	b, err := readManifest(rawB)
	if err != nil {
		return err
	}
	p.document("", attestations.DifferentManifest, rawA, rawB, regexp.MustCompile(`^/config/(digest|size)$|^/layers/\d+(/digest|/size)?$`))
	if err := p.layers(ctx, a, b); err != nil {
		return err
	}
	if a.Config.Digest != b.Config.Digest {
		if err := p.configs(ctx, a, b); err != nil {
			return err
		}
	}
	if p.t.total == before {
		// Different bytes of which nothing was found to differ: not equal.
		p.t.add(attestations.RebuildDifference{Kind: attestations.DifferentManifest, Cause: "the manifests are written differently",
			Original: string(attest.DigestOf(rawA)), Rebuilt: string(attest.DigestOf(rawB))})
	}
	return nil
}

type manifest struct {
	Config descriptor   `json:"config"`
	Layers []descriptor `json:"layers"`
}

func readManifest(raw []byte) (*manifest, error) {
	var m manifest
	if err := attest.UnmarshalStrict(raw, &m); err != nil {
		return nil, fmt.Errorf("reading manifest: %w", err)
	}
	if len(m.Layers) > attest.MaxLayers {
		return nil, fmt.Errorf("reading manifest: %d layers, more than the %d that are read", len(m.Layers), attest.MaxLayers)
	}
	return &m, nil
}

// layers compares the layers that are not the same, one by one where there are
// as many, else all of them as one tree.
func (p *pair) layers(ctx context.Context, a, b *manifest) error {
	if len(a.Layers) == len(b.Layers) {
		for i := range a.Layers {
			if a.Layers[i].Digest == b.Layers[i].Digest {
				continue
			}
			x := &tree{place: p.a, layers: a.Layers[i : i+1], first: i + 1}
			y := &tree{place: p.b, layers: b.Layers[i : i+1], first: i + 1}
			if err := compareTrees(ctx, x, y, p.tmp, p.t); err != nil {
				return err
			}
		}
		return nil
	}
	p.t.add(attestations.RebuildDifference{Kind: attestations.DifferentManifest, Path: "/layers", Cause: "another number of layers",
		Original: strconv.Itoa(len(a.Layers)), Rebuilt: strconv.Itoa(len(b.Layers))})
	same := 0
	for same < min(len(a.Layers), len(b.Layers)) && a.Layers[same].Digest == b.Layers[same].Digest {
		same++
	}
	x := &tree{place: p.a, layers: a.Layers[same:], first: same + 1}
	y := &tree{place: p.b, layers: b.Layers[same:], first: same + 1}
	return compareTrees(ctx, x, y, p.tmp, p.t)
}

// configs compares two images' configurations.
func (p *pair) configs(ctx context.Context, a, b *manifest) error {
	x, err := readBlob(ctx, p.a, a.Config)
	if err != nil {
		return err
	}
	y, err := readBlob(ctx, p.b, b.Config)
	if err != nil {
		return err
	}
	// The ids of layers that differ follow from them.
	var follow []string
	for i := range max(len(a.Layers), len(b.Layers)) {
		if len(a.Layers) != len(b.Layers) || a.Layers[i].Digest != b.Layers[i].Digest {
			follow = append(follow, strconv.Itoa(i))
		}
	}
	skip := regexp.MustCompile(`^/rootfs/diff_ids/(` + strings.Join(follow, "|") + `)$`)
	if len(follow) == 0 {
		skip = nil
	}
	if found := p.document("", attestations.DifferentConfig, x, y, skip); !found && skip == nil {
		p.t.add(attestations.RebuildDifference{Kind: attestations.DifferentConfig, Cause: "the configurations say the same in another form",
			Original: string(attest.DigestOf(x)), Rebuilt: string(attest.DigestOf(y))})
	}
	return nil
}

// document compares two JSON documents member by member, but for what skip
// matches, and reports whether it found anything.
func (p *pair) document(at, kind string, rawA, rawB []byte, skip *regexp.Regexp) bool {
	before := p.t.total
	a, okA := decode(rawA)
	b, okB := decode(rawB)
	if !okA || !okB {
		p.t.add(attestations.RebuildDifference{Kind: kind, Cause: "it cannot be read as JSON"})
		return true
	}
	p.values(at, kind, a, b, skip)
	return p.t.total > before
}

// decode reads a document with its numbers as they are written.
func decode(raw []byte) (v any, ok bool) {
	if attest.UnmarshalStrict(raw, nil) != nil {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	err := d.Decode(&v)
	return v, err == nil
}

// created is where a configuration says when something was made.
const created = `^/created$|^/history/\d+/created$`

func (p *pair) values(at, kind string, a, b any, skip *regexp.Regexp) {
	switch x := a.(type) {
	case map[string]any:
		if y, ok := b.(map[string]any); ok {
			names := slices.Sorted(maps.Keys(x))
			for name := range y {
				if _, ok := x[name]; !ok {
					names = append(names, name)
				}
			}
			slices.Sort(names)
			for _, name := range names {
				one, in := x[name]
				two, also := y[name]
				p.value(at+"/"+escape(name), kind, one, two, in, also, skip)
			}
			return
		}
	case []any:
		if y, ok := b.([]any); ok {
			for i := range max(len(x), len(y)) {
				var one, two any
				if i < len(x) {
					one = x[i]
				}
				if i < len(y) {
					two = y[i]
				}
				p.value(at+"/"+strconv.Itoa(i), kind, one, two, i < len(x), i < len(y), skip)
			}
			return
		}
	}
	p.value(at, kind, a, b, true, true, skip)
}

func escape(name string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
}

func (p *pair) value(at, kind string, a, b any, in, also bool, skip *regexp.Regexp) {
	x, y := written(a, in), written(b, also)
	if in == also && x == y || skip != nil && skip.MatchString(at) && (isScalar(a) || !in || !also) {
		return
	}
	_, mapA := a.(map[string]any)
	_, mapB := b.(map[string]any)
	if in && also && !isScalar(a) && !isScalar(b) && mapA == mapB {
		p.values(at, kind, a, b, skip)
		return
	}
	d := attestations.RebuildDifference{Kind: kind, Path: clip(at), Original: clip(x), Rebuilt: clip(y), Cause: valueCause(kind, at, in, also)}
	if kind == attestations.DifferentConfig && in && also && regexp.MustCompile(created).MatchString(at) {
		d.Cause, d.Normalisers = "the configuration holds the time of the build", []string{string(configTimesV1)}
	}
	p.t.add(d)
}

func isScalar(v any) bool {
	switch v.(type) {
	case map[string]any, []any:
		return false
	}
	return true
}

func valueCause(kind, at string, in, also bool) string {
	what := "the manifest's"
	if kind == attestations.DifferentConfig {
		what = "the configuration's"
	}
	what += " " + strings.NewReplacer("/", " ", "~1", "/", "~0", "~").Replace(strings.TrimPrefix(clip(at), "/"))
	switch {
	case !in:
		return what + " is only in the rebuilt image"
	case !also:
		return what + " is only in the original"
	}
	return what + " differs"
}

// written is a JSON value in one line.
func written(v any, there bool) string {
	if !there {
		return ""
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if enc.Encode(v) != nil {
		return "?"
	}
	return strings.TrimSuffix(buf.String(), "\n")
}
