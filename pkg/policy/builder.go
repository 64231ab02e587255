package policy

import (
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/waxseal/waxseal/pkg/verify"
)

// builder is one entry of trust.builders.
type builder struct {
	trust      verify.Builder
	name       string // of who signs; "" for nobody in particular
	signer     signer
	library    string             // what it uses; "" for an entry of its own
	parameters map[string]allowed // what its users may set, whatever the image
}

func (b builder) String() string {
	var s strings.Builder
	switch {
	case b.library != "":
		fmt.Fprintf(&s, "%q", b.library)
		if b.trust.ID != "" {
			fmt.Fprintf(&s, " as %q", b.trust.ID)
		}
	case b.trust.SignerID:
		s.WriteString("the builder.id that is the signer's name")
	case b.trust.IDs != nil:
		fmt.Fprintf(&s, "builders %q", b.trust.IDs)
	default:
		fmt.Fprintf(&s, "%q", b.trust.ID)
	}
	fmt.Fprintf(&s, ", signed by %s", b.signer)
	if b.name != "" {
		fmt.Fprintf(&s, ", who is %q", b.name)
	}
	fmt.Fprintf(&s, ", up to Build L%d", b.trust.MaxLevel)
	switch {
	case b.trust.Hosted:
		s.WriteString(", on the platform's own runners")
	case b.trust.SelfHosted:
		s.WriteString(", on any runner")
	}
	if b.trust.Called {
		s.WriteString(", as a reusable workflow")
	}
	if len(b.trust.Events) > 0 {
		fmt.Fprintf(&s, ", started by %s", list(b.trust.Events))
	}
	if n := len(b.trust.BuildTypes); n > 0 {
		fmt.Fprintf(&s, ", for %s", count(n, "build type"))
	}
	return s.String()
}

// speaks reports whether the word of its signer counts for more than provenance.
// One that is trusted for a part of what it signs, as a platform is that signs for
// whoever asks, cannot be told from the rest by a statement without a builder.id.
func (b builder) speaks() bool {
	t := b.trust
	return t.IDs == nil && !t.SignerID && len(t.BuildTypes) == 0 && len(t.Events) == 0
}

// speaking lists the ids of the builders that speak.
func (p *Policy) speaking() []string {
	var out []string
	for _, b := range p.builders {
		if b.speaks() && !slices.Contains(out, b.trust.ID) {
			out = append(out, b.trust.ID)
		}
	}
	return out
}

// BuilderWords says in words what a builder of the policy's Trust is trusted for.
func (p *Policy) BuilderWords(t verify.Builder) string {
	line := func(b verify.Builder) string { return verify.Trust{Builders: []verify.Builder{b}}.Lines()[0] }
	for _, b := range p.builders {
		if line(b.trust) == line(t) {
			return b.String()
		}
	}
	return fmt.Sprintf("%q, up to Build L%d", t.ID, t.MaxLevel)
}

// settled is the builder with all that Trust.Lines has to say of it.
func (b builder) settled() builder {
	var terms []string
	for _, name := range keys(b.parameters) {
		a := b.parameters[name]
		if a.any {
			terms = append(terms, fmt.Sprintf("%q", name))
			continue
		}
		terms = append(terms, fmt.Sprintf("%q=%q", name, a.values))
	}
	b.trust.Name, b.trust.Terms = b.name, strings.Join(terms, " ")
	return b
}

func (b builder) same(o builder) bool {
	line := func(b builder) string { return verify.Trust{Builders: []verify.Builder{b.trust}}.Lines()[0] }
	// Two levels or sets of terms for one pair would be a riddle.
	b.trust.MaxLevel, o.trust.MaxLevel, b.trust.Terms, o.trust.Terms = 1, 1, "", ""
	b.trust.Name, o.trust.Name = "", ""
	return line(b) == line(o)
}

// entry is what the fields of a builder say before they are put together.
type entry struct {
	n       *yaml.Node
	builder builder
	ids     int // of id, idPattern, idFromSigner and use, how many are given
	signer  *yaml.Node
	flat    []*yaml.Node // the fields of a signer, of an entry that uses the library
	known   *WellKnown
}

func (d *decoder) builder(n *yaml.Node) {
	e := entry{n: n}
	b := &e.builder
	fields := map[string]func(*yaml.Node){
		"id": func(n *yaml.Node) {
			e.ids++
			b.trust.ID = d.text(n, "id")
			if u, err := url.Parse(b.trust.ID); d.err == nil && (err != nil || u.Scheme == "") {
				d.fail(n, "builder id %q is not a URI", clip(b.trust.ID))
			}
		},
		"idPattern": func(n *yaml.Node) {
			e.ids++
			p := d.pattern(n, "idPattern")
			b.trust.IDs = &p
		},
		"idFromSigner": func(n *yaml.Node) {
			e.ids++
			if b.trust.SignerID = d.truth(n, "idFromSigner"); d.err == nil && !b.trust.SignerID {
				d.fail(n, "idFromSigner can only be true")
			}
		},
		"use": func(n *yaml.Node) {
			e.ids++
			w, err := Known(d.text(n, "use"))
			if d.err == nil && err != nil {
				d.fail(n, "%w", err)
			}
			if d.err == nil && w.Policy == "" {
				d.fail(n, "%q cannot be trusted by a policy: nobody signs it", w.Name)
			}
			e.known = &w
		},
		"name":     func(n *yaml.Node) { b.name = d.line(n, "name") },
		"signer":   func(n *yaml.Node) { e.signer = n },
		"maxLevel": func(n *yaml.Node) { b.trust.MaxLevel = d.number(n, "maxLevel", 1, verify.MaxLevel) },
		"buildTypes": func(n *yaml.Node) {
			d.list(n, "builder.buildTypes", 100, func(n *yaml.Node) {
				b.trust.BuildTypes = append(b.trust.BuildTypes, d.pattern(n, "a build type"))
			})
		},
		"parameters": func(n *yaml.Node) { b.parameters = d.parameters(n) },
		"events": func(n *yaml.Node) {
			d.list(n, "builder.events", 100, func(n *yaml.Node) { b.trust.Events = append(b.trust.Events, d.text(n, "an event")) })
		},
		"runners": func(n *yaml.Node) {
			switch v := d.text(n, "runners"); v {
			case "hosted":
				b.trust.Hosted = true
			case "any":
				b.trust.SelfHosted = true
			default:
				d.fail(n, `runners %q: it is "hosted" or "any"`, clip(v))
			}
		},
		"reusableWorkflow": func(n *yaml.Node) { b.trust.Called = d.truth(n, "reusableWorkflow") },
	}
	for _, name := range []string{"key", "pem", "kms", "issuer", "san", "root", "from", "until", "revoked", "outages"} {
		fields[name] = func(value *yaml.Node) {
			e.flat = append(e.flat, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: name, Line: value.Line}, value)
		}
	}
	d.object(n, "the builder", nil, fields)
	d.assemble(&e)
	if d.err != nil {
		return
	}
	for _, b := range e.expand() {
		b = b.settled()
		if slices.ContainsFunc(d.out.builders, b.same) {
			d.fail(n, "builder %s with this signer stands twice", b.called())
			return
		}
		d.out.builders = append(d.out.builders, b)
	}
	d.out.signers.add(b.signer)
}

func (b builder) called() string {
	switch {
	case b.library != "":
		return fmt.Sprintf("%q", b.library)
	case b.trust.IDs != nil:
		return fmt.Sprintf("%q", b.trust.IDs)
	case b.trust.SignerID:
		return "by its signer's name"
	}
	return fmt.Sprintf("%q", clip(b.trust.ID))
}

// assemble puts the parts of an entry together and refuses what makes no sense.
func (d *decoder) assemble(e *entry) {
	b := &e.builder
	switch {
	case d.err != nil:
		return
	case e.ids == 0:
		d.fail(e.n, `the builder has no "id"`)
	case e.ids > 1:
		d.fail(e.n, `the builder must have one of "id", "idPattern", "idFromSigner" and "use"`)
	case e.known != nil && e.signer != nil:
		d.fail(e.signer, `a builder with "use" names its signer's "key", "san" or "root" beside it, and has no "signer"`)
	case e.known != nil:
		d.take(e)
		return
	case len(e.flat) > 0:
		d.fail(e.flat[0], "unknown field %q in the builder; it stands below signer", e.flat[0].Value)
	case e.signer == nil:
		d.fail(e.n, `the builder has no "signer"`)
	case b.trust.MaxLevel == 0:
		d.fail(e.n, `the builder has no "maxLevel"`)
	case verify.Unhosted(b.trust.ID) && b.trust.MaxLevel > 1:
		d.fail(e.n, "builder %q is a build on somebody's own machine; SLSA gives it Build L1 at most, so maxLevel must be 1", b.trust.ID)
	}
	if d.err != nil {
		return
	}
	b.signer = d.signer(e.signer)
	if d.err == nil && (b.trust.SignerID || b.trust.Called) && b.signer.identity == nil {
		d.fail(e.n, "idFromSigner and reusableWorkflow are about a certificate, and this signer is a key")
	}
}

// take fills an entry in from the library. What it says itself can only narrow
// what the library says.
func (d *decoder) take(e *entry) {
	w, b := e.known, &e.builder
	b.library = w.Name
	switch {
	case b.trust.MaxLevel > w.Level:
		d.fail(e.n, "%q is credited Build L%d at most, and maxLevel is %d", w.Name, w.Level, b.trust.MaxLevel)
	case b.trust.SelfHosted && w.Hosted:
		d.fail(e.n, `%q counts on the platform's own runners; to trust others, write an entry with "id" or "idFromSigner"`, w.Name)
	}
	if b.trust.MaxLevel == 0 {
		b.trust.MaxLevel = w.Level
	}
	b.trust.Hosted = b.trust.Hosted || w.Hosted
	b.trust.Called = b.trust.Called || w.Reusable
	b.trust.SignerID = len(w.IDs) == 0
	if b.trust.Events == nil {
		b.trust.Events = w.Events
	}
	for _, ev := range b.trust.Events {
		if len(w.Events) > 0 && !slices.Contains(w.Events, ev) {
			d.fail(e.n, "%q is not trusted for runs that %q starts", w.Name, clip(ev))
		}
	}
	var types []verify.Pattern
	for _, t := range w.BuildTypes {
		p, err := verify.NewPattern(t)
		if err != nil {
			d.fail(e.n, "%w", err)
		}
		types = append(types, p)
	}
	for _, t := range b.trust.BuildTypes {
		if !slices.ContainsFunc(types, func(p verify.Pattern) bool { return p.Match(t.String()) }) {
			d.fail(e.n, "%q does not make the build type %q", w.Name, clip(t.String()))
		}
	}
	if b.trust.BuildTypes == nil {
		b.trust.BuildTypes = types
	}
	all := w.allowed()
	maps.Copy(all, b.parameters)
	b.parameters = all
	if d.err == nil {
		d.sign(e)
	}
}

// sign reads the signer of an entry that uses the library.
func (d *decoder) sign(e *entry) {
	w := e.known
	san := ""
	for i := 0; i < len(e.flat); i += 2 {
		if e.flat[i].Value == "san" {
			san = e.flat[i+1].Value
		}
	}
	o := verify.IdentityOptions{Issuer: w.Issuer}
	switch {
	case w.fixed && san == "":
		o.Regexp = w.SAN
	case w.fixed && (strings.Contains(san, "*") || !regexp.MustCompile(w.SAN).MatchString(san)):
		d.fail(e.n, "san %q is none of %q: give one of its workflows at a release, exactly, or none", clip(san), w.Name)
	case w.san != nil && san == "":
		d.fail(e.n, `%q needs a "san": %s`, w.Name, w.SAN)
	case w.san != nil:
		if err := w.san(san); err != nil {
			d.fail(e.n, "%w", err)
		}
	}
	if d.err == nil {
		e.builder.signer = d.signerOf(&yaml.Node{Kind: yaml.MappingNode, Content: e.flat, Line: e.n.Line}, o)
	}
}

// expand is one builder for each id.
func (e *entry) expand() []builder {
	b := e.builder
	t := b.signer.builder(b.trust.ID, b.trust.MaxLevel)
	b.trust.Key, b.trust.Window, b.trust.Identity = t.Key, t.Window, t.Identity
	if e.known == nil || len(e.known.IDs) == 0 {
		return []builder{b}
	}
	var out []builder
	for _, id := range e.known.IDs {
		one := b
		if p, err := verify.NewPattern(id); err == nil && strings.Contains(id, "*") {
			one.trust.IDs = &p
		} else {
			one.trust.ID = id
		}
		out = append(out, one)
	}
	return out
}

func (d *decoder) pattern(n *yaml.Node, what string) verify.Pattern {
	text := d.text(n, what)
	if d.err != nil {
		return verify.Pattern{}
	}
	p, err := verify.NewPattern(text)
	if err != nil {
		d.fail(n, "%s: %w", what, err)
	}
	return p
}
