package policy

import (
	"slices"
	"strings"
)

// matches reports whether pattern covers name, all of it: "*" stands for any
// text within one path segment, "**" for any text at all, everything else for
// itself. The letter case counts.
func matches(pattern, name string) bool {
	// Greedy matching with one point to come back to for each kind of star:
	// the time is bounded by the product of the lengths.
	type point struct{ p, n int }
	star, deep := point{-1, 0}, point{-1, 0}
	p, n := 0, 0
	for n < len(name) || p < len(pattern) {
		switch {
		case strings.HasPrefix(pattern[p:], "**"):
			deep, star = point{p, n}, point{-1, 0}
			p += 2
			continue
		case p < len(pattern) && pattern[p] == '*':
			star = point{p, n}
			p++
			continue
		case p < len(pattern) && n < len(name) && pattern[p] == name[n]:
			p++
			n++
			continue
		case star.p >= 0 && star.n < len(name) && name[star.n] != '/':
			star.n++
			p, n = star.p+1, star.n
			continue
		case deep.p >= 0 && deep.n < len(name):
			deep.n++
			star = point{-1, 0}
			p, n = deep.p+2, deep.n
			continue
		}
		return false
	}
	return true
}

// canonical is the name of an image, or a pattern of names, as they are compared:
// the letter case of a registry's host, the port that it has anyway and a dot
// behind it lead to no other place, and Docker Hub has three names.
func canonical(name string) string {
	host, path, ok := strings.Cut(name, "/")
	kind, _, _ := strings.Cut(host, ":")
	if !ok || slices.Contains([]string{"oci", "docker", "archive", "file"}, kind) {
		return name
	}
	switch host = strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(host), ":443"), "."); host {
	case "docker.io", "registry-1.docker.io":
		host = "index.docker.io" // its name in references
	}
	return host + "/" + path
}

// nameable reports whether an image could have a name that the pattern covers.
func nameable(pattern string) bool {
	host, _, path := strings.Cut(pattern, "/")
	return strings.ContainsAny(host, "*:") || path && (strings.Contains(host, ".") || host == "localhost")
}
