package testkit_test

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// readers is what reads the environment of all that a verdict is made by, and
// why that weakens no check. A package that is not here has to be looked into.
var readers = map[string]string{
	"internal/cli": "where images, copies and stores lie, colours, and the password of a key",
	"internal/kms": "which Vault is asked, over https only; a reference can pin the key that it must have",
	"pkg/store":    "which credentials are sent to a registry, and which Docker daemon is asked; what comes back is held against its digest",
	"pkg/keys":     "credentials for what holds a key; what would have a certificate accepted, or another address asked, is taken out",

	"github.com/docker/cli/cli/config":                        "where credentials lie",
	"github.com/docker/cli/cli/config/configfile":             "credentials",
	"github.com/google/go-containerregistry/pkg/authn":        "where credentials lie",
	"github.com/moby/moby/client":                             "which Docker daemon is asked",
	"github.com/sigstore/sigstore/pkg/cryptoutils":            "the password of a key",
	"github.com/spf13/cobra":                                  "completion",
	"github.com/sirupsen/logrus":                              "colours",
	"github.com/google/certificate-transparency-go/x509":      "the system's authorities, which nothing here asks about: chains lead to a trusted root",
	"github.com/sassoftware/relic/lib/x509tools":              "a log of TLS keys, of a client that is not used",
	"github.com/sigstore/cosign/v2/internal/pkg/now":          "the time of a signature that cosign makes, not that of a verdict",
	"github.com/sigstore/cosign/v2/pkg/cosign/env":            "cosign's own switches, which the parts that are used do not ask for",
	"github.com/go-openapi/analysis":                          "debugging",
	"github.com/go-openapi/analysis/internal/flatten/replace": "debugging",
	"github.com/go-openapi/runtime/logger":                    "debugging",
	"github.com/go-openapi/spec":                              "debugging",
	"github.com/go-openapi/swag/fileutils":                    "where Go's packages lie",
	"github.com/go-openapi/validate":                          "debugging",
	"go.opentelemetry.io/auto/sdk":                            "limits of traces",
	"go.opentelemetry.io/otel/trace":                          "limits of traces",
	"golang.org/x/net/http2":                                  "debugging",
	"golang.org/x/sys/cpu":                                    "which instructions are used",
	"golang.org/x/sys/unix":                                   "a wrapper",
	"google.golang.org/grpc/grpclog":                          "logs",
	"google.golang.org/grpc/internal/binarylog":               "logs",
	"google.golang.org/grpc/internal/envconfig":               "clients that are not used",
	"google.golang.org/protobuf/internal/impl":                "debugging",
	"google.golang.org/protobuf/reflect/protoregistry":        "whether two types of one name end the program",
}

// TestWhoReadsTheEnvironment notices a package that begins to: no variable may
// weaken a check. What testdata/script/environment.txtar sets is seen to make no
// difference; this is for the variables that nobody has thought of.
func TestWhoReadsTheEnvironment(t *testing.T) {
	reads := regexp.MustCompile(`\b(os|syscall|unix)\.(Getenv|LookupEnv|Environ|ExpandEnv)\b`)
	handed := regexp.MustCompile(`\.Env\(`) // how a command of ours is given it
	found := map[string]bool{}
	for _, p := range append(list(t, "-deps", "./pkg/gate", "./pkg/trust", "./pkg/report", "./pkg/promote"), list(t, "./internal/cli", "./internal/kms")...) {
		if p.Standard {
			continue
		}
		name := strings.TrimPrefix(p.ImportPath, module)
		for _, file := range p.GoFiles {
			raw, err := os.ReadFile(filepath.Join(p.Dir, file))
			if err != nil {
				t.Fatal(err)
			}
			if reads.Match(raw) || name == "internal/cli" && handed.Match(raw) {
				found[name] = true
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if readers[name] == "" {
			t.Errorf("%s reads the environment: say in the table why that weakens no check", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(readers)) {
		if !found[name] {
			t.Errorf("%s does not read the environment: take it out of the table", name)
		}
	}
}
