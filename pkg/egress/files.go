package egress

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/waxseal/waxseal/pkg/attest"
)

// MountPoint is where Files must be mounted in the step, read-only.
const MountPoint = "/dev/waxseal"

// Resolver is the address of the step's name server.
const Resolver = "127.0.0.1"

const (
	maxTrustFile = 8 << 20 // bytes of one bundle of an image
	maxConfig    = 1 << 20 // bytes of one configuration file of an image
	maxTrust     = 4096    // certificates for Java
	maxBundles   = 64      // different bundles of a build that are kept
	trustPass    = "changeit"
)

// bundles are where distributions keep their trusted certificates.
func bundles() []string {
	return []string{
		"etc/ssl/certs/ca-certificates.crt",
		"etc/pki/tls/certs/ca-bundle.crt",
		"etc/ssl/ca-bundle.pem",
		"etc/ssl/cert.pem",
		"var/lib/ca-certificates/ca-bundle.pem",
		"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	}
}

// trustVars name a bundle each: the tools that read them then trust that and
// nothing else.
func trustVars() []string {
	return []string{
		"SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "REQUESTS_CA_BUNDLE", "PIP_CERT", "npm_config_cafile", "YARN_HTTPS_CA_FILE_PATH",
		"DENO_CERT", "CARGO_HTTP_CAINFO", "AWS_CA_BUNDLE", "NIX_SSL_CERT_FILE", "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", "HTTPLIB2_CA_CERTS",
		"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "PERL_LWP_SSL_CA_FILE", "HEX_CACERTS_PATH", "COMPOSER_CAFILE", "JULIA_SSL_CA_ROOTS_PATH",
		"SYSTEM_CERTIFICATE_PATH", "BUNDLE_SSL_CA_CERT", "SSL_CA_CERT_FILE", "CMAKE_TLS_CAINFO",
	}
}

// Env is Environ.
func (s *Step) Env(env []string) []string { return Environ(env) }

// Environ returns env with the variables that make tools use the gateway and
// trust it. What the image or Dockerfile set of them is overridden. Their values
// are the same in every build.
func Environ(env []string) []string {
	old := map[string]string{}
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			old[k] = v
		}
	}
	set := [][2]string{}
	put := func(k, v string) { set = append(set, [2]string{k, v}) }
	proxy := "http://127.0.0.1:3128"
	// The last is what BuildKit calls every step in its own /etc/hosts.
	const direct = "localhost,127.0.0.0/8,127.0.0.1,::1,buildkitsandbox"
	for _, k := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		put(k, proxy)
	}
	for _, k := range []string{"ALL_PROXY", "all_proxy", "npm_config_proxy", "npm_config_https_proxy"} {
		if _, ok := old[k]; ok {
			put(k, proxy)
		}
	}
	put("NO_PROXY", direct)
	put("no_proxy", direct)
	for _, k := range trustVars() {
		put(k, MountPoint+"/ca.pem")
	}
	put("NODE_EXTRA_CA_CERTS", MountPoint+"/ca-only.pem")
	// A newer Bazel drops it (bazelbuild/bazel#19358) and wants --host_jvm_args.
	// No variable names its configuration, and with a file mounted there its own
	// package, which has /etc/bazel.bazelrc, could not be installed in a step.
	java := "-Djavax.net.ssl.trustStore=" + MountPoint + "/cacerts.p12 -Djavax.net.ssl.trustStorePassword=" + trustPass + " -Djavax.net.ssl.trustStoreType=PKCS12"
	if had := strings.TrimSpace(old["JAVA_TOOL_OPTIONS"]); strings.HasSuffix(had, java) {
		java = had
	} else if had != "" {
		java = had + " " + java
	}
	put("JAVA_TOOL_OPTIONS", java)
	put("APT_CONFIG", MountPoint+"/apt.conf")
	put("WGETRC", MountPoint+"/wgetrc")

	ours := map[string]bool{}
	for _, kv := range set {
		ours[kv[0]] = true
	}
	var out []string
	for _, kv := range env {
		if k, _, _ := strings.Cut(kv, "="); !ours[k] {
			out = append(out, kv)
		}
	}
	for _, kv := range set {
		out = append(out, kv[0]+"="+kv[1])
	}
	return out
}

// Trust makes ready what the Files of steps with that root and those variables
// give, which takes tens of milliseconds, and may be done while Open runs.
func (g *Gateway) Trust(rootfs *os.Root, env []string) error {
	_, _, err := g.trust(rootfs, variables(env))
	return err
}

func (g *Gateway) trust(rootfs *os.Root, vars map[string]string) (bundle, java []byte, err error) {
	bundle = g.bundle(imageBundles(rootfs, vars))
	java, err = g.javaStore(bundle)
	return bundle, java, err
}

func variables(env []string) map[string]string {
	vars := map[string]string{}
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			vars[k] = v
		}
	}
	return vars
}

// Files returns a folder with the trust bundles and configuration files for
// the step, made of the image's own and the gateway's CA; rootfs is the step's
// root, which is only read, and env its variables.
func (s *Step) Files(rootfs *os.Root, env []string) (string, error) {
	parent, err := s.g.folder()
	if err != nil {
		return "", err
	}
	vars := variables(env)
	bundle, java, err := s.g.trust(rootfs, vars)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(parent, "step-")
	if err != nil {
		return "", fmt.Errorf("making the files of step %q: %w", s.opts.Name, err)
	}
	s.mu.Lock()
	if s.files != "" {
		defer os.RemoveAll(s.files)
	}
	s.files = dir
	s.mu.Unlock()
	err = os.Chmod(dir, 0o755)
	for name, b := range map[string][]byte{
		"ca.pem": bundle, "ca-only.pem": s.g.ca.pem, "cacerts.p12": java,
		"apt.conf": aptConf(vars), "wgetrc": wgetrc(rootfs, vars),
	} {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o644)
		}
		if err == nil { // whatever the umask
			err = os.Chmod(filepath.Join(dir, name), 0o644)
		}
	}
	if err != nil {
		return "", fmt.Errorf("making the files of step %q: %w", s.opts.Name, err)
	}
	return dir, nil
}

// imageBundles are the files with what the image itself trusts.
func imageBundles(rootfs *os.Root, vars map[string]string) [][]byte {
	if rootfs == nil {
		return nil
	}
	names := bundles()
	for _, k := range append(trustVars(), "NODE_EXTRA_CA_CERTS") {
		if v := vars[k]; strings.HasPrefix(v, "/") && !strings.HasPrefix(v, MountPoint+"/") {
			names = append(names, v)
		}
	}
	var out [][]byte
	read := map[string]bool{}
	for _, name := range names {
		real, err := resolve(rootfs, name)
		if err != nil || read[real] {
			continue
		}
		read[real] = true
		if raw, err := readPlain(rootfs, real, maxTrustFile); err == nil {
			out = append(out, raw)
		}
	}
	return out
}

// bundle is each certificate of files once, and the gateway's own. The steps of
// a build mostly have the same files, so what was made of them is kept.
func (g *Gateway) bundle(files [][]byte) []byte {
	sum := sha256.New()
	for _, raw := range files {
		d := sha256.Sum256(raw)
		sum.Write(d[:])
	}
	key := attest.Digest(hex.EncodeToString(sum.Sum(nil)))
	g.mu.Lock()
	b := g.bundles[key]
	g.mu.Unlock()
	if b != nil {
		return b
	}
	b = slices.Concat(certificates(files), g.ca.pem)
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.bundles) >= maxBundles {
		clear(g.bundles)
	}
	g.bundles[key] = b
	return b
}

// certificates are those of PEM files, each once.
func certificates(files [][]byte) []byte {
	var out bytes.Buffer
	seen := map[[sha256.Size]byte]bool{}
	for _, raw := range files {
		for {
			var block *pem.Block
			if block, raw = pem.Decode(raw); block == nil {
				break
			}
			if d := sha256.Sum256(block.Bytes); strings.HasSuffix(block.Type, "CERTIFICATE") && !seen[d] && out.Len() < maxTrustFile {
				seen[d] = true
				_ = pem.Encode(&out, &pem.Block{Type: block.Type, Bytes: block.Bytes})
			}
		}
	}
	return out.Bytes()
}

// resolve follows the symbolic links of a path inside a root as a process that
// has it as its root would: absolute ones start there again.
func resolve(rootfs *os.Root, name string) (string, error) {
	todo := strings.Split(path.Clean("/"+name), "/")
	at := "."
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		info, err := rootfs.Lstat(next)
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > 40 {
			return "", syscall.ELOOP
		}
		to, err := rootfs.Readlink(next)
		if err != nil {
			return "", err
		}
		if strings.HasPrefix(to, "/") {
			at = "."
		}
		todo = append(strings.Split(to, "/"), todo...)
	}
	return at, nil
}

// readPlain reads a file of a step's root, which may be anything.
func readPlain(rootfs *os.Root, name string, limit int64) ([]byte, error) {
	f, err := rootfs.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.New("not a plain file")
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = errors.New("too large")
	}
	return b, err
}

// javaStore makes the trust store that Java reads, once for each bundle.
func (g *Gateway) javaStore(bundle []byte) ([]byte, error) {
	d := attest.DigestOf(bundle)
	g.mu.Lock()
	b := g.stores[d]
	g.mu.Unlock()
	if b != nil {
		return b, nil
	}
	var certs []*x509.Certificate
	for raw := bundle; len(certs) < maxTrust; {
		var block *pem.Block
		if block, raw = pem.Decode(raw); block == nil {
			break
		}
		der := block.Bytes
		c, err := x509.ParseCertificate(der)
		if err == nil { // an image may hold what Go does not read
			certs = append(certs, c)
		}
	}
	if !slices.ContainsFunc(certs, g.ca.cert.Equal) {
		certs = append(certs, g.ca.cert)
	}
	// Nothing here is secret, the step cannot write it, and every Java reads a
	// store that is neither encrypted nor sealed, with a password or without.
	b, err := pkcs12.Passwordless.EncodeTrustStore(certs, "")
	if err != nil {
		return nil, fmt.Errorf("making Java's trust store: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.stores) >= maxBundles {
		clear(g.stores)
	}
	g.stores[d] = b
	return b, nil
}

// aptConf makes apt trust the bundle, and read what the image's own APT_CONFIG
// names.
func aptConf(vars map[string]string) []byte {
	var b strings.Builder
	if v := vars["APT_CONFIG"]; strings.HasPrefix(v, "/") && !strings.HasPrefix(v, MountPoint+"/") && !strings.ContainsAny(v, "\"\n;") {
		fmt.Fprintf(&b, "#include \"%s\";\n", v)
	}
	fmt.Fprintf(&b, "Acquire::https::CAInfo \"%s/ca.pem\";\n", MountPoint)
	return []byte(b.String())
}

// wgetrc makes wget trust the bundle. WGETRC replaces the user's own file, so
// its lines come first.
func wgetrc(rootfs *os.Root, vars map[string]string) []byte {
	var b []byte
	name := vars["WGETRC"]
	if !strings.HasPrefix(name, "/") || strings.HasPrefix(name, MountPoint+"/") {
		home := vars["HOME"]
		if home == "" {
			home = "/root"
		}
		name = home + "/.wgetrc"
	}
	if rootfs != nil {
		if real, err := resolve(rootfs, name); err == nil {
			b, _ = readPlain(rootfs, real, maxConfig)
		}
	}
	if len(b) > 0 && b[len(b)-1] != '\n' {
		b = append(b, '\n')
	}
	return append(b, "ca_certificate = "+MountPoint+"/ca.pem\n"...)
}
