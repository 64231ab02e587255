package attestations

// CI says whose build it was: the platform that ran the job, and what is known
// about the job. It is part of the internalParameters of our build types.
type CI struct {
	// Platform is "github-actions", "gitlab", "buildkite", "circleci",
	// "azure-pipelines", "jenkins", "tekton" or "codebuild". It is the job's own
	// word where Verified is nil or its issuer is not the platform's.
	Platform string `json:"platform,omitempty"`
	// Verified is what an identity token said whose signature was checked with
	// the keys that its issuer publishes. Nil: there was none, see Unverified.
	Verified *CIIdentity `json:"verified,omitempty"`
	// Unverified is why nothing is verified.
	Unverified string `json:"unverified,omitempty"`
	// Declared is what the variables of the job say. Whoever can set variables
	// can write it.
	Declared *CIJob `json:"declared,omitempty"`
}

// CIIdentity is what a platform signed about a job.
type CIIdentity struct {
	Issuer  string `json:"issuer"`
	Subject string `json:"subject"`
	CIJob
}

// CIJob describes a job; what is not known is empty.
type CIJob struct {
	Repository string `json:"repository,omitempty"` // URL
	Commit     string `json:"commit,omitempty"`     // hex
	Ref        string `json:"ref,omitempty"`        // "refs/heads/main"
	Event      string `json:"event,omitempty"`      // as the platform calls what started it: "push"
	Workflow   string `json:"workflow,omitempty"`   // URL of what defines the job, with the revision where the platform says it
	Run        string `json:"run,omitempty"`        // URL or name of this run
	Runner     string `json:"runner,omitempty"`     // "github-hosted", "self-hosted"
}
