package main_test

import (
	"encoding/json"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/waxseal/waxseal/internal/testkit"
)

// TestTheExampleServes builds examples/webapp as the demo does and runs the
// image under runc: what comes out of a build works.
func TestTheExampleServes(t *testing.T) {
	if err := testkit.CanBuild(); err != nil {
		testkit.Unavailable(t, "%v", err)
	}
	base, err := testkit.DebianBase(t.Context())
	if err != nil {
		testkit.Unavailable(t, "%v", err)
	}
	bin, err := testkit.Binaries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), filepath.Join(bin, "waxseal"), "build", "--unsigned", "--lock", filepath.Join(dir, "waxseal.lock"), "--store", filepath.Join(dir, "store"),
		"--build-context", "base=oci:"+base, "--build-arg", "VERSION=1.0", "--tag", "webapp:v1",
		"--output", "type=oci,tar=false,dest="+filepath.Join(dir, "image"), "../../examples/webapp")
	build.Env = append(build.Environ(), "HOME="+dir, "WAXSEAL_CACHE="+filepath.Join(dir, "cache"), "WAXSEAL_HOME="+filepath.Join(dir, "home"))
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the example: %v\n%s", err, out)
	}

	port, stop, err := testkit.RunImage(t.Context(), filepath.Join(dir, "image"), "v1", filepath.Join(dir, "run"),
		[]string{"PORT=0"}, regexp.MustCompile(`listening on port (\d+)`))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	resp, err := http.Get("http://127.0.0.1:" + port[1] + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var health struct{ Status, Version string }
	if err := json.NewDecoder(resp.Body).Decode(&health); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || health.Status != "ok" || health.Version != "1.0" {
		t.Errorf("GET /healthz: %s, %+v", resp.Status, health)
	}
}
