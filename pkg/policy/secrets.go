package policy

import (
	"fmt"
	"regexp"
	"strings"
)

// detector finds what looks like a secret by the shapes that issuers give
// their tokens, and by the name of a variable that holds something. It says
// where it is and what kind, never what it is.
type detector struct {
	shapes []shape
	name   *regexp.Regexp // of a variable
	set    *regexp.Regexp // NAME=value in a command
}

type shape struct {
	what string
	re   *regexp.Regexp
}

// newDetector compiles the shapes; each is documented by whoever issues the
// token. What has no shape of its own can only be told by its variable's name.
func newDetector() *detector {
	d := &detector{
		name: regexp.MustCompile(`(?i)(passw(or)?d|passphrase|secret|token|api_?key|access_?key|private_?key|credentials?)$`),
		set:  regexp.MustCompile(`(?i)\b[a-z0-9_]*(?:passw(?:or)?d|passphrase|secret|token|api_?key|access_?key|private_?key|credentials?)=("[^"]*"|'[^']*'|[^\s"']*)`),
	}
	for _, s := range []struct{ what, re string }{
		{"an AWS access key", `\b(?:AKIA|ASIA)[0-9A-Z]{16}\b`},
		{"a GitHub token", `\bgh[pousr]_[A-Za-z0-9]{36,255}\b`},
		{"a GitHub token", `\bgithub_pat_[A-Za-z0-9_]{22,255}\b`},
		{"a GitLab token", `\bgl(?:pat|dt|rt|ft|ptt|cbt|soat)-[A-Za-z0-9_-]{20,}`},
		{"a Slack token", `\bxox[abeprs]-[0-9A-Za-z-]{10,}`},
		{"a Google API key", `\bAIza[0-9A-Za-z_-]{35}`},
		{"a Google OAuth secret", `\bGOCSPX-[0-9A-Za-z_-]{28}`},
		{"a Stripe key", `\b[sr]k_live_[0-9A-Za-z]{20,}`},
		{"an npm token", `\bnpm_[A-Za-z0-9]{36}\b`},
		{"a PyPI token", `\bpypi-AgE[A-Za-z0-9_-]{50,}`},
		{"a RubyGems key", `\brubygems_[a-f0-9]{48}\b`},
		{"a Docker Hub token", `\bdckr_(?:pat|oat)_[A-Za-z0-9_-]{27,}`},
		{"a Hugging Face token", `\bhf_[A-Za-z]{34}\b`},
		{"a Vault token", `\bhv[sbr]\.[A-Za-z0-9_-]{24,}`},
		{"a SendGrid key", `\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}`},
		{"an Anthropic key", `\bsk-ant-[A-Za-z0-9_-]{32,}`},
		{"an OpenAI key", `\bsk-(?:proj-)?[A-Za-z0-9_-]{20,}T3BlbkFJ[A-Za-z0-9_-]{20,}`},
		{"an Azure storage key", `\bAccountKey=[A-Za-z0-9+/]{86}==`},
		{"a private key", `-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----`},
		{"a JSON web token", `\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}`},
		{"a password in a URL", `\b[a-z][a-z0-9+.-]*://[^/\s:@"'$]*:[^/\s:@"'$]+@`},
	} {
		d.shapes = append(d.shapes, shape{s.what, regexp.MustCompile(s.re)})
	}
	return d
}

func (d *detector) shaped(text string) string {
	for _, s := range d.shapes {
		if s.re.MatchString(text) {
			return s.what
		}
	}
	return ""
}

// search says what looks like a secret in the variables, the labels, the
// commands and the history of an image.
func (d *detector) search(c *ImageConfig) []string {
	var out []string
	for _, e := range c.values {
		name, value, _ := strings.Cut(e, "=")
		switch what := d.shaped(value); {
		case what != "":
			out = append(out, fmt.Sprintf("the variable %q of the image holds %s", clip(name), what))
		case d.name.MatchString(name) && telling(value):
			out = append(out, fmt.Sprintf("the variable %q of the image has a value, and its name says it is secret", clip(name)))
		}
	}
	for _, k := range keys(c.Labels) {
		if what := d.shaped(c.Labels[k]); what != "" {
			out = append(out, fmt.Sprintf("the label %q of the image holds %s", clip(k), what))
		}
	}
	for _, words := range [][]string{c.Entrypoint, c.Cmd} {
		if what := d.shaped(strings.Join(words, " ")); what != "" {
			out = append(out, "the command of the image holds "+what)
		}
	}
	for i, h := range c.History {
		if what := d.shaped(h); what != "" {
			out = append(out, fmt.Sprintf("entry %d of the image's history holds %s", i+1, what))
			continue
		}
		for _, m := range d.set.FindAllStringSubmatch(h, -1) {
			if name, _, _ := strings.Cut(m[0], "="); telling(strings.Trim(m[1], `"'`)) {
				out = append(out, fmt.Sprintf("entry %d of the image's history sets %q, whose name says it is secret", i+1, clip(name)))
				break
			}
		}
	}
	return out
}

// telling reports a value that could be the secret itself: not another
// variable, a file that holds it, or a switch.
func telling(value string) bool {
	switch strings.ToLower(value) {
	case "", "true", "false", "0", "1", "yes", "no", "none", "null":
		return false
	}
	return !strings.HasPrefix(value, "$") && !strings.HasPrefix(value, "/")
}
