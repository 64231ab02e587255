package verify

import (
	"fmt"
	"strings"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
)

// Run is the CI run that a certificate was issued to, as its platform told the
// authority: none of it is the job's own word. A certificate of another kind,
// or of a private CA, says nothing of it.
// https://github.com/sigstore/fulcio/blob/v1.8.7/docs/oid-info.md
type Run struct {
	Repository string `json:"repository,omitempty"` // URL of the repository that the run is of: the caller's, for a reusable workflow
	Commit     string `json:"commit,omitempty"`     // hex
	Ref        string `json:"ref,omitempty"`        // full git ref
	Workflow   string `json:"workflow,omitempty"`   // URI of what was started; the SAN is what signs
	Runner     string `json:"runner,omitempty"`     // "github-hosted", "self-hosted"
	Event      string `json:"event,omitempty"`      // "push"
	Invocation string `json:"invocation,omitempty"` // URL of the run
}

func runOf(c *certificate.Summary) Run {
	r := Run{
		Repository: c.SourceRepositoryURI, Commit: c.SourceRepositoryDigest, Ref: c.SourceRepositoryRef,
		Workflow: c.BuildConfigURI, Runner: c.RunnerEnvironment, Event: c.BuildTrigger, Invocation: c.RunInvocationURI,
	}
	// Certificates from before these extensions carry GitHub's own.
	if r.Repository == "" && c.GithubWorkflowRepository != "" {
		r.Repository = "https://github.com/" + c.GithubWorkflowRepository
		r.Commit, r.Ref, r.Event = c.GithubWorkflowSHA, c.GithubWorkflowRef, c.GithubWorkflowTrigger
	}
	return r
}

// CodeContradiction is of a provenance that says something else than the
// certificate it is signed with.
const CodeContradiction = "contradiction"

// Contradictions lists where a provenance says something else of its run than
// the certificate that signed it. None where the certificate says nothing.
func Contradictions(p *Provenance, s Signer) []Problem {
	var out []Problem
	differ := func(claimed Field, what, proved string) {
		out = append(out, Problem{Code: CodeContradiction, Pointer: claimed.Pointer,
			Message: fmt.Sprintf("it says %s %q, and its certificate was issued to %q", what, clip(claimed.Value), clip(proved))})
	}
	// These forms describe the run itself, not whatever the run has built.
	own := p.Form == FormGitHub || p.Form == FormGenerator || p.Form == FormGitLab
	if s.SAN != "" && (p.Form == FormGitHub || p.Form == FormGenerator) && p.BuilderID.Value != s.SAN {
		differ(p.BuilderID, "builder.id", s.SAN)
	}
	if len(p.Sources) > 0 {
		src := p.Sources[0]
		switch {
		case s.Run.Repository == "":
		case !SameRepository(src.Repository, s.Run.Repository):
			differ(Field{src.Repository, src.Pointer}, "it was built from", s.Run.Repository)
		case own && s.Run.Ref != "" && src.Ref.Value != "" && src.Ref.Value != s.Run.Ref:
			differ(src.Ref, "it was built from", s.Run.Ref)
		case own && s.Run.Commit != "" && src.Commit != "" && src.Commit != s.Run.Commit:
			differ(Field{src.Commit, src.Pointer}, "it was built from", s.Run.Commit)
		}
	}
	if p.Runner.Value != "" && s.Run.Runner != "" && p.Runner.Value != s.Run.Runner {
		differ(p.Runner, "it ran on", s.Run.Runner)
	}
	if p.Event.Value != "" && s.Run.Event != "" && p.Event.Value != s.Run.Event {
		differ(p.Event, "it was started by", s.Run.Event)
	}
	return out
}

// runner is where the build ran and event what started it: by the certificate,
// or by what the provenance says. Where an issuer vouches for the signer's runs,
// proof is the certificate alone: the provenance may be the job's own word.
func (b Builder) runner(s Signer, p *Provenance) string { return b.proved(s.Run.Runner, p.Runner) }

func (b Builder) event(s Signer, p *Provenance) string { return b.proved(s.Run.Event, p.Event) }

func (b Builder) proved(run string, said Field) string {
	if run != "" || b.Identity != nil && b.Identity.issuer != "" {
		return run
	}
	return said.Value
}

// hosted reports whether a runner is one of the platform's own: each names them
// after itself.
func hosted(runner string) bool {
	return strings.HasSuffix(runner, "-hosted") && runner != onesOwn
}

// selfHosted reports whether anybody says that a run was on a runner of
// somebody's own: of that, the job's word is enough.
func selfHosted(s Signer, p *Provenance) bool {
	return s.Run.Runner == onesOwn || p.Runner.Value == onesOwn
}

const onesOwn = "self-hosted"

// called reports whether the certificate shows that the workflow that signed
// was called by another one: a reusable workflow, which the caller's jobs cannot
// change.
func (s Signer) called() bool {
	signer, _, _ := strings.Cut(s.SAN, "@")
	started, _, _ := strings.Cut(s.Run.Workflow, "@")
	return signer != "" && started != "" && signer != started
}
