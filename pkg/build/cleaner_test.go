package build

import (
	"slices"
	"testing"
)

func TestCleanerTakesSecretsOutOfCommandLines(t *testing.T) {
	c := newCleaner([]string{"NPM_TOKEN=s3cr3tvalue", "PATH=/usr/bin", "SHORT_TOKEN=ab"}, nil)
	for _, test := range []struct{ name, in, want string }{
		{"a plain argument", "dist", "dist"},
		{"a variable", "TOKEN=abc", "TOKEN=REMOVED"},
		{"a plain variable", "CFLAGS=-O2", "CFLAGS=-O2"},
		{"a flag", "--registry-password=abc", "--registry-password=REMOVED"},
		{"an api key", "--api-key=abc", "--api-key=REMOVED"},
		{"a key that is none", "--sort-key=name", "--sort-key=name"},
		{"a URL", "https://ann:pw@git.example/app", "https://git.example/app"},
		{"a signed URL", "https://git.example/app?sig=abc", "https://git.example/app?sig=REMOVED"},
		{"a URL within", "git clone https://ann:pw@git.example/app && make", "git clone https://git.example/app && make"},
		{"the value of a variable", "curl -H 'X: s3cr3tvalue'", "curl -H 'X: REMOVED'"},
		{"a short value", "tabs", "tabs"},
		{"a token of GitHub's", "x ghp_" + "0123456789abcdefghijABCDEFGHIJ012345" + " y", "x REMOVED y"},
		{"an access key", "AKIA" + "IOSFODNN7EXAMPLE", "REMOVED"},
		{"a JWT", "eyJhbGciOiJI.eyJzdWIiOiIx.c2ln", "REMOVED"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := c.args([]string{test.in}); got[0] != test.want {
				t.Errorf("%q became %q, want %q", test.in, got[0], test.want)
			}
		})
	}
	got := c.args([]string{"login", "--password", "abc", "-u", "ann", "--token", "--verbose"})
	if want := []string{"login", "--password", "REMOVED", "-u", "ann", "--token", "--verbose"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
