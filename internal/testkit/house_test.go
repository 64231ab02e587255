package testkit_test

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/internal/testkit"
)

const module = "github.com/waxseal/waxseal/"

// rooms is what each package may import of ours. "*" is any of them.
var rooms = map[string]string{
	"cmd/waxseal":          "internal/cli internal/start",
	"cmd/waxseal-engine":   "internal/engine",
	"cmd/waxseal-sandbox":  "internal/sandbox",
	"cmd/waxseal-kms":      "internal/kms",
	"internal/cli":         "attestations pkg/attest pkg/build pkg/ci pkg/gate pkg/keys pkg/lock pkg/policy pkg/promote pkg/rebuild pkg/report pkg/sbom pkg/sign pkg/store pkg/trust pkg/verify",
	"internal/engine":      "pkg/egress pkg/lock pkg/catalog pkg/sbom pkg/attest attestations",
	"internal/sandbox":     "pkg/egress pkg/lock attestations",
	"internal/conformance": "pkg/attest pkg/sign pkg/verify",
	"internal/kms":         "pkg/attest pkg/keys pkg/sign",
	"internal/start":       "",
	"internal/testkit":     "*",
	"attestations":         "",
	"pkg/attest":           "attestations",
	"pkg/lock":             "pkg/attest attestations",
	"pkg/egress":           "pkg/lock pkg/attest attestations",
	"pkg/build":            "attestations pkg/attest pkg/lock pkg/sbom pkg/store",
	"pkg/rebuild":          "attestations pkg/attest pkg/build pkg/lock pkg/store",
	"pkg/sbom":             "pkg/attest",
	"pkg/catalog":          "pkg/sbom pkg/attest",
	"pkg/ci":               "attestations pkg/attest pkg/sign",
	"pkg/keys":             "pkg/attest",
	"pkg/sign":             "pkg/attest pkg/keys",
	"pkg/store":            "pkg/attest",
	"pkg/trust":            "pkg/attest pkg/keys",
	"pkg/verify":           "pkg/attest attestations",
	"pkg/policy":           "pkg/verify pkg/sbom pkg/attest attestations",
	"pkg/gate":             "pkg/store pkg/verify pkg/policy pkg/attest attestations",
	"pkg/promote":          "pkg/gate pkg/store pkg/sign pkg/attest attestations",
	"pkg/report":           "pkg/gate pkg/policy pkg/verify pkg/attest attestations",
	"attestations/*":       "",
	"internal/testkit/*":   "*",
	"examples/*":           "",
}

// guests is where each third party may be imported, by the longest prefix.
// What stands nowhere here is not imported at all.
var guests = map[string]string{
	"github.com/spf13/cobra":                  "internal/cli",
	"github.com/spf13/pflag":                  "internal/cli",
	"github.com/sirupsen/logrus":              "internal/cli internal/engine", // BuildKit's client logs through it
	"google.golang.org/grpc/experimental":     "internal/cli internal/engine", // the buffers of a process's gRPC
	"google.golang.org/grpc/mem":              "internal/cli internal/engine",
	"github.com/moby/buildkit":                "internal/engine pkg/build",
	"github.com/containerd":                   "internal/engine",
	"github.com/anchore/syft":                 "pkg/catalog",
	"modernc.org/sqlite":                      "pkg/catalog", // what Syft reads RPM databases with
	"github.com/CycloneDX/cyclonedx-go":       "pkg/sbom",
	"github.com/spdx/tools-golang":            "pkg/sbom",
	"github.com/google/go-containerregistry":  "pkg/store",
	"github.com/sigstore/cosign/v2":           "pkg/sign pkg/verify",
	"github.com/sigstore/cosign/v2/pkg/oci":   "pkg/store",
	"github.com/sigstore/sigstore":            "pkg/sign pkg/verify",
	"github.com/sigstore/sigstore-go":         "pkg/verify",
	"github.com/sigstore/sigstore-go/pkg/tuf": "pkg/trust",
	"github.com/theupdateframework/go-tuf/v2": "pkg/trust",
	"go.yaml.in/yaml/v3":                      "pkg/policy internal/cli", // the verifier's configuration
	"cel.dev/cel-go":                          "pkg/policy",
	"github.com/coreos/go-oidc/v3":            "pkg/ci pkg/sign",

	// What holds keys for others: a program of its own.
	"github.com/sigstore/sigstore/pkg/signature/kms":     "internal/kms",
	"github.com/sigstore/sigstore/pkg/signature":         "internal/kms pkg/sign pkg/verify",
	"github.com/sigstore/sigstore/pkg/signature/options": "internal/kms",
	"github.com/sigstore/sigstore/pkg/cryptoutils":       "internal/kms pkg/sign pkg/verify",
	"github.com/miekg/pkcs11":                            "internal/kms",
	"github.com/stefanberger/go-pkcs11uri":               "internal/kms pkg/keys",
	"k8s.io/client-go":                                   "internal/kms",
	"github.com/Azure/azure-sdk-for-go":                  "internal/kms",
	"github.com/hashicorp/vault/api":                     "internal/kms",
	"google.golang.org/grpc/codes":                       "internal/engine internal/kms pkg/build pkg/sign",
	"google.golang.org/grpc/status":                      "internal/engine internal/kms pkg/build pkg/sign",

	// The formats of evidence.
	"github.com/in-toto/in-toto-golang":                           "attestations pkg/attest",
	"github.com/in-toto/attestation":                              "attestations pkg/attest",
	"github.com/secure-systems-lab/go-securesystemslib/dsse":      "pkg/attest pkg/sign",
	"github.com/secure-systems-lab/go-securesystemslib/encrypted": "pkg/sign",
	"github.com/sigstore/protobuf-specs":                          "pkg/attest pkg/sign pkg/verify",
	"github.com/go-json-experiment/json/jsontext":                 "pkg/attest",
	"google.golang.org/protobuf":                                  "pkg/attest pkg/sign pkg/verify",
	"github.com/sigstore/cosign/v2/pkg/types":                     "pkg/store",
	"github.com/digitorus/timestamp":                              "pkg/sign",   // what time-stamping authorities are asked in
	"github.com/digitorus/pkcs7":                                  "pkg/verify", // the reader of time stamps that sigstore-go has
	"github.com/sigstore/sigstore-go/pkg/sign":                    "pkg/sign",
	"golang.org/x/oauth2":                                         "pkg/sign",
	"github.com/spiffe/go-spiffe/v2/proto":                        "pkg/sign",            // the messages of the workload API
	"github.com/sigstore/rekor/pkg/generated":                     "pkg/sign",            // what sigstore-go's client of Rekor v1 takes
	"github.com/sigstore/sigstore-go/pkg/root":                    "pkg/sign pkg/verify", // signing configs too
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate":      "pkg/sign pkg/verify",

	// What speaking with BuildKit brings along: its client takes content stores,
	// platforms and file trees in other modules' types.
	"github.com/containerd/containerd/v2/core/content": "internal/engine pkg/build",
	"github.com/containerd/errdefs":                    "internal/engine pkg/build pkg/store",
	"github.com/containerd/platforms":                  "internal/engine pkg/build",
	"github.com/distribution/reference":                "internal/engine pkg/build",
	"github.com/docker/cli/cli/config":                 "pkg/build pkg/store",
	"github.com/docker/go-units":                       "pkg/build",
	"github.com/klauspost/compress":                    "internal/engine pkg/build pkg/rebuild pkg/store",
	"github.com/moby/patternmatcher":                   "pkg/build",
	"github.com/opencontainers":                        "internal/engine pkg/build pkg/catalog",
	"github.com/tonistiigi":                            "internal/engine pkg/build",
	"github.com/ulikunitz/xz":                          "pkg/build pkg/rebuild",
	"google.golang.org/grpc":                           "internal/engine pkg/build pkg/sign", // the workload API is gRPC, too
	"go.etcd.io/bbolt":                                 "internal/engine",
	"github.com/zricethezav/gitleaks/v8":               "internal/engine",
	"github.com/BobuSumisu/aho-corasick":               "internal/engine", // gitleaks finds keywords with it,
	"github.com/spf13/viper":                           "internal/engine", // and reads its rules
	"github.com/miekg/dns":                             "pkg/egress",
	"github.com/vishvananda/netlink":                   "pkg/egress",
	"golang.org/x/crypto/ocsp":                         "pkg/sign pkg/verify", // asking responders; what they say
	"golang.org/x/crypto/nacl/secretbox":               "pkg/sign",            // cosign's encrypted keys, in two steps
	"golang.org/x/crypto/scrypt":                       "pkg/sign",
	"golang.org/x/net":                                 "pkg/egress",
	"golang.org/x/net/http2":                           "internal/engine pkg/build pkg/egress", // over a connection that is there
	"software.sslmate.com/src/go-pkcs12":               "pkg/egress",                           // Java's trust store

	"github.com/gofrs/flock":      "pkg/store",
	"github.com/moby/moby/client": "pkg/store", // the Docker daemon
	"golang.org/x/sync":           "pkg internal/engine",
	"golang.org/x/sys":            "pkg internal",
	"golang.org/x/term":           "internal/cli pkg/build",
}

type listed struct {
	ImportPath, Dir, Doc string
	Standard             bool
	GoFiles              []string
	Imports              []string
}

func list(t *testing.T, args ...string) []listed {
	t.Helper()
	root, err := testkit.Root()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Doc,Standard,GoFiles,Imports"}, args...)...)
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// room finds the row for a package: its own, or its parent's with "/*".
func room(name string) (string, bool) {
	if allowed, ok := rooms[name]; ok {
		return allowed, true
	}
	for dir := name; strings.Contains(dir, "/"); {
		dir = dir[:strings.LastIndex(dir, "/")]
		if allowed, ok := rooms[dir+"/*"]; ok {
			return allowed, true
		}
	}
	return "", false
}

func TestPackagesImportOnlyWhatTheirRoomAllows(t *testing.T) {
	for _, p := range list(t, "./...") {
		name := strings.TrimPrefix(p.ImportPath, module)
		allowed, ok := room(name)
		if !ok {
			t.Errorf("%s has no row in the table of rooms", name)
			continue
		}
		if strings.TrimSpace(p.Doc) == "" && len(p.GoFiles) > 0 {
			t.Errorf("%s has no package comment", name)
		}
		for _, imported := range p.Imports {
			switch ours := strings.TrimPrefix(imported, module); {
			case ours != imported:
				parent := strings.HasPrefix(ours, name+"/") || strings.HasPrefix(name, ours+"/")
				if allowed != "*" && !parent && !slices.Contains(strings.Fields(allowed), ours) {
					t.Errorf("%s must not import %s", name, ours)
				}
			case !strings.Contains(strings.SplitN(imported, "/", 2)[0], "."):
				// the standard library
			case allowed != "*" && !guestAllowed(imported, name):
				t.Errorf("%s must not import %s", name, imported)
			}
		}
	}
}

func guestAllowed(imported, name string) bool {
	best, where := "", ""
	for prefix, places := range guests {
		if (imported == prefix || strings.HasPrefix(imported, prefix+"/")) && len(prefix) > len(best) {
			best, where = prefix, places
		}
	}
	return slices.ContainsFunc(strings.Fields(where), func(place string) bool {
		return name == place || strings.HasPrefix(name, place+"/")
	})
}

// TestTheCommandLinksNoServer keeps waxseal small and quick to start, and what
// parses an image's content out of the process that holds the keys.
func TestTheCommandLinksNoServer(t *testing.T) {
	forbidden := map[string]string{
		"github.com/anchore/syft":                               "Syft belongs to the engine",
		"github.com/anchore/stereoscope":                        "Syft belongs to the engine",
		"github.com/moby/buildkit/worker":                       "BuildKit's server belongs to the engine",
		"github.com/moby/buildkit/executor":                     "BuildKit's server belongs to the engine",
		"github.com/moby/buildkit/control":                      "BuildKit's server belongs to the engine",
		"github.com/moby/buildkit/solver/llbsolver":             "BuildKit's server belongs to the engine",
		"github.com/moby/buildkit/snapshot":                     "snapshotters belong to the engine",
		"github.com/containerd/containerd/v2/plugins/snapshots": "snapshotters belong to the engine",
		"github.com/containerd/overlaybd":                       "snapshotters belong to the engine",
		"github.com/containerd/stargz-snapshotter/snapshot":     "snapshotters belong to the engine",
		module + "internal/engine":                              "the engine is another process",
		module + "internal/sandbox":                             "a command's keeper is another process",
		module + "pkg/catalog":                                  "the catalog is another process",
		module + "pkg/egress":                                   "the gateway belongs to the engine",
		"github.com/miekg/dns":                                  "the gateway belongs to the engine",
		"github.com/vishvananda/netlink":                        "the gateway belongs to the engine",
		"software.sslmate.com/src/go-pkcs12":                    "the gateway belongs to the engine",
		"go.etcd.io/bbolt":                                      "the engine's databases belong to the engine",
		module + "internal/kms":                                 "the services' clients are another process: they would take 10 MiB before main",
		"github.com/sigstore/sigstore/pkg/signature/kms/aws":    "the services' clients are another process",
		"github.com/sigstore/sigstore/pkg/signature/kms/gcp":    "the services' clients are another process",
		"github.com/miekg/pkcs11":                               "a token's library is another process",
		"k8s.io/client-go":                                      "Kubernetes is another process",
		"github.com/sigstore/rekor/pkg/log":                     "cosign's library, fifty packages, for the names of its key format",
		"github.com/piprate/json-gold":                          "a processor of JSON-LD to read SPDX 2.3",
		"github.com/russross/blackfriday":                       "a renderer of Markdown for the manual pages",
	}
	for _, p := range list(t, "-deps", "./cmd/waxseal") {
		for prefix, why := range forbidden {
			trimmed := strings.TrimSuffix(prefix, "/")
			if p.ImportPath == trimmed || strings.HasPrefix(p.ImportPath, trimmed+"/") {
				t.Errorf("cmd/waxseal links %s: %s", p.ImportPath, why)
			}
		}
	}
}

// TestTheTwoHalvesMeetInTheNouns: what makes evidence and what judges it share
// no code but the nouns, sign, store and sbom.
func TestTheTwoHalvesMeetInTheNouns(t *testing.T) {
	judging := []string{"pkg/verify", "pkg/policy", "pkg/gate", "pkg/promote"}
	for _, making := range []string{"./pkg/build", "./pkg/catalog"} {
		for _, p := range list(t, "-deps", making) {
			if slices.Contains(judging, strings.TrimPrefix(p.ImportPath, module)) {
				t.Errorf("%s reaches %s", making, p.ImportPath)
			}
		}
	}
	for _, half := range judging {
		for _, p := range list(t, "-deps", "./"+half) {
			if name := strings.TrimPrefix(p.ImportPath, module); name == "pkg/build" || name == "pkg/catalog" {
				t.Errorf("%s reaches %s", half, p.ImportPath)
			}
		}
	}
}

func TestSourceKeepsTheRules(t *testing.T) {
	for _, p := range list(t, "./...") {
		name := strings.TrimPrefix(p.ImportPath, module)
		program := strings.HasPrefix(name, "cmd/") || name == "internal/cli" || name == "internal/testkit/kit" || name == "internal/conformance" || strings.HasPrefix(name, "examples/")
		for _, file := range p.GoFiles {
			fset := token.NewFileSet()
			tree, err := parser.ParseFile(fset, filepath.Join(p.Dir, file), nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, decl := range tree.Decls {
				checkDecl(t, fset, name, decl)
			}
			if program {
				continue
			}
			ast.Inspect(tree, func(n ast.Node) bool {
				if called, ok := n.(*ast.SelectorExpr); ok && speaks(called) {
					t.Errorf("%s: %s ends or prints; only commands do", fset.Position(n.Pos()), text(called))
				}
				return true
			})
		}
	}
}

func checkDecl(t *testing.T, fset *token.FileSet, name string, decl ast.Decl) {
	t.Helper()
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Recv == nil && d.Name.Name == "init" {
			t.Errorf("%s: package %s has an init function", fset.Position(d.Pos()), name)
		}
	case *ast.GenDecl:
		if d.Tok != token.VAR {
			return
		}
		for _, spec := range d.Specs {
			v := spec.(*ast.ValueSpec)
			if !fixed(d, v) {
				t.Errorf("%s: %s is a package variable that could be changed", fset.Position(v.Pos()), v.Names[0].Name)
			}
		}
	}
}

// fixed allows the package variables that nobody assigns to: interface guards,
// sentinel errors, patterns that are compiled at once or when first needed,
// embedded files.
func fixed(d *ast.GenDecl, v *ast.ValueSpec) bool {
	for _, doc := range []*ast.CommentGroup{d.Doc, v.Doc} {
		if doc != nil && slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") }) {
			return true
		}
	}
	if v.Names[0].Name == "_" {
		return true
	}
	return len(v.Values) == len(v.Names) && !slices.ContainsFunc(v.Values, func(value ast.Expr) bool {
		call, ok := value.(*ast.CallExpr)
		return !ok || !slices.Contains([]string{"errors.New", "fmt.Errorf", "regexp.MustCompile"}, text(call.Fun)) && !latePattern(call)
	})
}

// latePattern reports whether a call is a sync.OnceValue that compiles a pattern,
// and does nothing else.
func latePattern(call *ast.CallExpr) bool {
	if text(call.Fun) != "sync.OnceValue" || len(call.Args) != 1 {
		return false
	}
	f, ok := call.Args[0].(*ast.FuncLit)
	if !ok || len(f.Body.List) != 1 {
		return false
	}
	r, ok := f.Body.List[0].(*ast.ReturnStmt)
	if !ok || len(r.Results) != 1 {
		return false
	}
	made, ok := r.Results[0].(*ast.CallExpr)
	return ok && text(made.Fun) == "regexp.MustCompile"
}

func speaks(s *ast.SelectorExpr) bool {
	name := text(s)
	return slices.Contains([]string{"os.Exit", "os.Stdout", "os.Stderr"}, name) ||
		strings.HasPrefix(name, "log.Fatal") || strings.HasPrefix(name, "log.Print") || strings.HasPrefix(name, "fmt.Print")
}

func text(e ast.Expr) string {
	if s, ok := e.(*ast.SelectorExpr); ok {
		if x, ok := s.X.(*ast.Ident); ok {
			return x.Name + "." + s.Sel.Name
		}
	}
	return ""
}
