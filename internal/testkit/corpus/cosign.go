package corpus

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/verify"
)

// Pieces asks cosign about every piece of evidence that it can be asked about,
// whether it is an attestation of its type, about this image, by whom the case
// trusts, and prints what it answered. cosign knows of no builder and reads no
// predicate, so what a piece is refused for afterwards is not compared.
func Pieces(ctx context.Context, w io.Writer, cases []*Case, cosign string) error {
	sum := map[string]*tally{}
	var classes, wrong []string
	anyRoot := ""
	for _, c := range cases {
		if len(c.Trust.Roots) > 0 && c.Expect.Decision == Pass {
			anyRoot = c.path(c.Trust.Roots[0])
		}
	}
	for _, c := range cases {
		for _, e := range c.Expect.Evidence {
			good, comparable := authentic(e.Code)
			if !comparable || e.Platform != "" || !strings.HasSuffix(e.Where, ".json") {
				continue
			}
			t := sum[c.Class()]
			if t == nil {
				t = new(tally)
				sum[c.Class()] = t
				classes = append(classes, c.Class())
			}
			t.asked++
			args, ok := c.cosign(e, anyRoot)
			if !ok {
				t.skipped++
				continue
			}
			accepted, said, err := ask(ctx, cosign, args)
			if err != nil {
				return err
			}
			switch {
			case accepted == good:
				t.right++
				continue
			case accepted:
				t.passed++
			default:
				t.refused++
			}
			wrong = append(wrong, fmt.Sprintf("%s %s: accepted %t, want %t (%s): %s", c.Name, e.Where, accepted, good, e.Code, clip(said)))
		}
	}
	return table(w, classes, sum, wrong)
}

// authentic says of a code whether the signature held over a statement about
// the image, where that is what the code tells.
func authentic(code string) (good, comparable bool) {
	switch verify.Code(code) {
	case Accepted, verify.CodeBuilder, gate.CodeRole:
		return true, true
	case verify.CodePredicate, gate.CodeNotNeeded, gate.CodeStapled:
		return false, false
	}
	return false, true
}

// cosign is the question about one piece in cosign's words.
func (c *Case) cosign(e Evidence, anyRoot string) (args []string, ok bool) {
	t := c.Trust
	args = []string{"verify-blob-attestation", "--digest", hexOf(c.Question.Digest), "--digestAlg", "sha256", "--type", c.predicateType(e.Where)}
	if c.bare(e.Where) {
		args = append(args, "--signature", c.path(e.Where))
	} else {
		args = append(args, "--bundle", c.path(e.Where), "--new-bundle-format")
	}
	narrowed := slices.ContainsFunc(c.Question.Flags, func(f string) bool { return f == "--key" || f == "--certificate-identity" })
	switch {
	// It judges as of now, and takes one signer.
	case !c.Question.At.Equal(usual()) || narrowed || len(t.Keys)+len(t.Identities) != 1 || spoken(c) || len(t.Roots) > 1 || t.CARoots != "":
		return nil, false
	case len(t.Keys) == 1 && t.Keys[0].Life == Life{}:
		args = append(args, "--key", c.path(t.Keys[0].File), "--insecure-ignore-tlog")
		if !c.bare(e.Where) {
			// With a bundle it wants a root, and would fetch one: any will do, no
			// log is asked.
			args = append(args, "--trusted-root", anyRoot)
		}
		return args, true
	case len(t.Identities) == 1 && len(t.Roots) == 1 && t.Identities[0].Life == Life{}:
		id := t.Identities[0]
		switch {
		case id.Regexp != "":
			args = append(args, "--certificate-identity-regexp", id.Regexp)
		case id.Pattern != "":
			args = append(args, "--certificate-identity-regexp", expression(id.Pattern))
		default:
			args = append(args, "--certificate-identity", id.SAN)
		}
		// Where a time stamp is required there must be one, so it is where there
		// is; likewise a promise of a log of certificates, which few have here.
		args = append(args, "--certificate-oidc-issuer", id.Issuer, "--trusted-root", c.path(t.Roots[0]))
		if !c.holds(t.Roots[0], `"ctlogs"`) {
			args = append(args, "--insecure-ignore-sct")
		}
		if !c.holds(t.Roots[0], `"tlogs"`) {
			args = append(args, "--insecure-ignore-tlog")
		}
		if c.holds(e.Where, `"rfc3161Timestamps"`) {
			args = append(args, "--use-signed-timestamps")
		}
		return args, true
	}
	return nil, false
}

// usual is the moment that most cases ask about.
func usual() time.Time { return time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC) }

// holds reports whether a file has some text in it.
func (c *Case) holds(file, text string) bool {
	raw, err := os.ReadFile(c.path(file))
	return err == nil && bytes.Contains(raw, []byte(text))
}

// spoken reports whether somebody is trusted whose key is not among those of
// builders.
func spoken(c *Case) bool {
	files := map[string]bool{}
	for _, k := range c.Trust.Keys {
		files[k.File] = true
	}
	entries, err := os.ReadDir(c.path("trust"))
	if err != nil {
		return false
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".pub") && !files["trust/"+e.Name()] {
			return true
		}
	}
	return false
}

// expression is a pattern as an anchored regular expression.
func expression(pattern string) string {
	s := regexp.QuoteMeta(pattern)
	s = strings.ReplaceAll(s, `\*\*`, `.*`)
	return "^" + strings.ReplaceAll(s, `\*`, `[^/@]*`) + "$"
}

func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

// bare reports whether a file is an envelope without a bundle around it.
func (c *Case) bare(file string) bool {
	var top map[string]json.RawMessage
	raw, err := os.ReadFile(c.path(file))
	return err == nil && json.Unmarshal(raw, &top) == nil && top["payload"] != nil && top["mediaType"] == nil
}

// predicateType is what the piece says, or provenance.
func (c *Case) predicateType(file string) string {
	raw, err := os.ReadFile(c.path(file))
	if err != nil {
		return attestations.ProvenanceV1
	}
	var b struct {
		Payload  string
		Envelope struct{ Payload string } `json:"dsseEnvelope"`
	}
	var st struct {
		PredicateType string `json:"predicateType"`
	}
	if json.Unmarshal(raw, &b) == nil {
		if payload, err := base64.StdEncoding.DecodeString(b.Payload + b.Envelope.Payload); err == nil && json.Unmarshal(payload, &st) == nil && st.PredicateType != "" {
			return st.PredicateType
		}
	}
	return attestations.ProvenanceV1
}

// ask runs a program that says yes with exit code 0 and no with another.
func ask(ctx context.Context, program string, args []string) (yes bool, said string, err error) {
	cmd := exec.CommandContext(ctx, program, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	var ended *exec.ExitError
	if err != nil && (!errors.As(err, &ended) || !ended.Exited()) {
		return false, "", err
	}
	return err == nil, out.String(), nil
}
