package testkit_test

import (
	"context"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/waxseal/waxseal/internal/testkit"
)

func TestTinyBaseIsAnImage(t *testing.T) {
	path, err := testkit.TinyBase(t.Context())
	if err != nil {
		testkit.Unavailable(t, "%v", err)
	}
	index, err := layout.ImageIndexFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
}

func TestDistributionServes(t *testing.T) {
	path := testkit.Peer(t, "registry")
	reg, err := testkit.StartDistribution(path, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	ref, err := name.NewTag(reg.Addr+"/some/thing:v1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Head(ref, remote.WithContext(t.Context())); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("an absent image answered %v, want 404", err)
	}
}

func TestFaults(t *testing.T) {
	var faults testkit.Faults
	reg, err := testkit.NewRegistry(testkit.RegistryOptions{Faults: &faults})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	get := func(path string) (int, string, error) {
		t.Helper()
		resp, err := http.Get("http://" + reg.Addr + path)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		return resp.StatusCode, string(body), err
	}
	set := func(f ...testkit.Fault) {
		t.Helper()
		if err := faults.Set(f...); err != nil {
			t.Fatal(err)
		}
	}

	set(testkit.Fault{Kind: "429", Match: "^GET /v2/$", Times: 1})
	if code, _, _ := get("/v2/"); code != 429 {
		t.Errorf("first answer %d, want 429", code)
	}
	if code, _, _ := get("/v2/"); code != 200 {
		t.Errorf("second answer %d, want 200", code)
	}
	set(testkit.Fault{Kind: "cut"})
	if _, body, err := get("/v2/a/manifests/b"); err == nil {
		t.Errorf("a cut answer read without an error: %q", body)
	}
	set(testkit.Fault{Kind: "referrers=250"})
	if code, body, err := get("/v2/a/referrers/sha256:00?last=200"); err != nil || code != 200 || strings.Count(body, "sha256:") != 50 {
		t.Errorf("last page: status %d, error %v, %d referrers", code, err, strings.Count(body, "sha256:"))
	}
	if got := faults.Seen(); len(got) != 1 {
		t.Errorf("seen %q, want one request", got)
	}
	if err := faults.Await(t.Context(), regexp.MustCompile("^GET .*/referrers/")); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := faults.Await(ctx, regexp.MustCompile("never")); err == nil {
		t.Error("a request that never came was seen")
	}
	if err := faults.Set(testkit.Fault{Kind: "meteor"}); err == nil {
		t.Error("an unknown fault was taken")
	}
}
