package engine

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/egress"
	"github.com/waxseal/waxseal/pkg/lock"
)

// An image by digest needs the lock as one by tag does: what it does not list
// is not asked for.
func TestImagesByDigestAreHeldToTheLock(t *testing.T) {
	asked := 0
	up := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer up.Close()
	part, other := attest.DigestOf([]byte("part")), attest.DigestOf([]byte("other"))
	index := []byte(fmt.Sprintf(`{"manifests":[{"digest":%q}]}`, part))
	top, single := attest.DigestOf(index), attest.DigestOf([]byte("single"))
	file := &lock.File{Sources: []lock.Source{
		{Kind: lock.KindImage, Ref: "docker.io/library/debian:12", Digest: string(top)},
		{Kind: lock.KindImage, Ref: "docker.io/library/alpine@" + string(single), Digest: string(single)},
	}}
	rec := newRecorder(Config{Root: t.TempDir()}, InputsPlan{Plan: egress.Plan{Mode: attestations.InputsLocked, Store: t.TempDir(), Lock: file.Marshal()}})
	t.Cleanup(rec.close)
	rec.blobs = t.TempDir()
	registry := &lockedRegistry{name: "docker.io", rec: rec, inner: http.DefaultTransport}
	get := func(path string) error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, up.URL+"/v2/library/"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := registry.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	for _, path := range []string{"debian/manifests/" + string(other), "debian/manifests/" + string(part), "alpine/manifests/" + string(top), "evil/manifests/" + string(top)} {
		var refused *violationError
		if err := get(path); !errors.As(err, &refused) || asked > 0 {
			t.Errorf("%s: %v, asked %d times", path, err, asked)
		}
	}
	// Its parts are known once the index has come.
	if err := os.MkdirAll(filepath.Join(rec.blobs, "sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(rec.blobs, "sha256", top.Hex()), index, 0o600); err != nil {
		t.Fatal(err)
	}
	for i, path := range []string{"debian/manifests/12", "debian/manifests/" + string(top), "debian/manifests/" + string(part), "alpine/manifests/" + string(single)} {
		if err := get(path); err != nil || asked != i+1 {
			t.Errorf("%s: %v, asked %d times", path, err, asked)
		}
	}
}
