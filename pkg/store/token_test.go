package store

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

// A registry sends its clients elsewhere for a token; where that fails, it is not
// the registry that is blamed.
func TestTheTokenServerIsNamed(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", filepath.Join(t.TempDir(), "none"))
	for name, c := range map[string]struct{ path, cause, way string }{
		"refused": {"/refused", "answered 401 Unauthorized: bad password", "the login that docker keeps for HOST is not accepted: docker login HOST"},
		"failed":  {"/failed", "answered 503 Service Unavailable", "try again later"},
		"odd":     {"/odd", "answered 418 I'm a teapot", "docker login HOST"},
		"gone":    {"/gone", "failed: the transfer broke off", "see whether this machine reaches it"},
	} {
		t.Run(name, func(t *testing.T) {
			reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/refused":
					w.WriteHeader(http.StatusUnauthorized)
					fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"bad\npassword"}]}`)
				case "/failed":
					w.WriteHeader(http.StatusServiceUnavailable)
				case "/gone":
					panic(http.ErrAbortHandler)
				case "/odd":
					w.WriteHeader(http.StatusTeapot)
				default:
					w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s%s",service="r"`, r.Host, c.path))
					w.WriteHeader(http.StatusUnauthorized)
				}
			}))
			defer reg.Close()
			host := strings.TrimPrefix(reg.URL, "http://")
			r := must(openRegistry(parse(t, host+"/a:v1"), new(noWait).options()))(t)
			_, err := r.Resolve(t.Context())
			var e *Error
			if !errors.As(err, &e) || !errors.Is(err, ErrUnavailable) {
				t.Fatalf("%v", err)
			}
			if want := "the token server " + host + ", to which the registry sends its clients, "; !strings.Contains(e.Cause, want) || !strings.Contains(e.Cause, c.cause) {
				t.Errorf("cause %q, want it to hold %q and %q", e.Cause, want, c.cause)
			}
			if want := strings.ReplaceAll(c.way, "HOST", host); !strings.Contains(e.Way, want) {
				t.Errorf("way %q, want %q", e.Way, want)
			}
		})
	}
}
