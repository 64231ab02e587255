package policy

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

const (
	maxDepth    = 16
	maxNodes    = 50_000
	maxBuilders = 100
	maxImages   = 1000
)

// Parse reads a policy strictly. Errors name the line and the field.
func Parse(raw []byte, opts ParseOptions) (*Policy, error) {
	if opts.Name == "" {
		opts.Name = "policy"
	}
	p, err := parse(raw, opts)
	if err != nil {
		var at *lineError
		if errors.As(err, &at) {
			return nil, fmt.Errorf("reading policy %s:%d: %w", opts.Name, at.line, err)
		}
		return nil, fmt.Errorf("reading policy %q: %w", opts.Name, err)
	}
	p.digest = attest.DigestOf(raw)
	return p, nil
}

// lineError is an error at a line of the file.
type lineError struct {
	line int
	err  error
}

func (e *lineError) Error() string { return e.err.Error() }
func (e *lineError) Unwrap() error { return e.err }

func at(n *yaml.Node, format string, args ...any) error {
	return &lineError{n.Line, fmt.Errorf(format, args...)}
}

func parse(raw []byte, opts ParseOptions) (p *Policy, err error) {
	if len(raw) > attest.MaxPolicy {
		return nil, fmt.Errorf("it is larger than the %d bytes a policy may have", attest.MaxPolicy)
	}
	if err := shallow(raw); err != nil {
		return nil, err
	}
	dec := yaml.NewDecoder(strings.NewReader(string(raw)))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, errors.New("it is empty; \"waxseal policy init\" writes one to start from")
	} else if err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var second yaml.Node
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one YAML document in the file")
	}
	nodes := 0
	if err := plain(&doc, 0, &nodes); err != nil {
		return nil, err
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, errors.New("it is empty; \"waxseal policy init\" writes one to start from")
	}
	d := decoder{opts: opts}
	d.policy(doc.Content[0])
	d.settle(doc.Content[0])
	if d.err != nil {
		return nil, d.err
	}
	for i := range d.out.files {
		if f := &d.out.files[i]; f.Policy == "" { // not of one that it extends
			f.Policy = string(attest.DigestOf(raw))
		}
	}
	return &d.out, nil
}

// shallow refuses what would take the YAML parser itself long or deep: it
// builds the tree before anybody can look at it.
func shallow(raw []byte) error {
	open := 0
	for i, line := 0, 1; i < len(raw); i++ {
		switch raw[i] {
		case '\n':
			line++
		case '[', '{':
			open++
		case ']', '}':
			open--
		}
		if open > 4*maxDepth {
			return &lineError{line, fmt.Errorf("brackets nested more than %d deep", 4*maxDepth)}
		}
	}
	return nil
}

// plain refuses what a policy has no use for and an attacker has: anchors and
// aliases (a small file that is a huge tree), tags, merges, depth, and keys
// that are not text or stand twice.
func plain(n *yaml.Node, depth int, nodes *int) error {
	*nodes++
	switch {
	case depth > maxDepth:
		return at(n, "nested more than %d deep", maxDepth)
	case *nodes > maxNodes:
		return at(n, "more than %d values", maxNodes)
	case n.Anchor != "" || n.Kind == yaml.AliasNode:
		return at(n, "anchors and aliases are not allowed in a policy; write the value out")
	case n.Style&yaml.TaggedStyle != 0:
		return at(n, "tags such as %s are not allowed in a policy", clip(n.Tag))
	}
	if n.Kind == yaml.MappingNode {
		seen := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			if k.Kind != yaml.ScalarNode || k.Tag == "!!merge" {
				return at(k, "a key must be plain text")
			}
			if line, twice := seen[k.Value]; twice {
				return at(k, "field %q stands twice, first in line %d", clip(k.Value), line)
			}
			seen[k.Value] = k.Line
		}
	}
	for _, c := range n.Content {
		if err := plain(c, depth+1, nodes); err != nil {
			return err
		}
	}
	return nil
}

// decoder turns the tree into a Policy. The first error stays.
type decoder struct {
	opts ParseOptions
	out  Policy
	err  error
	lang *language // made for the first rule
}

func (d *decoder) fail(n *yaml.Node, format string, args ...any) {
	if d.err == nil {
		d.err = at(n, format, args...)
	}
}

// object calls one function for each field of a mapping; required fields must
// be there and others are refused.
func (d *decoder) object(n *yaml.Node, what string, required []string, fields map[string]func(*yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, "%s must have fields (%s)", what, strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
		return
	}
	have := map[string]bool{}
	for i := 0; i+1 < len(n.Content) && d.err == nil; i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		f, ok := fields[key.Value]
		if !ok {
			d.fail(key, "unknown field %q in %s; it may have %s", clip(key.Value), what, strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
			return
		}
		have[key.Value] = true
		f(value)
	}
	for _, r := range required {
		if !have[r] {
			d.fail(n, "%s has no %q", what, r)
		}
	}
}

func (d *decoder) list(n *yaml.Node, what string, most int, f func(*yaml.Node)) {
	switch {
	case n.Kind != yaml.SequenceNode:
		d.fail(n, "%s must be a list", what)
	case len(n.Content) == 0:
		d.fail(n, "%s is empty", what)
	case len(n.Content) > most:
		d.fail(n, "%s has %d entries, more than the %d allowed", what, len(n.Content), most)
	}
	for _, c := range n.Content {
		if d.err == nil {
			f(c)
		}
	}
}

func (d *decoder) text(n *yaml.Node, what string) string {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" || n.Value == "" {
		d.fail(n, "%s must be text", what)
		return ""
	}
	return n.Value
}

func (d *decoder) number(n *yaml.Node, what string, low, high int) int {
	v, err := strconv.Atoi(n.Value)
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || err != nil || v < low || v > high {
		d.fail(n, "%s must be a number from %d to %d", what, low, high)
	}
	return v
}

func (d *decoder) truth(n *yaml.Node, what string) bool {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" || (n.Value != "true" && n.Value != "false") {
		d.fail(n, "%s must be true or false", what)
	}
	return n.Value == "true"
}

func (d *decoder) policy(n *yaml.Node) {
	constant := func(what, want string) func(*yaml.Node) {
		return func(n *yaml.Node) {
			if got := d.text(n, what); d.err == nil && got != want {
				d.fail(n, "%s is %q, this version reads %q", what, clip(got), want)
			}
		}
	}
	d.object(n, "the policy", required(n), map[string]func(*yaml.Node){
		"apiVersion": constant("apiVersion", APIVersion),
		"kind":       constant("kind", Kind),
		"extends":    d.extends,
		"trust": func(n *yaml.Node) {
			d.object(n, "trust", nil, map[string]func(*yaml.Node){
				"builders":  func(n *yaml.Node) { d.list(n, "trust.builders", maxBuilders, d.builder) },
				"attesters": func(n *yaml.Node) { d.list(n, "trust.attesters", maxBuilders, d.attester) },
				"verifiers": func(n *yaml.Node) { d.list(n, "trust.verifiers", maxBuilders, d.verifier) },
				"sources":   func(n *yaml.Node) { d.list(n, "trust.sources", maxBuilders, d.system) },
				"reviewers": func(n *yaml.Node) { d.list(n, "trust.reviewers", maxBuilders, d.reviewer) },
			})
		},
		"images": func(n *yaml.Node) { d.list(n, "images", maxImages, d.image) },
	})
}

func (d *decoder) image(n *yaml.Node) {
	i := image{line: n.Line}
	d.object(n, "the image", []string{"match", "level"}, map[string]func(*yaml.Node){
		"match": func(n *yaml.Node) {
			i.match = d.text(n, "match")
			if strings.Contains(i.match, "***") {
				d.fail(n, "match %q: more than two stars in a row", clip(i.match))
			}
			if len(i.match) > 512 {
				d.fail(n, "match is longer than 512 bytes")
			}
		},
		"level": func(n *yaml.Node) {
			d.object(n, "level", []string{"build"}, map[string]func(*yaml.Node){
				"build":  func(n *yaml.Node) { i.level.Build = d.number(n, "level.build", 0, verify.MaxLevel) },
				"source": func(n *yaml.Node) { i.level.Source = d.number(n, "level.source", 0, verify.MaxSourceLevel) },
			})
		},
		"properties": func(n *yaml.Node) { i.level.Properties = d.properties(n, "properties") },
		"source": func(n *yaml.Node) {
			d.object(n, "source", []string{"repository"}, map[string]func(*yaml.Node){
				"repository": func(n *yaml.Node) {
					i.repository = d.text(n, "source.repository")
					if d.err == nil && !verify.SameRepository(i.repository, i.repository) {
						d.fail(n, "source.repository %q is not the address of a repository, such as https://HOST/OWNER/NAME", clip(i.repository))
					}
				},
				"allowChanges": func(n *yaml.Node) { i.allowChanges = d.truth(n, "source.allowChanges") },
				"ref":          func(n *yaml.Node) { i.ref = d.ref(n) },
				"workflow": func(n *yaml.Node) {
					p := d.pattern(n, "source.workflow")
					i.workflow = &p
				},
				"reviewMaxAge": func(n *yaml.Node) { i.reviewAge = d.span(n, "source.reviewMaxAge") },
			})
		},
		"buildTypes": func(n *yaml.Node) {
			d.list(n, "buildTypes", 100, func(n *yaml.Node) { i.buildTypes = append(i.buildTypes, d.text(n, "a build type")) })
		},
		"parameters":   func(n *yaml.Node) { i.parameters = d.parameters(n) },
		"dependencies": func(n *yaml.Node) { i.dependencies = d.dependencies(n) },
		"sbom": func(n *yaml.Node) {
			d.object(n, "sbom", []string{"required"}, map[string]func(*yaml.Node){
				"required": func(n *yaml.Node) { i.sbom = d.truth(n, "sbom.required") },
				"formats": func(n *yaml.Node) {
					d.list(n, "sbom.formats", 2, func(n *yaml.Node) {
						f := d.text(n, "a format")
						if d.err == nil && f != FormatSPDX && f != FormatCycloneDX {
							d.fail(n, "sbom format %q: this version knows %s and %s", clip(f), FormatSPDX, FormatCycloneDX)
						}
						i.formats = append(i.formats, f)
					})
				},
				"forbidden": func(n *yaml.Node) { d.forbidden(n, i.asked()) },
				"licenses":  func(n *yaml.Node) { d.licenses(n, i.asked()) },
				"effective": func(n *yaml.Node) { i.asked().effective = d.moment(n, "sbom.effective") },
			})
		},
		"approvals":       func(n *yaml.Node) { i.approvals = d.quorum(n, "approvals", "reviewers") },
		"signatures":      func(n *yaml.Node) { i.signatures = d.quorum(n, "signatures", "signers") },
		"vsa":             func(n *yaml.Node) { i.vsa = d.summary(n) },
		"rules":           func(n *yaml.Node) { d.rules(n, &i.demands) },
		"vulnerabilities": func(n *yaml.Node) { d.vulnerabilities(n, &i.demands) },
		"hardening":       func(n *yaml.Node) { d.hardening(n, &i.demands) },
		"waivers":         func(n *yaml.Node) { d.waivers(n, &i.demands) },
	})
	i.agree()
	d.out.images = append(d.out.images, i)
}

// ref reads a pattern of full git refs. A short name would be a branch's as well
// as a tag's, and so would a pattern that leaves open which.
func (d *decoder) ref(n *yaml.Node) *verify.Pattern {
	p := d.pattern(n, "source.ref")
	kind, name, _ := strings.Cut(strings.TrimPrefix(p.String(), "refs/"), "/")
	if d.err == nil && (!strings.HasPrefix(p.String(), "refs/") || kind == "" || name == "" || strings.Contains(kind, "*")) {
		d.fail(n, "source.ref %q must be a full git ref, such as refs/tags/v* or refs/heads/main: a branch may have the name of a tag", clip(p.String()))
	}
	return &p
}

// properties reads names of verified properties, each once.
func (d *decoder) properties(n *yaml.Node, what string) []string {
	var out []string
	d.list(n, what, len(verify.Properties()), func(n *yaml.Node) {
		name := d.text(n, what)
		switch {
		case d.err != nil:
		case slices.Contains(out, name):
			d.fail(n, "%s: %q stands twice", what, clip(name))
		case !slices.Contains(verify.Properties(), name):
			d.fail(n, "%s: %q is not a property that this version verifies; those are %s", what, clip(name), strings.Join(verify.Properties(), ", "))
		}
		out = append(out, name)
	})
	return verify.Demand{Properties: out}.And(verify.Demand{}).Properties
}

func (d *decoder) parameters(n *yaml.Node) map[string]allowed {
	out := map[string]allowed{}
	if n.Kind != yaml.MappingNode {
		d.fail(n, `parameters must map the name of a parameter to "any" or a list`)
		return nil
	}
	for i := 0; i+1 < len(n.Content) && d.err == nil; i += 2 {
		name, v := n.Content[i].Value, n.Content[i+1]
		switch {
		case v.Kind == yaml.ScalarNode && v.Value == "any":
			out[name] = allowed{any: true}
		case v.Kind == yaml.SequenceNode:
			a := allowed{values: []string{}}
			for _, c := range v.Content {
				if c.Kind != yaml.ScalarNode || c.Tag == "!!null" {
					d.fail(c, "parameters.%s: a list of plain values is wanted", clip(name))
				}
				a.values = append(a.values, c.Value)
			}
			out[name] = a
		default:
			d.fail(v, `parameters.%s must be "any" or a list`, clip(name))
		}
	}
	return out
}
