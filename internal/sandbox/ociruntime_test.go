package sandbox

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/egress"
)

func TestFitSpec(t *testing.T) {
	raw, err := fitSpec([]byte(`{"ociVersion":"1.0.2","unknown":{"kept":9007199254740993},
"process":{"args":["sh"],"env":["A=1","SSL_CERT_FILE=/theirs"]},
"mounts":[{"destination":"/proc","type":"proc","source":"proc"},{"destination":"/sys/fs/cgroup","type":"cgroup"},{"destination":"/dev","type":"tmpfs"}],
"linux":{"resources":{"devices":[]},"cgroupsPath":"/x","namespaces":[{"type":"pid"},{"type":"cgroup"}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(raw), `"unknown":{"kept":9007199254740993}`) {
		t.Errorf("what it does not know is another: %s", raw)
	}
	var spec struct {
		Process struct{ Env []string }
		Mounts  []struct {
			Destination, Type string
			Options           []string
		}
		Linux map[string]any
	}
	if err := json.Unmarshal(raw, &spec); err != nil {
		t.Fatal(err)
	}
	env := spec.Process.Env
	if !slices.Contains(env, "A=1") || !slices.Contains(env, "SSL_CERT_FILE="+egress.MountPoint+"/ca.pem") || slices.Contains(env, "SSL_CERT_FILE=/theirs") {
		t.Errorf("variables %q", env)
	}
	var mounts []string
	for _, m := range spec.Mounts {
		mounts = append(mounts, m.Destination+" "+m.Type)
	}
	if !slices.Equal(mounts, []string{"/proc bind", "/dev tmpfs", egress.MountPoint + " bind"}) || !slices.Contains(spec.Mounts[2].Options, "ro") {
		t.Errorf("mounts %q", mounts)
	}
	if spaces, _ := spec.Linux["namespaces"].([]any); len(spec.Linux) != 1 || len(spaces) != 1 {
		t.Errorf("%v", spec.Linux)
	}
	for _, bad := range []string{"", "[]", "{}", `{"process":1}`} {
		if _, err := fitSpec([]byte(bad)); err == nil {
			t.Errorf("%q is a specification", bad)
		}
	}
}

func TestBundleOf(t *testing.T) {
	for args, want := range map[string]string{
		"create --bundle /b --pid-file f id": "/b", "--root r create -b=/b id": "/b", "run id": ".", "create --bundle": "",
	} {
		if got := bundleOf(strings.Fields(args)); got != want {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
	}
}

// What somebody has configured for podman stays in force.
func TestLendRuntime(t *testing.T) {
	if _, err := ociRuntime(); err != nil {
		testkit.Unavailable(t, "%v", err)
	}
	home := t.TempDir()
	env, err := lendRuntime(t.TempDir(), []string{"HOME=" + home, "BUILDAH_RUNTIME=/theirs"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(env, "BUILDAH_RUNTIME=/theirs") || len(env) < 3 {
		t.Errorf("%q", env)
	}
	if err := os.MkdirAll(filepath.Join(home, ".config/containers/containers.conf.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	files := t.TempDir()
	if env, err = lendRuntime(files, []string{"HOME=" + home}); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "CONTAINERS_CONF=") }) {
		t.Errorf("%q", env)
	}
	if _, err := os.Stat(filepath.Join(files, RuntimeName)); err != nil {
		t.Error(err)
	}
}
