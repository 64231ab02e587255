package build

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// syntaxOf returns the frontend that a Dockerfile asks for in its "# syntax="
// line, "" when it asks for none.
func syntaxOf(dockerfile []byte) string {
	ref, _, _, ok := parser.DetectSyntax(dockerfile)
	if !ok {
		return ""
	}
	return ref
}

// checkSyntax accepts the frontends that the engine has built in. Any other is
// a program that would be pulled and run as part of the build, which this
// engine does not do.
func checkSyntax(syntax string) error {
	if syntax == "" {
		return nil
	}
	named, err := reference.ParseNormalizedNamed(strings.Fields(syntax)[0])
	if err == nil {
		switch named.Name() {
		case "docker.io/docker/dockerfile", "docker.io/docker/dockerfile-upstream":
			return nil
		}
	}
	return hinted(fmt.Errorf("the Dockerfile asks for the frontend %q, which is not supported: only the Dockerfile frontend that is built in runs, and nothing is pulled for it", syntax),
		"remove the \"# syntax=\" line, or build with docker and seal what it made")
}
