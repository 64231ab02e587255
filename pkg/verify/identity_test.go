package verify_test

import (
	"strings"
	"testing"

	"github.com/waxseal/waxseal/internal/testkit/virtual"
	"github.com/waxseal/waxseal/pkg/verify"
)

func TestIdentitiesThatAreNotAnchoredAreRefused(t *testing.T) {
	const gh = "https://github.com/acme/"
	for _, c := range []struct{ pattern, regexp, want string }{
		{pattern: gh + "app/.github/workflows/seal.yml@refs/tags/v*"},
		{pattern: gh + "*/.github/workflows/seal.yml@refs/heads/main"},
		{pattern: gh + "app/.github/workflows/seal.yml@**"},
		{pattern: gh + "**"},
		{pattern: gh + "**@refs/heads/main"},
		{pattern: gh + "app/.github/workflows/seal.yml@refs/tags/v1.*"},
		{pattern: "release@acme.example"},
		{pattern: "*@acme.example"},
		{pattern: "spiffe://acme.example/ns/*/sa/builder"},
		{pattern: "ci+bot@acme.example"},

		{pattern: "**", want: "begins with a wildcard"},
		{pattern: "*", want: "begins with a wildcard"},
		{pattern: "*/app", want: "begins with a wildcard"},
		{pattern: "**/app/.github/workflows/seal.yml@refs/heads/main", want: "begins with a wildcard"},
		{pattern: "**@acme.example", want: "begins with a wildcard"},
		{pattern: "*@*", want: "begins with a wildcard"},
		{pattern: "*.github.com/acme", want: "begins with a wildcard"},
		{pattern: "https://*.example/acme/app", want: "the host must be written out"},
		{pattern: "https://github.com*/acme/app", want: "the host must be written out"},
		{pattern: "https://**/app", want: "the host must be written out"},
		{pattern: "http*://github.com/acme/app", want: "the host must be written out"},
		{pattern: "https://github.com", want: "the host must be written out"},
		{pattern: gh + "app**", want: "between"},
		{pattern: gh + "app/**yml", want: "between"},
		{pattern: gh + "***", want: "more than two stars"},
		{pattern: "^" + gh + "app", want: "regular expression"},
		{pattern: gh + "app$", want: "regular expression"},
		{pattern: `https://github\.com/acme/app`, want: "regular expression"},
		{pattern: gh + "(app|lib)", want: "regular expression"},
		{pattern: gh + "[a-z]*", want: "regular expression"},
		{pattern: gh + ".*", want: "regular expression"},
		{pattern: gh + "app@.+", want: "regular expression"},
		{pattern: ".*", want: "regular expression"},
		{pattern: gh + strings.Repeat("x", 600), want: "longer than"},

		{regexp: `^https://github\.com/acme/app/\.github/workflows/[a-z]+\.yml@refs/tags/v[0-9]+$`},
		{regexp: `^https://github\.com/acme/[^@]*@refs/tags/v.*$`},
		{regexp: `^https://github\.com/(acme/app|acme/lib)/[^@]+\.yml@(refs/heads/main|refs/tags/.*)$`},
		{regexp: `^(https://github\.com/acme/[^@]*@|https://gitlab\.com/acme/[^@]*@).*$`},
		{regexp: `^https://github\.com/acme/app/\.github/workflows/seal\.yml(@.*)?$`},
		{regexp: `^spiffe://acme\.example/ns/[^/@]+/sa/builder$`},
		{regexp: `^[a-z-]+\.ci\.acme\.example$`},
		{regexp: `^(a|b)@acme\.example$`},
		{regexp: `^(ann@acme\.example|bob@acme\.example)$`},
		{regexp: `^[^@]+@acme\.example$`},
		{regexp: `^.*@acme\.example$`},
		{regexp: `^https://github\.com/acme/.*$`, want: "[^@]*"},
		{regexp: `^https://github\.com/acme/app/.*@refs/tags/v1$`, want: "[^@]*"},
		{regexp: `^https://github\.com/acme/app/[^/]+@refs/tags/v1$`, want: "[^@]*"},
		{regexp: `^https://github\.com/acme/\S{1,200}@refs/tags/v1$`, want: "[^@]*"},
		{regexp: `^https://github\.com/acme/([a-z/]+|@)+$`, want: "[^@]*"},
		{regexp: `^https://github\.com/acme/(app@|lib/).*$`, want: "[^@]*"},
		{regexp: `^https://github\.com/acme/app(@refs)?/.*$`, want: "[^@]*"},
		{regexp: `^https://github\.com/acme/.*@acme/x$`, want: "[^@]*"},
		{regexp: `^https://github\.com/acme/.*@main$`, want: "[^@]*"},
		{regexp: `^.*/release\.yml@refs/tags/v1$`, want: "begins with a wildcard"},
		{regexp: `^[^@]*/release\.yml@refs/tags/v1$`, want: "begins with a wildcard"},
		{regexp: `^(.*|x)/release\.yml@refs/tags/v1$`, want: "begins with a wildcard"},
		{regexp: `^.*release$`, want: "begins with a wildcard"},
		{regexp: `^.*@.*\.example$`, want: "begins with a wildcard"},
		{regexp: `https://github\.com/acme/app`, want: "not anchored"},
		{regexp: `^https://github\.com/acme/app`, want: "not anchored"},
		{regexp: `https://github\.com/acme/app$`, want: "not anchored"},
		{regexp: `^https://github\.com/acme/app|https://github\.com/acme/lib$`, want: "not anchored"},
		{regexp: `^a@b$|c`, want: "not anchored"},
		{regexp: `(?m)^https://github\.com/acme/app$`, want: "not anchored"},
		{regexp: `^https://github.com/acme/app$`, want: "dot"},
		{regexp: `^.*$`, want: "matches everybody"},
		{regexp: `^(a|.*)$`, want: "matches everybody"},
		{regexp: `^x*$`, want: "matches everybody"},
		{regexp: `^(`, want: "missing"},
	} {
		name := c.pattern + c.regexp
		if len(name) > 80 {
			name = name[:80]
		}
		t.Run(name, func(t *testing.T) {
			_, err := verify.NewIdentity(verify.IdentityOptions{Issuer: issuer, Pattern: c.pattern, Regexp: c.regexp})
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want it to say %q", err, c.want)
			}
		})
	}
	for name, o := range map[string]verify.IdentityOptions{
		"names nobody":       {Issuer: issuer},
		"give its name once": {Issuer: issuer, SAN: "a@b", Pattern: "a@b"},
		"has no issuer":      {SAN: "a@b"},
		"no issuer":          {SAN: "a@b", Anchor: image},
		"without wildcards":  {SAN: "a@b", Issuer: "https://*"},
	} {
		if _, err := verify.NewIdentity(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want it to say %q", err, name)
		}
	}
}

// TestPatternsMatchTheWholeName asks with real certificates.
func TestPatternsMatchTheWholeName(t *testing.T) {
	s := newSigstore(t)
	root := []*verify.Root{trustedRoot(t, s, virtual.RootOptions{})}
	const flow = "https://ci.example/acme/app/.github/workflows/seal.yml@"
	for _, c := range []struct {
		o     verify.IdentityOptions
		yes   []string
		never []string
	}{
		{verify.IdentityOptions{Pattern: flow + "refs/tags/v*"},
			[]string{flow + "refs/tags/v1", flow + "refs/tags/v", flow + "refs/tags/v1.2.3-rc.1"},
			[]string{flow + "refs/tags/v1/x", flow + "refs/tags/v1@refs", flow + "refs/heads/v1", flow + "refs/tags/w", "x" + flow + "refs/tags/v1", strings.ToUpper(flow) + "refs/tags/v1", strings.ReplaceAll(flow, ".", "-") + "refs/tags/v1"}},
		{verify.IdentityOptions{Pattern: "https://ci.example/acme/**@refs/heads/main"},
			[]string{flow + "refs/heads/main", "https://ci.example/acme/other/x.yml@refs/heads/main"},
			[]string{flow + "refs/heads/main2", flow + "refs/heads/evil@refs/heads/main", "https://ci.example/acme-evil/x.yml@refs/heads/main", "https://ci.example.evil/acme/x@refs/heads/main"}},
		{verify.IdentityOptions{Pattern: "https://ci.example/acme/**@refs/tags/**"},
			[]string{flow + "refs/tags/v1", flow + "refs/tags/lib/v1", flow + "refs/tags/lib@1.0"},
			[]string{flow + "refs/heads/evil@refs/tags/v1", flow + "refs/heads/evil@refs/tags/lib@1.0"}},
		{verify.IdentityOptions{Pattern: "*@acme.example"},
			[]string{"a@acme.example"},
			[]string{"a@acme.example.evil", "a@bacme.example"}},
		{verify.IdentityOptions{Regexp: `^https://ci\.example/acme/(app|lib)/[^@]*@refs/heads/main$`},
			[]string{flow + "refs/heads/main"},
			[]string{flow + "refs/heads/evil@refs/heads/main", flow + "refs/heads/mainly", "https://ci.example/acme/apple/x@refs/heads/main"}},
		{verify.IdentityOptions{SAN: "https://ci.example/*"},
			nil, []string{"https://ci.example/a"}},
	} {
		c.o.Issuer = issuer
		trust := verify.Trust{Roots: root, Identities: []verify.Identity{identity(t, c.o)}}
		for _, name := range c.yes {
			ok, err := checked(t, seal(t, s, virtual.Options{SAN: name, Issuer: issuer}), trust)
			if err != nil || ok.Signer().SAN != name {
				t.Errorf("%s%s%s does not match %s: %v", c.o.SAN, c.o.Pattern, c.o.Regexp, name, err)
			}
		}
		for _, name := range c.never {
			ok, err := checked(t, seal(t, s, virtual.Options{SAN: name, Issuer: issuer}), trust)
			wantCode(t, ok, err, verify.CodeIdentity)
		}
	}
}

func FuzzNewIdentity(f *testing.F) {
	for _, p := range []string{"https://github.com/acme/**", "*@a.example", "^a$", "**", "a**b", "https://", "a@b/***"} {
		f.Add(p, p)
	}
	f.Fuzz(func(t *testing.T, pattern, regexp string) {
		// No panic; and what is taken has an issuer and a name.
		if id, err := verify.NewIdentity(verify.IdentityOptions{Issuer: issuer, Pattern: pattern}); err == nil && (id.SAN() == "" || id.Issuer() == "") {
			t.Errorf("%q was taken", pattern)
		}
		if id, err := verify.NewIdentity(verify.IdentityOptions{Issuer: issuer, Regexp: regexp}); err == nil && id.SAN() == "" {
			t.Errorf("%q was taken", regexp)
		}
	})
}
