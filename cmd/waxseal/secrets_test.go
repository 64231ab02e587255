package main_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/internal/testkit"
)

const password = "Pa55-that-opens-the-key"

// secrets are bytes that must be nowhere but where they belong, and one canary,
// which is no secret and shows that the looking works.
type secrets map[string][]byte

const canary = "canary-that-everybody-may-see"

// in names the secrets that are in data.
func (s secrets) in(data []byte) []string {
	var found []string
	for name, secret := range s {
		if bytes.Contains(data, secret) {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found
}

// newKey writes a key pair for the password into dir, and returns it in every
// form in which it could lie about.
func newKey(t *testing.T, waxseal, dir string) secrets {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(dir, "plain.pem")
	if err := os.WriteFile(plain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	child := exec.Command(waxseal, "key", "import", "--output-prefix", filepath.Join(dir, "k"), plain)
	child.Env = append(os.Environ(), "COSIGN_PASSWORD="+password)
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Remove(plain); err != nil {
		t.Fatal(err)
	}
	words := slices.Clone(scalar) // as math/big has it in memory
	slices.Reverse(words)
	return secrets{
		"the password": []byte(password), "the key": scalar, "the key in memory": words, "the key in hex": []byte(hex.EncodeToString(scalar)),
		"the key in base64": []byte(base64.StdEncoding.EncodeToString(der)[24:80]), "the canary": []byte(canary),
	}
}

// process is what others can see of one.
type process struct {
	command      string
	line         []byte // its arguments
	environ, mem []byte
}

// below lists the processes that a process has started, and those that they
// have, with what is in their memory.
func below(t *testing.T, pid int) []process {
	t.Helper()
	children := map[int][]int{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		stat, _ := os.ReadFile(dir + "/stat") // one that has ended is none
		_, after, _ := strings.Cut(string(stat), ") ")
		if fields := strings.Fields(after); len(fields) > 1 {
			id, _ := strconv.Atoi(filepath.Base(dir))
			parent, _ := strconv.Atoi(fields[1])
			children[parent] = append(children[parent], id)
		}
	}
	var out []process
	for _, child := range children[pid] {
		out = append(append(out, look(child)), below(t, child)...)
	}
	return out
}

func look(pid int) process {
	dir := fmt.Sprintf("/proc/%d", pid)
	line, _ := os.ReadFile(dir + "/cmdline")
	environ, _ := os.ReadFile(dir + "/environ")
	p := process{command: strings.ReplaceAll(string(line), "\x00", " "), line: line, environ: environ}
	mem, err := os.Open(dir + "/mem")
	if err != nil {
		return p
	}
	defer mem.Close()
	pages, err := os.Open(dir + "/pagemap")
	if err != nil {
		return p
	}
	defer pages.Close()
	maps, _ := os.ReadFile(dir + "/maps")
	size := uint64(os.Getpagesize())
	for _, m := range regexp.MustCompile(`(?m)^([0-9a-f]+)-([0-9a-f]+) rw`).FindAllStringSubmatch(string(maps), -1) {
		from, _ := strconv.ParseUint(m[1], 16, 63)
		to, _ := strconv.ParseUint(m[2], 16, 63)
		// More than that at once is what the race detector reserves.
		if to-from > 1<<30 {
			continue
		}
		// Most of what is reserved was never written, and holds nothing.
		held := make([]byte, (to-from)/size*8)
		n, _ := pages.ReadAt(held, int64(from/size*8))
		page := make([]byte, size)
		for i := 0; i+8 <= n; i += 8 {
			if binary.NativeEndian.Uint64(held[i:])>>62 != 0 { // in memory, or swapped out
				n, _ := mem.ReadAt(page, int64(from+uint64(i)/8*size))
				p.mem = append(p.mem, page[:n]...)
			}
		}
	}
	return p
}

// recorder is a program that writes down its arguments and environment, and goes
// on as the real one, or as told.
func recorder(t *testing.T, dir, record, name, then string) {
	t.Helper()
	if then == "" {
		real, err := exec.LookPath(name)
		if err != nil {
			testkit.Unavailable(t, "%v", err)
		}
		then = "exec " + real + ` "$@"`
	}
	text := fmt.Sprintf("#!/bin/sh\n{ echo \"$0 $*\"; tr '\\0' '\\n' < /proc/$$/environ; } >> %s/%s.$$\n%s\n", record, name, then)
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestKeysStayWhereTheyAre looks for a key and its password wherever a build
// could leave them, while a step runs and when all is over.
func TestKeysStayWhereTheyAre(t *testing.T) {
	if err := testkit.CanBuild(); err != nil {
		testkit.Unavailable(t, "%v", err)
	}
	bin, err := testkit.Shipped(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	base, err := testkit.TinyBase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir, keys := t.TempDir(), t.TempDir()
	waxseal := filepath.Join(bin, "waxseal")
	all := newKey(t, waxseal, keys)
	stored, err := testkit.StartDistribution(testkit.Peer(t, "registry"), filepath.Join(mkdir(t, dir, "registry")))
	if err != nil {
		t.Fatal(err)
	}
	defer stored.Close()

	// Every program that waxseal or the engine starts is one that tells.
	path, record := mkdir(t, dir, "path"), mkdir(t, dir, "record")
	recorder(t, path, record, "git", "")
	recorder(t, path, record, "runc", "")
	recorder(t, path, record, "docker", "cat > /dev/null")
	recorder(t, path, record, "docker-credential-told", `cat > /dev/null; echo '{"Username":"u","Secret":"s"}'`)
	home := mkdir(t, dir, "home")
	write(t, filepath.Join(mkdir(t, home, ".docker"), "config.json"), fmt.Sprintf(`{"credHelpers": {%q: "told"}}`, stored.Addr))

	// The step asks the server, which answers when we have looked.
	started, looked := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-looked
		io.WriteString(w, "go on")
	}))
	defer server.Close()
	app := mkdir(t, dir, "app")
	write(t, filepath.Join(app, "Dockerfile"), "FROM base\nARG CANARY\nRUN wget -q -O /answer http://hold.example/ && echo $CANARY > /canary\n")
	for _, args := range [][]string{{"init", "-q"}, {"add", "."}, {"-c", "user.name=Ann", "-c", "user.email=ann@acme.example", "commit", "-q", "-m", "one"}} {
		if out, err := exec.Command("git", append([]string{"-C", app}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	build := exec.CommandContext(t.Context(), waxseal, "build", "--key", filepath.Join(keys, "k.key"), "--progress", "plain", "--build-context", "base=oci:"+base,
		"--upstream", "hold.example="+strings.TrimPrefix(server.URL, "http://"), "--build-arg", "CANARY="+canary,
		"--tag", stored.Addr+"/app:v1", "--push", "--load", "--out", filepath.Join(dir, "out"), app)
	build.Env = []string{"PATH=" + path + ":" + bin + ":" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + mkdir(t, dir, "tmp"), "COSIGN_PASSWORD=" + password,
		"WAXSEAL_CACHE=" + filepath.Join(dir, "cache")}
	var said bytes.Buffer
	build.Stdout, build.Stderr = &said, &said
	if err := build.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- build.Wait() }()
	select {
	case <-started:
	case err := <-ended:
		t.Fatalf("%v\n%s", err, said.String())
	}
	whileItRuns(t, build.Process.Pid, all)
	close(looked)
	if err := <-ended; err != nil {
		t.Fatalf("%v\n%s", err, said.String())
	}

	programs := map[string]bool{}
	records, err := os.ReadDir(record)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		name, _, _ := strings.Cut(r.Name(), ".")
		programs[name] = true
	}
	if len(programs) != 4 {
		t.Errorf("of the programs that tell, these were started: %v", programs)
	}
	if found := all.in(said.Bytes()); !slices.Equal(found, []string{"the canary"}) {
		t.Errorf("the log has %q:\n%s", found, said.String())
	}
	// The record, the home, the cache, the temporary folder, what --out wrote, the
	// registry and the context are all in it; the key file itself is not.
	seen := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		for _, name := range all.in(data) {
			if name == "the canary" {
				seen++
				continue
			}
			t.Errorf("%s has %s", path, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 3 {
		t.Errorf("the canary was seen in %d files, so this test sees little", seen)
	}
}

// onceTried looks at the processes below control when the one is over that tries
// the key, which has all of it for an instant.
func onceTried(t *testing.T, control int) []process {
	t.Helper()
	for until := time.Now().Add(time.Minute); ; {
		all := below(t, control)
		trying := slices.ContainsFunc(all, func(p process) bool { return strings.Contains(p.command, "try-key") })
		if !trying {
			return all
		}
		if time.Now().After(until) {
			t.Fatal("the key is tried for a minute")
		}
	}
}

// whileItRuns looks at the processes of a build whose step runs.
func whileItRuns(t *testing.T, control int, all secrets) {
	t.Helper()
	engine, step := false, false
	for _, p := range onceTried(t, control) {
		if strings.Contains(p.command, "waxseal-engine serve") {
			engine = true
			if !bytes.Contains(p.mem, all["the canary"]) {
				t.Error("the canary is not in the memory of the engine, so this test does not see it")
			}
		}
		step = step || strings.HasPrefix(p.command, "wget ")
		for what, data := range map[string][]byte{"arguments": p.line, "environment": p.environ, "memory": p.mem} {
			for _, name := range all.in(data) {
				if name != "the canary" {
					t.Errorf("%s is in the %s of %s", name, what, p.command)
				}
			}
		}
	}
	if !engine || !step {
		t.Errorf("seen: the engine %t, the step %t", engine, step)
	}
	// The key is read when there is something to sign, and not before.
	self := look(control)
	if found := all.in(self.line); len(found) > 1 || found[0] != "the canary" {
		t.Errorf("%q are among the arguments of waxseal", found)
	}
	for _, name := range all.in(self.mem) {
		if name != "the canary" && name != "the password" { // the environment is memory
			t.Errorf("%s is in the memory of waxseal while a step runs", name)
		}
	}
}

// closed reports whether the kernel keeps others than root out of a process of
// somebody else's: its files in /proc are root's then.
func closed(t *testing.T, pid int) bool {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/environ", pid), &st); err != nil {
		t.Fatal(err)
	}
	return st.Uid == 0
}

// TestWhoHoldsAKeyIsClosed kills a process that holds a key, and finds no core of
// it; nor may its own user look into it. The same process without a key shows
// that there would have been one.
func TestWhoHoldsAKeyIsClosed(t *testing.T) {
	if os.Geteuid() != 0 {
		testkit.Unavailable(t, "it takes root to be somebody else")
	}
	bin, err := testkit.Shipped(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	dir := t.TempDir()
	// The parents of a test's folder are its own user's alone.
	for up := dir; up != os.TempDir() && up != "/"; up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	newKey(t, filepath.Join(bin, "waxseal"), dir)
	write(t, filepath.Join(dir, "any.json"), "{}")
	program := filepath.Join(dir, "waxseal")
	if out, err := exec.Command("cp", filepath.Join(bin, "waxseal"), program).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := exec.Command("chown", "-R", strconv.Itoa(nobody), dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var faults testkit.Faults
	reg, err := testkit.NewRegistry(testkit.RegistryOptions{Faults: &faults})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	image, err := name.ParseReference(reg.Addr + "/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(image, empty.Image); err != nil {
		t.Fatal(err)
	}
	verify := []string{"verify", "--level", "1", image.String()}
	for name, c := range map[string]struct {
		hang   string // what it waits for
		env    string
		args   []string
		closed bool
	}{
		"without a key":   {"GET .*/manifests/", "X=", verify, false},
		"with a password": {"GET .*/manifests/", "COSIGN_PASSWORD=" + password, verify, true},
		// It attaches what it has signed, and may have to sign more.
		"with a key": {"POST .*/uploads", "COSIGN_PASSWORD=" + password, []string{"attest", "--key", filepath.Join(dir, "k.key"),
			"--predicate", filepath.Join(dir, "any.json"), "--type", "https://acme.example/any", image.String()}, true},
	} {
		t.Run(name, func(t *testing.T) {
			work := mkdir(t, dir, strings.ReplaceAll(name, " ", "-"))
			if err := os.Chown(work, nobody, nobody); err != nil {
				t.Fatal(err)
			}
			if err := faults.Set(testkit.Fault{Kind: "hang", Match: c.hang}); err != nil {
				t.Fatal(err)
			}
			child := exec.CommandContext(t.Context(), "sh", append([]string{"-c", `ulimit -c unlimited; exec "$0" "$@"`, program}, c.args...)...)
			child.Dir = work
			child.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + work, "GOTRACEBACK=crash", c.env}
			child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
			var said bytes.Buffer
			child.Stderr = &said
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			go func() { child.Wait(); cancel() }()
			if err := faults.Await(ctx, regexp.MustCompile(c.hang)); err != nil {
				t.Fatalf("%v\n%s", err, said.String())
			}
			if got := closed(t, child.Process.Pid); got != c.closed {
				t.Errorf("closed to its own user: %t, want %t", got, c.closed)
			}
			if err := child.Process.Signal(syscall.SIGABRT); err != nil {
				t.Fatal(err)
			}
			<-ctx.Done()
			cores, err := filepath.Glob(filepath.Join(work, "core*"))
			if err != nil {
				t.Fatal(err)
			}
			if c.closed && len(cores) > 0 {
				t.Errorf("there are cores: %q", cores)
			}
			if !c.closed && len(cores) == 0 {
				t.Log("this machine writes no cores here, so that there is none says little")
			}
		})
	}
}

func mkdir(t *testing.T, parts ...string) string {
	t.Helper()
	dir := filepath.Join(parts...)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
