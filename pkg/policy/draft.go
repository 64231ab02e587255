package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/waxseal/waxseal/pkg/verify"
)

// DraftInput is what an image's own evidence shows, for Draft.
type DraftInput struct {
	Image    string        // where the evidence was read from, for the first comment
	Match    []string      // patterns of image names that the policy is for
	Level    verify.Demand // to declare: what the evidence carries
	Builders []DraftBuilder
	// Provenance is that of the image and of each of its platforms.
	Provenance []*verify.Provenance
	SBOM       []string // formats that every platform has
}

// DraftBuilder is one (signer, builder.id) seen.
type DraftBuilder struct {
	ID      string
	KeyFile string // the key as the policy is to name it; used before PEM
	PEM     []byte // the key itself
}

// Draft writes a commented policy that the evidence it was made from fulfils.
// It parses what it wrote before it returns it, but for the key files.
func Draft(in DraftInput) ([]byte, error) {
	if len(in.Builders) == 0 || len(in.Provenance) == 0 {
		return nil, errors.New("drafting a policy: no verified provenance to take it from")
	}
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }

	p("# What is expected of these images, and who is trusted to build them.")
	p("# Drafted by \"waxseal policy init\" from the evidence of")
	p("#   %s", oneLine(in.Image))
	p("# Read it before you rely on it: it expects what that image happens to be.")
	p("# Check it with \"waxseal policy check FILE\", use it with \"waxseal verify --policy FILE\".")
	p("apiVersion: %s", APIVersion)
	p("kind: %s", Kind)
	p("")
	p("# The roots of trust. A build counts only when its builder.id and the key that")
	p("# signed its provenance stand here together; maxLevel is the highest SLSA Build")
	p("# level you trust that pair for. Nothing in the evidence can raise it.")
	p("trust:")
	p("  builders:")
	for _, d := range in.Builders {
		p("    - id: %s", quote(d.ID))
		if d.KeyFile != "" {
			p("      # A public key, PEM; the path is relative to this file.")
			p("      signer: {key: %s}", quote(d.KeyFile))
		} else {
			p("      signer:")
			p("        pem: |")
			for _, line := range strings.Split(strings.TrimSpace(string(d.PEM)), "\n") {
				p("          %s", strings.TrimSpace(line))
			}
		}
		if verify.Unhosted(d.ID) {
			p("      # A build on somebody's own machine: SLSA gives it Build L1 at most.")
			p("      maxLevel: 1")
		} else {
			p("      # 1: its provenance is a help; 2: a hosted platform signs it;")
			p("      # 3: that platform also keeps builds apart and the key away from them.")
			p("      maxLevel: %d", max(in.Level.Build, 1))
		}
	}
	if several(in.Builders) {
		p("    # Several signers vouch for this image. To ask for more than one of them, add to")
		p("    # the image below, as signatures: {atLeast: 2}; name: here says who is one person.")
	}
	p("")
	p("# What each image must fulfil. All entries that match an image hold together;")
	p("# an image that no entry matches is denied.")
	p("images:")
	for _, m := range in.Match {
		p("  # The name without tag and digest: * within one part, ** across parts.")
		p("  - match: %s", quote(m))
		if in.Level.Source > 0 {
			p("    level: {build: %d, source: %d}", in.Level.Build, in.Level.Source)
		} else {
			p("    level: {build: %d}", in.Level.Build)
		}
		if len(in.Level.Properties) > 0 {
			p("    # What was verified beside that; \"waxseal levels\" says what each name means.")
			p("    properties: [%s]", strings.Join(in.Level.Properties, ", "))
		}
		sourced := draftSource(p, in.Provenance)
		p("    # How the image is made; the parameters below mean what this type says.")
		p("    buildTypes: [%s]", strings.Join(each(buildTypes(in.Provenance), quote), ", "))
		draftParameters(p, in.Provenance, sourced)
		if len(in.SBOM) > 0 {
			p("    # A signed SBOM for every platform.")
			p("    sbom: {required: true, formats: [%s]}", strings.Join(in.SBOM, ", "))
		} else {
			p("    # There was no signed SBOM for every platform.")
			p("    sbom: {required: false}")
		}
	}
	out := []byte(b.String())
	if _, err := Parse(out, ParseOptions{Name: "the draft", ReadKey: func(name string) ([]byte, error) {
		for _, d := range in.Builders {
			if d.KeyFile == name {
				return d.PEM, nil
			}
		}
		return nil, fmt.Errorf("no key %q", name)
	}}); err != nil {
		return nil, fmt.Errorf("drafting a policy: %w", err)
	}
	return out, nil
}

// several reports whether more than one key signs.
func several(all []DraftBuilder) bool {
	return slices.ContainsFunc(all, func(d DraftBuilder) bool { return string(d.PEM) != string(all[0].PEM) })
}

// draftSource reports whether there is a source to expect.
func draftSource(p func(string, ...any), all []*verify.Provenance) bool {
	source, same := verify.Source{}, true
	for i, v := range all {
		switch {
		case len(v.Sources) == 0 || v.Sources[0].Commit == "":
			same = false
		case i == 0:
			source = v.Sources[0]
		case !verify.SameRepository(source.Repository, v.Sources[0].Repository):
			same = false
		case v.Sources[0].Dirty:
			source.Dirty = true
		}
	}
	if !same || !verify.SameRepository(source.Repository, source.Repository) {
		p("    # The evidence names no source repository with a commit. When it does, expect it:")
		p("    # source: {repository: https://HOST/OWNER/NAME}")
		return false
	}
	p("    # Where the source must come from; the commit must be recorded.")
	if source.Dirty {
		p("    # The tree had files that are not the commit's. For a release, remove allowChanges.")
		p("    source: {repository: %s, allowChanges: true}", quote(source.Repository))
		return true
	}
	p("    source: {repository: %s}", quote(source.Repository))
	return true
}

func buildTypes(all []*verify.Provenance) []string {
	var out []string
	for _, v := range all {
		if !slices.Contains(out, v.BuildType.Value) {
			out = append(out, v.BuildType.Value)
		}
	}
	return out
}

func draftParameters(p func(string, ...any), all []*verify.Provenance, sourced bool) {
	need := map[string][]string{}
	for _, v := range all {
		w := walk{kind: v.BuildType.Value, allow: known(v.BuildType.Value, sourced)}
		for name, raw := range v.External {
			var value any
			if json.Unmarshal(raw, &value) == nil {
				w.collect(name, spelled(w.kind, name, value), need)
			}
		}
	}
	p("    # What whoever starts the build may set. Anything else that is set denies.")
	if len(need) == 0 {
		p("    parameters: {}")
		return
	}
	p("    parameters:")
	for _, name := range slices.Sorted(maps.Keys(need)) {
		if need[name] == nil {
			p("      %s: any", quote(name))
			continue
		}
		values := slices.Compact(slices.Sorted(slices.Values(need[name])))
		p("      %s: [%s]", quote(name), strings.Join(each(values, quote), ", "))
	}
}

// collect is the mirror of walk.decoded: the entries that would have let the
// value through. Nil values stand for any.
func (w *walk) collect(name string, v any, need map[string][]string) {
	if empty(v) || w.allow[name].any {
		return
	}
	if values, seen := need[name]; seen && values == nil {
		return
	}
	switch v := v.(type) {
	case map[string]any:
		if w.deep(name, v) {
			for k, c := range v {
				w.collect(name+"/"+k, c, need)
			}
			return
		}
		for k := range v {
			need[name] = append(need[name], k)
		}
	case []any:
		for _, item := range v {
			s, named := itemName(item)
			if !named {
				need[name] = nil
				return
			}
			need[name] = append(need[name], s)
		}
	default:
		if !w.allow[name].has(text(v)) {
			need[name] = append(need[name], text(v))
		}
	}
}

// deep reports whether the members of a map are parameters of their own, rather
// than names with a value: they are maps, or known one by one.
func (w *walk) deep(name string, v map[string]any) bool {
	for _, c := range v {
		if _, m := c.(map[string]any); m {
			return true
		}
	}
	for n := range w.allow {
		if strings.HasPrefix(n, name+"/") {
			return true
		}
	}
	return false
}

func each(in []string, f func(string) string) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = f(s)
	}
	return out
}

// quote writes text as YAML takes it whatever it holds: JSON is YAML. Plain
// words stay plain, for people.
func quote(s string) string {
	plainWord := s != ""
	for i, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || !strings.ContainsRune("0123456789._/-", r)) {
			plainWord = false
			break
		}
	}
	switch strings.ToLower(s) {
	case "true", "false", "yes", "no", "on", "off", "y", "n", "null", "any":
		plainWord = false
	}
	if plainWord {
		return s
	}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return `""`
	}
	return strings.TrimSpace(b.String())
}

func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, clip(s))
}
