package lock

import (
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
)

// PURL returns the package URL of what a recorded URI fetches, "" where it
// does not tell: Debian, Alpine, PyPI, npm, Go, crates, Maven, gems. It goes by the
// layout of the path, which mirrors share, and never by the host's name. Lists
// of packages and their metadata are not packages.
func PURL(uri string) string {
	p, ok := packageOf(uri)
	if !ok {
		return ""
	}
	return p.purl()
}

// pkg is a package as a URL names it.
type pkg struct {
	kind, namespace, name, version string
	qualifier                      string // "arch=amd64"
}

func (p pkg) purl() string {
	var b strings.Builder
	b.WriteString("pkg:" + p.kind + "/")
	if p.namespace != "" {
		for _, part := range strings.Split(p.namespace, "/") {
			b.WriteString(purlEscape(part) + "/")
		}
	}
	b.WriteString(purlEscape(p.name) + "@" + purlEscape(p.version))
	if name, value, ok := strings.Cut(p.qualifier, "="); ok {
		b.WriteString("?" + name + "=" + purlEscape(value))
	}
	return b.String()
}

// title is the package as people call it, without its version.
func (p pkg) title() string {
	switch {
	case p.kind == "maven":
		return p.namespace + ":" + p.name
	case p.namespace != "" && p.kind != "deb" && p.kind != "apk":
		return p.namespace + "/" + p.name
	}
	return p.name
}

// purlEscape percent-encodes what has a meaning in a package URL.
func purlEscape(s string) string {
	const keep = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_~:"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; strings.IndexByte(keep, c) >= 0 {
			b.WriteByte(c)
		} else {
			const hex = "0123456789ABCDEF"
			b.WriteString("%" + string(hex[c>>4]) + string(hex[c&15]))
		}
	}
	return b.String()
}

func packageOf(uri string) (pkg, bool) {
	_, rest, ok := strings.Cut(uri, "://")
	if !ok {
		return pkg{}, false
	}
	if i := strings.IndexAny(rest, "?#"); i >= 0 {
		rest = rest[:i]
	}
	parts := strings.Split(rest, "/")[1:]
	for i, part := range parts {
		text, err := url.PathUnescape(part)
		if err != nil || text == "" && i < len(parts)-1 || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			return pkg{}, false
		}
		parts[i] = text
	}
	// A scope's slash may have been encoded.
	parts = strings.Split(strings.Join(parts, "/"), "/")
	if len(parts) == 0 {
		return pkg{}, false
	}
	for _, of := range []func([]string) (pkg, bool){golangPackage, npmPackage, debPackage, apkPackage, gemPackage, cratePackage, pypiPackage, mavenPackage} {
		if p, ok := of(parts); ok && p.name != "" && p.version != "" && !slices.Contains(strings.Split(p.namespace+"/"+p.name, "/"), "..") {
			return p, true
		}
	}
	return pkg{}, false
}

// debPackage: …/pool/main/c/curl/curl_7.88.1-10+deb12u5_amd64.deb. File names
// leave a version's epoch out, but for those that were made by hand.
func debPackage(parts []string) (pkg, bool) {
	base := parts[len(parts)-1]
	stem, ok := strings.CutSuffix(base, ".deb")
	if !ok {
		stem, ok = strings.CutSuffix(base, ".udeb")
	}
	f := strings.Split(stem, "_")
	if !ok || len(f) != 3 || f[2] == "" || !isDigit(f[1]) {
		return pkg{}, false
	}
	distribution := "debian"
	if slices.ContainsFunc(parts, func(s string) bool { return strings.HasPrefix(s, "ubuntu") }) {
		distribution = "ubuntu"
	}
	// The escapes of apt's own cache names may be escaped themselves.
	version := strings.NewReplacer("%3a", ":", "%3A", ":").Replace(f[1])
	return pkg{"deb", distribution, strings.ToLower(f[0]), version, "arch=" + f[2]}, true
}

var apkName = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9+_.-]*?)-([0-9][^-]*-r[0-9]+)$`)

// apkPackage: …/v3.22/main/x86_64/busybox-1.37.0-r18.apk. Wolfi's repositories
// are called os. Programs for Android end the same way, and lie in no such folder.
func apkPackage(parts []string) (pkg, bool) {
	at := len(parts) - 1
	stem, ok := strings.CutSuffix(parts[at], ".apk")
	f := apkName.FindStringSubmatch(stem)
	architectures := []string{"x86_64", "x86", "aarch64", "armv7", "armhf", "ppc64le", "s390x", "riscv64", "loongarch64", "noarch"}
	if !ok || f == nil || at < 1 || !slices.Contains(architectures, parts[at-1]) {
		return pkg{}, false
	}
	distribution := "alpine"
	if at > 1 && parts[at-2] == "os" {
		distribution = "wolfi"
	}
	return pkg{"apk", distribution, strings.ToLower(f[1]), f[2], "arch=" + parts[at-1]}, true
}

var (
	pypiSeparators = regexp.MustCompile(`[-_.]+`)
	wheelTag       = regexp.MustCompile(`^(?:py|cp|pp|ip|jy)[0-9]`)
	sdistName      = regexp.MustCompile(`^(.+?)-([0-9][0-9A-Za-z.!+_]*(?:-[0-9]+)?)$`)
)

// pypiPackage: a wheel (PEP 427) wherever it lies; a source archive (PEP 625)
// only below "packages", because other things are called that way, too.
func pypiPackage(parts []string) (pkg, bool) {
	base := parts[len(parts)-1]
	if stem, ok := strings.CutSuffix(base, ".whl"); ok {
		f := strings.Split(stem, "-")
		if len(f) != 5 && len(f) != 6 || !wheelTag.MatchString(f[len(f)-3]) || !isDigit(f[1]) {
			return pkg{}, false
		}
		return pkg{"pypi", "", pypiName(f[0]), f[1], ""}, true
	}
	if !slices.Contains(parts[:len(parts)-1], "packages") {
		return pkg{}, false
	}
	for _, ext := range []string{".tar.gz", ".zip", ".tar.bz2", ".tgz", ".tar.xz"} {
		stem, ok := strings.CutSuffix(base, ext)
		if !ok {
			continue
		}
		// Old names have "-" in the name: the version is what begins with the
		// last digit after one.
		if m := sdistName.FindStringSubmatch(stem); m != nil {
			i := strings.LastIndexByte(stem, '-')
			if isDigit(stem[i+1:]) {
				return pkg{"pypi", "", pypiName(stem[:i]), stem[i+1:], ""}, true
			}
			return pkg{"pypi", "", pypiName(m[1]), m[2], ""}, true
		}
	}
	return pkg{}, false
}

func pypiName(s string) string {
	return strings.ToLower(pypiSeparators.ReplaceAllLiteralString(s, "-"))
}

// npmPackage: …/@scope/name/-/name-1.2.3.tgz.
func npmPackage(parts []string) (pkg, bool) {
	n := len(parts)
	if n < 3 || parts[n-2] != "-" && (n < 4 || parts[n-3] != "-") {
		return pkg{}, false
	}
	at := slices.Index(parts, "-")
	stem, ok := strings.CutSuffix(parts[n-1], ".tgz")
	if !ok || at < 1 {
		return pkg{}, false
	}
	name, scope := parts[at-1], ""
	if at >= 2 && strings.HasPrefix(parts[at-2], "@") {
		scope = parts[at-2]
	}
	version, ok := strings.CutPrefix(stem, name+"-")
	if !ok || !isDigit(version) {
		return pkg{}, false
	}
	return pkg{"npm", scope, name, version, ""}, true
}

// golangPackage: …/github.com/!burnt!sushi/toml/@v/v1.3.2.zip. The case of the
// name is kept, as SBOMs keep it.
func golangPackage(parts []string) (pkg, bool) {
	n := len(parts)
	if n < 3 || parts[n-2] != "@v" {
		return pkg{}, false
	}
	version := ""
	for _, ext := range []string{".zip", ".mod", ".info"} {
		if v, ok := strings.CutSuffix(parts[n-1], ext); ok {
			version = v
		}
	}
	if len(version) < 2 || version[0] != 'v' || !isDigit(version[1:]) {
		return pkg{}, false
	}
	module := parts[:n-2]
	// A proxy may live below a folder; a module begins with a host.
	if i := slices.IndexFunc(module, func(s string) bool { return strings.Contains(s, ".") }); i > 0 {
		module = module[i:]
	}
	full, ok := unbang(strings.Join(module, "/"))
	version, okVersion := unbang(version)
	dir, name := path.Split(full)
	return pkg{"golang", strings.TrimSuffix(dir, "/"), name, version, ""}, ok && okVersion
}

// unbang undoes "!x" for "X", with which the proxy protocol keeps apart what
// some file systems do not.
func unbang(s string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '!':
			i++
			if i == len(s) || s[i] < 'a' || s[i] > 'z' {
				return "", false
			}
			c = s[i] - 'a' + 'A'
		case 'A' <= c && c <= 'Z':
			return "", false
		}
		b.WriteByte(c)
	}
	return b.String(), true
}

// cratePackage: …/crates/serde/serde-1.0.200.crate, …/crates/serde/1.0.200/download.
func cratePackage(parts []string) (pkg, bool) {
	n := len(parts)
	if n < 3 {
		return pkg{}, false
	}
	if stem, ok := strings.CutSuffix(parts[n-1], ".crate"); ok {
		version, ok := strings.CutPrefix(stem, parts[n-2]+"-")
		return pkg{"cargo", "", parts[n-2], version, ""}, ok && isDigit(version)
	}
	if n >= 4 && parts[n-1] == "download" && parts[n-4] == "crates" && isDigit(parts[n-2]) {
		return pkg{"cargo", "", parts[n-3], parts[n-2], ""}, true
	}
	return pkg{}, false
}

// mavenPackage: …/maven2/org/apache/commons/commons-lang3/3.12.0/commons-lang3-3.12.0.jar.
func mavenPackage(parts []string) (pkg, bool) {
	n := len(parts)
	if n < 4 {
		return pkg{}, false
	}
	base, version, artifact := parts[n-1], parts[n-2], parts[n-3]
	ext := strings.TrimPrefix(path.Ext(base), ".")
	if !slices.Contains([]string{"jar", "pom", "war", "ear", "aar", "zip", "module", "klib"}, ext) {
		return pkg{}, false
	}
	rest, ok := strings.CutPrefix(strings.TrimSuffix(base, "."+ext), artifact+"-"+strings.TrimSuffix(version, "-SNAPSHOT"))
	if !ok || rest != "" && rest[0] != '-' {
		return pkg{}, false
	}
	group := parts[:n-3]
	if i := lastIndexFunc(group, mavenRoot); i >= 0 {
		group = group[i+1:]
		// "…/repository/NAME/…" and the like.
		if len(group) > 1 && parts[i] == "repository" {
			group = group[1:]
		}
	} else if i := slices.IndexFunc(group, topLevel); i > 0 {
		group = group[i:]
	}
	if len(group) == 0 {
		return pkg{}, false
	}
	p := pkg{"maven", strings.Join(group, "."), artifact, version, ""}
	if classifier := strings.TrimPrefix(rest, "-"); classifier != "" && !strings.HasSuffix(version, "-SNAPSHOT") {
		p.qualifier = "classifier=" + classifier
	} else if ext != "jar" {
		p.qualifier = "type=" + ext
	}
	return p, true
}

func mavenRoot(s string) bool {
	return slices.Contains([]string{"maven2", "maven", "m2", "repository", "releases", "snapshots", "maven-public", "maven-central", "maven-releases", "libs-release"}, s)
}

// topLevel says whether a folder begins a Maven group's name.
func topLevel(s string) bool {
	return slices.Contains([]string{"org", "com", "io", "net", "dev", "de", "fr", "uk", "ch", "jp", "cn", "me", "edu", "gov", "app", "javax", "jakarta", "androidx", "junit"}, s)
}

func lastIndexFunc(list []string, f func(string) bool) int {
	for i := len(list) - 1; i >= 0; i-- {
		if f(list[i]) {
			return i
		}
	}
	return -1
}

// gemName splits a gem's file name; the version is the first that has a dot.
var gemName = regexp.MustCompile(`^(.+?)-([0-9]+(?:\.[0-9A-Za-z]+)+)(?:-([0-9A-Za-z_.-]+))?$`)

// gemPackage: …/gems/nokogiri-1.15.4-x86_64-linux.gem.
func gemPackage(parts []string) (pkg, bool) {
	stem, ok := strings.CutSuffix(parts[len(parts)-1], ".gem")
	m := gemName.FindStringSubmatch(stem)
	if !ok || m == nil {
		return pkg{}, false
	}
	p := pkg{"gem", "", m[1], m[2], ""}
	if m[3] != "" {
		p.qualifier = "platform=" + m[3]
	}
	return p, true
}

func isDigit(s string) bool { return s != "" && '0' <= s[0] && s[0] <= '9' }
