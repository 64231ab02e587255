package store

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/pkg/attest"
)

// lister is a registry that lists what a test makes up: path and query to JSON
// and the address of the next page.
type lister map[string]struct {
	status     int
	body, next string
}

func (l lister) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v2/" {
		return
	}
	at := r.URL.Path
	if last := r.URL.Query().Get("last"); last != "" {
		at += "?last=" + last
	}
	page, ok := l[at]
	if !ok {
		page.status, page.body = http.StatusNotFound, `{"errors":[{"code":"NAME_UNKNOWN"}]}`
	}
	if page.next != "" {
		w.Header().Set("Link", "<"+page.next+`>; rel="next"`)
	}
	if page.status != 0 {
		w.WriteHeader(page.status)
	}
	fmt.Fprint(w, page.body)
}

func TestWalk(t *testing.T) {
	type page = struct {
		status     int
		body, next string
	}
	d := strings.Repeat("a", 64)
	pages := lister{
		"/v2/_catalog":                 {body: `{"repositories":["dev/x","prod","prod/a"]}`, next: "/v2/_catalog?last=prod/a"},
		"/v2/_catalog?last=prod/a":     {body: `{"repositories":["prod/b","prod/gone","production"]}`},
		"/v2/dev/x/tags/list":          {body: `{"tags":["v1"]}`},
		"/v2/prod/tags/list":           {body: `{"tags":["top"]}`},
		"/v2/prod/a/tags/list":         {body: `{"tags":["v1"]}`, next: "/v2/prod/a/tags/list?last=v1"},
		"/v2/prod/a/tags/list?last=v1": {body: `{"tags":["v2","sha256-` + d + `","sha256-` + d + `.att","sha256-` + d + `.sig"]}`},
		"/v2/prod/b/tags/list":         {body: `{"tags":null}`},
		"/v2/production/tags/list":     {body: `{"tags":["v1"]}`},
	}
	for _, c := range []struct {
		name, prefix string
		pages        lister
		change       map[string]page
		want         []string // errors begin with "!"
	}{
		{"below a prefix", "/prod", pages, nil, []string{"prod:top", "prod/a:v1", "prod/a:v2", "!prod/gone: not found"}},
		{"a prefix with a slash", "/prod/", pages, nil, []string{"prod:top", "prod/a:v1", "prod/a:v2", "!prod/gone: not found"}},
		{"everything", "", pages, nil, []string{"dev/x:v1", "prod:top", "prod/a:v1", "prod/a:v2", "!prod/gone: not found", "production:v1"}},
		{"nothing there", "/none", pages, nil, nil},
		{"no catalog, one repository", "/prod/a", pages, map[string]page{"/v2/_catalog": {status: 404}}, []string{"prod/a:v1", "prod/a:v2"}},
		{"the catalog is forbidden", "/prod/a", pages, map[string]page{"/v2/_catalog": {status: 403}}, []string{"prod/a:v1", "prod/a:v2"}},
		{"no catalog, and no prefix", "", pages, map[string]page{"/v2/_catalog": {status: 404}}, []string{"!: not found"}},
		{"the catalog breaks off", "/prod", pages, map[string]page{"/v2/_catalog?last=prod/a": {status: 400}}, []string{"prod:top", "prod/a:v1", "prod/a:v2", "!: 400"}},
		{"the catalog leads elsewhere", "/dev", pages, map[string]page{"/v2/_catalog": {body: `{"repositories":["dev/x"]}`, next: "http://127.0.0.2:1/v2/_catalog"}}, []string{"!: host"}},
		{"names that are none", "/prod", pages, map[string]page{
			"/v2/_catalog":       {body: `{"repositories":["prod/../../dev","prod/a:v1@x","prod/A","prod"]}`},
			"/v2/prod/tags/list": {body: `{"tags":["ok","../v1","a b","` + strings.Repeat("x", 200) + `"]}`},
		}, []string{"!prod/../../dev: not the name", "!prod/a:v1@x: not the name", "!prod/A: not the name", "prod:ok", "!prod: not a tag", "!prod: not a tag", "!prod: not a tag"}},
		{"a tag that only looks like evidence's", "/prod/a", pages, map[string]page{
			"/v2/prod/a/tags/list": {body: `{"tags":["sha256-` + strings.Repeat("z", 64) + `","sha256-` + strings.Repeat("A", 64) + `.att","sha256-` + d + `.x"]}`},
		}, []string{"prod/a:sha256-" + strings.Repeat("z", 64), "prod/a:sha256-" + strings.Repeat("A", 64) + ".att", "prod/a:sha256-" + d + ".x"}},
		{"no JSON", "/prod", pages, map[string]page{"/v2/prod/tags/list": {body: `{"tags":`}}, []string{"!prod: broke off", "prod/a:v1", "prod/a:v2", "!prod/gone: not found"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			served := lister{}
			for k, v := range c.pages {
				served[k] = v
			}
			for k, v := range c.change {
				served[k] = v
			}
			server := httptest.NewServer(served)
			defer server.Close()
			host := strings.TrimPrefix(server.URL, "http://")
			var got []string
			for ref, err := range Walk(t.Context(), host+c.prefix, Options{}) {
				name := ""
				if ref.Place != "" {
					name = strings.TrimPrefix(strings.TrimPrefix(ref.String(), host), "/")
				}
				if err != nil {
					name = "!" + name + ": " + err.Error()
				}
				got = append(got, name)
			}
			ok := slices.EqualFunc(got, c.want, func(got, want string) bool {
				name, cause, bad := strings.Cut(want, ": ")
				return got == want || bad && strings.HasPrefix(got, name+": ") && strings.Contains(got, cause)
			})
			if !ok {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			// Who has enough gets no more.
			n := 0
			for range Walk(t.Context(), host+c.prefix, Options{}) {
				n++
				break
			}
			if n > 1 {
				t.Errorf("%d after the end", n)
			}
		})
	}
}

// A list without end is left.
func TestWalkEnds(t *testing.T) {
	names := strings.TrimSuffix(strings.Repeat(`"dev",`, 100_000), ",")
	server := httptest.NewServer(lister{"/v2/_catalog": {body: `{"repositories":[` + names + `]}`, next: "/v2/_catalog"}})
	defer server.Close()
	var last error
	for _, err := range Walk(t.Context(), strings.TrimPrefix(server.URL, "http://")+"/prod", Options{}) {
		last = err
	}
	if last == nil || !strings.Contains(last.Error(), fmt.Sprint(attest.MaxListed)) {
		t.Error(last)
	}
}

func TestWalkRefuses(t *testing.T) {
	for _, place := range []string{"", "prod", "prod/app", "oci:x", "https://registry.example/x", "registry.example/UPPER", "registry.example/a b"} {
		var last error
		for ref, err := range Walk(t.Context(), place, Options{}) {
			if ref.Place != "" {
				t.Errorf("%q: %v", place, ref)
			}
			last = err
		}
		var bad *ReferenceError
		if !errors.As(last, &bad) || bad.Hint() == "" {
			t.Errorf("%q: %v", place, last)
		}
	}
}
