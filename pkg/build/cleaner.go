package build

import (
	"regexp"
	"slices"
	"strings"

	"github.com/waxseal/waxseal/pkg/lock"
)

// removed stands for a secret.
const removed = "REMOVED"

// cleaner takes secrets out of a command line.
type cleaner struct {
	values [][]byte // of variables that hold one

	detector *detector
	// What was found by its shape, see look.
	found  []string
	leaks  []leak
	strict bool // there must be none
	begun  func() error
}

// newCleaner knows the values of variables that were named for the command, or
// whose names say that they are secret.
func newCleaner(env, named []string) *cleaner {
	c := &cleaner{}
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		if len(value) >= minSecret && isSecretName(name) {
			c.values = append(c.values, []byte(value))
		}
	}
	slices.SortFunc(c.values, func(a, b []byte) int { return len(b) - len(a) })
	return c
}

// minSecret is how short a value is no secret: it would be found everywhere.
const minSecret = 6

// isSecretName reports whether a variable, flag or parameter of that name
// holds a secret, going by the words in it.
func isSecretName(name string) bool {
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return r == '_' || r == '-' || r == '.' || r == ':' })
	for i, w := range words {
		switch w {
		case "password", "passwd", "passphrase", "pass", "pwd", "secret", "secrets", "token", "accesstoken", "apikey", "credential", "credentials", "jwt", "pat", "auth", "authtoken":
			return true
		case "key":
			if i > 0 && slices.Contains([]string{"api", "access", "secret", "private", "signing", "encryption"}, words[i-1]) {
				return true
			}
		}
	}
	return false
}

// urlIn finds URLs with somebody's name or parameters in them.
var urlIn = regexp.MustCompile(`[a-z][a-z0-9+.-]*://[^\s'"<>]+`)

// args is a command line without secrets: the values of flags, variables and
// URLs that hold one, and whatever looks like a token.
func (c *cleaner) args(args []string) []string {
	out := make([]string, len(args))
	next := false
	for i, a := range args {
		if next && !strings.HasPrefix(a, "-") {
			out[i], next = removed, false
			continue
		}
		next = false
		name, _, set := strings.Cut(a, "=")
		if isSecretName(strings.TrimLeft(name, "-")) && !strings.ContainsAny(name, " \t\n/") {
			switch {
			case set:
				out[i] = name + "=" + removed
				continue
			case strings.HasPrefix(a, "-"):
				next = true
			}
		}
		out[i] = c.text(a)
	}
	return out
}

// text takes secrets out of any text.
func (c *cleaner) text(s string) string {
	s = lock.TokenShape().ReplaceAllString(c.hide(s), removed)
	return urlIn.ReplaceAllStringFunc(s, func(u string) string {
		if !strings.ContainsAny(u, "@?") {
			return u
		}
		return cleanURL(u)
	})
}

// hide takes out what is known to be a secret.
func (c *cleaner) hide(s string) string {
	for _, v := range c.found {
		s = strings.ReplaceAll(s, v, removed)
	}
	for _, v := range c.values {
		s = strings.ReplaceAll(s, string(v), removed)
	}
	return s
}
