package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// WellKnown is a builder that many people use, and what a policy needs to know
// of it: an entry with "use" takes all of it over and can only narrow it.
type WellKnown struct {
	Name  string `json:"name"`  // what "use" says
	Title string `json:"title"` // what it is
	// Level is the Build level it is credited at most, and Why says why.
	Level int    `json:"level"`
	Why   string `json:"why"`
	// Lowers says what takes from the level.
	Lowers []string `json:"lowers"`
	Specs  []string `json:"specs"` // URLs of what defines its provenance
	// IDs are builder.id: exact, or with stars; none where it must be the name
	// in the certificate.
	IDs    []string `json:"ids,omitempty"`
	Issuer string   `json:"issuer,omitempty"` // of its certificates; "" where a policy names a key, or an issuer
	// SAN is the form of the name in the certificate; a fixed one is a regular
	// expression, the others are what a policy has to fill in.
	SAN        string              `json:"san,omitempty"`
	BuildTypes []string            `json:"buildTypes"`
	Events     []string            `json:"events,omitempty"` // that may start a run; none: any
	Hosted     bool                `json:"hosted"`           // above L1 the evidence must prove one of the platform's runners
	Reusable   bool                `json:"reusable"`         // above L2 the certificate must prove a reusable workflow
	Parameters map[string][]string `json:"parameters"`       // external parameters that need no entry of their own; none listed: any value
	// Policy is an entry to start from, as YAML. Empty: nobody signs it.
	Policy string `json:"policy,omitempty"`

	fixed bool                   // SAN is an expression that holds as it is
	san   func(san string) error // what a policy's own name must be like
}

const (
	githubIssuer = "https://token.actions.githubusercontent.com"
	githubHost   = "https://github.com/"
	gitlabHost   = "https://gitlab.com/"
)

// Library lists the well-known builders.
func Library() []WellKnown {
	free := []string{} // any value
	return []WellKnown{{
		Name:  "slsa-github-generator",
		Title: "The generators and builders of slsa-framework/slsa-github-generator on GitHub Actions",
		Level: 3,
		Why: "A reusable workflow of slsa-framework makes and signs the provenance, in a job of its own on a fresh runner of GitHub's. " +
			"The caller's jobs reach neither its token nor its workspace, and the certificate names the workflow and its release. " +
			"The generator_* workflows attest the digests that a job of the caller's hands them.",
		Lowers: []string{
			"the workflow at a branch, at a commit or at a tag that is no vX.Y.Z: not trusted; nothing loosens this",
			"a self-hosted runner, or a certificate that names none: Build L1",
			"another event, such as pull_request: not trusted",
			"workflow inputs that no parameters of the policy allow: not as expected",
			"the delegators for builders of one's own: not in here, for they sign another builder.id than their own",
		},
		Specs: []string{
			"https://github.com/slsa-framework/slsa-github-generator/blob/main/PROVENANCE_FORMAT.md",
			"https://github.com/slsa-framework/slsa-github-generator/blob/main/SPECIFICATIONS.md",
		},
		Issuer: githubIssuer,
		SAN: `^https://github\.com/slsa-framework/slsa-github-generator/\.github/workflows/` +
			`(generator_container|generator_generic|builder_go|builder_docker-based)_slsa3\.yml@refs/tags/v[0-9]+\.[0-9]+\.[0-9]+$`,
		fixed: true,
		BuildTypes: []string{
			"https://github.com/slsa-framework/slsa-github-generator/container@v1",
			"https://github.com/slsa-framework/slsa-github-generator/generic@v1",
			"https://github.com/slsa-framework/slsa-github-generator/go@v1",
			"https://github.com/slsa-framework/slsa-github-generator@v1",
			"https://github.com/slsa-framework/slsa-github-generator-go@v1",
			"https://slsa.dev/container-based-build/v0.1?draft",
		},
		Events:     []string{"create", "push", "release", "schedule", "workflow_dispatch"},
		Hosted:     true,
		Parameters: map[string][]string{"configSource/entryPoint": free, "configPath": free},
		Policy: `- use: slsa-github-generator
  root: trusted_root.json   # of Sigstore's public good instance`,
	}, {
		Name:  "github-attestations",
		Title: "actions/attest-build-provenance in a workflow of GitHub Actions",
		Level: 2,
		Why: "GitHub runs the job and vouches for it in the certificate: repository, commit, ref, workflow, event, runner. " +
			"The provenance is made and signed inside the workflow that builds, so its other steps could have signed something else: that is not Build L3.",
		Lowers: []string{
			"a self-hosted runner, or a certificate that names none: Build L1",
			"an event that its build type does not describe, such as pull_request: not trusted",
			"provenance that differs from its certificate in builder.id, repository, ref, commit, event or runner: not as expected",
		},
		Specs:  []string{"https://actions.github.io/buildtypes/workflow/v1", "https://github.com/actions/attest-build-provenance"},
		Issuer: githubIssuer,
		SAN:    githubHost + "OWNER/REPO/.github/workflows/FILE@REF",
		san:    ownedBy(githubHost),
		BuildTypes: []string{
			"https://actions.github.io/buildtypes/workflow/v1",
			"https://slsa-framework.github.io/github-actions-buildtypes/workflow/v1",
		},
		Events:     githubEvents(),
		Hosted:     true,
		Parameters: githubParameters(),
		Policy: `- use: github-attestations
  san: https://github.com/OWNER/REPO/.github/workflows/release.yml@refs/tags/v*
  root: trusted_root.json   # of Sigstore's public good instance, or of GitHub's for private repositories`,
	}, {
		Name:  "github-reusable-workflow",
		Title: "actions/attest-build-provenance in a reusable workflow that the policy names",
		Level: 3,
		Why: "The certificate shows that the workflow which builds and signs was called by another one, and which version of it. " +
			"The caller's steps do not run in its jobs, so they reach neither the build nor its token. " +
			"The level is as good as that workflow: it must not run what the caller gives it beside the build itself.",
		Lowers: []string{
			"a workflow that nobody called, or a certificate that does not say: Build L2",
			"a self-hosted runner, or a certificate that names none: Build L1",
			"an event that its build type does not describe, such as pull_request: not trusted",
			"a reusable workflow at a branch: the policy is refused, for a branch moves; use github-attestations",
		},
		Specs: []string{
			"https://actions.github.io/buildtypes/workflow/v1",
			"https://docs.github.com/en/actions/how-tos/secure-your-work/use-artifact-attestations/increase-security-rating",
		},
		Issuer: githubIssuer,
		SAN:    githubHost + "OWNER/REPO/.github/workflows/FILE@refs/tags/TAG",
		san:    pinnedWorkflow,
		BuildTypes: []string{
			"https://actions.github.io/buildtypes/workflow/v1",
			"https://slsa-framework.github.io/github-actions-buildtypes/workflow/v1",
		},
		Events:     githubEvents(),
		Hosted:     true,
		Reusable:   true,
		Parameters: githubParameters(),
		Policy: `- use: github-reusable-workflow
  san: https://github.com/OWNER/REPO/.github/workflows/build.yml@refs/tags/v*
  root: trusted_root.json   # of Sigstore's public good instance, or of GitHub's for private repositories`,
	}, {
		Name:  "google-cloud-build",
		Title: "Google Cloud Build on Google's own workers",
		Level: 3,
		Why: "Cloud Build's control plane observes the build from outside of its virtual machine, which lives for one build, " +
			"and signs with a key in Cloud KMS that no build reaches.",
		Lowers: []string{
			"steps or substitutions sent with the request that no parameters of the policy allow: not as expected",
			"source from a bucket in place of a repository: it names no repository, so an expected source is not met",
			"signatures of the regional builtByGCB keys, of before 2023: not read, for they do not cover the envelope",
			"the text beside the signed envelope: not read",
		},
		Specs: []string{"https://cloud.google.com/build/docs/securing-builds/view-build-provenance", "https://cloud.google.com/build/gcb-buildtypes/google-worker/v1"},
		IDs:   []string{"https://cloudbuild.googleapis.com/GoogleHostedWorker", "https://cloudbuild.googleapis.com/GoogleHostedWorker@v0.3"},
		BuildTypes: []string{
			"https://cloud.google.com/build/gcb-buildtypes/google-worker/v1",
			"https://cloudbuild.googleapis.com/CloudBuildYaml@*",
			"https://cloudbuild.googleapis.com/CloudBuildSteps@*",
		},
		Parameters: map[string][]string{
			"buildConfigSource/ref": free, "buildConfigSource/path": free, "sourceToBuild/ref": free, "entryPoint": free,
		},
		Policy: `# gcloud kms keys versions get-public-key 1 --project verified-builder --location global \
#   --keyring attestor --key google-hosted-worker --output-file google-hosted-worker.pub
# (the key of SLSA v1; that of v0.1 is called provenanceSigner)
- use: google-cloud-build
  key: google-hosted-worker.pub`,
	}, {
		Name:  "gitlab",
		Title: "GitLab CI/CD on GitLab.com's runners, signed in the job",
		Level: 2,
		Why: "GitLab runs the job and vouches for it in the certificate. The runner writes the provenance, but the job itself signs it, " +
			"and the values of variables are not in it: that is not Build L3.",
		Lowers: []string{
			"a self-managed runner, or a certificate that names none: Build L1",
			"a pipeline of a merge request: not trusted",
			"variables, where they are listed, that no parameters of the policy allow: not as expected",
		},
		Specs:      []string{"https://docs.gitlab.com/ci/runners/configure_runners/#provenance-metadata-format", "https://docs.gitlab.com/ci/pipeline_security/slsa/provenance_v1"},
		Issuer:     "https://gitlab.com",
		SAN:        gitlabHost + "GROUP/PROJECT//.gitlab-ci.yml@REF",
		san:        ownedBy(gitlabHost),
		IDs:        []string{gitlabHost + "**/-/runners/*"},
		BuildTypes: []string{"https://gitlab.com/gitlab-org/gitlab-runner/-/blob/*/PROVENANCE.md", "https://docs.gitlab.com/ci/pipeline_security/slsa/provenance_v1"},
		Events:     []string{"push", "schedule", "web"},
		Hosted:     true,
		Parameters: map[string][]string{"entryPoint": free, "configSource/entryPoint": free},
		Policy: `- use: gitlab
  san: https://gitlab.com/GROUP/PROJECT//.gitlab-ci.yml@refs/tags/v*
  root: trusted_root.json   # of Sigstore's public good instance`,
	}, {
		Name:  "tekton-chains",
		Title: "Tekton Chains, formats slsa/v1, slsa/v2alpha3 and slsa/v2alpha4",
		Level: 2,
		Why: "Chains watches the cluster and signs outside of the run. What it names as source and as result are the run's own words, " +
			"and how far runs are kept apart depends on the cluster: whoever knows theirs can write an entry of their own.",
		Lowers: []string{
			"parameters of the run that no parameters of the policy allow: not as expected",
			"several repositories among its inputs: nothing says which was built, so an expected source is not met",
			"a parameter called HERMETIC: nothing follows from it",
		},
		Specs: []string{"https://tekton.dev/docs/chains/slsa-provenance/", "https://github.com/tektoncd/chains/blob/main/docs/predicate/slsa/v2.md"},
		IDs:   []string{"https://tekton.dev/chains/v2"},
		BuildTypes: []string{
			"https://tekton.dev/chains/v2/slsa", "https://tekton.dev/chains/v2/slsa-tekton",
			"tekton.dev/v1/PipelineRun", "tekton.dev/v1/TaskRun", "tekton.dev/v1beta1/PipelineRun", "tekton.dev/v1beta1/TaskRun",
		},
		Parameters: map[string][]string{},
		Policy: `- use: tekton-chains
  key: chains.pub
  parameters: {runSpec: any}   # better: what your runs may set`,
	}, {
		Name:  "witness",
		Title: "Witness, its slsa attestor, alone or within a collection",
		Level: 1,
		Why:   "Witness runs inside the job that builds, with a key or token of that job: whoever runs the build also writes the record.",
		Lowers: []string{
			"a command that no parameters of the policy allow: not as expected",
		},
		Specs: []string{"https://github.com/in-toto/witness/blob/main/docs/attestors/slsa.md"},
		IDs: []string{
			"https://witness.dev/witness-default-builder@v0.1", "https://witness.dev/witness-github-action-builder@v0.1",
			"https://witness.dev/witness-gitlab-component-builder@v0.1", "https://witness.dev/witness-jenkins-component-builder@v0.1",
		},
		BuildTypes: []string{"https://witness.dev/slsa-build@v0.1"},
		Parameters: map[string][]string{},
		Policy: `- use: witness
  key: witness.pub
  parameters: {command: any}   # better: the command that builds`,
	}, {
		Name:  "buildkit",
		Title: "BuildKit's and buildx's attestations inside an index",
		Level: 1,
		Why:   "Nobody signs them, so they say who built as little as a label does. They count where no more than --level 1 is asked for.",
		Lowers: []string{
			"any policy: nothing in it can vouch for what has no signature",
		},
		Specs:      []string{"https://docs.docker.com/build/metadata/attestations/slsa-definitions/"},
		BuildTypes: []string{"https://mobyproject.org/buildkit@v1", "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"},
		Parameters: map[string][]string{},
	}}
}

// Known is the well-known builder of a name.
func Known(name string) (WellKnown, error) {
	var names []string
	for _, w := range Library() {
		if w.Name == name {
			return w, nil
		}
		names = append(names, w.Name)
	}
	return WellKnown{}, fmt.Errorf("there is no well-known builder %q; there are %s", clip(name), strings.Join(names, ", "))
}

// githubEvents are those that the build type describes.
func githubEvents() []string { return []string{"create", "push", "release", "workflow_dispatch"} }

func githubParameters() map[string][]string {
	return map[string][]string{"workflow/ref": {}, "workflow/path": {}, "runner_environment": {"github-hosted"}}
}

// ownedBy refuses a name whose owner is open: a pattern of all of a host's
// workflows trusts everybody with an account there.
func ownedBy(host string) func(string) error {
	return func(san string) error {
		owner, rest, _ := strings.Cut(strings.TrimPrefix(san, host), "/")
		if !strings.HasPrefix(san, host) || owner == "" || rest == "" || strings.Contains(owner, "*") {
			return fmt.Errorf("san %q must begin with %sOWNER/, the owner written out", clip(san), host)
		}
		return nil
	}
}

// pinnedWorkflow asks for one workflow, at tags or at a commit.
func pinnedWorkflow(san string) error {
	workflow, ref, _ := strings.Cut(san, "@")
	switch {
	case !strings.HasPrefix(workflow, githubHost) || strings.Contains(workflow, "*") || strings.Count(workflow, "/") < 7:
		return fmt.Errorf("san %q must be %sOWNER/REPO/.github/workflows/FILE@REF, with stars after the @ only", clip(san), githubHost)
	case !strings.HasPrefix(ref, "refs/tags/") && !regexp.MustCompile(`^[0-9a-f]{40}$`).MatchString(ref):
		return fmt.Errorf("san %q must end in @refs/tags/TAG or in a whole commit: a branch moves; for Build L2, use github-attestations", clip(san))
	}
	return nil
}

// Explain says all of it in text, for people.
func (w WellKnown) Explain() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	each := func(head string, items []string) {
		for i, s := range items {
			if i == 0 {
				line("")
				line("%s", head)
			}
			for j, l := range fold(s, 76) {
				line("  %s%s", strings.Repeat("  ", min(j, 1)), l)
			}
		}
	}
	line("%s: %s", w.Name, w.Title)
	line("")
	for _, l := range fold(fmt.Sprintf("Build L%d at most. %s", w.Level, w.Why), 80) {
		line("%s", l)
	}
	each("What makes it less:", w.Lowers)
	ids := w.IDs
	if len(ids) == 0 && w.Issuer != "" {
		ids = []string{"the name in the certificate, byte by byte"}
	}
	each("builder.id:", ids)
	if w.Issuer != "" {
		each("Signer:", []string{"issuer " + w.Issuer, "name " + w.SAN})
	}
	each("Build types:", w.BuildTypes)
	each("Events:", w.Events)
	var known []string
	for _, name := range keys(w.Parameters) {
		if values := w.Parameters[name]; len(values) > 0 {
			name += ": " + strings.Join(values, ", ")
		}
		known = append(known, name)
	}
	each("External parameters that need no entry of their own, beside those that source checks:", known)
	each("Defined in:", w.Specs)
	if w.Policy != "" {
		line("")
		line("In a policy:")
		line("")
		line("trust:")
		line("  builders:")
		for _, l := range strings.Split(w.Policy, "\n") {
			line("    %s", l)
		}
	}
	return b.String()
}

// fold breaks text into lines of at most width bytes, where it has words as
// short as that.
func fold(text string, width int) []string {
	var lines []string
	line := ""
	for _, w := range strings.Fields(text) {
		if line != "" && len(line)+1+len(w) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += w
	}
	return append(lines, line)
}

// allowed is the parameters in the form of a policy's.
func (w WellKnown) allowed() map[string]allowed {
	out := map[string]allowed{}
	for name, values := range w.Parameters {
		out[name] = allowed{any: len(values) == 0, values: slices.Clone(values)}
	}
	return out
}
