package engine

import (
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

// Secrets reads a JSON list of texts and writes a JSON list of what in them has
// the shape of a secret (a list of FoundSecret), by the rules that gitleaks
// brings. A comment in a text that tells gitleaks to look away is ignored.
func Secrets(ctx context.Context, in io.Reader, out io.Writer) error {
	raw, err := io.ReadAll(io.LimitReader(in, maxSecretText+1))
	if err == nil && len(raw) > maxSecretText {
		err = fmt.Errorf("more than %d bytes of text", maxSecretText)
	}
	var texts []string
	if err == nil {
		err = attest.UnmarshalStrict(raw, &texts)
	}
	if err != nil {
		return fmt.Errorf("reading the texts to look through: %w", err)
	}
	d, err := detect.NewDetectorDefaultConfig()
	if err != nil {
		return fmt.Errorf("loading the rules of gitleaks: %w", err)
	}
	d.IgnoreGitleaksAllow = true
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
	return json.NewEncoder(out).Encode(found)
}
