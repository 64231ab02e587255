package policy

import (
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

const (
	maxExtends = 5 // policies above one another
	maxRules   = 100
	maxWaivers = 1000
	maxText    = 500 // bytes of a message or a reason
)

// required lists the fields that a policy must have; one that extends another
// may take all but the first two from there.
func required(n *yaml.Node) []string {
	out := []string{"apiVersion", "kind"}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == "extends" {
			return out
		}
	}
	return append(out, "trust", "images")
}

// extends takes over all of another policy: whom it trusts, and its entries,
// which hold together with this one's. The digest makes it part of this one.
func (d *decoder) extends(n *yaml.Node) {
	var file, digest string
	d.object(n, "extends", []string{"file", "digest"}, map[string]func(*yaml.Node){
		"file":   func(n *yaml.Node) { file = d.text(n, "extends.file") },
		"digest": func(n *yaml.Node) { digest = d.text(n, "extends.digest") },
	})
	if d.err != nil {
		return
	}
	want, err := attest.ParseDigest(digest)
	switch {
	case err != nil:
		d.fail(n, "extends.digest %q is not a sha256 digest", clip(digest))
		return
	case d.opts.ReadPolicy == nil:
		d.fail(n, "it extends %q, and this policy has no folder to look in", clip(file))
		return
	}
	raw, opts, err := d.opts.ReadPolicy(file)
	opts.chain = append(slices.Clone(d.opts.chain), filepath.Clean(d.opts.Name))
	switch {
	case err != nil:
		d.fail(n, "reading the policy that it extends: %w", err)
	case slices.Contains(opts.chain, filepath.Clean(opts.Name)):
		d.fail(n, "it extends %q, which extends this one: a circle", clip(file))
	case len(opts.chain) >= maxExtends:
		d.fail(n, "more than %d policies extend one another", maxExtends)
	case attest.DigestOf(raw) != want:
		d.fail(n, "it extends %q with digest %s, and that file has %s: look at what changed there before you take it over", clip(file), verify.Short(want), verify.Short(attest.DigestOf(raw)))
	}
	if d.err != nil {
		return
	}
	base, err := parse(raw, opts)
	if err != nil {
		d.fail(n, "in %q, which it extends: %w", clip(file), err)
		return
	}
	d.out.adopt(base)
	d.out.extends = append([]attest.Digest{want}, base.extends...)
}

// attester is somebody whose word counts for kinds of evidence that say
// nothing of the build.
func (d *decoder) attester(n *yaml.Node) {
	var kinds []Fact
	var by signer
	d.object(n, "the attester", []string{"signer", "for"}, map[string]func(*yaml.Node){
		"signer": func(n *yaml.Node) { by = d.signer(n) },
		"for": func(n *yaml.Node) {
			d.list(n, "attester.for", 3, func(n *yaml.Node) {
				k := Fact(d.text(n, "an entry of for"))
				if d.err == nil && !slices.Contains([]Fact{FactSBOM, FactScan, FactVEX}, k) {
					d.fail(n, "attester for %q: it can be for sbom, scan and vex", clip(string(k)))
				}
				kinds = append(kinds, k)
			})
		},
	})
	if d.err != nil {
		return
	}
	for _, k := range kinds {
		d.out.speakers = append(d.out.speakers, by.builder(string(k), 1))
		d.out.attesters = append(d.out.attesters, attester{by, k})
	}
	d.out.signers.add(by)
}

type attester struct {
	by   signer
	fact Fact
}

// settle checks what only the whole policy shows.
func (d *decoder) settle(n *yaml.Node) {
	if d.err != nil {
		return
	}
	switch {
	case len(d.out.builders)+len(d.out.verifiers) == 0:
		d.fail(n, `trust has neither "builders" nor "verifiers"`)
	case len(d.out.images) == 0:
		d.fail(n, `the policy has no "images"`)
	case len(d.out.images) > maxImages || len(d.out.builders) > maxBuilders:
		d.fail(n, "with what it extends, more than %d images or %d builders", maxImages, maxBuilders)
	}
	d.anchors(n)
	d.trusted(n)
	d.revoked(n)
	texts := map[string]string{}
	for _, i := range d.out.images {
		for _, r := range i.rules {
			if text, ok := texts[r.name]; ok && text != r.text {
				d.fail(n, "two rules are called %q and say different things; a waiver could not tell them apart", clip(r.name))
			}
			texts[r.name] = r.text
		}
	}
	for _, i := range d.out.images {
		for _, w := range i.waivers {
			if _, ok := texts[w.Rule]; w.Rule != "" && !ok {
				d.fail(&yaml.Node{Line: i.line}, "a waiver of %q names rule %q, and there is none", clip(i.match), clip(w.Rule))
			}
		}
	}
}

// moment is a day, from its beginning in UTC, or a time.
func (d *decoder) moment(n *yaml.Node, what string) time.Time {
	if n.Kind == yaml.ScalarNode && (n.Tag == "!!str" || n.Tag == "!!timestamp") {
		if t, ok := date(n.Value); ok && !t.IsZero() {
			return t
		}
	}
	d.fail(n, "%s must be a day as 2026-12-01 or a time as 2026-12-01T12:00:00Z", what)
	return time.Time{}
}

func (d *decoder) span(n *yaml.Node, what string) time.Duration {
	m := regexp.MustCompile(`^([1-9][0-9]{0,4})([mhd])$`).FindStringSubmatch(n.Value)
	if n.Kind != yaml.ScalarNode || m == nil {
		d.fail(n, "%s must be a span of time as 24h or 30d", what)
		return 0
	}
	count, _ := strconv.Atoi(m[1])
	unit := map[string]time.Duration{"m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}[m[2]]
	return time.Duration(count) * unit
}

// line is text for people, of one line.
func (d *decoder) line(n *yaml.Node, what string) string {
	s := strings.TrimSpace(d.text(n, what))
	switch {
	case d.err != nil:
	case s == "":
		d.fail(n, "%s must be text", what)
	case len(s) > maxText:
		d.fail(n, "%s is longer than %d bytes", what, maxText)
	case oneLine(s) != s && len(s) <= 120:
		d.fail(n, "%s must be one line", what)
	}
	return s
}

func (d *decoder) rules(n *yaml.Node, out *demands) {
	d.list(n, "rules", maxRules, func(n *yaml.Node) {
		var name, text, message string
		var effective time.Time
		d.object(n, "the rule", []string{"name", "expr"}, map[string]func(*yaml.Node){
			"name": func(n *yaml.Node) { name = d.line(n, "a rule's name") },
			"expr": func(n *yaml.Node) {
				if text = d.text(n, "a rule's expr"); len(text) > attest.MaxRuleText {
					d.fail(n, "a rule's expr is longer than %d bytes", attest.MaxRuleText)
				}
			},
			"message":   func(n *yaml.Node) { message = d.line(n, "a rule's message") },
			"effective": func(n *yaml.Node) { effective = d.moment(n, "a rule's effective") },
		})
		if d.err != nil {
			return
		}
		if slices.ContainsFunc(out.rules, func(r rule) bool { return r.name == name }) {
			d.fail(n, "rule %q stands twice", clip(name))
			return
		}
		if d.lang == nil {
			lang, err := newLanguage()
			if err != nil {
				d.fail(n, "%w", err)
				return
			}
			d.lang = lang
		}
		x, err := d.lang.compile(name, text)
		if err != nil {
			d.fail(n, "%w", err)
			return
		}
		x.message = message
		out.rules = append(out.rules, rule{x, effective})
	})
}

// asked is the entry's demand on packages, made when something is asked.
func (i *image) asked() *packageDemand {
	if i.packages == nil {
		i.packages = &packageDemand{}
	}
	return i.packages
}

// agree settles who asks for the SBOM: the entry at once, or its demand from a
// date on.
func (i *image) agree() {
	switch p := i.packages; {
	case p == nil:
	case i.later():
		p.formats = i.formats
	case len(p.forbidden) == 0 && p.licenses == nil:
		i.packages = nil
	}
}

// later reports whether the entry asks for an SBOM only from a date on.
func (i *image) later() bool {
	return i.sbom && i.packages != nil && !i.packages.effective.IsZero()
}

func (d *decoder) forbidden(n *yaml.Node, out *packageDemand) {
	d.list(n, "sbom.forbidden", 1000, func(n *yaml.Node) {
		p, err := parsePattern(d.text(n, "a forbidden package"))
		if err != nil {
			d.fail(n, "%w", err)
		}
		out.forbidden = append(out.forbidden, p)
	})
}

func (d *decoder) licenses(n *yaml.Node, out *packageDemand) {
	l := &licenses{}
	ids := func(to *[]string, what string) func(*yaml.Node) {
		return func(n *yaml.Node) {
			d.list(n, what, 1000, func(n *yaml.Node) {
				id := d.text(n, "a licence")
				if strings.Contains(id, "***") || strings.ContainsAny(id, "/()") {
					d.fail(n, "licence %q is not the id of one licence, as MIT or GPL-3.0-*", clip(id))
				}
				*to = append(*to, id)
			})
		}
	}
	d.object(n, "sbom.licenses", nil, map[string]func(*yaml.Node){
		"allow": ids(&l.allow, "licenses.allow"),
		"deny":  ids(&l.deny, "licenses.deny"),
		"unknown": func(n *yaml.Node) {
			switch word := d.text(n, "licenses.unknown"); word {
			case "allow":
				l.allowUnknown = true
			case "deny":
			default:
				d.fail(n, "licenses.unknown must be allow or deny")
			}
		},
	})
	if d.err == nil && len(l.allow) == 0 && len(l.deny) == 0 {
		d.fail(n, `sbom.licenses must have "allow" or "deny"`)
	}
	out.licenses = l
}

func (d *decoder) vulnerabilities(n *yaml.Node, out *demands) {
	v := &vulnDemand{limits: map[Severity]int{}, sla: map[Severity]time.Duration{}}
	bySeverity := func(what string, f func(Severity, *yaml.Node)) func(*yaml.Node) {
		return func(n *yaml.Node) {
			fields := map[string]func(*yaml.Node){}
			for _, s := range severities() {
				fields[string(s)] = func(n *yaml.Node) { f(s, n) }
			}
			d.object(n, what, nil, fields)
			if d.err == nil && len(n.Content) == 0 {
				d.fail(n, "%s is empty", what)
			}
		}
	}
	d.object(n, "vulnerabilities", nil, map[string]func(*yaml.Node){
		"limits": bySeverity("vulnerabilities.limits", func(s Severity, n *yaml.Node) {
			v.limits[s] = d.number(n, "vulnerabilities.limits."+string(s), 0, attest.MaxFindings)
		}),
		"sla": bySeverity("vulnerabilities.sla", func(s Severity, n *yaml.Node) {
			v.sla[s] = d.span(n, "vulnerabilities.sla."+string(s))
		}),
		"fixableOnly": func(n *yaml.Node) { v.fixableOnly = d.truth(n, "vulnerabilities.fixableOnly") },
		"maxAge":      func(n *yaml.Node) { v.maxAge = d.span(n, "vulnerabilities.maxAge") },
		"effective":   func(n *yaml.Node) { v.effective = d.moment(n, "vulnerabilities.effective") },
	})
	if d.err == nil && len(v.limits) == 0 && len(v.sla) == 0 && v.maxAge == 0 {
		d.fail(n, `vulnerabilities must have one of "limits", "sla" and "maxAge"`)
	}
	out.vulns = v
}

func (d *decoder) hardening(n *yaml.Node, out *demands) {
	h, asked := &hardening{}, false
	d.object(n, "hardening", nil, map[string]func(*yaml.Node){
		"nonRoot": func(n *yaml.Node) {
			asked = true
			if n.Value == "numeric" && n.Tag == "!!str" {
				h.nonRoot = "numeric"
			} else if n.Tag != "!!bool" {
				d.fail(n, "hardening.nonRoot must be true, false or numeric")
			} else if d.truth(n, "hardening.nonRoot") {
				h.nonRoot = "true"
			}
		},
		"noSecrets": func(n *yaml.Node) {
			asked = true
			if d.truth(n, "hardening.noSecrets") {
				h.secrets = newDetector()
			}
		},
		"effective": func(n *yaml.Node) { h.effective = d.moment(n, "hardening.effective") },
	})
	if !asked && d.err == nil {
		d.fail(n, `hardening must have "nonRoot" or "noSecrets"`)
	}
	if h.nonRoot != "" || h.secrets != nil {
		out.hardening = h
	}
}

func (d *decoder) waivers(n *yaml.Node, out *demands) {
	d.list(n, "waivers", maxWaivers, func(n *yaml.Node) {
		var w Waiver
		targets := 0
		d.object(n, "the waiver", []string{"reason", "owner", "expires"}, map[string]func(*yaml.Node){
			"requirement": func(n *yaml.Node) {
				w.Requirement = d.text(n, "waiver.requirement")
				targets++
				if d.err == nil && !slices.Contains(waivable(), w.Requirement) {
					d.fail(n, "waiver.requirement %q is none that can be waived; %s", clip(w.Requirement), meant(w.Requirement))
				}
			},
			"rule":          func(n *yaml.Node) { w.Rule = d.text(n, "waiver.rule"); targets++ },
			"vulnerability": func(n *yaml.Node) { w.Vulnerability = d.text(n, "waiver.vulnerability"); targets++ },
			"reason":        func(n *yaml.Node) { w.Reason = d.line(n, "waiver.reason") },
			"owner":         func(n *yaml.Node) { w.Owner = d.line(n, "waiver.owner") },
			"expires":       func(n *yaml.Node) { w.Expires = d.moment(n, "waiver.expires") },
		})
		if d.err == nil && targets != 1 {
			d.fail(n, `a waiver must have one of "requirement", "rule" and "vulnerability"`)
		}
		out.waivers = append(out.waivers, w)
	})
}

// adopt takes over what a policy that is extended says.
func (p *Policy) adopt(base *Policy) {
	p.builders = append(p.builders, base.builders...)
	p.images = append(p.images, base.images...)
	p.speakers = append(p.speakers, base.speakers...)
	p.attesters = append(p.attesters, base.attesters...)
	p.verifiers = append(p.verifiers, base.verifiers...)
	p.systems = append(p.systems, base.systems...)
	p.reviewers = append(p.reviewers, base.reviewers...)
	p.signers.add(base.signers.all...)
	p.files = append(p.files, base.files...)
}

// Extends lists the digests of the policies that this one extends, the nearest
// first.
func (p *Policy) Extends() []attest.Digest { return slices.Clone(p.extends) }

// Speaks reports whether a signer's word counts for a kind of evidence: that
// of a builder, where it signs for one, for SBOMs, scans and records of inputs,
// that of an attester for what the policy names. VEX, which excuses, counts from attesters alone.
func (p *Policy) Speaks(signer verify.Signer, k Fact) bool {
	t := verify.Trust{Builders: slices.Clone(p.speakers)}
	if k == FactSBOM || k == FactScan || k == FactInputs {
		for _, b := range p.builders {
			if b.speaks() {
				b.trust.ID, b.trust.MaxLevel = string(k), 1
				t.Builders = append(t.Builders, b.trust)
			}
		}
	}
	if len(t.Builders) == 0 {
		return false
	}
	return t.Cap(signer, string(k)).Level > 0
}
