package build

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestForgetDaemon(t *testing.T) {
	const list = `[
		{"Id":"a1","Labels":{"dev.waxseal.run":"ours"},"HostConfig":{"NetworkMode":"none"}},
		{"Id":"b2","Labels":{"dev.waxseal.run":"another"},"HostConfig":{"NetworkMode":"none"}},
		{"Id":"c3","Labels":{},"HostConfig":{"NetworkMode":"container:a1"}},
		{"Id":"d4","Labels":{},"HostConfig":{"NetworkMode":"container:b2"}},
		{"Id":"e5","Labels":null,"HostConfig":{"NetworkMode":"default"}}]`
	for name, x := range map[string]struct {
		notes  string
		killed bool
		want   []string
		stays  bool // the file of the notes
	}{
		"ended":      {"SOCKET\nours\na1\n", false, []string{"/containers/a1", "/images/sha256:i"}, false},
		"killed":     {"SOCKET\nours\na1\n", true, []string{"/containers/a1", "/containers/c3", "/images/sha256:i"}, false},
		"unreached":  {"/nowhere\nours\na1\n", true, nil, true},
		"half notes": {"SOCKET\n", true, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l, err := net.Listen("unix", filepath.Join(dir, "s"))
			if err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			var deleted []string
			srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.Method == http.MethodDelete:
					mu.Lock()
					deleted = append(deleted, r.URL.Path)
					mu.Unlock()
				case strings.HasSuffix(r.URL.Path, "/wait"):
					http.Error(w, `{"message":"No such container"}`, http.StatusNotFound)
				case r.URL.Path == "/containers/json":
					_, _ = io.WriteString(w, list)
				case r.URL.Path == "/images/json" && r.URL.Query().Get("filters") == `{"label":["dev.waxseal.run=ours"]}`:
					_, _ = io.WriteString(w, `[{"Id":"sha256:i"}]`)
				default:
					http.Error(w, "", http.StatusNotFound)
				}
			})}}
			srv.Start()
			defer srv.Close()
			notes := filepath.Join(dir, daemonNotes)
			if err := os.WriteFile(notes, []byte(strings.Replace(x.notes, "SOCKET", filepath.Join(dir, "s"), 1)), 0o600); err != nil {
				t.Fatal(err)
			}
			forgetDaemon(dir, x.killed)
			if !slices.Equal(deleted, x.want) {
				t.Errorf("deleted %q, want %q", deleted, x.want)
			}
			if _, err := os.Stat(notes); (err == nil) != x.stays {
				t.Errorf("the notes: %v", err)
			}
		})
	}
}
