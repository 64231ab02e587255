package lock_test

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/waxseal/waxseal/pkg/lock"
)

func redactor() *lock.Redactor { return lock.NewRedactor([]byte("0123456789abcdef0123456789abcdef")) }

var mark = regexp.MustCompile(`\{hmac:[0-9a-f]{16}\}`)

func TestRedactURI(t *testing.T) {
	for in, want := range map[string]string{
		"https://files.example/a/b-1.2.tgz":                    "https://files.example/a/b-1.2.tgz",
		"https://files.example/list?page=2&author=x&sort=name": "https://files.example/list?page=2&author=x&sort=name",
		"https://files.example/list?page_token=abc":            "https://files.example/list?page_token=abc",
		// The form of a URL.
		"HTTPS://Files.Example:443/A?b": "https://files.example/A?b",
		"http://files.example:80":       "http://files.example/",
		"http://files.example:8080?x=1": "http://files.example:8080/?x=1",
		"https://files.example/a b\n\"": "https://files.example/a%20b%0A%22",
		"https://files.example/\u202ea": "https://files.example/%E2%80%AEa",
		// Users.
		"https://me:hunter22@files.example/a":                     "https://H@files.example/a",
		"https://ghp_0123456789@git.example/a.git":                "https://H@git.example/a.git",
		"https://a%40b:c@files.example/":                          "https://H@files.example/",
		"https://a@b:c@files.example/":                            "https://H@files.example/",
		"ssh://git@git.example/a.git":                             "ssh://git@git.example/a.git",
		"me:hunter22@git.example:a.git":                           "H@git.example:a.git",
		"git@git.example:a.git":                                   "git@git.example:a.git",
		"https://files.example/mail/a@b":                          "https://files.example/mail/a@b",
		"https://x.example/?u=https://me:pw1@y.example":           "https://x.example/?u=https://H@y.example",
		"https://x.example/?u=https%3A%2F%2Fme%3Apw1%40y.example": "https://x.example/?u=https%3A%2F%2FH%40y.example",
		// Tokens and signatures by the names of their parameters.
		"https://a.example/?token=t0p&x=1":        "https://a.example/?token=H&x=1",
		"https://a.example/?x=1;api_key=k;y=2":    "https://a.example/?x=1;api_key=H;y=2",
		"https://a.example/;jsessionid=77aa/b":    "https://a.example/;jsessionid=H",
		"https://a.example/#access_token=abc":     "https://a.example/#access_token=H",
		"https://a.example/?PASSWORD=x&Pwd=y":     "https://a.example/?PASSWORD=H&Pwd=H",
		"https://a.example/?%74oken=abc":          "https://a.example/?%74oken=H",
		"https://a.example/?x=%3Ftoken%3Dabc%26y": "https://a.example/?x=%3Ftoken%3DH%26y",
		"https://a.example/?x=%253Ftoken%253Dabc": "https://a.example/?x=%253Ftoken%253DH",
		"https://s3.example/o?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAX%2F2026&X-Amz-Date=20261122T000000Z&X-Amz-Expires=300&X-Amz-SignedHeaders=host&X-Amz-Signature=ab12&partNumber=1": "https://s3.example/o?X-Amz-Algorithm=H&X-Amz-Credential=H&X-Amz-Date=H&X-Amz-Expires=H&X-Amz-SignedHeaders=H&X-Amz-Signature=H&partNumber=1",
		"https://s3.example/o?AWSAccessKeyId=A&Signature=s%3D&Expires=1":                   "https://s3.example/o?AWSAccessKeyId=H&Signature=H&Expires=H",
		"https://gcs.example/o?GoogleAccessId=a&Expires=1&Signature=b":                     "https://gcs.example/o?GoogleAccessId=H&Expires=H&Signature=H",
		"https://gcs.example/o?X-Goog-Signature=b&generation=5":                            "https://gcs.example/o?X-Goog-Signature=H&generation=5",
		"https://blob.example/o?sp=r&st=2026&se=2027&sv=2024-11-04&sr=b&sig=abc%3D&rscd=x": "https://blob.example/o?sp=r&st=H&se=H&sv=2024-11-04&sr=b&sig=H&rscd=x",
		"https://cdn.example/o?Expires=9&Signature=s&Key-Pair-Id=K&Policy=p":               "https://cdn.example/o?Expires=H&Signature=H&Key-Pair-Id=H&Policy=H",
		"https://a.example/o?expires=9":                                                    "https://a.example/o?expires=9",
		// Names that credentials have, and other things as well.
		"https://dl.example/get?key=app-1.0&policy=strict":                 "https://dl.example/get?key=app-1.0&policy=strict",
		"https://dl.example/get?key=out/linux_amd64/tool-v2.10.tgz":        "https://dl.example/get?key=out/linux_amd64/tool-v2.10.tgz",
		"https://dl.example/get?session=spring-2024&sid=12&ticket=ABC-77":  "https://dl.example/get?session=spring-2024&sid=12&ticket=ABC-77",
		"https://dl.example/get?key=out%2Ftool":                            "https://dl.example/get?key=H",
		"https://dl.example/get?key=s3cr3t&sid=hunter22":                   "https://dl.example/get?key=H&sid=H",
		"https://dl.example/get?key=AbCdEfGh&sid=20260101235959":           "https://dl.example/get?key=H&sid=H",
		"https://dl.example/get?key=0f8fad5b-d9cb-469f-a165-70867728950e":  "https://dl.example/get?key=H",
		"https://dl.example/get?key=deadbeefdeadbeef&ticket=YWJj+ZGVm=":    "https://dl.example/get?key=H&ticket=H",
		"https://dl.example/get?key=%61pp-1.0":                             "https://dl.example/get?key=H",
		"https://dl.example/get?key=app-1.0&Signature=s":                   "https://dl.example/get?key=H&Signature=H",
		"https://dl.example/get?session_token=spring&nonce=one":            "https://dl.example/get?session_token=H&nonce=H",
		"https://dl.example/get?tokenizer=bert-base&max_tokens=512":        "https://dl.example/get?tokenizer=bert-base&max_tokens=512",
		"https://dl.example/get?private=true&token_type=jar":               "https://dl.example/get?private=true&token_type=jar",
		"https://dl.example/get?tokens=0123456789abcdef&private=s3cr3t":    "https://dl.example/get?tokens=H&private=H",
		"https://dl.example/get?access_tokens=spring&tokenizer_key=spring": "https://dl.example/get?access_tokens=H&tokenizer_key=H",
		// Tokens that one knows by sight, wherever they stand.
		"https://a.example/t/ghp_0123456789012345678901234567890123ab/x":             "https://a.example/t/H/x",
		"https://a.example/t/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl/": "https://a.example/t/H/",
		"https://a.example/t/hvs.CAESIJ0123456789abcdef/x":                           "https://a.example/t/H/x",
		"https://a.example/t/glpat%2D0123456789abcdefghij":                           "https://a.example/t/H",
	} {
		got := redactor().URI(in)
		if shown := mark.ReplaceAllString(got, "H"); shown != want {
			t.Errorf("%q\n got %q\nwant %q", in, shown, want)
		}
		if again := redactor().URI(in); again != got {
			t.Errorf("%q is written as %q and as %q", in, got, again)
		}
	}
}

// encodings are ways in which clients and attackers put a secret in a URL.
func encodings(secret string) map[string]string {
	pct := func(s string, upper bool) string {
		var b strings.Builder
		for i := range len(s) {
			if upper {
				fmt.Fprintf(&b, "%%%02X", s[i])
			} else {
				fmt.Fprintf(&b, "%%%02x", s[i])
			}
		}
		return b.String()
	}
	some := func(s string) string {
		var b strings.Builder
		for i := range len(s) {
			if i%2 == 0 {
				b.WriteString(pct(s[i:i+1], i%4 == 0))
			} else {
				b.WriteString(url.QueryEscape(s[i : i+1]))
			}
		}
		return b.String()
	}
	upper := secret
	if utf8.ValidString(secret) {
		upper = strings.ToUpper(secret)
	}
	all := map[string]string{
		"query":        url.QueryEscape(secret),
		"path":         url.PathEscape(secret),
		"every byte":   pct(secret, true),
		"lower case":   pct(secret, false),
		"some bytes":   some(secret),
		"twice":        pct(pct(secret, true), false),
		"three times":  url.QueryEscape(url.QueryEscape(url.QueryEscape(secret))),
		"hex":          hex.EncodeToString([]byte(secret)),
		"HEX":          strings.ToUpper(hex.EncodeToString([]byte(secret))),
		"upper":        url.QueryEscape(upper),
		"DNS label":    strings.ToLower(url.QueryEscape(secret)),
		"neighbours":   "aa" + url.QueryEscape(secret) + "bb",
		"escaped some": strings.ReplaceAll(url.QueryEscape(secret), "%", "%25"),
	}
	for pad, before := range []string{"", "u", "us", "user:", "x-oauth:"} {
		for _, after := range []string{"", "!", ":end"} {
			text := []byte(before + secret + after)
			name := fmt.Sprintf("base64 %d%s", pad, after)
			all[name] = url.QueryEscape(base64.StdEncoding.EncodeToString(text))
			all[name+" plain"] = base64.StdEncoding.EncodeToString(text)
			all[name+" raw"] = base64.RawStdEncoding.EncodeToString(text)
			all[name+" url"] = base64.URLEncoding.EncodeToString(text)
			all[name+" url escaped"] = pct(base64.RawURLEncoding.EncodeToString(text), true)
			long := base64.StdEncoding.EncodeToString(append([]byte(strings.Repeat("x", 52)), text...))
			all[name+" lines"] = url.QueryEscape(long[:76] + "\n" + long[76:])
			all[name+" lines of a mail"] = url.QueryEscape(long[:64] + "\r\n" + long[64:])
		}
	}
	return all
}

func TestNoSecretIsLeft(t *testing.T) {
	for _, secret := range []string{"hunter2!", "p@ss/w0rd+=&?#%;", "correct horse battery staple", "ütf-8 Geheimnis", "\x00\xff\xfebinary\x80", "S3cr3tS3cr3tS3cr3t~", "a%20b%2Fc"} {
		for name, enc := range encodings(secret) {
			for _, format := range []string{"https://a.example/%s", "https://a.example/x?q=%s&y=1", "https://%s.a.example/", "https://a.example/%s/b/c#d", "http://a.example/?%s"} {
				in := fmt.Sprintf(format, enc)
				got := redactor().URI(in, "other secret", secret+"\n")
				if !mark.MatchString(got) {
					t.Errorf("%s of %q: %q stays %q", name, secret, in, got)
					continue
				}
				if left(got, secret) {
					t.Errorf("%s of %q: %q becomes %q", name, secret, in, got)
				}
			}
		}
	}
}

// left looks for a secret with other means than the redactor has.
func left(text, secret string) bool {
	text = mark.ReplaceAllString(text, "|")
	for range 5 {
		if strings.Contains(strings.ToLower(text), strings.ToLower(secret)) {
			return true
		}
		if h := hex.EncodeToString([]byte(secret)); strings.Contains(strings.ToLower(text), h) {
			return true
		}
		// Every run of base64 characters, from every place in it.
		for _, run := range regexp.MustCompile(`[A-Za-z0-9+/_-]{4,}`).FindAllString(text, -1) {
			run = strings.NewReplacer("-", "+", "_", "/").Replace(run)
			for i := range min(len(run), 12) {
				part := run[i : i+(len(run)-i)/4*4]
				if b, err := base64.StdEncoding.DecodeString(part); err == nil && strings.Contains(string(b), secret) {
					return true
				}
			}
		}
		next, err := url.QueryUnescape(text)
		if err != nil || next == text {
			break
		}
		text = next
	}
	return false
}

func TestSecretsOfFiles(t *testing.T) {
	netrc := "machine a.example\n  login me\n  password s3same-open\n"
	npmrc := "//npm.example/:_authToken=npm-token-77\nregistry=https://npm.example/\n"
	for secret, token := range map[string]string{netrc: "s3same-open", npmrc: "npm-token-77", "  spaced-out-token \r\n": "spaced-out-token"} {
		got := redactor().URI("https://npm.example/x/"+token+"/y", secret)
		if strings.Contains(got, token) || !strings.HasPrefix(got, "https://npm.example/x/{hmac:") {
			t.Errorf("%q leaves %q", secret, got)
		}
	}
}

// A redactor that knows the forms of one step's secrets knows the next's too.
func TestSecretsOfSteps(t *testing.T) {
	r := redactor()
	for _, c := range [][2]string{{"first-one", "H/second-one"}, {"second-one", "first-one/H"}, {"", "first-one/second-one"}, {"first-one", "H/second-one"}} {
		var secrets []string
		if c[0] != "" {
			secrets = []string{c[0]}
		}
		if got := mark.ReplaceAllString(r.URI("https://a.example/first-one/second-one", secrets...), "H"); got != "https://a.example/"+c[1] {
			t.Errorf("with %q: %s", c[0], got)
		}
	}
}

func TestShape(t *testing.T) {
	other := lock.NewRedactor([]byte("another key of thirty-two bytes."))
	for _, u := range []string{
		"https://me:pw@files.example/a?X-Amz-Signature=1&X-Amz-Date=2&v=3",
		"https://files.example/t/ghp_0123456789012345678901234567890123ab/x",
		"https://files.example/plain?x={y}",
	} {
		a, b := redactor().URI(u), other.URI(u)
		if a == b && mark.MatchString(a) {
			t.Errorf("%q has the same marks under two keys", u)
		}
		if lock.Shape(a) != lock.Shape(b) || mark.MatchString(lock.Shape(a)) {
			t.Errorf("%q: shapes %q and %q", u, lock.Shape(a), lock.Shape(b))
		}
		if s := lock.Shape(a); lock.Shape(s) != s {
			t.Errorf("%q: the shape of %q is %q", u, s, lock.Shape(s))
		}
	}
	// A client that follows a replayed redirect writes the marks in its own way.
	location := redactor().URI("https://cdn.example/ghp_0123456789012345678901234567890123ab?sig=abc")
	for _, followed := range []string{location, strings.NewReplacer("{", "%7B", "}", "%7D").Replace(location), strings.NewReplacer("{", "%7b", ":", "%3a", "}", "%7d").Replace(location)} {
		followed = strings.Replace(followed, "https%3a", "https:", 1)
		if got := lock.Shape(redactor().URI(followed)); got != "https://cdn.example/{hmac}?sig={hmac}" {
			t.Errorf("%q has the shape %q", followed, got)
		}
	}
	if got := lock.Shape("https://{hmac:0123456789abcdef}@git.example/a"); got != "https://git.example/a" {
		t.Errorf("with a user %q", got)
	}
}

func FuzzRedact(f *testing.F) {
	f.Add("https://me:pw@files.example/a?token=x", "hunter22")
	f.Add("https://a.example/?x=%2568unter22", "hunter22")
	f.Add("https://a.example/aHVudGVyMjI=", "hunter22")
	f.Add("://@@%zz%%%:?=&=;", "%25%25")
	f.Add("https://a/\xff\xfe", "\xff\xfe\xff\xfe")
	f.Add("http://ȺȺȺ.example/secretsecret", "secretsecret")
	f.Fuzz(func(t *testing.T, uri, secret string) {
		got := redactor().URI(uri, secret)
		for i := range len(got) {
			if got[i] <= ' ' || got[i] >= 0x7f || got[i] == '"' {
				t.Fatalf("%q is written as %q", uri, got)
			}
		}
		if s := lock.Shape(got); lock.Shape(s) != s {
			t.Errorf("the shape of %q changes: %q", s, lock.Shape(s))
		}
		if len(secret) >= 8 && strings.Contains(mark.ReplaceAllString(got, "|"), secret) {
			t.Errorf("%q with %q leaves %q", uri, secret, got)
		}
	})
}
