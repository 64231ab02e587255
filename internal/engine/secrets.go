package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/zricethezav/gitleaks/v8/detect"

	"github.com/waxseal/waxseal/pkg/attest"
)

// maxSecretText is how many bytes of text are looked through at once.
const maxSecretText = 64 << 20

// FoundSecret is one secret in one of the texts.
type FoundSecret struct {
	Text   int    `json:"text"`   // which of the texts, from 0
	Kind   string `json:"kind"`   // gitleaks' rule: "github-pat"
	Secret string `json:"secret"` // as it stands in the text
}

// Secrets reads lists of texts in JSON, a line each, and answers every one with
// a line: a list of what in them has the shape of a secret (of FoundSecret), by
// the rules that gitleaks brings. A comment in a text that tells gitleaks to
// look away is ignored.
func Secrets(ctx context.Context, in io.Reader, out io.Writer) error {
	d, err := detect.NewDetectorDefaultConfig()
	if err != nil {
		return fmt.Errorf("loading the rules of gitleaks: %w", err)
	}
	d.IgnoreGitleaksAllow = true
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxSecretText)
	answers := json.NewEncoder(out)
	for lines.Scan() {
		var texts []string
		if err := attest.UnmarshalStrict(lines.Bytes(), &texts); err != nil {
			return fmt.Errorf("reading the texts to look through: %w", err)
		}
		found := []FoundSecret{}
		for i, text := range texts {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			for _, f := range d.DetectString(text) {
				if f.Secret == "" {
					return errors.New("gitleaks found a secret and does not say which")
				}
				found = append(found, FoundSecret{Text: i, Kind: f.RuleID, Secret: f.Secret})
			}
		}
		if err := answers.Encode(found); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading the texts to look through: %w", err)
	}
	return nil
}
