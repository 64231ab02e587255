package build

import "testing"

func TestDockerPURL(t *testing.T) {
	for in, want := range map[string]string{
		"app":                     "pkg:docker/app@latest",
		"reg.example:5000/a/b:v1": "pkg:docker/reg.example:5000/a/b@v1",
		"app@sha256:" + zeros64:   "pkg:docker/app@sha256%3A" + zeros64,
		"sha256:" + zeros64:       "pkg:docker/sha256@" + zeros64,
	} {
		if got := dockerPURL(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestOneImage(t *testing.T) {
	for name, want := range map[string]string{
		"app": "app:latest", "app:1": "app:1", "team/app": "team/app:latest", "localhost:5000/app": "localhost:5000/app:latest",
		"localhost:5000/app:1": "localhost:5000/app:1", "app@sha256:ab": "app@sha256:ab", "sha256:ab12": "sha256:ab12", "ab12": "ab12",
	} {
		if got := oneImage(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}
