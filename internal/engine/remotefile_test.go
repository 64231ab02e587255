package engine

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/egress"
	"github.com/waxseal/waxseal/pkg/lock"
)

// A remote file's name and time in the image come from headers: a lock pins
// them as it pins the bytes.
func TestRemoteFilesAreHeldToTheirHeaders(t *testing.T) {
	name, more := "right.txt", 0
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Disposition", `attachment; filename="`+name+`"`)
		io.WriteString(w, "the bytes")
		for range more {
			w.Write(make([]byte, 1<<20))
		}
	}))
	defer up.Close()
	const uri = "http://files.test/get"
	get := func(mode, store string, file *lock.File) (http.Header, string, *recorder, error) {
		plan := InputsPlan{Plan: egress.Plan{Mode: mode, Store: store, Upstreams: map[string]string{"files.test:80": strings.TrimPrefix(up.URL, "http://")}}}
		if file != nil {
			plan.Lock = file.Marshal()
		}
		rec := newRecorder(Config{Root: t.TempDir()}, plan)
		t.Cleanup(rec.close)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, uri, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := rec.files.RoundTrip(req)
		if err != nil {
			return nil, "", rec, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp.Header, string(b), rec, err
	}
	kept := t.TempDir()
	_, body, rec, err := get(attestations.InputsRecord, kept, nil)
	if err != nil || body != "the bytes" {
		t.Fatalf("%q %v", body, err)
	}
	f, ok := rec.files.known(uri)
	if !ok || f.Tree == "" {
		t.Fatalf("noted %+v", f)
	}
	file := &lock.File{Sources: []lock.Source{{Kind: lock.KindHTTP, Ref: uri, Digest: f.Digest, Tree: attest.Digest(f.Tree), Size: f.Size}}}
	if h, body, _, err := get(attestations.InputsLocked, t.TempDir(), file); err != nil || body != "the bytes" || !strings.Contains(h.Get("Content-Disposition"), "right") {
		t.Errorf("the same file: %v %q %v", h, body, err)
	}
	name = "wrong.txt"
	var refused *violationError
	if h, _, _, err := get(attestations.InputsLocked, t.TempDir(), file); !errors.As(err, &refused) {
		t.Errorf("another name passed: %v %v", h, err)
	}
	// What upstream sends instead is read no further than it takes to say so.
	name, more = "right.txt", 2
	if _, _, _, err := get(attestations.InputsLocked, t.TempDir(), file); !errors.As(err, &refused) || !strings.Contains(err.Error(), "more than 1048585 bytes") {
		t.Errorf("a long answer: %v", err)
	}
	for _, mode := range []string{attestations.InputsLocked, attestations.InputsOffline} {
		if h, body, _, err := get(mode, kept, file); err != nil || body != "the bytes" || !strings.Contains(h.Get("Content-Disposition"), "right") {
			t.Errorf("%s from the store: %v %q %v", mode, h, body, err)
		}
	}
}
