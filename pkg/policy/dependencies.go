package policy

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/waxseal/waxseal/pkg/verify"
)

// MaxDepth is how far dependencies of dependencies can be looked at.
const MaxDepth = 5

// CodeDependency is an image that another was built from, and that is not as
// demanded.
const CodeDependency = "dependency"

// dependencies is what an entry says of the images that an image was built from.
type dependencies struct {
	depth      int
	registries []string
	level      verify.Levels
}

// Dependencies is what a rule demands of the images that an image was built
// from: its base images, and those that it copies from.
type Dependencies struct {
	Depth int           // how far they are looked at; 0: not at all
	Level verify.Levels // what each must carry, and pass; zero: nothing
	lists [][]string
}

// Demands reports whether anything is demanded of them.
func (d Dependencies) Demands() bool { return d.Level != verify.Levels{} }

// Lists reports whether any list says what may be asked for.
func (d Dependencies) Lists() bool { return len(d.lists) > 0 }

// Allows reports whether evidence about an image, named without tag and digest,
// may be asked for. Whoever writes provenance must not choose whom we ask.
func (d Dependencies) Allows(name string) bool {
	name = canonical(name)
	return len(d.lists) > 0 && !slices.ContainsFunc(d.lists, func(list []string) bool {
		return !slices.ContainsFunc(list, func(p string) bool { return matches(p, name) })
	})
}

// Dependencies is what all entries of the rule demand together: the deepest
// look, the highest levels, and what each of them allows to be asked for.
func (r Rule) Dependencies() Dependencies {
	var out Dependencies
	for _, e := range r.entries {
		if d := e.dependencies; d != nil {
			out.Depth = max(out.Depth, d.depth)
			out.Level.Build = max(out.Level.Build, d.level.Build)
			out.Level.Source = max(out.Level.Source, d.level.Source)
			out.lists = append(out.lists, d.registries)
		}
	}
	return out
}

func (d *decoder) dependencies(n *yaml.Node) *dependencies {
	out := &dependencies{depth: 1}
	d.object(n, "dependencies", []string{"registries"}, map[string]func(*yaml.Node){
		"depth": func(n *yaml.Node) { out.depth = d.number(n, "dependencies.depth", 1, MaxDepth) },
		"registries": func(n *yaml.Node) {
			d.list(n, "dependencies.registries", 100, func(n *yaml.Node) {
				p := d.text(n, "an entry of dependencies.registries")
				if d.err != nil {
					return
				}
				var err error
				if p, err = Registries(p); err != nil {
					d.fail(n, "dependencies.registries: %w", err)
				}
				out.registries = append(out.registries, p)
			})
		},
		"level": func(n *yaml.Node) {
			d.object(n, "dependencies.level", []string{"build"}, map[string]func(*yaml.Node){
				"build": func(n *yaml.Node) { out.level.Build = d.number(n, "dependencies.level.build", 1, verify.MaxLevel) },
				"source": func(n *yaml.Node) {
					out.level.Source = d.number(n, "dependencies.level.source", 0, verify.MaxSourceLevel)
				},
			})
		},
	})
	return out
}

// Registries reads a pattern of images that may be asked about: the host is
// written out, and what follows may have stars.
func Registries(pattern string) (string, error) {
	host, path, ok := strings.Cut(pattern, "/")
	switch {
	case !ok || host == "" || path == "" || strings.Contains(host, "*") || !strings.ContainsAny(host, ".:") && host != "localhost":
		return "", fmt.Errorf("pattern %q: the host must be written out, with a / after it, as registry.example/base/**", clip(pattern))
	case strings.Contains(path, "***") || len(pattern) > 512:
		return "", fmt.Errorf("pattern %q is longer than 512 bytes, or has more than two stars in a row", clip(pattern))
	}
	return canonical(pattern), nil
}

// Allowing adds a list of patterns, each from Registries, to what is allowed.
func (d Dependencies) Allowing(patterns []string) Dependencies {
	if len(patterns) == 0 {
		return d
	}
	lists := make([][]string, 0, len(d.lists)+1)
	for _, l := range d.lists {
		lists = append(lists, slices.Concat(l, patterns))
	}
	if len(lists) == 0 {
		lists = append(lists, patterns)
	}
	d.lists = lists
	return d
}

func (d *dependencies) sentence() string {
	s := fmt.Sprintf("has the images that it was built from looked at, %s deep, where they are in %s", count(d.depth, "step"), list(d.registries))
	if d.level.Build > 0 {
		s += fmt.Sprintf("; each must pass, and carry SLSA Build L%d", d.level.Build)
	}
	if d.level.Source > 0 {
		s += fmt.Sprintf(" and Source L%d", d.level.Source)
	}
	return s
}
