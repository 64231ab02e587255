package verify

import (
	"encoding/json"
	"strings"

	"github.com/waxseal/waxseal/attestations"
)

// Form is whose provenance something is, as its build type says.
type Form string

// The forms that waxseal knows the meaning of.
const (
	FormWaxseal   Form = "waxseal"
	FormGitHub    Form = "GitHub Actions"
	FormGenerator Form = "slsa-github-generator"
	FormGCB       Form = "Google Cloud Build"
	FormGitLab    Form = "GitLab CI/CD"
	FormTekton    Form = "Tekton Chains"
	FormWitness   Form = "Witness"
	FormBuildKit  Form = "BuildKit"
)

func formOf(buildType string) Form {
	switch buildType {
	case attestations.ContainerBuildType, attestations.CommandType:
		return FormWaxseal
	case "https://actions.github.io/buildtypes/workflow/v1",
		"https://github.com/actions/buildtypes/workflow/v1",
		"https://slsa-framework.github.io/github-actions-buildtypes/workflow/v1":
		return FormGitHub
	case "https://github.com/slsa-framework/slsa-github-generator/container@v1",
		"https://github.com/slsa-framework/slsa-github-generator/generic@v1",
		"https://github.com/slsa-framework/slsa-github-generator/go@v1",
		"https://github.com/slsa-framework/slsa-github-generator@v1",
		"https://github.com/slsa-framework/slsa-github-generator-go@v1",
		"https://slsa.dev/container-based-build/v0.1?draft":
		return FormGenerator
	case "https://cloud.google.com/build/gcb-buildtypes/google-worker/v1":
		return FormGCB
	case "https://docs.gitlab.com/ci/pipeline_security/slsa/provenance_v1":
		return FormGitLab
	case "https://tekton.dev/chains/v2/slsa", "https://tekton.dev/chains/v2/slsa-tekton", // slsa/v2alpha3 and v2alpha4
		"tekton.dev/v1/PipelineRun", "tekton.dev/v1/TaskRun", "tekton.dev/v1beta1/PipelineRun", "tekton.dev/v1beta1/TaskRun", // slsa/v1
		"https://tekton.dev/attestations/chains@v2", "https://tekton.dev/attestations/chains/pipelinerun@v2":
		return FormTekton
	case "https://witness.dev/slsa-build@v0.1":
		return FormWitness
	case "https://mobyproject.org/buildkit@v1", "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md":
		return FormBuildKit
	}
	for _, family := range []struct {
		form       Form
		head, tail string
	}{
		{FormGCB, "https://cloudbuild.googleapis.com/CloudBuildYaml@", ""},
		{FormGCB, "https://cloudbuild.googleapis.com/CloudBuildSteps@", ""},
		{FormGCB, "https://cloudbuild.googleapis.com/GoogleHostedWorker@", ""},
		{FormGitLab, "https://gitlab.com/gitlab-org/gitlab-runner/-/blob/", "/PROVENANCE.md"},
	} {
		if strings.HasPrefix(buildType, family.head) && strings.HasSuffix(buildType, family.tail) {
			return family.form
		}
	}
	return ""
}

// cloudBuildV1 reads https://cloud.google.com/build/gcb-buildtypes/google-worker/v1
func (p *Provenance) cloudBuildV1(internal json.RawMessage, at string) {
	from := "buildConfigSource"
	// Where it differs, this is what was checked out and built.
	if set(p.External["sourceToBuild"]) {
		from = "sourceToBuild"
	}
	raw, pointer := p.External[from], p.ExternalPointer+"/"+from
	ref := cloudBuildRef(within(internal, "systemSubstitutions"), at+"/systemSubstitutions", field(raw, pointer, "ref"))
	p.source(field(raw, pointer, "repository"), ref)
	p.EntryPoint = field(p.External["buildConfigSource"], p.ExternalPointer+"/buildConfigSource", "path")
	p.Echoes = Echoes{Repository: []string{from + "/repository"}, Ref: []string{from + "/ref"}, EntryPoint: []string{"buildConfigSource/path"}}
}

// cloudBuildRef is the ref that Cloud Build's own substitutions name: it writes
// the name of a tag below "refs/heads/" elsewhere, as if it were a branch.
func cloudBuildRef(substitutions json.RawMessage, at string, stated Field) Field {
	tag, branch := field(substitutions, at, "TAG_NAME"), field(substitutions, at, "BRANCH_NAME")
	switch {
	case tag.Value != "" && branch.Value != "":
		return Field{} // nobody can tell
	case tag.Value != "":
		tag.Value = "refs/tags/" + tag.Value
		return tag
	case branch.Value != "":
		branch.Value = "refs/heads/" + branch.Value
		return branch
	}
	return stated
}

// pathOf is a pointer below another one.
func pathOf(names []string) string {
	path := ""
	for _, n := range names {
		path += "/" + n
	}
	return path
}
