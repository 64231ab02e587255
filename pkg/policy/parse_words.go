package policy

import (
	"net/url"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

const maxAliases = 50

// verifier is somebody whose verification summaries count.
type verifier struct {
	id         string
	signer     signer
	levels     verify.Levels
	properties []string
	under
	maxAge time.Duration // 0: any age
}

// under is the one policy that a summary must have been made under; empty: any.
type under struct {
	policyURI    string
	policyDigest attest.Digest
}

// system is a source control system whose word counts about its repositories.
type system struct {
	repository string // a pattern
	signer     signer
	maxLevel   int
	twoParty   bool // believed about two-party review below Source L4 as well
}

// reviewer is a person whose reviews count.
type reviewer struct {
	name    string
	signer  signer
	aliases []string
}

func (d *decoder) verifier(n *yaml.Node) {
	var v verifier
	d.object(n, "the verifier", []string{"id", "signer"}, map[string]func(*yaml.Node){
		"id":     func(n *yaml.Node) { v.id = d.uri(n, "verifier id") },
		"signer": func(n *yaml.Node) { v.signer = d.signer(n) },
		"levels": func(n *yaml.Node) {
			d.object(n, "levels", nil, map[string]func(*yaml.Node){
				"build":  func(n *yaml.Node) { v.levels.Build = d.number(n, "levels.build", 0, verify.MaxLevel) },
				"source": func(n *yaml.Node) { v.levels.Source = d.number(n, "levels.source", 0, verify.MaxSourceLevel) },
			})
		},
		"properties": func(n *yaml.Node) { v.properties = d.properties(n, "properties") },
		"policy":     func(n *yaml.Node) { v.under = d.under(n, "policy") },
		"maxAge":     func(n *yaml.Node) { v.maxAge = d.span(n, "maxAge") },
	})
	switch {
	case d.err != nil:
		return
	case v.levels == verify.Levels{} && len(v.properties) == 0:
		d.fail(n, `verifier %q has neither "levels" nor "properties", so its word would count for nothing`, clip(v.id))
	case slices.ContainsFunc(d.out.verifiers, func(o verifier) bool { return o.id == v.id && o.signer.line() == v.signer.line() }):
		d.fail(n, "verifier %q with this signer stands twice", clip(v.id))
	}
	d.out.verifiers = append(d.out.verifiers, v)
	d.out.signers.add(v.signer)
}

func (d *decoder) system(n *yaml.Node) {
	var s system
	d.object(n, "the source control system", []string{"repository", "signer", "maxLevel"}, map[string]func(*yaml.Node){
		"repository": func(n *yaml.Node) {
			s.repository = d.text(n, "repository")
			host, _, path := strings.Cut(strings.TrimPrefix(s.repository, "https://"), "/")
			switch {
			case d.err != nil:
			case !strings.HasPrefix(s.repository, "https://") || host == "" || strings.Contains(host, "*") || !path:
				d.fail(n, "repository %q: a pattern as https://HOST/OWNER/**, with the host written out", clip(s.repository))
			case strings.Contains(s.repository, "***") || len(s.repository) > 512:
				d.fail(n, "repository %q: more than two stars in a row, or longer than 512 bytes", clip(s.repository))
			}
		},
		"signer":   func(n *yaml.Node) { s.signer = d.signer(n) },
		"maxLevel": func(n *yaml.Node) { s.maxLevel = d.number(n, "maxLevel", 1, verify.MaxSourceLevel) },
		"properties": func(n *yaml.Node) {
			for _, name := range d.properties(n, "properties") {
				if d.err == nil && name != verify.PropertyTwoParty {
					d.fail(n, "properties: source provenance says nothing of %s; it may show %s", name, verify.PropertyTwoParty)
				}
			}
			s.twoParty = true
		},
	})
	// Source L4 is two-party review, for all that goes into a branch.
	s.twoParty = s.twoParty || s.maxLevel >= verify.MaxSourceLevel
	if d.err != nil {
		return
	}
	d.out.systems = append(d.out.systems, s)
	d.out.signers.add(s.signer)
}

func (d *decoder) reviewer(n *yaml.Node) {
	var r reviewer
	d.object(n, "the reviewer", []string{"name", "signer"}, map[string]func(*yaml.Node){
		"name":   func(n *yaml.Node) { r.name = d.line(n, "name") },
		"signer": func(n *yaml.Node) { r.signer = d.signer(n) },
		"aliases": func(n *yaml.Node) {
			d.list(n, "aliases", maxAliases, func(n *yaml.Node) { r.aliases = append(r.aliases, d.line(n, "an alias")) })
		},
	})
	if d.err != nil {
		return
	}
	d.out.reviewers = append(d.out.reviewers, r)
	d.out.signers.add(r.signer)
}

func (d *decoder) quorum(n *yaml.Node, what, kind string) *Quorum {
	a := &Quorum{kind: kind}
	d.object(n, what, []string{"atLeast"}, map[string]func(*yaml.Node){
		"atLeast": func(n *yaml.Node) { a.AtLeast = d.number(n, what+".atLeast", 1, maxBuilders) },
		"of": func(n *yaml.Node) {
			d.list(n, what+".of", maxBuilders, func(n *yaml.Node) {
				name := d.line(n, what+".of")
				if d.err == nil && a.Counts(name) && len(a.Of) > 0 {
					d.fail(n, "%s.of: %q stands twice", what, clip(name))
				}
				a.Of = append(a.Of, name)
			})
		},
	})
	return a
}

func (d *decoder) uri(n *yaml.Node, what string) string {
	s := d.text(n, what)
	if u, err := url.Parse(s); d.err == nil && (err != nil || u.Scheme == "") {
		d.fail(n, "%s %q is not a URI", what, clip(s))
	}
	return s
}

// What a policy can delegate to a verification summary.
const (
	delegateBuild      = "build"
	delegateSource     = "source"
	delegateProperties = "properties"
)

// summary is what an image's verification summary must be like, and what it
// stands in for.
type summary struct {
	verifiers []string
	under
	maxAge      time.Duration
	resourceURI string
	names       []string
	required    bool
	delegates   []string
}

func (d *decoder) summary(n *yaml.Node) *summary {
	s := &summary{}
	d.object(n, "vsa", nil, map[string]func(*yaml.Node){
		"verifiers": func(n *yaml.Node) {
			d.list(n, "vsa.verifiers", maxBuilders, func(n *yaml.Node) { s.verifiers = append(s.verifiers, d.uri(n, "vsa.verifiers:")) })
		},
		"policy":      func(n *yaml.Node) { s.under = d.under(n, "vsa.policy") },
		"maxAge":      func(n *yaml.Node) { s.maxAge = d.span(n, "vsa.maxAge") },
		"resourceUri": func(n *yaml.Node) { s.resourceURI = d.text(n, "vsa.resourceUri") },
		"names": func(n *yaml.Node) {
			d.list(n, "vsa.names", 100, func(n *yaml.Node) {
				name := d.text(n, "vsa.names")
				if d.err == nil && strings.HasPrefix(name, "SLSA_") {
					d.fail(n, "vsa.names: %q is SLSA's; demand it by level or properties", clip(name))
				}
				s.names = append(s.names, name)
			})
		},
		"required": func(n *yaml.Node) { s.required = d.truth(n, "vsa.required") },
		"delegates": func(n *yaml.Node) {
			d.list(n, "vsa.delegates", 3, func(n *yaml.Node) {
				what := d.text(n, "vsa.delegates")
				switch {
				case d.err != nil:
				case !slices.Contains([]string{delegateBuild, delegateSource, delegateProperties}, what):
					d.fail(n, "vsa.delegates: %q cannot be delegated; build, source and properties can", clip(what))
				case slices.Contains(s.delegates, what):
					d.fail(n, "vsa.delegates: %q stands twice", what)
				}
				s.delegates = append(s.delegates, what)
			})
		},
	})
	if d.err == nil && !s.required && len(s.delegates) == 0 {
		d.fail(n, `vsa has neither "required" nor "delegates", so it would do nothing`)
	}
	return s
}

// approvable refuses an image that more people must approve than there are.
func (d *decoder) approvable(n *yaml.Node, i image) {
	if i.approvals == nil {
		return
	}
	people := map[string]bool{}
	for _, r := range d.out.reviewers {
		if i.approvals.Counts(r.name) {
			people[strings.ToLower(strings.TrimSpace(r.name))] = true
		}
	}
	for _, name := range i.approvals.Of {
		if !slices.ContainsFunc(d.out.reviewers, func(r reviewer) bool { return samePerson(r.name, name) }) {
			d.fail(n, "approvals of %q names %q, and trust.reviewers does not", clip(i.match), clip(name))
		}
	}
	if len(people) < i.approvals.AtLeast {
		d.fail(n, "approvals of %q asks for %d people, and trust.reviewers has %d who count", clip(i.match), i.approvals.AtLeast, len(people))
	}
}

// signable refuses an image whose provenance more must sign than could.
func (d *decoder) signable(n *yaml.Node, i image) {
	q := i.signatures
	if q == nil {
		return
	}
	for _, name := range q.Of {
		if !slices.ContainsFunc(d.out.builders, func(b builder) bool { return b.name != "" && samePerson(b.name, name) }) {
			d.fail(n, "signatures of %q names %q, and no builder has that name", clip(i.match), clip(name))
		}
	}
	could, open := map[string]bool{}, false
	for _, b := range d.out.builders {
		switch {
		case b.name != "" && q.Counts(b.name):
			could[strings.ToLower(strings.TrimSpace(b.name))] = true
		case b.name != "" || len(q.Of) > 0:
		case b.signer.identity != nil:
			open = true // nobody knows how many have a name like this
		default:
			could[string(b.signer.key.ID())] = true
		}
	}
	if len(could) < q.AtLeast && !open {
		d.fail(n, "signatures of %q asks for %d signers, and trust.builders has %d who count", clip(i.match), q.AtLeast, len(could))
	}
}

func (d *decoder) under(n *yaml.Node, what string) under {
	var u under
	d.object(n, what, []string{"uri"}, map[string]func(*yaml.Node){
		"uri": func(n *yaml.Node) { u.policyURI = d.text(n, what+".uri") },
		"digest": func(n *yaml.Node) {
			var err error
			if u.policyDigest, err = attest.ParseDigest(d.text(n, what+".digest")); d.err == nil && err != nil {
				d.fail(n, "%s.digest %q is not a sha256 digest", what, clip(n.Value))
			}
		},
	})
	return u
}

// trusted refuses reviewers and signers who are one person, and an image whose summaries
// nobody could give.
func (d *decoder) trusted(n *yaml.Node) {
	for i, r := range d.out.reviewers {
		for _, o := range d.out.reviewers[:i] {
			if !samePerson(o.name, r.name) && o.signer.like(r.signer) {
				d.fail(n, "the reviewers %q and %q have one signer; a person stands under one name, with all aliases", clip(o.name), clip(r.name))
			}
		}
	}
	for i, b := range d.out.builders {
		for _, o := range d.out.builders[:i] {
			if b.name != "" && o.name != "" && !samePerson(o.name, b.name) && o.signer.like(b.signer) {
				d.fail(n, "the builders called %q and %q have one signer, who can have one name only", clip(o.name), clip(b.name))
			}
		}
	}
	for _, i := range d.out.images {
		n := &yaml.Node{Line: i.line}
		d.approvable(n, i)
		d.signable(n, i)
		if i.vsa == nil {
			continue
		}
		if len(d.out.verifiers) == 0 {
			d.fail(n, `%q has "vsa", and trust has no "verifiers"`, clip(i.match))
		}
		for _, id := range i.vsa.verifiers {
			if !slices.ContainsFunc(d.out.verifiers, func(v verifier) bool { return v.id == id }) {
				d.fail(n, "vsa of %q names verifier %q, and trust.verifiers does not", clip(i.match), clip(id))
			}
		}
	}
}
