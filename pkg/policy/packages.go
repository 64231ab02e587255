package policy

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/sbom"
)

// SBOM is a signed SBOM's packages.
type SBOM struct {
	Format   string
	Bundle   attest.Digest
	Packages []Package
	// Unread are the package databases that it says it lacks, see sbom.Summary.
	Unread string
}

// Package is one package of an SBOM.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	PURL    string `json:"purl"`
	// Licenses holds SPDX expressions, or names where an SBOM has no more.
	// All of them apply.
	Licenses []string `json:"licenses"`

	bare string            // the name without its group, where it has one
	refs map[string]string // what the document calls licences of its own, by id
	// whole: it stands for the image or its operating system, which have no
	// licence of their own.
	whole bool
}

// ReadSBOM reads the packages of an SBOM predicate, strictly. Entries for single
// files are left out.
func ReadSBOM(format string, predicate json.RawMessage) (SBOM, error) {
	if len(predicate) > attest.MaxSBOM {
		return SBOM{}, fmt.Errorf("reading an SBOM: %d bytes, more than the %d allowed", len(predicate), attest.MaxSBOM)
	}
	if _, _, err := SBOMContent(format, predicate); err != nil {
		return SBOM{}, fmt.Errorf("reading an SBOM: %w", err)
	}
	read := readSPDX
	if format == FormatCycloneDX {
		read = readCycloneDX
	}
	packages, unread, err := read(predicate)
	if err != nil {
		return SBOM{}, fmt.Errorf("reading an SBOM: %w", err)
	}
	return SBOM{Format: format, Packages: packages, Unread: unread}, nil
}

func tooMany(what string, most int) error {
	return fmt.Errorf("more than the %d %s allowed", most, what)
}

func readSPDX(raw json.RawMessage) (_ []Package, unread string, _ error) {
	var in struct {
		Comment   string   `json:"comment"`
		Describes []string `json:"documentDescribes"`
		Packages  []struct {
			ID        string `json:"SPDXID"`
			Name      string `json:"name"`
			Version   string `json:"versionInfo"`
			Concluded string `json:"licenseConcluded"`
			Declared  string `json:"licenseDeclared"`
			Refs      []struct {
				Type    string `json:"referenceType"`
				Locator string `json:"referenceLocator"`
			} `json:"externalRefs"`
		} `json:"packages"`
		Own []struct {
			ID   string `json:"licenseId"`
			Name string `json:"name"`
		} `json:"hasExtractedLicensingInfos"`
		Relationships []struct {
			From string `json:"spdxElementId"`
			To   string `json:"relatedSpdxElement"`
			Type string `json:"relationshipType"`
		} `json:"relationships"`
	}
	if err := attest.UnmarshalStrict(raw, &in); err != nil {
		return nil, "", err
	}
	if len(in.Packages) > attest.MaxPackages {
		return nil, "", tooMany("packages", attest.MaxPackages)
	}
	itself := map[string]bool{}
	for _, id := range in.Describes {
		itself[id] = true
	}
	for _, r := range in.Relationships {
		if r.Type == "DESCRIBES" && r.From == "SPDXRef-DOCUMENT" {
			itself[r.To] = true
		}
	}
	refs := map[string]string{}
	for _, l := range in.Own {
		refs[l.ID] = l.Name
	}
	var out []Package
	for _, p := range in.Packages {
		next := Package{Name: p.Name, Version: p.Version, whole: itself[p.ID], refs: refs}
		for _, r := range p.Refs {
			if r.Type == "purl" && next.PURL == "" {
				next.PURL = r.Locator
			}
		}
		license := p.Concluded
		if !said(license) {
			license = p.Declared
		}
		if said(license) {
			next.Licenses = []string{license}
		}
		out = append(out, next)
	}
	return out, sbom.Unread(in.Comment), nil
}

func said(license string) bool {
	return license != "" && license != "NOASSERTION" && license != "NONE"
}

type component struct {
	Type     string `json:"type"`
	Group    string `json:"group"`
	Name     string `json:"name"`
	Version  string `json:"version"`
	PURL     string `json:"purl"`
	Licenses []struct {
		License *struct {
			ID   string `json:"id"`
			Name string `json:"name"`
		} `json:"license"`
		Expression string `json:"expression"`
	} `json:"licenses"`
	Components []component `json:"components"`
}

func readCycloneDX(raw json.RawMessage) (_ []Package, unread string, _ error) {
	var in struct {
		Properties []sbom.Property `json:"properties"`
		Components []component     `json:"components"`
	}
	if err := attest.UnmarshalStrict(raw, &in); err != nil {
		return nil, "", err
	}
	var out []Package
	queue := in.Components
	for len(queue) > 0 {
		c := queue[0]
		queue = append(queue[1:], c.Components...)
		if c.Type == "file" {
			continue
		}
		if len(out) == attest.MaxPackages {
			return nil, "", tooMany("packages", attest.MaxPackages)
		}
		p := Package{Name: c.Name, Version: c.Version, PURL: c.PURL, whole: c.Type == "operating-system" || c.Type == "container"}
		if c.Group != "" {
			p.Name, p.bare = c.Group+"/"+c.Name, c.Name
		}
		for _, l := range c.Licenses {
			switch {
			case l.Expression != "":
				p.Licenses = append(p.Licenses, l.Expression)
			case l.License != nil && l.License.ID != "":
				p.Licenses = append(p.Licenses, l.License.ID)
			case l.License != nil && l.License.Name != "":
				p.Licenses = append(p.Licenses, l.License.Name)
			}
		}
		out = append(out, p)
	}
	return out, sbom.Unread("", in.Properties...), nil
}

// purl is a package URL without qualifiers and subpath, with its escapes
// undone, apart at the version.
type purl struct{ name, version string }

func parsePURL(s string) (purl, bool) {
	s, _, _ = strings.Cut(s, "#")
	s, _, _ = strings.Cut(s, "?")
	// Slashes behind the scheme mean nothing.
	kind, rest, ok := strings.Cut(strings.TrimLeft(strings.TrimPrefix(s, "pkg:"), "/"), "/")
	if !ok || !strings.HasPrefix(s, "pkg:") || kind == "" || rest == "" {
		return purl{}, false
	}
	name, version := rest, ""
	// An "@" in a name is escaped, but for scopes that some tools write plain.
	if i := strings.LastIndexByte(rest, '@'); i > strings.LastIndexByte(rest, '/')+1 {
		name, version = rest[:i], rest[i+1:]
	}
	kind, name = strings.ToLower(kind), unescape(name)
	// https://github.com/package-url/purl-spec/blob/main/PURL-TYPES.rst: of these the
	// letter case of a name says nothing, and tools write both.
	switch kind {
	case "pypi":
		name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	case "alpm", "apk", "bitbucket", "composer", "deb", "github", "golang", "hex", "oci":
		name = strings.ToLower(name)
	}
	return purl{"pkg:" + kind + "/" + name, unescape(version)}, true
}

func unescape(s string) string {
	if u, err := url.PathUnescape(s); err == nil {
		return u
	}
	return s
}

// pattern forbids packages: "pkg:TYPE/NAME@VERSION" by package URL, without a
// version each of them, and without "pkg:" by name. Stars as for images.
type pattern struct {
	text string
	purl purl
}

func parsePattern(s string) (pattern, error) {
	p := pattern{text: s}
	if strings.Contains(s, "***") {
		return p, fmt.Errorf("pattern %q: more than two stars in a row", clip(s))
	}
	if !strings.HasPrefix(s, "pkg:") {
		return p, nil
	}
	if strings.ContainsAny(s, "?#") {
		return p, fmt.Errorf("pattern %q: qualifiers and subpaths are not compared; leave them out", clip(s))
	}
	var ok bool
	if p.purl, ok = parsePURL(s); !ok {
		return p, fmt.Errorf("pattern %q is not a package URL such as pkg:npm/left-pad or pkg:deb/debian/openssl@1.*", clip(s))
	}
	return p, nil
}

func (p pattern) covers(pkg Package) bool {
	if p.purl.name == "" {
		return matches(p.text, pkg.Name) || pkg.bare != "" && matches(p.text, pkg.bare)
	}
	is, ok := parsePURL(pkg.PURL)
	return ok && matches(p.purl.name, is.name) && (p.purl.version == "" || matches(p.purl.version, is.version))
}

// licenses is what licences a package may have.
type licenses struct {
	allow, deny  []string
	allowUnknown bool
}

// refuses says why a package's licences are not allowed, "" when they are.
func (l *licenses) refuses(p Package) string {
	if len(p.Licenses) == 0 {
		if l.allowUnknown || p.whole {
			return ""
		}
		return "has no licence stated"
	}
	for _, text := range p.Licenses {
		// A choice ("OR") is made in favour of what is allowed. What is no
		// expression is a name, as is what stands for a licence of the document's.
		ok, err := evaluate(text, func(id string) bool {
			if name := p.refs[id]; name != "" && !l.denied(id) {
				return l.allowed(id) && !l.holds(name) || l.named(name)
			}
			return l.allowed(id)
		})
		if err != nil {
			ok = l.named(text)
		}
		if !ok {
			return fmt.Sprintf("has the licence %q, which is not allowed", clip(text))
		}
	}
	return ""
}

func (l *licenses) allowed(id string) bool {
	if !said(id) {
		return l.allowUnknown
	}
	return !l.denied(id) && (len(l.allow) == 0 || among(l.allow, id))
}

// named judges a name, which may not hold a licence that is denied.
func (l *licenses) named(name string) bool { return l.allowed(name) && !l.holds(name) }

func (l *licenses) holds(name string) bool { return slices.ContainsFunc(words(name), l.denied) }

func (l *licenses) denied(id string) bool { return among(l.deny, id) }

// among compares as SPDX does, without letter case. An exception ("WITH") only
// ever permits more, so a licence stands for itself with any.
func among(list []string, id string) bool {
	id = strings.ToLower(strings.ReplaceAll(id, "/", " "))
	base, with, exception := strings.Cut(id, " with ")
	base = today(base)
	if id = base; exception {
		id += " with " + with
	}
	return slices.ContainsFunc(list, func(p string) bool {
		p, with, exceptionToo := strings.Cut(strings.ToLower(p), " with ")
		if p = today(p); exceptionToo {
			p += " with " + with
		}
		return matches(p, id) || exception && matches(p, base)
	})
}

// today is how SPDX spells a licence of the GNU project, which it spelled without
// "-only" and with "+" before.
func today(id string) string {
	family, version, _ := strings.Cut(id, "-")
	switch {
	case !slices.Contains([]string{"gpl", "lgpl", "agpl", "gfdl"}, family) || version == "" || strings.Trim(version, "0123456789.+") != "":
		return id
	case strings.HasSuffix(id, "+"):
		return strings.TrimSuffix(id, "+") + "-or-later"
	}
	return id + "-only"
}

func words(expression string) []string {
	return strings.Fields(strings.NewReplacer("(", " ( ", ")", " ) ", ",", " ", ";", " ", "/", " ").Replace(expression))
}

// evaluate reads an SPDX licence expression and asks ok about each licence in
// it. https://spdx.github.io/spdx-spec/v2.3/SPDX-license-expressions/
func evaluate(text string, ok func(id string) bool) (bool, error) {
	if len(text) > 4096 {
		return false, fmt.Errorf("a licence expression of %d bytes", len(text))
	}
	p := licenseParser{words: words(text), ok: ok}
	v, err := p.or(0)
	if err == nil && len(p.words) > 0 {
		err = fmt.Errorf("%q is left over", clip(p.words[0]))
	}
	return v, err
}

type licenseParser struct {
	words []string
	ok    func(id string) bool
}

func (p *licenseParser) next(word string) bool {
	if len(p.words) > 0 && strings.EqualFold(p.words[0], word) {
		p.words = p.words[1:]
		return true
	}
	return false
}

func (p *licenseParser) or(depth int) (bool, error) {
	v, err := p.and(depth)
	for err == nil && p.next("OR") {
		var w bool
		w, err = p.and(depth)
		v = v || w
	}
	return v, err
}

func (p *licenseParser) and(depth int) (bool, error) {
	v, err := p.one(depth)
	for err == nil && p.next("AND") {
		var w bool
		w, err = p.one(depth)
		v = v && w
	}
	return v, err
}

func (p *licenseParser) one(depth int) (bool, error) {
	if depth > maxDepth {
		return false, fmt.Errorf("nested more than %d deep", maxDepth)
	}
	if p.next("(") {
		v, err := p.or(depth + 1)
		if err == nil && !p.next(")") {
			err = fmt.Errorf("a bracket is not closed")
		}
		return v, err
	}
	if len(p.words) == 0 || slices.Contains([]string{"AND", "OR", "WITH", ")"}, strings.ToUpper(p.words[0])) {
		return false, fmt.Errorf("a licence is missing")
	}
	id := p.words[0]
	p.words = p.words[1:]
	if p.next("WITH") {
		if len(p.words) == 0 {
			return false, fmt.Errorf("an exception is missing")
		}
		id += " WITH " + p.words[0]
		p.words = p.words[1:]
	}
	return p.ok(id), nil
}
