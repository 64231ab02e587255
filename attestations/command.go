package attestations

import (
	_ "embed"
	"slices"
	"strconv"
	"strings"
)

// CommandType names the way in which `waxseal run` makes what a command makes;
// command/v1/spec.md says what its parameters mean.
const CommandType = "https://waxseal.dev/attestations/command/v1"

// The names of entries in resolvedDependencies and byproducts of CommandType
// besides DependencySource and ByproductInputs.
const (
	DependencyFiles  = "files"       // the working folder before, by the digest of its manifest
	DependencyOpened = "opened"      // files elsewhere that the command opened, by that of theirs
	ByproductFiles   = "files-after" // the working folder afterwards
)

// Command is the externalParameters of CommandType: everything the user could
// set.
type Command struct {
	Command   []string         `json:"command"`             // the program and its arguments, secrets replaced by "REMOVED"
	Folder    string           `json:"folder,omitempty"`    // the working folder's place in the git work tree
	Variables []string         `json:"variables"`           // names of what the environment held
	Artifacts []string         `json:"artifacts,omitempty"` // patterns, as given
	Images    []string         `json:"images,omitempty"`    // references, as given
	Trace     bool             `json:"trace,omitempty"`
	Inputs    *ContainerInputs `json:"inputs"`
}

// CommandLine is a command in one line that no other command has: its words with
// spaces between them, in quotation marks where they are no plain ones.
func CommandLine(command []string) string {
	out := make([]string, len(command))
	for i, a := range command {
		if a == "" || strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r == '"' || r == 0x7f }) {
			a = strconv.Quote(a)
		}
		out[i] = a
	}
	return strings.Join(out, " ")
}

// UsualVariable reports whether a variable is one that machines set for every
// command, or GitHub for every job, where nobody else may: that a command had it
// says nothing of what it does.
func UsualVariable(name string) bool {
	switch name {
	case "PATH", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "OLDPWD", "HOSTNAME", "TMPDIR", "TERM", "COLORTERM", "COLUMNS", "LINES",
		"NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "LANG", "LANGUAGE", "TZ", "DEBIAN_FRONTEND", "CI",
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
		"SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE":
		return true
	}
	for _, family := range []string{"LC_", "XDG_", "GITHUB_", "RUNNER_"} {
		if strings.HasPrefix(name, family) {
			return true
		}
	}
	return false
}

// CommandInternal is the internalParameters of CommandType: what was found.
type CommandInternal struct {
	Engine          ContainerEngine `json:"engine"`
	Grade           string          `json:"grade"`                // "full", "partial" or "record-only"
	Unobserved      []string        `json:"unobserved,omitempty"` // what was not seen, in words; absent only with "full"
	NetworkObserved string          `json:"network"`              // the verdict of the record of inputs
	Files           CommandFiles    `json:"files"`
	Traced          *CommandTraced  `json:"traced,omitempty"`
	CI              *CI             `json:"ci,omitempty"` // absent outside CI
}

// CommandFiles compares the working folder before and after.
type CommandFiles struct {
	Before  int      `json:"before"` // files
	After   int      `json:"after"`
	Changed []string `json:"changed,omitempty"` // inputs that are not as they were, sorted
	Removed []string `json:"removed,omitempty"`
	More    int      `json:"more,omitempty"` // of both, beyond those listed
}

// CommandTraced counts what was seen of files elsewhere.
type CommandTraced struct {
	Files  int `json:"files"`
	Lost   int `json:"lost,omitempty"`   // times that events were lost
	Unread int `json:"unread,omitempty"` // files that could not be read back
}

//go:embed command/v1/schema.json
var commandSchema []byte

// CommandSchema returns the JSON Schema of a SLSA provenance predicate whose
// buildType is CommandType.
func CommandSchema() []byte { return slices.Clone(commandSchema) }
