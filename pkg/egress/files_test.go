package egress

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"software.sslmate.com/src/go-pkcs12"
)

// image makes a root file system of files and links ("-> target").
func image(t testing.TB, files map[string]string) *os.Root {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, ok := strings.CutPrefix(text, "-> "); ok {
			err = os.Symlink(to, name)
		} else {
			err = os.WriteFile(name, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func aCert(t testing.TB) (string, *x509.Certificate) {
	a, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	return string(a.pem), a.cert
}

func certsOf(t testing.TB, name string) (out []*x509.Certificate) {
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for {
		var b *pem.Block
		if b, raw = pem.Decode(raw); b == nil {
			return out
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
}

func TestFilesMergeWhatTheImageTrusts(t *testing.T) {
	onePEM, one := aCert(t)
	twoPEM, two := aCert(t)
	outsidePEM, outside := aCert(t)
	secret := filepath.Join(t.TempDir(), "outside.pem")
	if err := os.WriteFile(secret, []byte(outsidePEM), 0o644); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 20)
	tests := []struct {
		name  string
		files map[string]string
		env   []string
		want  []*x509.Certificate
	}{
		{"nothing", nil, nil, nil},
		{"Debian", map[string]string{"etc/ssl/certs/ca-certificates.crt": onePEM}, nil, []*x509.Certificate{one}},
		{"an absolute link", map[string]string{"etc/pki/tls/certs/ca-bundle.crt": "-> /etc/pki/extracted/all.pem", "etc/pki/extracted/all.pem": twoPEM}, nil, []*x509.Certificate{two}},
		{"two bundles that overlap", map[string]string{"etc/ssl/cert.pem": onePEM + twoPEM, "etc/ssl/ca-bundle.pem": "# text\n" + twoPEM}, nil, []*x509.Certificate{two, one}},
		{"the image's own variable", map[string]string{"opt/ca.pem": onePEM}, []string{"SSL_CERT_FILE=/opt/ca.pem"}, []*x509.Certificate{one}},
		{"a link out of the image", map[string]string{"etc/ssl/cert.pem": "-> " + secret}, nil, nil},
		{"a relative link out of the image", map[string]string{"etc/ssl/cert.pem": "-> " + up + secret[1:]}, nil, nil},
		{"a loop", map[string]string{"etc/ssl/cert.pem": "-> cert.pem"}, nil, nil},
		{"a linked folder", map[string]string{"etc/ssl": "-> /real", "real/cert.pem": twoPEM}, nil, []*x509.Certificate{two}},
		{"no PEM", map[string]string{"etc/ssl/cert.pem": "-----BEGIN CERTIFICATE-----\nrubbish"}, nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newWorld(t, http.NotFoundHandler()).gateway(t, Options{})
			s := open(t, g, StepOptions{Fetch: true})
			dir, err := s.Files(image(t, tt.files), tt.env)
			if err != nil {
				t.Fatal(err)
			}
			got := certsOf(t, filepath.Join(dir, "ca.pem"))
			if slices.ContainsFunc(got, outside.Equal) {
				t.Fatal("a file outside the image was read")
			}
			want := append(slices.Clone(tt.want), g.ca.cert)
			if !slices.EqualFunc(got, want, (*x509.Certificate).Equal) {
				t.Errorf("%d certificates, want %d", len(got), len(want))
			}
			if only := certsOf(t, filepath.Join(dir, "ca-only.pem")); len(only) != 1 || !only[0].Equal(g.ca.cert) {
				t.Errorf("ca-only.pem has %d", len(only))
			}
			raw, err := os.ReadFile(filepath.Join(dir, "cacerts.p12"))
			if err != nil {
				t.Fatal(err)
			}
			java, err := pkcs12.DecodeTrustStore(raw, "")
			if err != nil || len(java) != len(want) {
				t.Errorf("Java's trust store has %d, %v", len(java), err)
			}
			for _, name := range []string{".", "ca.pem", "ca-only.pem", "cacerts.p12", "apt.conf", "wgetrc"} {
				info, err := os.Stat(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				if want := map[bool]os.FileMode{true: 0o755, false: 0o644}[info.IsDir()]; info.Mode().Perm() != want {
					t.Errorf("%s has mode %v", name, info.Mode())
				}
			}
			end(t, s)
			if _, err := os.Stat(dir); err == nil {
				t.Error("the files are still there")
			}
		})
	}
}

func TestFilesDoNotWaitForAPipe(t *testing.T) {
	root := image(t, map[string]string{"etc/ssl/x": ""})
	if err := syscall.Mkfifo(filepath.Join(root.Name(), "etc/ssl/cert.pem"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := open(t, newWorld(t, http.NotFoundHandler()).gateway(t, Options{}), StepOptions{Fetch: true})
	if _, err := s.Files(root, nil); err != nil {
		t.Error(err)
	}
}

func TestConfigurationKeepsTheUsers(t *testing.T) {
	s := open(t, newWorld(t, http.NotFoundHandler()).gateway(t, Options{}), StepOptions{Fetch: true})
	dir, err := s.Files(image(t, map[string]string{"home/u/.wgetrc": "tries = 7"}), []string{"HOME=/home/u", "APT_CONFIG=/etc/my-apt.conf"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"wgetrc":   "tries = 7\nca_certificate = /dev/waxseal/ca.pem\n",
		"apt.conf": "#include \"/etc/my-apt.conf\";\nAcquire::https::CAInfo \"/dev/waxseal/ca.pem\";\n",
	} {
		if got, _ := os.ReadFile(filepath.Join(dir, name)); string(got) != want {
			t.Errorf("%s is %q", name, got)
		}
	}
}

func TestEnvIsTheSameInEveryBuild(t *testing.T) {
	w := newWorld(t, http.NotFoundHandler())
	in := []string{"PATH=/bin", "http_proxy=http://corp:3128", "JAVA_TOOL_OPTIONS=-Xmx1g", "LANG=C", "SSL_CERT_FILE=/x"}
	var all []string
	for range 2 {
		s := open(t, w.gateway(t, Options{}), StepOptions{Fetch: true})
		env := s.Env(in)
		if again := s.Env(env); !slices.Equal(env, again) {
			t.Errorf("setting twice gave %q", again)
		}
		all = append(all, strings.Join(env, "\n"))
	}
	if all[0] != all[1] {
		t.Errorf("%s\n\nand\n\n%s", all[0], all[1])
	}
	for _, want := range []string{"PATH=/bin\nLANG=C\n", "\nhttp_proxy=http://127.0.0.1:3128\n", "\nJAVA_TOOL_OPTIONS=-Xmx1g -Djavax.net.ssl.trustStore=", "\nSSL_CERT_FILE=/dev/waxseal/ca.pem\n"} {
		if !strings.Contains(all[0]+"\n", want) {
			t.Errorf("no %q in %s", want, all[0])
		}
	}
	if strings.Contains(all[0], "corp") {
		t.Error("the image's proxy is still there")
	}
}

// TestRealClients runs the programs of this machine inside a step, with the
// files where they will be.
func TestRealClients(t *testing.T) {
	needRoot(t)
	tests := []struct {
		tool, script string
		requests     int
	}{
		{"curl", "curl -sSf https://files.test/a http://files.test/b", 2},
		{"curl", "curl -sSf --noproxy '*' https://files.test/a http://files.test/b", 2},
		{"curl", "curl -sSf --http1.1 https://files.test/a", 1},
		{"curl", "curl -sSf --noproxy '*' --http2-prior-knowledge http://files.test/a", 1},
		{"curl", "curl -sSf -d x=y https://files.test/a; curl -sSfI https://files.test/a >/dev/null; curl -sSf -r 2-5 https://files.test/a", 3},
		{"wget", "wget -qO- https://files.test/a", 1},
		{"wget", "wget -qO- --no-proxy https://files.test/a", 1},
		{"git", "! git ls-remote https://files.test/repo 2>/dev/null", 1},
		{"python3", "python3 -c \"import urllib.request as u; print(u.urlopen('https://files.test/a').read())\"", 1},
		{"python3", "python3 -c \"import urllib.request as u; print(u.build_opener(u.ProxyHandler({})).open('https://files.test/a').read())\"", 1},
		{"node", "node -e \"require('https').get('https://files.test/a', r => r.pipe(process.stdout))\"", 1},
		{"java", "printf '%s' 'public class A { public static void main(String[] a) throws Exception { System.out.write(new java.net.URL(\"https://files.test/a\").openStream().readAllBytes()); System.out.flush(); } }' >A.java; java A.java", 1},
	}
	for _, tt := range tests {
		t.Run(tt.script, func(t *testing.T) {
			if _, err := exec.LookPath(tt.tool); err != nil {
				t.Skipf("no %s on this machine", tt.tool)
			}
			w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				http.ServeContent(w, r, "a.txt", time.Unix(1e9, 0), strings.NewReader("the outside\n"))
			}))
			s := open(t, w.gateway(t, Options{Store: newStore(t)}), StepOptions{})
			out, err := runInside(t, s, tt.script)
			rec := end(t, s)
			if err != nil || tt.requests != len(rec.Requests) {
				t.Fatalf("%v\n%s\n%+v", err, out, rec)
			}
			if tt.tool != "git" && !strings.Contains(out, "outside") && !strings.Contains(out, "e ou") {
				t.Errorf("got %q", out)
			}
			for _, r := range rec.Refusals {
				if r.Kind != "icmp" {
					t.Errorf("refused %+v", r)
				}
			}
		})
	}
}

// runInside runs a script in a step's namespace, with a /dev and a resolv.conf
// of its own.
func runInside(t testing.TB, s *Step, script string) (string, error) {
	t.Helper()
	root, err := os.OpenRoot("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	dir, err := s.Files(root, os.Environ())
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	if err := os.WriteFile(filepath.Join(work, "resolv.conf"), []byte("nameserver "+Resolver+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	prelude := fmt.Sprintf(`set -e
mount --make-rprivate /
mkdir olddev && mount --rbind /dev olddev
mount -t tmpfs none /dev
for f in null zero random urandom full tty; do touch /dev/$f; mount --bind olddev/$f /dev/$f; done
mkdir /dev/waxseal && mount --bind %s /dev/waxseal
mount --bind resolv.conf /etc/resolv.conf
`, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "--net="+s.NetNS(), "unshare", "-m", "sh", "-c", prelude+script)
	cmd.Dir = work
	cmd.Env = s.Env([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + work, "LANG=C.UTF-8"})
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	return out.String(), err
}
