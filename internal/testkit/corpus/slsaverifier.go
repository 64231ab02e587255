package corpus

import (
	"context"
	"fmt"
	"strings"
)

// SLSAVerifier is slsa-verifier's verify-vsa, for cases of one verification
// summary in a bare envelope, signed by a key, whose wants it has words for.
func SLSAVerifier(program string) Verifier {
	return func(ctx context.Context, c *Case) (*Answer, error) {
		q, t := c.Question, c.Trust
		s := q.Summary
		switch {
		case s == nil || strings.Contains(q.MediaType, "index") || len(q.Evidence) != 1 || q.Evidence[0] != "evidence/vsa.json" || !c.bare(q.Evidence[0]) && c.Expect.Decision == Pass,
			len(t.Verifiers) != 1 || t.Verifiers[0].Levels.Build < q.Level.Build || q.Level.Source > 0 || len(q.Properties) > 0,
			s.PolicyURI != "" || s.MaxAge > 0 || len(s.Names) > 0 || s.Required || q.Repository != "",
			len(c.Expect.Evidence) != 1 || len(c.Expect.Reasons) > 0 && c.Expect.Reasons[0].Code != "level":
			return nil, errSkip
		}
		args := []string{"verify-vsa", "--subject-digest", q.Digest, "--attestation-path", c.path(q.Evidence[0]),
			"--verifier-id", t.Verifiers[0].ID, "--resource-uri", s.ResourceURI, "--public-key-path", c.path(t.Verifiers[0].Key), "--public-key-id", ""}
		if q.Level.Build > 0 {
			args = append(args, "--verified-level", fmt.Sprintf("SLSA_BUILD_LEVEL_%d", q.Level.Build))
		}
		yes, said, err := ask(ctx, program, args)
		if err != nil {
			return nil, err
		}
		if yes {
			return &Answer{Decision: Pass}, nil
		}
		return &Answer{Decision: Deny, Says: clip(said)}, nil
	}
}
