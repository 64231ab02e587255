package build

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/waxseal/waxseal/attestations"
)

// What provenance says of a build that another program asked for and that
// nobody can repeat.
const (
	unknownPolicy = "a source policy of the client chose what the build took; which one is not recorded"
	otherTarget   = "another target of the same command"
)

// contextDefinition is the kind of a context that another program put together.
const contextDefinition = "definition"

// byClient reports whether another program asked for the build.
func (r *Replay) byClient() bool { return r != nil && r.Chosen.Grade != "" }

// Unrepeatable says why an image cannot be built again from its evidence,
// whatever the store has; nothing where it can.
func (r *Replay) Unrepeatable() []string {
	if r.Chosen.Engine.Name == "docker" {
		return []string{"docker's legacy builder made it, and no other builder makes such layers"}
	}
	var out []string
	add := func(format string, args ...any) {
		if s := fmt.Sprintf(format, args...); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	for _, rec := range r.Records {
		gaps := slices.Clone(rec.Gaps)
		for _, st := range rec.Steps {
			gaps = append(gaps, st.Gaps...)
		}
		if slices.ContainsFunc(gaps, func(g attestations.InputGap) bool { return g.Kind == attestations.GapCacheImport }) {
			add("results of an imported cache are in it, and what went into them is not recorded")
		}
	}
	if !r.byClient() {
		return out
	}
	if slices.Contains(r.Chosen.Unobserved, unknownPolicy) {
		add(unknownPolicy)
	}
	for what, values := range map[string]map[string]string{"build argument": r.Asked.BuildArgs, "label": r.Asked.Labels, "annotation": r.Asked.Annotations} {
		for _, name := range sortedKeys(values) {
			if strings.Contains(values[name], removed) && !isProxy(name) {
				add("the %s %q held what looks like a secret, and the provenance does not", what, name)
			}
		}
	}
	for _, name := range sortedKeys(r.Asked.BuildContexts) {
		if r.Asked.BuildContexts[name] == otherTarget {
			add("the build context %q is %s, which is not kept with it", name, otherTarget)
		}
	}
	if r.Asked.Context.Kind == "tar" && r.source("context", "") == nil {
		add("its context came over standard input, and was not kept")
	}
	if r.Asked.Context.Kind == contextDefinition {
		add("its context came as a definition, which is not kept")
	}
	if slices.ContainsFunc(r.deps, func(d dependency) bool { return strings.HasPrefix(d.URI, "pkg:oci/") }) &&
		!slices.ContainsFunc(r.folders(), func(s attestations.InputSource) bool { return s.Kind == "named-context" && s.Tree == "" }) {
		add("an OCI layout was a build context, and was not kept")
	}
	for _, name := range sortedKeys(r.Asked.Attrs) {
		if !harmless(name) {
			add("it was built with the parameter %q of its frontend, which waxseal has no way to give", name)
		}
	}
	for _, s := range r.folders() {
		switch {
		case !s.Stored:
			add("the files of its %s were not kept", cmp.Or(s.URI, s.Kind))
		case r.source(s.Kind, s.URI).Tree != s.Tree:
			add("its platforms took different files of the %s", s.URI)
		}
	}
	slices.Sort(out)
	return out
}

// folders are the folders, and OCI layouts, that a client sent.
func (r *Replay) folders() []attestations.InputSource {
	var out []attestations.InputSource
	for _, rec := range r.Records {
		for _, s := range rec.Sources {
			if s.Kind == "context" || s.Kind == "named-context" {
				out = append(out, s)
			}
		}
	}
	return out
}

// harmless reports whether a parameter of the frontend leaves the image of a
// platform as it is.
func harmless(name string) bool {
	head, _, _ := strings.Cut(name, ":")
	return slices.Contains([]string{"attest", "cache-imports", "cache-from", "cgroup-parent", "multi-platform", "sharedkey"}, head)
}

// named are the build contexts that a replay needs. Those that a client named
// and that the Dockerfile took nothing of were not recorded.
func (r *Replay) named() map[string]string {
	out := maps.Clone(r.Asked.BuildContexts)
	if r.byClient() {
		maps.DeleteFunc(out, func(name, value string) bool {
			return (value == "directory" || value == "oci") && r.source("named-context", attestations.DependencyNamedContext+":"+name) == nil
		})
	}
	return out
}
