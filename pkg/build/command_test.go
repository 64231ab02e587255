package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is called docker and lies in the working folder is somebody's script.
func TestIsDocker(t *testing.T) {
	machine, work := t.TempDir(), t.TempDir()
	for _, dir := range []string{machine, work, filepath.Join(work, "bin")} {
		writeFiles(t, dir, map[string]string{"docker": "", "docker-compose": "", "make": ""})
		for _, name := range []string{"docker", "docker-compose", "make"} {
			if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	linked := filepath.Join(t.TempDir(), "docker")
	if err := os.Symlink(filepath.Join(work, "docker"), linked); err != nil {
		t.Fatal(err)
	}
	t.Chdir(work)
	for _, x := range []struct {
		path, name string
		want       bool
	}{
		{machine, "docker", true},
		{machine, "docker-compose", true},
		{machine, "make", false},
		{"", "docker", true}, // and nothing runs
		{machine, filepath.Join(machine, "docker"), true},
		{machine, "./docker", false},
		{machine, "bin/docker-compose", false},
		{machine, "../docker", false},
		{machine, filepath.Join(work, "bin", "docker"), false},
		{machine, linked, false},
		{filepath.Dir(linked) + ":" + machine, "docker", false},
		{filepath.Join(work, "bin") + ":" + machine, "docker", false},
		{"bin:" + machine, "docker", false},
		{".:" + machine, "docker", false},
	} {
		t.Setenv("PATH", x.path)
		r := &CommandRequest{Args: []string{x.name, "build"}}
		if got := r.isDocker(); got != x.want {
			t.Errorf("%q with the PATH %q: %t", x.name, x.path, got)
		}
	}
}

func TestMakesNothing(t *testing.T) {
	for line, want := range map[string]string{
		"docker":                               "docker",
		"docker --version":                     "docker --version",
		"docker login -u x -p build r.test":    "docker login",
		"docker -H tcp://build ps":             "docker ps",
		"docker --context build images":        "docker images",
		"docker buildx ls":                     "docker buildx ls",
		"docker buildx --builder build du":     "docker buildx du",
		"docker buildx imagetools inspect x":   "docker buildx imagetools inspect",
		"docker-buildx inspect --bootstrap":    "docker-buildx inspect",
		"docker compose -f build.yml ps":       "docker compose ps",
		"docker-compose down":                  "docker-compose down",
		"docker --help build":                  "docker build --help",
		"docker build --label --help .":        "",
		"docker system prune -f":               "docker system",
		"docker build .":                       "",
		"docker build ls":                      "",
		"docker buildx":                        "",
		"docker buildx build -t login .":       "",
		"docker buildx imagetools create -t x": "",
		"docker image build .":                 "",
		"docker compose up":                    "",
		"docker push x":                        "",
		"docker load -i x":                     "",
		"docker -D build .":                    "",
		"docker build . -- --help":             "",
		"sh ls":                                "",
	} {
		r := CommandRequest{Args: strings.Fields(line)}
		if got := r.makesNothing(); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}
