package gate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/store"
	"github.com/waxseal/waxseal/pkg/verify"
)

// Dependency is an image that the image was built from, or that one of those
// was.
type Dependency struct {
	URI    string        `json:"uri"` // as the provenance has it
	Image  string        `json:"image,omitempty"`
	Digest attest.Digest `json:"digest,omitempty"`
	Of     attest.Digest `json:"of"`    // the digest whose provenance names it
	Depth  int           `json:"depth"` // 1: the image's own
	// Decision is what its own evidence gives, under the same trust and policy;
	// undecided too where it was not looked at.
	Decision   Decision `json:"decision"`
	Reached    Levels   `json:"reached"`
	Properties []string `json:"properties,omitempty"`
	// Looked says whether its evidence was looked at.
	Looked  bool   `json:"looked"`
	Message string `json:"message,omitempty"` // why it is not a pass
}

// input is something that accepted provenance says an image was built from.
type input struct {
	uri    string
	of     attest.Digest
	image  bool
	digest attest.Digest // of an image, where it is pinned
	ref    string        // what to ask about, without digest; "" when that cannot be told
}

// inputsOf reads what the provenance of a digest was built from, but for the
// source and what was made of it: those are what is built, not what it needs.
func inputsOf(of attest.Digest, all []verify.Dependency) []input {
	var out []input
	for _, d := range all {
		switch d.Name {
		case attestations.DependencySource, attestations.DependencyContext, "dockerfile", "dockerignore":
			continue
		}
		if strings.HasPrefix(d.URI, "git+") || strings.HasPrefix(d.URI, "local:") {
			continue
		}
		in := input{uri: d.URI, of: of}
		in.ref, in.image = imageURI(d.URI)
		if in.image {
			if digest, err := attest.ParseDigest("sha256:" + d.Digest["sha256"]); err == nil {
				in.digest = digest
			}
		}
		out = append(out, in)
	}
	return out
}

// imageURI reads the URI of an image, in the forms that builders write:
// pkg:docker/NAME@TAG?…, pkg:oci/NAME@DIGEST?repository_url=…, docker-image://REF
// and oci://REF. ref is a reference to its repository; of an image that no registry
// gave, attestations.DockerDaemonURI, there is none.
func imageURI(uri string) (ref string, image bool) {
	if strings.HasPrefix(uri, attestations.DockerDaemonURI) {
		return "", true
	}
	scheme, rest, _ := strings.Cut(uri, ":")
	rest, query, _ := strings.Cut(rest, "?")
	switch {
	case scheme == "docker-image" || scheme == "oci":
		rest = strings.TrimPrefix(rest, "//")
	case scheme != "pkg":
		return "", false
	case strings.HasPrefix(rest, "docker/"):
		rest = strings.TrimPrefix(rest, "docker/")
	case strings.HasPrefix(rest, "oci/"):
		rest = strings.TrimPrefix(rest, "oci/")
	default:
		return "", false
	}
	qualifiers, err := url.ParseQuery(query)
	if err != nil {
		return "", true
	}
	if scheme == "pkg" {
		// https://github.com/package-url/purl-spec/blob/main/types-doc/docker-definition.md
		rest, _, _ = strings.Cut(rest, "@")
		if at := qualifiers.Get("repository_url"); at != "" {
			rest = at
		}
		if rest, err = url.PathUnescape(rest); err != nil {
			return "", true
		}
	}
	parsed, err := store.Parse(rest)
	if err != nil || parsed.Kind != store.Registry {
		return "", true
	}
	return parsed.Place, true
}

// named is an image as provenance names it. The same bytes under another name are
// judged by another entry of the policy, and asked for elsewhere.
type named struct {
	ref    string
	digest attest.Digest
}

func (in input) named() named { return named{in.ref, in.digest} }

// walk looks at the images below one image, each once under each of its names.
type walk struct {
	gate    Gate
	request Request
	rule    policy.Dependencies
	host    string // of the image itself

	known map[named]*node
	order []*node
}

// node is one dependency and what came of it.
type node struct {
	Dependency
	verdict *Verdict // nil: not looked at
	below   []input  // what its accepted provenance names
	rule    policy.Dependencies
	listed  bool // its provenance says what is below it
	refused bool // not looked at because nobody allows it, or nothing says where
}

// depend follows what the subjects were built from, and adds what came of it to
// the verdict.
func (g Gate) depend(ctx context.Context, c *check, v *Verdict, subjects []Subject) error {
	rule := c.rule.Dependencies().Allowing(c.DependencyRegistries)
	rule.Depth = max(rule.Depth, c.Dependencies)
	if rule.Depth == 0 {
		return nil
	}
	w := &walk{gate: g, request: c.Request, rule: rule, known: map[named]*node{}}
	if c.ref.Kind == store.Registry {
		w.host, _, _ = strings.Cut(c.ref.Place, "/")
	}
	// The image itself cuts a circle as any other.
	own := map[attest.Digest]bool{}
	var next []input
	for _, s := range subjects {
		own[s.Digest] = true
		next = append(next, s.inputs...)
	}
	top := next
	for depth := 1; depth <= rule.Depth && len(next) > 0; depth++ {
		fresh := w.enter(next, depth, own)
		if err := w.look(ctx, fresh); err != nil {
			return err
		}
		next = nil
		for _, n := range fresh {
			next = append(next, n.below...)
		}
	}
	// What is below a demand of a dependency's own must be known as well: from
	// the deepest up, so that each finds those below it settled.
	for _, n := range slices.Backward(w.order) {
		w.settle(n, own)
	}
	v.Dependencies = []Dependency{}
	for _, n := range w.order {
		v.Dependencies = append(v.Dependencies, n.Dependency)
		if n.verdict != nil {
			subjects[0].changes(c.at, n.verdict.turns(c.at))
		}
	}
	v.DependencyLevels = w.levels(top, own)
	for i := range subjects {
		v.used[i] = append(v.used[i], w.rests(subjects[i].inputs, own)...)
		subjects[i].dependencyLevels = w.levels(subjects[i].inputs, own)
		if !subjects[i].listed {
			subjects[i].dependencyLevels, v.DependencyLevels = nil, nil
		}
	}
	v.lacking = w.lacking(top, rule, own)
	for _, s := range subjects {
		if rule.Demands() && !s.listed {
			v.lacking = append(v.lacking, unlisted(s))
		}
	}
	return nil
}

// unlisted is what stands against an image that nothing says of what it was
// built from, where that is asked.
func unlisted(s Subject) Reason {
	return Reason{Code: policy.CodeDependency, Platform: s.Platform, Digest: s.Digest,
		Message: "no provenance that counts lists what it was built from, and a level is demanded of that"}
}

// enter makes nodes of the inputs that are images and were not met before.
func (w *walk) enter(inputs []input, depth int, own map[attest.Digest]bool) []*node {
	var fresh []*node
	for _, in := range inputs {
		if !in.image || own[in.digest] || in.digest != "" && w.known[in.named()] != nil {
			continue
		}
		if len(w.order) == attest.MaxDependencies {
			return fresh // of the rest nothing is known
		}
		n := &node{Dependency: Dependency{URI: printable(in.uri), Digest: in.digest, Of: in.of, Depth: depth, Decision: Undecided}}
		switch {
		case in.digest == "":
			n.refused, n.Message = true, "not looked at: the provenance does not pin it by digest"
		case in.ref == "":
			n.refused, n.Message = true, "not looked at: its address cannot be read"
		case !w.allows(in.ref):
			n.refused, n.Message = true, printable(fmt.Sprintf("not looked at: %q is in no registry that may be asked", in.ref))
		default:
			n.Image = printable(in.ref + "@" + string(in.digest))
		}
		if in.digest != "" {
			w.known[in.named()] = n
		}
		w.order = append(w.order, n)
		fresh = append(fresh, n)
	}
	return fresh
}

// allows reports whether a repository may be asked: one that is allowed by
// name, or where no list is given, one in the registry of the image itself.
func (w *walk) allows(name string) bool {
	if w.rule.Lists() {
		return w.rule.Allows(name)
	}
	return w.host != "" && strings.HasPrefix(name, w.host+"/")
}

// look judges nodes, as many together as the platforms of an index.
func (w *walk) look(ctx context.Context, nodes []*node) error {
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxParallel)
	failed := make([]error, len(nodes))
	for i, n := range nodes {
		if n.refused {
			continue
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			failed[i] = contain(func() error { return w.judge(ctx, n) })
		})
	}
	wg.Wait()
	return errors.Join(append(failed, ctx.Err())...)
}

// judge gives a node the verdict that a request of its own would give, but for
// what is below it: that is for the walk.
func (w *walk) judge(ctx context.Context, n *node) error {
	req := w.request
	req.Reference, req.Name, req.Level = n.Image, "", nil
	req.Dependencies, req.below = 0, true
	// What was allowed for the image's registry is not for others.
	req.Store.Insecure = req.Store.Insecure && w.host != "" && strings.HasPrefix(n.Image, w.host+"/")
	c, err := prepareAt(req, w.request.moment(w.gate.now()), true)
	if err != nil {
		return err
	}
	v := &Verdict{Decision: Undecided, Declared: c.declared}
	v.Subject = nothing("")
	if err := contain(func() error { return w.gate.judge(ctx, c, v) }); err != nil {
		v.undecided(err)
	}
	n.verdict, n.Looked = v, true
	n.Decision, n.Reached, n.Properties = v.Decision, v.Reached, v.Properties
	n.rule = c.rule.Dependencies()
	if v.Decision != Pass && len(v.Reasons) > 0 {
		n.Message = v.Reasons[0].Message
	}
	n.listed = true
	for _, s := range append([]Subject{v.Subject}, v.Platforms...) {
		n.below = append(n.below, s.inputs...)
		n.listed = n.listed && s.listed
	}
	return nil
}

// settle holds a node to what its own entry of the policy demands of the images
// below it.
func (w *walk) settle(n *node, own map[attest.Digest]bool) {
	if n.verdict == nil || n.Decision != Pass || !n.rule.Demands() {
		return
	}
	if !n.listed {
		n.Decision, n.Message = Deny, unlisted(n.verdict.Subject).Message
		return
	}
	for _, r := range w.lacking(n.below, n.rule, own) {
		switch {
		case !r.undecided:
			n.Decision, n.Message = Deny, r.Message
			return
		case n.Decision == Pass:
			n.Decision, n.Message = Undecided, r.Message
		}
	}
}

// lacking lists what stands against an image in what it was built from, as deep
// as the rule goes.
func (w *walk) lacking(top []input, rule policy.Dependencies, own map[attest.Digest]bool) []Reason {
	if !rule.Demands() {
		return nil
	}
	var out []Reason
	seen := map[named]bool{}
	next := top
	for depth := 1; depth <= rule.Depth && len(next) > 0; depth++ {
		var below []input
		for _, in := range next {
			if !in.image || own[in.digest] || in.digest != "" && seen[in.named()] {
				continue
			}
			seen[in.named()] = in.digest != ""
			n := w.known[in.named()]
			if in.digest == "" {
				n = &node{refused: true, Dependency: Dependency{Message: "not looked at: the provenance does not pin it by digest"}}
			}
			if r, ok := short(in, n, rule); !ok {
				out = append(out, r)
			} else {
				below = append(below, n.below...)
			}
		}
		next = below
	}
	return out
}

// short says what one dependency lacks; true: nothing.
func short(in input, n *node, rule policy.Dependencies) (Reason, bool) {
	r := Reason{Code: policy.CodeDependency, Digest: in.of}
	name := cmp.Or(in.ref, in.uri)
	switch {
	case n == nil:
		r.undecided = true
		r.Message = fmt.Sprintf("built from %s, which was not looked at: it lies deeper than was asked, or behind the first %d images", name, attest.MaxDependencies)
	case n.verdict == nil:
		// Nothing to wait for: the policy, or the provenance, has to change.
		r.undecided = !n.refused
		r.Message = fmt.Sprintf("built from %s, %s", name, n.Message)
	case n.Decision == Undecided:
		r.undecided = true
		r.Message = fmt.Sprintf("built from %s, which could not be judged: %s", name, n.Message)
	case n.Decision != Pass:
		r.Message = fmt.Sprintf("built from %s, which is denied: %s", name, n.Message)
	case n.Reached.Build < rule.Level.Build:
		r.Message = fmt.Sprintf("built from %s, which carries Build L%d; each image must carry Build L%d", name, n.Reached.Build, rule.Level.Build)
	case n.Reached.Source < rule.Level.Source:
		r.Message = fmt.Sprintf("built from %s, which carries Source L%d; each image must carry Source L%d", name, n.Reached.Source, rule.Level.Source)
	default:
		return r, true
	}
	r.Message = printable(r.Message)
	return r, false
}

// levels counts the dependencies below inputs by level, each once, at the worst
// that it is under any of its names
// (https://slsa.dev/spec/v1.2/verification_summary#dependencyLevels). Nil: no
// claim, because some could not be told or lie deeper than was looked.
func (w *walk) levels(inputs []input, own map[attest.Digest]bool) map[string]uint64 {
	worst := map[string]int{}
	for in, n := range w.below(inputs, own) {
		level := 0
		switch {
		case n == nil && in.image && in.digest != "", n != nil && n.verdict != nil && n.Decision == Undecided:
			return nil
		case n != nil && n.Decision == Pass:
			level = n.Reached.Build
		}
		key := cmp.Or(string(in.digest), in.uri)
		if before, met := worst[key]; met {
			level = min(level, before)
		}
		worst[key] = level
	}
	out := map[string]uint64{}
	for _, level := range worst {
		out[fmt.Sprintf("SLSA_BUILD_LEVEL_%d", level)]++
	}
	return out
}

// rests lists the bundles that what is said of the dependencies below inputs
// rests on.
func (w *walk) rests(inputs []input, own map[attest.Digest]bool) []attest.Digest {
	var out []attest.Digest
	for _, n := range w.below(inputs, own) {
		if n != nil && n.verdict != nil {
			for _, bundle := range slices.Concat(n.verdict.used...) {
				if !slices.Contains(out, bundle) {
					out = append(out, bundle)
				}
			}
		}
	}
	return out
}

// below goes through the dependencies below inputs, each once, with its node
// where it was met.
func (w *walk) below(inputs []input, own map[attest.Digest]bool) iter.Seq2[input, *node] {
	return func(yield func(input, *node) bool) {
		seen := map[named]bool{}
		for next := inputs; len(next) > 0; {
			var below []input
			for _, in := range next {
				key := in.named()
				if in.digest == "" {
					key.ref = in.uri
				}
				if seen[key] || own[in.digest] {
					continue
				}
				seen[key] = true
				n := w.known[in.named()]
				if n != nil {
					below = append(below, n.below...)
				}
				if !yield(in, n) {
					return
				}
			}
			next = below
		}
	}
}

// DependenciesByLevel says in words how many images were looked at, and what
// they carry.
func (v *Verdict) DependenciesByLevel() string {
	if len(v.Dependencies) == 0 {
		return "built from no image"
	}
	by := map[int]int{}
	unseen := 0
	for _, d := range v.Dependencies {
		if d.Decision != Pass {
			unseen++
			continue
		}
		by[d.Reached.Build]++
	}
	var parts []string
	for _, level := range slices.Backward(slices.Sorted(maps.Keys(by))) {
		parts = append(parts, fmt.Sprintf("%d at Build L%d", by[level], level))
	}
	if unseen > 0 {
		parts = append(parts, fmt.Sprintf("%d not passed", unseen))
	}
	return "built from " + plural(len(v.Dependencies), "image", "images") + ": " + strings.Join(parts, ", ")
}

// inputs are what the accepted provenance that was chosen for a digest names,
// and whether it lists them: to many builders an empty list means nothing.
func (c *check) inputs(f *found, chosen *verify.Candidate) (list []input, listed bool) {
	if !c.follows() || chosen == nil || chosen.Signer == nil {
		return nil, false
	}
	list = inputsOf(f.digest, chosen.Provenance.Dependencies)
	return list, len(list) > 0 || chosen.Provenance.BuildType.Value == attestations.ContainerBuildType
}

// follows reports whether what an image was built from is looked at.
func (c *check) follows() bool {
	return c.below || c.Dependencies > 0 || c.rule.Dependencies().Depth > 0
}
