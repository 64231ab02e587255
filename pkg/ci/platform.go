package ci

import (
	"net/url"
	"os"
	"strings"

	"github.com/waxseal/waxseal/attestations"
)

// platform is one CI system.
type platform struct {
	name string
	// here reports whether the variables are those of this platform.
	here func(env func(string) string) bool
	// declared is what the variables say.
	declared func(env func(string) string) attestations.CIJob
	// issued reports whether an issuer is this platform's own, whatever the
	// variables say. Nil where every installation has its own.
	issued func(issuer string) bool
	// job is what the claims of a verified token say.
	job func(c claims) attestations.CIJob
	// way is how a job of this platform gets a token that can be verified.
	way string
}

// platforms lists what is recognised.
func (o Options) platforms() []platform {
	return []platform{
		{
			name: "github-actions",
			here: is("GITHUB_ACTIONS", "true"),
			declared: func(env func(string) string) attestations.CIJob {
				server := env("GITHUB_SERVER_URL")
				j := attestations.CIJob{Commit: env("GITHUB_SHA"), Ref: env("GITHUB_REF"), Event: env("GITHUB_EVENT_NAME"), Runner: env("RUNNER_ENVIRONMENT")}
				if server != "" && env("GITHUB_REPOSITORY") != "" {
					j.Repository = server + "/" + env("GITHUB_REPOSITORY")
					j.Run = runOf(j.Repository, env("GITHUB_RUN_ID"), env("GITHUB_RUN_ATTEMPT"))
				}
				if server != "" && env("GITHUB_WORKFLOW_REF") != "" {
					j.Workflow = server + "/" + env("GITHUB_WORKFLOW_REF")
				}
				return j
			},
			issued: under("https://token.actions.githubusercontent.com"),
			// https://docs.github.com/en/actions/reference/security/oidc
			job: func(c claims) attestations.CIJob {
				server := "https://github.com"
				if host, ok := strings.CutSuffix(c.text("iss"), "/_services/token"); ok {
					server = host // GitHub Enterprise Server
				}
				j := attestations.CIJob{Commit: c.text("sha"), Ref: c.text("ref"), Event: c.text("event_name"), Runner: c.text("runner_environment")}
				if name := c.text("repository"); name != "" {
					j.Repository = server + "/" + name
					j.Run = runOf(j.Repository, c.text("run_id"), c.text("run_attempt"))
				}
				// A reusable workflow is what ran, whoever called it.
				if ref := firstOf(c.text("job_workflow_ref"), c.text("workflow_ref")); ref != "" {
					j.Workflow = server + "/" + ref
				}
				return j
			},
			way: "give the job \"permissions: id-token: write\"",
		},
		{
			name: "gitlab",
			here: is("GITLAB_CI", "true"),
			declared: func(env func(string) string) attestations.CIJob {
				return attestations.CIJob{
					Repository: env("CI_PROJECT_URL"), Commit: env("CI_COMMIT_SHA"), Ref: refOf(env("CI_COMMIT_TAG"), env("CI_COMMIT_BRANCH")),
					Event: env("CI_PIPELINE_SOURCE"), Run: env("CI_JOB_URL"),
				}
			},
			issued: only("https://gitlab.com"),
			// https://docs.gitlab.com/ci/secrets/id_token_authentication/#token-payload
			job: func(c claims) attestations.CIJob {
				j := attestations.CIJob{Commit: c.text("sha"), Ref: c.text("ref_path"), Event: c.text("pipeline_source"), Runner: c.text("runner_environment")}
				if path := c.text("project_path"); path != "" {
					j.Repository = c.text("iss") + "/" + path
					if id := c.text("job_id"); id != "" {
						j.Run = j.Repository + "/-/jobs/" + id
					}
				}
				if uri := c.text("ci_config_ref_uri"); uri != "" {
					j.Workflow = "https://" + uri
				}
				return j
			},
			way: "give the job \"id_tokens: WAXSEAL_ID_TOKEN: aud: " + Audience + "\"",
		},
		{
			name: "buildkite",
			here: is("BUILDKITE", "true"),
			declared: func(env func(string) string) attestations.CIJob {
				return attestations.CIJob{
					Repository: env("BUILDKITE_REPO"), Commit: env("BUILDKITE_COMMIT"), Ref: refOf(env("BUILDKITE_TAG"), env("BUILDKITE_BRANCH")),
					Event: env("BUILDKITE_SOURCE"), Run: env("BUILDKITE_BUILD_URL"),
				}
			},
			issued: only("https://agent.buildkite.com"),
			// https://buildkite.com/docs/agent/v3/cli-oidc
			job: func(c claims) attestations.CIJob {
				j := attestations.CIJob{Commit: c.text("build_commit"), Ref: refOf(c.text("build_tag"), c.text("build_branch")), Event: c.text("build_source"), Runner: c.text("runner_environment")}
				if org, pipeline := c.text("organization_slug"), c.text("pipeline_slug"); org != "" && pipeline != "" {
					j.Workflow = "https://buildkite.com/" + org + "/" + pipeline
					if n := c.text("build_number"); n != "" {
						j.Run = j.Workflow + "/builds/" + n
						if id := c.text("job_id"); id != "" {
							j.Run += "#" + id
						}
					}
				}
				return j
			},
			way: "pass BUILDKITE_AGENT_ACCESS_TOKEN and BUILDKITE_JOB_ID to where waxseal runs",
		},
		{
			name: "circleci",
			here: is("CIRCLECI", "true"),
			declared: func(env func(string) string) attestations.CIJob {
				return attestations.CIJob{
					Repository: env("CIRCLE_REPOSITORY_URL"), Commit: env("CIRCLE_SHA1"), Ref: refOf(env("CIRCLE_TAG"), env("CIRCLE_BRANCH")), Run: env("CIRCLE_BUILD_URL"),
				}
			},
			issued: under("https://oidc.circleci.com/org"),
			// https://circleci.com/docs/openid-connect-tokens/#format-of-the-openid-connect-id-token
			job: func(c claims) attestations.CIJob {
				j := attestations.CIJob{Ref: c.text("oidc.circleci.com/vcs-ref"), Run: c.text("oidc.circleci.com/job-id")}
				if origin := c.text("oidc.circleci.com/vcs-origin"); origin != "" {
					j.Repository = "https://" + origin
				}
				// The names of organization and project stand nowhere in it.
				if id := c.text("oidc.circleci.com/project-id"); id != "" {
					j.Workflow = c.text("iss") + "/project/" + id
				}
				return j
			},
			way: "see that CIRCLE_OIDC_TOKEN_V2 reaches waxseal",
		},
		{
			name: "azure-pipelines",
			here: is("TF_BUILD", "True"),
			declared: func(env func(string) string) attestations.CIJob {
				j := attestations.CIJob{
					Repository: env("BUILD_REPOSITORY_URI"), Commit: env("BUILD_SOURCEVERSION"), Ref: env("BUILD_SOURCEBRANCH"), Event: env("BUILD_REASON"),
				}
				if base, project, id := env("SYSTEM_COLLECTIONURI"), env("SYSTEM_TEAMPROJECT"), env("BUILD_BUILDID"); base != "" && project != "" && id != "" {
					j.Run = strings.TrimSuffix(base, "/") + "/" + url.PathEscape(project) + "/_build/results?buildId=" + url.QueryEscape(id)
				}
				return j
			},
			issued: under("https://vstoken.dev.azure.com"),
			job: func(c claims) attestations.CIJob {
				return attestations.CIJob{Repository: c.text("rpo_uri"), Commit: c.text("rpo_ver"), Ref: c.text("rpo_ref"), Run: c.text("run_id"), Workflow: c.text("sub")}
			},
			way: "map SYSTEM_ACCESSTOKEN: $(System.AccessToken) into the step's env",
		},
		{
			name: "codebuild",
			here: func(env func(string) string) bool { return env("CODEBUILD_BUILD_ARN") != "" },
			declared: func(env func(string) string) attestations.CIJob {
				return attestations.CIJob{
					Repository: env("CODEBUILD_SOURCE_REPO_URL"), Commit: env("CODEBUILD_RESOLVED_SOURCE_VERSION"), Ref: env("CODEBUILD_WEBHOOK_HEAD_REF"),
					Event: env("CODEBUILD_WEBHOOK_EVENT"), Run: env("CODEBUILD_BUILD_ARN"),
				}
			},
			way: "AWS CodeBuild signs no identity token: sign with a KMS key that only the project's role may use",
		},
		{
			name: "jenkins",
			here: func(env func(string) string) bool { return env("JENKINS_URL") != "" && env("BUILD_URL") != "" },
			declared: func(env func(string) string) attestations.CIJob {
				return attestations.CIJob{Repository: env("GIT_URL"), Commit: env("GIT_COMMIT"), Workflow: env("JOB_URL"), Run: env("BUILD_URL"), Ref: jenkinsRef(env("GIT_BRANCH"))}
			},
			// The plugin "OpenID Connect Provider" names the job's URL as subject.
			job: func(c claims) attestations.CIJob {
				j := attestations.CIJob{Workflow: c.text("sub")}
				if n := c.text("build_number"); n != "" {
					j.Run = strings.TrimSuffix(j.Workflow, "/") + "/" + n
				}
				return j
			},
			way: "bind an id token of the plugin \"OpenID Connect Provider\" to a variable, and give --ci-token env:NAME",
		},
		{
			name: "tekton",
			here: func(func(string) string) bool {
				info, err := os.Stat(o.Tekton + "/run")
				return err == nil && info.IsDir()
			},
			declared: func(func(string) string) attestations.CIJob { return attestations.CIJob{} },
			// https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#schema-for-service-account-private-claims
			job: func(c claims) attestations.CIJob {
				k, _ := c["kubernetes.io"].(map[string]any)
				pod, _ := k["pod"].(map[string]any)
				space, _ := k["namespace"].(string)
				name, _ := pod["name"].(string)
				if space == "" || name == "" {
					return attestations.CIJob{}
				}
				return attestations.CIJob{Run: space + "/" + name}
			},
			way: "mount a projected service account token (audience " + Audience + ") into the step, and give --ci-token FILE",
		},
	}
}

func (o Options) recognise() *platform {
	for _, p := range o.platforms() {
		if p.here(o.Env) {
			declared := p.declared
			p.declared = func(env func(string) string) attestations.CIJob { return clean(declared(env)) }
			return &p
		}
	}
	return nil
}

func is(name, value string) func(func(string) string) bool {
	return func(env func(string) string) bool { return env(name) == value }
}

// only holds for one issuer.
func only(issuer string) func(string) bool {
	return func(s string) bool { return s == issuer }
}

// under holds for an issuer and those that have a path below it.
func under(issuer string) func(string) bool {
	return func(s string) bool { return s == issuer || strings.HasPrefix(s, issuer+"/") }
}

func refOf(tag, branch string) string {
	switch {
	case tag != "":
		return "refs/tags/" + tag
	case branch != "":
		return "refs/heads/" + branch
	}
	return ""
}

// jenkinsRef turns the git plugin's "origin/main" into a ref.
func jenkinsRef(branch string) string {
	if _, name, ok := strings.Cut(branch, "/"); ok {
		return "refs/heads/" + name
	}
	return refOf("", branch)
}

func runOf(repository, id, attempt string) string {
	if id == "" {
		return ""
	}
	run := repository + "/actions/runs/" + id
	if attempt != "" {
		run += "/attempts/" + attempt
	}
	return run
}

func firstOf(all ...string) string {
	for _, s := range all {
		if s != "" {
			return s
		}
	}
	return ""
}

// clean takes credentials out of URLs and what is no commit out of Commit.
func clean(j attestations.CIJob) attestations.CIJob {
	j.Repository, j.Workflow, j.Run = bare(j.Repository), bare(j.Workflow), bare(j.Run)
	if !isCommit(j.Commit) {
		j.Commit = "" // "HEAD"
	}
	j.Ref, j.Event, j.Runner = clip(j.Ref), clip(j.Event), clip(j.Runner)
	return j
}

// bare is a URL without user and password.
func bare(s string) string {
	if !strings.Contains(s, "://") {
		return clip(s)
	}
	u, err := url.Parse(s)
	if err != nil {
		return "" // what cannot be read may hold a password
	}
	u.User = nil
	return clip(u.String())
}

func isCommit(s string) bool {
	return (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == ""
}
