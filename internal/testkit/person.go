package testkit

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/url"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
)

// logins is the identity provider's side of a person's login: it approves of it
// by itself, as the person that it was told of. The zero value denies.
type logins struct {
	mu     sync.Mutex
	person string            // mail address
	open   map[string]*login // by code
}

// login is one that was begun.
type login struct {
	nonce, challenge, redirect string
	pending                    int // so often a device is told to ask again
}

func (l *logins) be(person string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.person = person
}

func (l *logins) begin(one login) (code string, denied bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		l.open = map[string]*login{}
	}
	code = rand.Text()
	l.open[code] = &one
	return code, l.person == ""
}

// authorize is the authorization endpoint: the browser is sent back at once.
func (l *logins) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	back, err := url.Parse(q.Get("redirect_uri"))
	if err != nil || back.Hostname() != "localhost" || q.Get("client_id") != "sigstore" || q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" {
		http.Error(w, "this is no login that is allowed", http.StatusBadRequest)
		return
	}
	answer := url.Values{"state": q["state"]}
	code, denied := l.begin(login{nonce: q.Get("nonce"), challenge: q.Get("code_challenge"), redirect: q.Get("redirect_uri")})
	if denied {
		answer.Set("error", "access_denied")
		answer.Set("error_description", "they said no")
	} else {
		answer.Set("code", code)
	}
	back.RawQuery = answer.Encode()
	http.Redirect(w, r, back.String(), http.StatusFound)
}

// device is the device authorization endpoint (RFC 8628, section 3.1).
func (l *logins) device(w http.ResponseWriter, r *http.Request) {
	code, _ := l.begin(login{challenge: r.FormValue("code_challenge"), pending: 1})
	reply(w, http.StatusOK, map[string]any{"device_code": code, "user_code": "WAXY-SEAL", "verification_uri": "https://login.example/device", "expires_in": 60, "interval": 1})
}

// redeem is the token endpoint: a code is good once, and for whoever began.
func (l *logins) redeem(i *Instance, w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fail := func(code string) { reply(w, http.StatusBadRequest, map[string]string{"error": code}) }
	code := r.FormValue("code")
	if r.FormValue("grant_type") == "urn:ietf:params:oauth:grant-type:device_code" {
		code = r.FormValue("device_code")
	}
	one := l.open[code]
	sum := sha256.Sum256([]byte(r.FormValue("code_verifier")))
	switch {
	case one == nil || r.FormValue("client_id") != "sigstore" || one.redirect != r.FormValue("redirect_uri") ||
		base64.RawURLEncoding.EncodeToString(sum[:]) != one.challenge:
		fail("invalid_grant")
		return
	case one.pending > 0:
		one.pending--
		fail("authorization_pending")
		return
	case l.person == "":
		fail("access_denied")
		return
	}
	delete(l.open, code)
	claims := map[string]any{}
	if one.nonce != "" {
		claims["nonce"] = one.nonce
	}
	token, err := i.Token(l.person, claims)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	reply(w, http.StatusOK, map[string]any{"access_token": rand.Text(), "token_type": "Bearer", "expires_in": 60, "id_token": token})
}

// cmdPerson says who logs in at an instance's identity provider; without MAIL,
// whoever it is denies.
func cmdPerson(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, (len(args) == 1 || len(args) == 2) && !neg, "person INSTANCE [MAIL]")
	i := ts.Value(instancesKey{}).(map[string]*Instance)[args[0]]
	if i == nil {
		ts.Fatalf("no instance %s", args[0])
	}
	i.logins.be(append(args, "")[1])
}
