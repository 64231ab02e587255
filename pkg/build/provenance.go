package build

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

// inTotoMediaType is that of a statement's bytes.
const inTotoMediaType = "application/vnd.in-toto+json"

// dependency is a SLSA resource descriptor.
type dependency struct {
	Name        string            `json:"name,omitempty"`
	URI         string            `json:"uri,omitempty"`
	Digest      map[string]string `json:"digest,omitempty"`
	MediaType   string            `json:"mediaType,omitempty"`
	Annotations map[string]any    `json:"annotations,omitempty"`
}

// provenance is that of a container build.
type provenance = slsaOf[attestations.ContainerBuild, attestations.ContainerBuildInternal]

// slsaOf is the SLSA provenance v1 predicate of a build type with these
// parameters: https://slsa.dev/spec/v1.2/build-provenance#schema
type slsaOf[External, Internal any] struct {
	BuildDefinition struct {
		BuildType            string       `json:"buildType"`
		ExternalParameters   External     `json:"externalParameters"`
		InternalParameters   Internal     `json:"internalParameters"`
		ResolvedDependencies []dependency `json:"resolvedDependencies"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder struct {
			ID      string            `json:"id"`
			Version map[string]string `json:"version,omitempty"`
		} `json:"builder"`
		Metadata struct {
			InvocationID string    `json:"invocationId"`
			StartedOn    time.Time `json:"startedOn"`
			FinishedOn   time.Time `json:"finishedOn"`
		} `json:"metadata"`
		Byproducts []dependency `json:"byproducts,omitempty"`
	} `json:"runDetails"`
}

// account is everything that the provenance of one build draws on.
type account struct {
	req      *Request
	in       *inputs
	engine   attestations.ContainerEngine
	records  *records
	epoch    string // seconds in force, "" for none
	id       string
	started  time.Time
	finished time.Time
	log      attest.Digest
	version  string
	intake   *intake
	ci       *attestations.CI

	// Of a build that another program asked for.
	attrs    map[string]string // of the frontend, that have no other place
	observed *Observed
}

// subject is one image that provenance is written about: a platform's, with
// its records and SBOMs, or with those of all platforms the index.
type subject struct {
	recs  []*record
	taken []taken
	sboms []document
}

func (a *account) provenance(s subject) *provenance {
	p := &provenance{}
	def, run := &p.BuildDefinition, &p.RunDetails
	def.BuildType = attestations.ContainerBuildType
	def.ExternalParameters = a.req.external(a.in.described)
	def.ExternalParameters.Inputs = a.intake.external()
	def.ExternalParameters.Attrs = a.attrs
	def.InternalParameters = a.internal(s)
	def.ResolvedDependencies = together(a.fetched(a.dependencies(s.recs), s.taken), requested(s.taken))
	run.Builder.ID = a.req.builderID()
	if a.version != "" {
		run.Builder.Version = map[string]string{"waxseal": a.version}
	}
	run.Metadata.InvocationID = a.id
	run.Metadata.StartedOn, run.Metadata.FinishedOn = a.started.UTC().Truncate(time.Second), a.finished.UTC().Truncate(time.Second)
	byproduct := func(platform string, d dependency) {
		if len(s.recs) > 1 {
			d.Annotations = map[string]any{"platform": platform}
		}
		run.Byproducts = append(run.Byproducts, d)
	}
	for _, x := range s.taken {
		byproduct(x.platform, dependency{Name: attestations.ByproductInputs, Digest: map[string]string{"sha256": x.digest.Hex()}, MediaType: inTotoMediaType})
	}
	for _, d := range s.sboms {
		byproduct(d.platform, dependency{Name: attestations.ByproductSBOM + ":" + d.format, Digest: map[string]string{"sha256": d.digest.Hex()}, MediaType: d.mediaType()})
	}
	if a.log != "" {
		run.Byproducts = append(run.Byproducts, dependency{Name: attestations.ByproductLog, Digest: map[string]string{"sha256": a.log.Hex()}, MediaType: "text/plain"})
	}
	for _, r := range s.recs {
		if r.raw == nil {
			continue
		}
		run.Byproducts = append(run.Byproducts, dependency{Name: attestations.ByproductEngineRecord, Digest: map[string]string{"sha256": r.digest.Encoded()}, MediaType: "application/json"})
	}
	return p
}

func (a *account) internal(s subject) attestations.ContainerBuildInternal {
	i := attestations.ContainerBuildInternal{
		Engine: a.engine, Frontend: frontendName, Syntax: a.in.syntax,
		SourceDateEpoch: a.epoch, CacheHits: a.records.cached, Steps: a.records.total,
		NetworkObserved: worstOf(s.taken), CI: a.ci,
	}
	if a.engine.Name == "docker" {
		i.Frontend = "docker" // its legacy builder has one of its own
	}
	if a.observed != nil {
		i.Grade, i.Unobserved = string(a.observed.Grade), a.observed.Unobserved
	}
	if a.epoch != "" {
		i.EpochFrom = a.in.epoch.from
	}
	for _, r := range s.recs {
		i.BuilderPlatform = cmp.Or(r.Platform, i.BuilderPlatform)
	}
	return i
}

// together joins two lists; what is in both, by URI and digest, is kept as the
// second has it.
func together(a, b []dependency) []dependency {
	key := func(d dependency) string { return d.URI + " " + d.Digest["sha256"] }
	second := map[string]bool{}
	for _, d := range b {
		second[key(d)] = true
	}
	return append(slices.DeleteFunc(a, func(d dependency) bool { return d.Name == "" && second[key(d)] }), b...)
}

// fetched says of files that the engine fetched for ADD what the server said of
// them, and which step it was; and of base images, which came from no registry:
// BuildKit knows only their names.
func (a *account) fetched(deps []dependency, all []taken) []dependency {
	for i := range deps {
		d := &deps[i]
		image, _ := recordedInput{URI: d.URI, Digest: d.Digest}.source()
		for _, t := range all {
			if at := slices.IndexFunc(t.record.Sources, func(s attestations.InputSource) bool {
				return strings.HasPrefix(s.URI, attestations.DockerDaemonURI) && s.Digest == image.Digest && image.Kind == "image" && familiar(s.Ref) == image.Ref
			}); at >= 0 {
				d.URI = t.record.Sources[at].URI
			}
			at := slices.IndexFunc(t.record.Sources, func(s attestations.InputSource) bool {
				return s.Kind == "http" && s.URI == d.URI && s.Digest == "sha256:"+d.Digest["sha256"]
			})
			if at < 0 || d.Name != "" {
				continue
			}
			d.MediaType = cmp.Or(d.MediaType, a.intake.mediaType(t.record.Sources[at].Tree))
			d.Annotations = map[string]any{"step": "ADD " + d.URI}
		}
	}
	return deps
}

// requested lists what steps asked for, each content of a URI once: how often
// and in which order stands in the record of inputs.
func requested(all []taken) []dependency {
	type key struct{ uri, digest string }
	seen := map[key]bool{}
	var out []dependency
	for _, t := range all {
		for i := range t.record.Steps {
			st := &t.record.Steps[i]
			for _, q := range st.Requests {
				k := key{q.URI, q.Digest}
				if seen[k] || q.Unanswered != "" {
					continue
				}
				seen[k] = true
				out = append(out, requestDependency(st, q))
			}
		}
	}
	return out
}

func requestDependency(st *attestations.InputStep, q attestations.InputRequest) dependency {
	alg, value, _ := strings.Cut(q.Digest, ":")
	d := dependency{
		Name: lock.PURL(q.URI), URI: q.URI, Digest: map[string]string{alg: value},
		MediaType: q.Headers["content-type"], Annotations: map[string]any{"step": st.Name},
	}
	if q.Method != http.MethodGet {
		d.Annotations["method"] = q.Method
	}
	if q.Status != http.StatusOK {
		d.Annotations["status"] = q.Status
	}
	return d
}

// dependencies are our own inputs first, then what the engine resolved.
func (a *account) dependencies(recs []*record) []dependency {
	out := slices.Clone(a.in.dependencies)
	if g := a.in.git; g != nil {
		out = append(out, gitDependency(g))
	}
	var seen []dependency
	for _, r := range recs {
		for _, d := range r.Dependencies {
			if _, ours := a.in.ours[d.Digest["sha256"]]; ours {
				continue
			}
			dep := a.resolved(d)
			if !slices.ContainsFunc(seen, func(s dependency) bool { return s.URI == dep.URI && maps.Equal(s.Digest, dep.Digest) }) {
				seen = append(seen, dep)
			}
		}
		for _, name := range r.Locals {
			// The Dockerfile that came over standard input is listed by its bytes.
			if name != "dockerfile" {
				seen = append(seen, dependency{URI: "local:" + name})
			}
		}
	}
	sort.SliceStable(seen, func(i, j int) bool { return seen[i].URI < seen[j].URI })
	return append(out, seen...)
}

func gitDependency(g *GitState) dependency {
	d := dependency{
		Name: attestations.DependencySource, URI: repositoryURI(g.Remote),
		Digest: map[string]string{"gitCommit": g.Commit}, Annotations: map[string]any{},
	}
	if g.Subdir != "" {
		d.Annotations["subdir"] = g.Subdir
	}
	if len(g.Changed) > 0 {
		d.Annotations["changedFiles"] = g.Changed
	}
	if g.More > 0 {
		d.Annotations["moreChangedFiles"] = g.More
	}
	if len(d.Annotations) == 0 {
		d.Annotations = nil
	}
	return d
}

// resolved brings an input of the engine's record into our form.
func (a *account) resolved(d recordedInput) dependency {
	dep := dependency{URI: d.URI, Digest: d.Digest}
	if strings.HasPrefix(d.URI, "pkg:") {
		return dep
	}
	dep.URI = cleanURL(d.URI)
	context := a.in.described
	if commit, ok := d.Digest["sha1"]; ok {
		dep.Digest = map[string]string{"gitCommit": commit}
		if context.Kind == "git" && sameRemote(context.URI, dep.URI) && sameRevision(context.URI, d.URI) {
			dep.Name = attestations.DependencySource
		}
		base, fragment, _ := strings.Cut(dep.URI, "#")
		dep.URI = repositoryURI(base)
		rev, sub, _ := strings.Cut(fragment, ":")
		if rev != "" {
			// As in a URL: a "#" in it would begin something else.
			dep.URI += "@" + strings.ReplaceAll(rev, "#", "%23")
		}
		if sub != "" {
			dep.URI += "#" + sub
		}
		return dep
	}
	if context.Kind == "url" && context.URI == dep.URI || context.Kind == "tar" && isUpload(dep.URI) {
		dep.Name = attestations.DependencyContext
	}
	return dep
}

// sameRemote reports whether two git URLs name one repository, whatever
// revision or subfolder they add.
func sameRemote(a, b string) bool {
	cut := func(s string) string {
		s, _, _ = strings.Cut(s, "#")
		s, _, _ = strings.Cut(s, "?")
		return strings.TrimSuffix(strings.TrimPrefix(s, "git+"), "/")
	}
	return cut(a) == cut(b)
}

// sameRevision reports whether the engine took the revision that a context
// names: a Dockerfile can ask for others of the same repository.
func sameRevision(context, taken string) bool {
	ref, _, err := dfgitutil.ParseGitRef(context)
	if err != nil {
		return false
	}
	_, fragment, _ := strings.Cut(taken, "#")
	rev, _, _ := strings.Cut(fragment, ":")
	return rev == ref.Ref || ref.Ref == "" && rev == ref.Checksum
}

// subjectsOf is what a statement about one manifest is about: its digest,
// under the name of the first tag.
func subjectsOf(name string, d attest.Digest) []attest.Subject {
	return []attest.Subject{{Name: name, Digest: map[string]string{"sha256": d.Hex()}}}
}

func (a *account) statement(name string, d attest.Digest, s subject) (*attest.Statement, error) {
	st, err := attest.NewStatement(attestations.ProvenanceV1, subjectsOf(name, d), a.provenance(s))
	if err != nil {
		return nil, fmt.Errorf("writing provenance: %w", err)
	}
	return st, nil
}
