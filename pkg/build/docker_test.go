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
