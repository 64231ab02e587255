package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	ahocorasick "github.com/BobuSumisu/aho-corasick"
	"github.com/spf13/viper"
	"github.com/zricethezav/gitleaks/v8/config"
	"github.com/zricethezav/gitleaks/v8/detect"
	"github.com/zricethezav/gitleaks/v8/report"

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
	d, err := newDetector()
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxSecretText)
	answers := json.NewEncoder(out)
	for lines.Scan() {
		var texts []string
		if err := attest.UnmarshalStrict(lines.Bytes(), &texts); err != nil {
			return fmt.Errorf("reading the texts to look through: %w", err)
		}
		if err := d.prepare(texts); err != nil {
			return err
		}
		found := []FoundSecret{}
		for i, text := range texts {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			for _, f := range d.find(text) {
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

// detector finds what gitleaks finds by its own rules. Most of gitleaks' start is
// compiling them, and a rule is only asked about a text that has one of its
// keywords: this compiles those that some text needed.
type detector struct {
	rules    config.ViperConfig // all of them
	keywords *ahocorasick.Trie
	compiled map[string]bool // by the rule's ID
	parts    []*detect.Detector
}

func newDetector() (*detector, error) {
	v := viper.New()
	v.SetConfigType("toml")
	d := &detector{compiled: map[string]bool{}}
	err := v.ReadConfig(strings.NewReader(config.DefaultConfig))
	if err == nil {
		err = v.Unmarshal(&d.rules)
	}
	if err != nil {
		return nil, fmt.Errorf("loading the rules of gitleaks: %w", err)
	}
	words := ahocorasick.NewTrieBuilder()
	for _, r := range d.rules.Rules {
		for i, word := range r.Keywords {
			r.Keywords[i] = strings.ToLower(word)
		}
		words.AddStrings(r.Keywords)
	}
	d.keywords = words.Build()
	return d, nil
}

// prepare compiles what texts need beside what earlier ones did. Only then may
// they be looked through.
func (d *detector) prepare(texts []string) error {
	there := map[string]bool{}
	for _, text := range texts {
		for _, m := range d.keywords.MatchString(strings.ToLower(text)) {
			there[m.MatchString()] = true
		}
	}
	missing := map[string]bool{}
	for _, r := range d.rules.Rules {
		if d.compiled[r.ID] || len(r.Keywords) > 0 && !slices.ContainsFunc(r.Keywords, func(word string) bool { return there[word] }) {
			continue
		}
		missing[r.ID] = true
		for _, other := range r.Required {
			missing[other.ID] = true // looked for around what the rule finds
		}
	}
	if len(missing) == 0 {
		return nil
	}
	some := d.rules
	some.Rules = nil
	for _, r := range d.rules.Rules {
		if missing[r.ID] {
			some.Rules = append(some.Rules, r)
			d.compiled[r.ID] = true
		}
	}
	cfg, err := some.Translate()
	if err != nil {
		return fmt.Errorf("compiling the rules of gitleaks: %w", err)
	}
	part := detect.NewDetector(cfg)
	part.IgnoreGitleaksAllow = true
	d.parts = append(d.parts, part)
	return nil
}

// find looks through a text that prepare has seen.
func (d *detector) find(text string) (all []report.Finding) {
	for _, part := range d.parts {
		all = append(all, part.DetectString(text)...)
	}
	return all
}
