package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/lock"
)

// placed is a text that came from the command, and where it stands.
type placed struct {
	where string
	// before is what stands before the text, by which gitleaks knows some
	// secrets: "NPM_TOKEN=".
	before, text string
}

// leak is a secret in such a text, without the secret.
type leak struct{ where, kind string }

func (l leak) String() string { return fmt.Sprintf("%s looks like a secret (%s)", l.where, l.kind) }

// begin has texts looked through while other things happen; ready waits for it.
// Call close after it.
func (c *cleaner) begin(ctx context.Context, texts []placed) error {
	var err error
	if c.detector, err = startDetector(); err != nil {
		return err
	}
	answer := make(chan answerOf[[]foundSecret], 1)
	go func() {
		found, err := c.findIn(ctx, texts)
		answer <- answerOf[[]foundSecret]{&found, err}
	}()
	c.begun = func() error {
		a := <-answer
		if a.err != nil {
			return a.err
		}
		c.take(texts, *a.value)
		return nil
	}
	return nil
}

func (c *cleaner) close() { c.detector.close() }

// end says that nothing will be looked through any more. Call close after it, too.
func (c *cleaner) end() { c.detector.end() }

// ready waits for what begin began. From then on text takes out what was found.
func (c *cleaner) ready() error {
	if c.begun == nil {
		return nil
	}
	wait := c.begun
	c.begun = nil
	if err := wait(); err != nil {
		return err
	}
	return c.strictly("give it to the command in a variable with --env NAME, or in a file; or leave out --strict-secrets, and the evidence says " + removed)
}

// look looks through texts. From then on text takes out what was found.
func (c *cleaner) look(ctx context.Context, texts []placed) error {
	if len(texts) == 0 {
		return nil
	}
	found, err := c.findIn(ctx, texts)
	if err != nil {
		return err
	}
	c.take(texts, found)
	return c.strictly("nothing was signed; give steps a secret with docker build --secret, or leave out --strict-secrets, and the evidence says " + removed)
}

// findIn asks gitleaks, and adds what it cannot know.
func (c *cleaner) findIn(ctx context.Context, texts []placed) ([]foundSecret, error) {
	whole := make([]string, len(texts))
	for i, p := range texts {
		whole[i] = p.before + p.text
	}
	found, err := c.detector.find(ctx, whole)
	if err != nil {
		return nil, err
	}
	return c.more(whole, found), nil
}

// more adds the values of variables, and the shapes that gitleaks leaves.
func (c *cleaner) more(texts []string, found []foundSecret) []foundSecret {
	add := func(i int, kind, value string) {
		if !slices.ContainsFunc(found, func(f foundSecret) bool {
			return f.text == i && (strings.Contains(f.value, value) || strings.Contains(value, f.value))
		}) {
			found = append(found, foundSecret{i, kind, value})
		}
	}
	for i, t := range texts {
		for _, v := range c.values {
			if strings.Contains(t, string(v)) {
				add(i, "the value of a variable that is named like one", string(v))
			}
		}
		for _, v := range lock.TokenShape().FindAllString(t, -1) {
			add(i, "token", v)
		}
	}
	return found
}

// take remembers what was found, for hide and notes.
func (c *cleaner) take(texts []placed, found []foundSecret) {
	for _, f := range found {
		p := texts[f.text]
		c.found = append(c.found, f.value)
		if len(p.text) >= minSecret && !strings.Contains(p.text, f.value) && !strings.Contains(p.before, f.value) {
			c.found = append(c.found, p.text) // it begins in what stands before
		}
		if l := (leak{p.where, f.kind}); !slices.Contains(c.leaks, l) {
			c.leaks = append(c.leaks, l)
		}
	}
	// Of two of which one is in the other the longer goes first.
	slices.SortStableFunc(c.found, func(a, b string) int { return len(b) - len(a) })
	c.found = slices.DeleteFunc(slices.Compact(c.found), func(v string) bool { return v == "" })
}

// strictly is an error where there must be no secret and there is one.
func (c *cleaner) strictly(hint string) error {
	if !c.strict || len(c.leaks) == 0 {
		return nil
	}
	var all []string
	for _, l := range c.leaks[:min(len(c.leaks), 3)] {
		all = append(all, l.String())
	}
	if len(c.leaks) > 3 {
		all = append(all, fmt.Sprintf("and %d more", len(c.leaks)-3))
	}
	return hinted(errors.New("--strict-secrets: "+strings.Join(all, "; ")), hint)
}

// notes says what was replaced.
func (c *cleaner) notes() []string {
	var out []string
	for _, l := range c.leaks {
		out = append(out, fmt.Sprintf("%s; the evidence says %s", l, removed))
	}
	return out
}

// argumentTexts are the arguments of a command and what else is given with it.
func (r *CommandRequest) argumentTexts() []placed {
	var out []placed
	for i, a := range r.Args {
		p := placed{where: fmt.Sprintf("argument %d of the command", i), text: a}
		if i > 0 && strings.HasPrefix(r.Args[i-1], "-") && !strings.Contains(r.Args[i-1], "=") {
			p.before = r.Args[i-1] + " "
		}
		if i == 0 {
			p.where = "the command's name"
		}
		out = append(out, p)
	}
	for _, a := range r.Artifacts {
		out = append(out, placed{where: "a pattern of --artifact", text: a})
	}
	for _, a := range r.Images {
		out = append(out, placed{where: "a reference of --image", text: a})
	}
	return out
}

// texts are what the statements say of a build that another program asked for.
func (s *clientSolve) texts() []placed {
	var out []placed
	for _, k := range slices.Sorted(maps.Keys(s.Attrs)) {
		kind, name, _ := strings.Cut(k, ":")
		where := fmt.Sprintf("%q of the build %s", k, s.label())
		switch kind {
		case "build-arg":
			where = fmt.Sprintf("build argument %q of %s", name, s.label())
		case "label":
			where = fmt.Sprintf("label %q of %s", name, s.label())
		default:
			name = k
		}
		out = append(out, placed{where, name + "=", s.Attrs[k]})
	}
	for _, m := range s.entries() {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if said(k) {
				out = append(out, placed{fmt.Sprintf("%q of an output or cache of %s", k, s.label()), k + "=", m[k]})
			}
		}
	}
	return out
}

// entries are the options of all outputs and caches.
func (s *clientSolve) entries() []map[string]string {
	var out []map[string]string
	for _, e := range slices.Concat(s.Exports, s.CacheFrom, s.CacheTo) {
		out = append(out, e.Attrs)
	}
	return out
}

// said tells what the statements say from where an image was put, which
// whoever reads them must know.
func said(option string) bool { return option != "name" && option != "dest" && option != "push" }

// clean takes secrets out of what the statements say.
func (s *clientSolve) clean(c *cleaner) {
	attrs := make(map[string]string, len(s.Attrs))
	for k, v := range s.Attrs {
		attrs[c.hide(k)] = c.hide(v)
	}
	s.Attrs = attrs
	for _, m := range s.entries() {
		for k, v := range m {
			if said(k) {
				m[k] = c.hide(v)
			}
		}
	}
}

// stepTexts are the names of the steps of a record.
func stepTexts(r *attestations.Inputs) []placed {
	var out []placed
	for _, st := range r.Steps {
		out = append(out, placed{where: "the name of a step", text: st.Name})
	}
	return out
}

// record takes secrets out of the engine's own record.
func (c *cleaner) record(r *record) {
	if r.raw == nil {
		return
	}
	for _, v := range c.found {
		for _, form := range []string{v, jsonText(v, true), jsonText(v, false)} {
			r.raw = bytes.ReplaceAll(r.raw, []byte(form), []byte(removed))
		}
	}
	r.digest = digest.FromBytes(r.raw)
}

// jsonText is a text as it stands between quotes in JSON.
func jsonText(s string, html bool) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(html)
	_ = enc.Encode(s) // a text can be written
	return strings.TrimSuffix(strings.TrimPrefix(b.String(), `"`), "\"\n")
}

// steps takes secrets out of the names of a record's steps.
func (c *cleaner) steps(r *attestations.Inputs) {
	for i := range r.Steps {
		r.Steps[i].Name = c.hide(r.Steps[i].Name)
	}
}

// all takes secrets out of a list.
func (c *cleaner) all(list []string) []string {
	out := slices.Clone(list)
	for i := range out {
		out[i] = c.hide(out[i])
	}
	return out
}
