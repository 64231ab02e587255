package build

import (
	"slices"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/attestations"
)

func TestWhatIsFoundIsTakenOut(t *testing.T) {
	const secret, longer = "q7Zp9Xv4Lm1T", "q7Zp9Xv4Lm1Tc8Rb"
	c := newCleaner([]string{"NPM_TOKEN=s3cr3tvalue"}, nil)
	texts := []placed{
		{"argument 1 of the command", "", "x " + secret},
		{`build argument "A" of "app"`, "A=", longer},
		{`label "B" of "app"`, "B=", "spanning"},
		{`label "C" of "app"`, "C=", "ab"},
	}
	c.take(texts, []foundSecret{{0, "one", secret}, {1, "two", longer}, {0, "one", secret}, {2, "three", "B=span"}, {3, "four", "C=ab"}})
	if len(c.leaks) != 4 {
		t.Errorf("leaks %v", c.leaks)
	}
	for in, want := range map[string]string{
		"a " + secret + " b":      "a REMOVED b",
		longer:                    "REMOVED",
		"spanning":                "REMOVED",
		"s3cr3tvalue":             "REMOVED",
		"the value ab stays":      "the value ab stays",
		"x --token C=ab is whole": "x --token REMOVED is whole",
	} {
		if got := c.hide(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
	for _, n := range c.notes() {
		if strings.Contains(n, secret) {
			t.Errorf("a note shows the secret: %s", n)
		}
	}
	sv := &clientSolve{
		Attrs:   map[string]string{"build-arg:A": longer, "target": "x"},
		Exports: []clientEntry{{"image", map[string]string{"name": "app:" + secret, "annotation.a": secret}}},
	}
	sv.clean(c)
	if sv.Attrs["build-arg:A"] != removed || sv.Attrs["target"] != "x" || sv.Exports[0].Attrs["annotation.a"] != removed || sv.Exports[0].Attrs["name"] != "app:"+secret {
		t.Errorf("%+v", sv)
	}
	r := &attestations.Inputs{Steps: []attestations.InputStep{{Name: "RUN login " + secret}}}
	c.steps(r)
	if r.Steps[0].Name != "RUN login REMOVED" {
		t.Error(r.Steps[0].Name)
	}
	rec := &record{raw: []byte(`{"a":"` + longer + `"}`)}
	c.record(rec)
	if string(rec.raw) != `{"a":"REMOVED"}` || rec.digest == "" {
		t.Errorf("%s %s", rec.raw, rec.digest)
	}
}

func TestSecretsThatGitleaksCannotKnow(t *testing.T) {
	c := newCleaner([]string{"NPM_TOKEN=s3cr3tvalue"}, nil)
	short := "dckr_" + "pat_7Kq2Zp9Xv4Lm1Tc8Rb"
	got := c.more([]string{"login s3cr3tvalue", "plain", "login " + short, "known " + short}, []foundSecret{{3, "known", "known " + short}})
	want := []foundSecret{{3, "known", "known " + short}, {0, "the value of a variable that is named like one", "s3cr3tvalue"}, {2, "token", short}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestStrictSecrets(t *testing.T) {
	c := newCleaner(nil, nil)
	c.strict = true
	if err := c.strictly("do so"); err != nil {
		t.Error(err)
	}
	for range 5 {
		where := strings.Repeat("x", len(c.leaks)+1)
		c.take([]placed{{where: where, text: "q7Zp9Xv4Lm1T"}}, []foundSecret{{0, "github-pat", "q7Zp9Xv4Lm1T"}})
	}
	err := c.strictly("do so")
	if want := "--strict-secrets: x looks like a secret (github-pat); xx looks like a secret (github-pat); xxx looks like a secret (github-pat); and 2 more"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestArgumentTexts(t *testing.T) {
	r := &CommandRequest{Args: []string{"curl", "--token", "abc", "--flag=x", "y"}, Artifacts: []string{"dist/*"}}
	var got []string
	for _, p := range r.argumentTexts() {
		got = append(got, p.before+p.text)
	}
	if want := []string{"curl", "--token", "--token abc", "--flag=x", "y", "dist/*"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
