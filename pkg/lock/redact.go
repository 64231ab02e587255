package lock

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"
)

const (
	minSecret    = 4 // bytes; a shorter value stands everywhere by chance
	decodeLevels = 3 // how often a URL may be percent-encoded in another
)

// Redactor replaces what can be a credential in a URL by a keyed hash,
// "{hmac:0123456789abcdef}". Safe for concurrent use.
type Redactor struct {
	key []byte

	mu      sync.Mutex
	secrets []string // those that were asked for last
	find    []needle // their forms: of a long file, costly to make for every URL
}

// NewRedactor returns one with a key of at least 32 bytes.
func NewRedactor(key []byte) *Redactor { return &Redactor{key: slices.Clone(key)} }

func (r *Redactor) mac(domain, value string) string {
	m := hmac.New(sha256.New, r.key)
	m.Write([]byte(domain))
	m.Write([]byte{0})
	m.Write([]byte(value))
	return hex.EncodeToString(m.Sum(nil))
}

// Hash returns "hmac-sha256:…" of b.
func (r *Redactor) Hash(b []byte) string { return "hmac-sha256:" + r.mac("body", string(b)) }

// Mark returns what URI puts in place of a credential, for one that stands alone.
func (r *Redactor) Mark(value string) string { return "{hmac:" + r.mac("uri", value)[:16] + "}" }

// SecretValues are what is looked for of secrets: each as it is and without the
// space around it, its lines, and its values that have a telling name, as a
// netrc, an npmrc or JSON has them.
func SecretValues(secrets []string) []string { return secretValues(secrets) }

// span is a part of a text, from from to before to.
type span struct{ from, to int }

// URI returns u as it may be written down: one word of printable ASCII, no
// userinfo but its keyed hash, the values of parameters that carry tokens or
// signatures replaced by theirs, and every one of secrets wherever it stands:
// plain, percent-encoded, in hex or in base64, in any case of letters. Lines
// of a secret, and values in it that have a telling name, are secrets too.
func (r *Redactor) URI(u string, secrets ...string) string {
	find := r.needles(secrets)
	var spans []span
	for _, l := range levels(u) {
		for _, s := range l.credentials(find) {
			spans = append(spans, span{l.at[s.from], l.at[s.to]})
		}
	}
	if len(spans) == 0 {
		return canonical(u)
	}
	slices.SortFunc(spans, func(a, b span) int { return a.from - b.from })
	var out strings.Builder
	end := 0
	for i := 0; i < len(spans); {
		s := spans[i]
		for i++; i < len(spans) && spans[i].from < s.to; i++ {
			s.to = max(s.to, spans[i].to)
		}
		out.WriteString(u[end:s.from])
		out.WriteString("{hmac:" + r.mac("uri", u[s.from:s.to])[:16] + "}")
		end = s.to
	}
	out.WriteString(u[end:])
	return canonical(out.String())
}

// level is a URL after some rounds of percent-decoding, also without the line
// ends that base64 puts into a long secret. at maps each of its bytes, and its
// end, to where it stands in the URL itself.
type level struct {
	text string
	at   []int
}

func levels(u string) []level {
	at := make([]int, len(u)+1)
	for i := range at {
		at[i] = i
	}
	all := []level{{u, at}}
	for len(all) <= decodeLevels {
		last := all[len(all)-1]
		next, changed := last.decode()
		if !changed {
			break
		}
		all = append(all, next)
	}
	for _, l := range all {
		if strings.ContainsAny(l.text, "\r\n") {
			all = append(all, l.joined())
		}
	}
	return all
}

// joined is a level without its line ends.
func (l level) joined() level {
	var text []byte
	var at []int
	for i := range len(l.text) {
		if c := l.text[i]; c != '\r' && c != '\n' {
			text, at = append(text, c), append(at, l.at[i])
		}
	}
	return level{string(text), append(at, l.at[len(l.text)])}
}

func (l level) decode() (level, bool) {
	if !strings.Contains(l.text, "%") {
		return l, false
	}
	var text []byte
	var at []int
	changed := false
	for i := 0; i < len(l.text); i++ {
		at = append(at, l.at[i])
		if l.text[i] == '%' && i+2 < len(l.text) {
			if b, err := hex.DecodeString(l.text[i+1 : i+3]); err == nil {
				text = append(text, b[0])
				changed = true
				i += 2
				continue
			}
		}
		text = append(text, l.text[i])
	}
	return level{string(text), append(at, l.at[len(l.text)])}, changed
}

// credentials finds what must not be written down.
func (l level) credentials(find []needle) []span {
	spans := append(userinfos(l.text), parameters(l.text)...)
	for _, m := range TokenShape().FindAllStringIndex(l.text, -1) {
		spans = append(spans, span{m[0], m[1]})
	}
	if len(find) == 0 {
		return spans
	}
	folded := foldASCII(l.text)
	urlSafe := strings.NewReplacer("-", "+", "_", "/").Replace(folded)
	for _, n := range find {
		in := folded
		if n.base64 {
			in = urlSafe
		}
		for from := 0; ; {
			i := strings.Index(in[from:], n.text)
			if i < 0 {
				break
			}
			s := span{from + i, from + i + len(n.text)}
			from = s.from + 1
			if n.base64 {
				s = widen(in, s)
			}
			spans = append(spans, s)
		}
	}
	return spans
}

// foldASCII lowers what has the same length in both cases, whatever the bytes.
func foldASCII(s string) string {
	out := []byte(s)
	for i, c := range out {
		if 'A' <= c && c <= 'Z' {
			out[i] = c + 'a' - 'A'
		}
	}
	return string(out)
}

// widen takes in the characters at the edges of a base64 match that hold some
// bits of the secret and some of its neighbours, and the padding.
func widen(in string, s span) span {
	part := func(c byte) bool {
		return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '+'
	}
	if s.from > 0 && part(in[s.from-1]) {
		s.from--
	}
	if s.to < len(in) && part(in[s.to]) {
		s.to++
	}
	for s.to < len(in) && in[s.to] == '=' {
		s.to++
	}
	return s
}

// userinfos finds what stands between "://" and the "@" of an authority, but
// for a bare "git", which everybody's ssh URLs have.
func userinfos(text string) []span {
	var spans []span
	found := false
	for from := 0; ; {
		i := strings.Index(text[from:], "://")
		if i < 0 {
			break
		}
		found = true
		from += i + len("://")
		end := from + strings.IndexAny(text[from:]+"/", "/?#")
		if at := strings.LastIndexByte(text[from:end], '@'); at > 0 && text[from:from+at] != "git" {
			spans = append(spans, span{from, from + at})
		}
	}
	if !found { // "user:password@host:path"
		end := strings.IndexAny(text+"/", "/?#")
		if at := strings.LastIndexByte(text[:end], '@'); at > 0 && strings.Contains(text[:at], ":") {
			spans = append(spans, span{0, at})
		}
	}
	return spans
}

// parameters finds the values of name=value pairs whose names say that they
// are credentials, or parts of a signed URL, which differ from day to day.
func parameters(text string) []span {
	type pair struct {
		name string
		span
	}
	var all []pair
	signed := false
	for i := 0; i < len(text); i++ {
		if !strings.ContainsRune("?&;#", rune(text[i])) {
			continue
		}
		rest := text[i+1:]
		end := len(rest)
		if n := strings.IndexAny(rest, "?&;#"); n >= 0 {
			end = n
		}
		name, value, ok := strings.Cut(rest[:end], "=")
		if !ok || value == "" {
			continue
		}
		// A value may have a "?" of its own.
		if text[i] != '#' {
			end = len(rest)
			if n := strings.IndexAny(rest, "&;#"); n >= 0 {
				end = n
			}
		}
		p := pair{strings.ToLower(name), span{i + 1 + len(name) + 1, i + 1 + end}}
		all = append(all, p)
		switch p.name {
		case "sig", "signature", "x-amz-signature", "x-goog-signature", "hmac", "hdnea", "key-pair-id":
			signed = true
		}
	}
	var spans []span
	for _, p := range all {
		if secretName(p.name) || signed && signingName(p.name) || doubtfulName(p.name) && (signed || !plainValue().MatchString(text[p.from:p.to])) {
			spans = append(spans, p.span)
		}
	}
	return spans
}

// secretName says whether a parameter of this name carries a credential.
func secretName(name string) bool {
	switch name {
	case "page_token", "pagetoken", "page-token", "next_token", "nexttoken", "continuation_token", "continuationtoken", "continuation-token":
		return false // they say where to go on, not who asks
	case "sig", "auth", "pass", "pwd", "pw", "jwt", "sas", "hdnea", "hmac", "assertion", "otp",
		"awsaccesskeyid", "googleaccessid", "key-pair-id", "nonce":
		return true
	}
	if soundsSecret(name) {
		return false
	}
	if strings.HasPrefix(name, "x-amz-") || strings.HasPrefix(name, "x-goog-") {
		return true // all of them are the signature's, and change with it
	}
	for _, part := range []string{"token", "secret", "passw", "passphrase", "apikey", "api_key", "api-key", "accesskey", "access_key", "access-key",
		"privatekey", "private_key", "signature", "credential", "authorization", "oauth", "auth_", "auth-", "authkey", "bearer", "client_assertion"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// doubtfulName says whether a parameter of this name carries a credential, or
// says which file is meant. A lock must hold a build to the second.
func doubtfulName(name string) bool {
	switch name {
	case "key", "sid", "ticket", "policy":
		return true
	}
	return soundsSecret(name) || strings.Contains(name, "session")
}

// soundsSecret says whether a parameter has a credential's word in its name and
// as a rule none in its value.
func soundsSecret(name string) bool {
	switch name {
	case "private", "token_type", "tokentype", "tokens", "max_tokens", "tokenizer":
		return true
	}
	return false
}

// plainValue is a value of words, numbers and versions, as no key is made. It is
// large, and compiled where it is needed: every start would wait for it.
var plainValue = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^/?` + plainWord + `(?:[._/:,~-]` + plainWord + `)*$`)
})

const plainWord = `(?:[A-Z]?[a-z]{1,15}|[A-Z]{1,15}|[0-9]{1,8}|[a-z]{1,3}[0-9]{1,3})`

// signingName says whether a parameter of a signed URL belongs to the
// signature: its times and whose key it was.
func signingName(name string) bool {
	switch name {
	case "expires", "expiry", "exp", "se", "st", "ske", "skt", "skoid", "sktid", "sks", "skv", "ts", "timestamp", "keyid", "key_id":
		return true
	}
	return false
}

// TokenShape is how the tokens of well-known services look wherever they stand.
// It knows less than a detector of secrets does, and keeps what one may leave:
// tokens that are shorter than they are made today, or look too regular.
func TokenShape() *regexp.Regexp { return tokenShape() }

var tokenShape = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|npm_[A-Za-z0-9]{30,}|` +
		`pypi-[A-Za-z0-9_-]{30,}|xox[abeoprs]-[A-Za-z0-9-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{30,}|dckr_pat_[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{30,}|` +
		`sk_live_[A-Za-z0-9]{16,}|hvs\.[A-Za-z0-9_-]{16,}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*`)
})

// needle is one form of a secret, in lower case.
type needle struct {
	text   string
	base64 bool // to be looked for with the URL-safe alphabet taken for the other
}

// namedValue is a line of a netrc, npmrc, pip.conf or env file, or a header.
var namedValue = regexp.MustCompile(`(?i)(?:passw\w*|token|secret|auth\w*|key|credential\w*)["']?\s*[:=\s]\s*["']?(?:(?:bearer|basic|token)\s+)?([^\s"',;]{6,})`)

// needles are all the forms in which secrets are looked for.
func needles(secrets []string) []needle {
	var out []needle
	seen := map[needle]bool{}
	add := func(text string, b64 bool) {
		if n := (needle{foldASCII(text), b64}); !seen[n] {
			seen[n] = true
			out = append(out, n)
		}
	}
	for _, v := range secretValues(secrets) {
		forms := []string{v}
		if utf8.ValidString(v) {
			forms = append(forms, strings.ToLower(v), strings.ToUpper(v))
		}
		for _, form := range forms {
			add(form, false)
			add(strings.ReplaceAll(form, " ", "+"), false)
		}
		add(hex.EncodeToString([]byte(v)), false)
		for offset := range 3 {
			// Only the characters that no neighbour has a bit in.
			enc := base64.RawStdEncoding.EncodeToString(append(make([]byte, offset), v...))
			enc = enc[(offset*8+5)/6 : (offset+len(v))*8/6]
			if len(enc) > 4 {
				add(enc, true)
			}
		}
	}
	return out
}

func (r *Redactor) needles(secrets []string) []needle {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(secrets, r.secrets) {
		r.secrets, r.find = slices.Clone(secrets), needles(secrets)
	}
	return r.find
}

func secretValues(secrets []string) []string {
	var out []string
	seen := map[string]bool{}
	add := func(v string) {
		if len(v) >= minSecret && !seen[v] {
			seen[v] = true
			out = append(out, v)
		}
	}
	for _, s := range secrets {
		add(s)
		add(strings.TrimSpace(s))
		lines := strings.Split(s, "\n")
		for _, line := range lines {
			if line = strings.TrimSpace(line); len(lines) == 1 || len(line) >= 8 {
				add(line)
			}
		}
		for _, m := range namedValue.FindAllStringSubmatch(s, -1) {
			add(m[1])
		}
	}
	return out
}

// canonical writes a URL as one word of printable ASCII, with its scheme and
// host in lower case and without the scheme's own port.
func canonical(u string) string {
	if i := strings.Index(u, "://"); i > 0 && !strings.ContainsAny(u[:i], "/?#@ ") {
		scheme := strings.ToLower(u[:i])
		rest := u[i+3:]
		end := strings.IndexAny(rest+"/", "/?#")
		user, host := "", rest[:end]
		if at := strings.LastIndexByte(host, '@'); at >= 0 {
			user, host = host[:at+1], host[at+1:]
		}
		host = foldASCII(host)
		switch scheme {
		case "http":
			host = strings.TrimSuffix(host, ":80")
		case "https":
			host = strings.TrimSuffix(host, ":443")
		}
		path := rest[end:]
		if (scheme == "http" || scheme == "https") && (path == "" || path[0] != '/') {
			path = "/" + path
		}
		u = scheme + "://" + user + host + path
	}
	plain := true
	for i := range len(u) {
		if u[i] <= ' ' || u[i] >= 0x7f || u[i] == '"' {
			plain = false
		}
	}
	if plain {
		return u
	}
	var out strings.Builder
	for i := range len(u) {
		if c := u[i]; c <= ' ' || c >= 0x7f || c == '"' {
			out.WriteString("%" + strings.ToUpper(hex.EncodeToString([]byte{c})))
		} else {
			out.WriteByte(c)
		}
	}
	return out.String()
}

// keyedHash is what URI puts in, as it is and as clients encode it when they
// follow a redirect in which it stands.
var (
	keyedHash = regexp.MustCompile(`(?i)(?:\{|%7b)hmac(?:(?::|%3a)[0-9a-f]{16})?(?:\}|%7d)`)
	keyedUser = regexp.MustCompile(`://\{hmac\}@`)
)

// Shape returns a recorded URI without its keyed hashes, so that two machines,
// or two signatures of one URL, agree. It is what a lock file has. A lock thus
// does not hold a credential's value, and is not meant to: the next build, or
// the next person, has another one, and from the hash of a short one in a file
// that is committed anybody could find it, salted or not.
func Shape(uri string) string {
	uri = canonical(unhash(uri))
	return keyedUser.ReplaceAllLiteralString(uri, "://")
}

func unhash(s string) string {
	if !strings.Contains(strings.ToLower(s), "hmac") {
		return s
	}
	return keyedHash.ReplaceAllLiteralString(s, "{hmac}")
}
