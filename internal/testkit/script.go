package testkit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// Script runs every script in dir over the real waxseal binary. update lets a
// failing cmp rewrite the script's own file.
//
// Beside testscript's own commands, a script may say:
//
//	code N COMMAND...                     runs COMMAND, which must exit with N
//	registry VAR [noreferrers|distribution|outside]   starts a registry; VAR is its host:port, on loopback
//	                                      or at an address that programs do not take for their own
//	serve VAR DIR [outside]               a web server over DIR and the git repositories in it, on loopback
//	                                      or on an address that others can reach
//	upstream VAR DIR NAME...              servers with TLS for those names over DIR, see Upstream; VAR is flags
//	machine                               the variables by which this machine reaches its package registries
//	change VAR PATH TEXT                  a path of an upstream has another body from now on
//	off VAR                               an upstream ends
//	fault VAR KIND[*TIMES] [MATCH]...     breaks a registry or upstream, see Fault; no KIND mends it
//	requests VAR MATCH                    some request since the last fault matches; with ! none does
//	await VAR MATCH                       returns when such a request was seen, at most a minute later
//	gone TEXT                             no process is left whose command line, mounts or working folder name TEXT
//	docker [29]                           DOCKER_HOST is a Docker daemon, the same for all scripts: that of the
//	                                      distribution, or Engine 29, whose docker is the first on PATH then
//	base VAR debian|tiny|tools            VAR is the path of a base image's OCI layout
//	tamper LAYOUT PREDICATETYPE OLD NEW   changes evidence in a layout, see Tamper
//	sigstore DIR LAYOUT PREDICATETYPE PREDICATE SAN ISSUER   bundles and roots of a Sigstore instance, see Sigstore
//	seal DIR LAYOUT LIST                  the bundles in a list, by one Sigstore instance or key, see Seal
//	alone VAR|- COMMAND...                runs COMMAND where only the registry VAR can be reached, whatever its
//	                                      exit code; it must not try anybody else, and with ! it must
//	instance VAR DIR [rekor1]             real servers of Sigstore, see Instance; VAR can be broken, VAR_ISSUER is the issuer
//	token VAR FILE EMAIL [CLAIM=VALUE]... an identity token of such an instance
//	kms VAR NAME=[FILE|+KIND]...          a key management service, see KMS; VAR can be broken
//	cluster VAR NAMESPACE/SECRET KEY PUBLIC PASSWORD   a Kubernetes API server with a secret, see Cluster
//	privatekey FILE KIND                  a plain private key, see MakeKey
//	person INSTANCE [MAIL]                who logs in at its identity provider; without MAIL they deny
//	workload VAR INSTANCE [ID]            the workload API of a SPIFFE agent at VAR; without ID it knows nobody
//	json FILE PATH VALUE                  a JSON value: .a.b[0].c, [] for any element; ~RE for a match
//	big FILE SIZE [TEXT]                  a file of SIZE bytes, TEXT repeated
//
// and these conditions: [build] a container build can run here, [docker] a
// Docker daemon does, [docker29] one of Engine 29 does, [root] the script may make namespaces, [pkcs11] SoftHSM is there and a C compiler,
// [mariadb] a database server is there, [tool:NAME] a program of the distribution's, [peer:NAME] somebody else's.
// They are never false where CI=true: the script then fails.
func Script(t *testing.T, dir string, update bool) {
	shipped, err := Shipped(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bin, err := Binaries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range sideBySide() {
		if _, err := os.Stat(filepath.Join(dir, name+".txtar")); err != nil {
			t.Fatalf("a script to be run under the race detector: %v", err)
		}
	}
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	peers := os.Getenv("WAXSEAL_PEERS")
	if peers == "" {
		peers = filepath.Join(root, ".cache", "peers")
	}
	start := func(peer string) (_ *Docker, err error) {
		var programs string
		if peer != "" {
			programs, err = BuildPeer(context.WithoutCancel(t.Context()), peer)
		}
		var d *Docker
		if err == nil {
			d, err = StartDocker(programs)
		}
		if err != nil {
			t.Logf("no Docker daemon: %v", err)
			return nil, err
		}
		t.Cleanup(d.Close)
		return d, nil
	}
	daemons := map[string]func() (*Docker, error){
		"docker":   sync.OnceValues(func() (*Docker, error) { return start("") }),
		"docker29": sync.OnceValues(func() (*Docker, error) { return start("docker29") }),
	}
	// testscript leaves its own folder behind, empty; one for all is cleared here.
	work, err := os.MkdirTemp("", "waxseal-script-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(work) })
	t.Setenv("GOTMPDIR", work)
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		UpdateScripts:       update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			bin := bin
			if !slices.Contains(sideBySide(), strings.TrimPrefix(filepath.Base(env.WorkDir), "script-")) {
				bin = shipped
			}
			env.Setenv("PATH", bin+":"+peers+":"+os.Getenv("PATH"))
			home := filepath.Join(env.WorkDir, "home")
			env.Setenv("HOME", home)
			env.Setenv("CHECKOUT", root)
			env.Setenv("COSIGN_PASSWORD", "correct horse")
			env.Setenv("WAXSEAL_CACHE", filepath.Join(env.WorkDir, "cache"))
			env.Values[faultsKey{}] = map[string]*Faults{}
			env.Values[upstreamsKey{}] = map[string]*Upstream{}
			env.Values[respondersKey{}] = map[string]*responder{}
			env.Values[instancesKey{}] = map[string]*Instance{}
			env.Values[tufKey{}] = map[string]*TUF{}
			return os.Mkdir(home, 0o755)
		},
		Condition: func(cond string) (bool, error) {
			err := fmt.Errorf("unknown condition %q", cond)
			if cond == "build" {
				err = CanBuild()
			} else if cond == "root" {
				err = isRoot()
			} else if cond == "pkcs11" {
				err = canPKCS11()
			} else if daemon := daemons[cond]; daemon != nil {
				_, err = daemon()
			} else if cond == "mariadb" {
				_, err = exec.LookPath("mariadbd")
			} else if name, ok := strings.CutPrefix(cond, "peer:"); ok {
				_, err = BuildPeer(t.Context(), name)
			} else if name, ok := strings.CutPrefix(cond, "tool:"); ok {
				_, err = exec.LookPath(name)
			} else {
				return false, err
			}
			if err != nil && OnCI() {
				return false, fmt.Errorf("needed on CI: %w", err)
			}
			return err == nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":     cmdCode,
			"alone":    cmdAlone,
			"registry": cmdRegistry,
			"serve":    cmdServe,
			"upstream": cmdUpstream,
			"machine":  cmdMachine,
			"change":   cmdChange,
			"off":      cmdOff,
			"fault":    cmdFault,
			"requests": cmdRequests,
			"await":    cmdAwait,
			"gone":     cmdGone,
			"docker": func(ts *testscript.TestScript, neg bool, args []string) {
				daemon := daemons["docker"+strings.Join(args, "")]
				usage(ts, daemon != nil && !neg, "docker [29]")
				d, err := daemon()
				ts.Check(err)
				ts.Setenv("DOCKER_HOST", d.Host)
				if d.Programs != "" {
					ts.Setenv("PATH", strings.Join(slices.Insert(filepath.SplitList(ts.Getenv("PATH")), 2, d.Programs), ":"))
				}
			},
			"base":       cmdBase,
			"seal":       cmdSeal,
			"tamper":     cmdTamper,
			"sigstore":   cmdSigstore,
			"instance":   cmdInstance,
			"token":      cmdToken,
			"platforms":  cmdPlatforms,
			"tuf":        cmdTUF,
			"kms":        cmdKMS,
			"localkms":   cmdLocalKMS,
			"responder":  cmdResponder,
			"cloud":      cmdCloud,
			"cluster":    cmdCluster,
			"privatekey": cmdPrivateKey,
			"json":       cmdJSON,
			"big":        cmdBig,
			"workload":   cmdWorkload,
			"person":     cmdPerson,
		},
	})
}

// sideBySide are the scripts whose programs are built with the race detector
// where the tests are: those that have one program do much at a time, or end it
// half-way. In the others it starts a thousand times to do one thing after the
// other, or moves so many bytes that the detector would take an hour; what goes on
// side by side there, the tests of the packages do under the detector with fewer.
func sideBySide() []string {
	return []string{"bad_build", "bad_registry", "build_engine", "killed", "promote", "promote_killed", "run_many"}
}

type faultsKey struct{}

func usage(ts *testscript.TestScript, ok bool, text string) {
	if !ok {
		ts.Fatalf("usage: %s", text)
	}
}

func cmdCode(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) >= 2 && !neg, "code N COMMAND...")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	got := 0
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%s exited with %d, want %d", args[1], got, want)
	}
}

func cmdRegistry(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, (len(args) == 1 || len(args) == 2) && !neg, "registry VAR [noreferrers|distribution|outside]")
	kind := append(args, "")[1]
	var reg *Registry
	var err error
	switch kind {
	case "", "noreferrers", "outside":
		opts := RegistryOptions{NoReferrers: kind == "noreferrers", Faults: new(Faults)}
		ts.Value(faultsKey{}).(map[string]*Faults)[args[0]] = opts.Faults
		if kind == "outside" {
			opts.Host = outside(ts)
		}
		// Images of scripts that run side by side would fill the memory, and the
		// script's own folder is what commands are watched in.
		opts.Dir, err = os.MkdirTemp("", "waxseal-registry-")
		ts.Check(err)
		ts.Defer(func() { _ = os.RemoveAll(opts.Dir) }) // a handler may still write to it
		reg, err = NewRegistry(opts)
	case "distribution":
		dir := ts.MkAbs(".registry-" + args[0])
		ts.Check(os.Mkdir(dir, 0o755))
		var path string
		path, err = exec.LookPath(filepath.Join(peersOf(ts), "registry"))
		ts.Check(err)
		reg, err = StartDistribution(path, dir)
	default:
		ts.Fatalf("unknown kind of registry %q", kind)
	}
	ts.Check(err)
	ts.Defer(reg.Close)
	ts.Setenv(args[0], reg.Addr)
}

// peersOf is the second folder of the PATH that Script set.
func peersOf(ts *testscript.TestScript) string { return filepath.SplitList(ts.Getenv("PATH"))[1] }

func faultsOf(ts *testscript.TestScript, variable string) *Faults {
	faults := ts.Value(faultsKey{}).(map[string]*Faults)[variable]
	if faults == nil {
		ts.Fatalf("no registry %s that can be broken", variable)
	}
	return faults
}

func cmdFault(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) >= 1 && !neg, "fault VAR [KIND[*TIMES] [MATCH]]...")
	var set []Fault
	for pair := range slices.Chunk(args[1:], 2) {
		kind, times, bounded := strings.Cut(pair[0], "*")
		fault := Fault{Kind: kind}
		if bounded {
			n, err := strconv.Atoi(times)
			ts.Check(err)
			fault.Times = n
		}
		if len(pair) == 2 {
			fault.Match = pair[1]
		}
		set = append(set, fault)
	}
	ts.Check(faultsOf(ts, args[0]).Set(set...))
}

func cmdRequests(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 2, "requests VAR MATCH")
	match, err := regexp.Compile(args[1])
	ts.Check(err)
	seen := faultsOf(ts, args[0]).Seen()
	found := slices.ContainsFunc(seen, match.MatchString)
	if found == neg {
		ts.Fatalf("requests matching %q: %t; all requests:\n%s", args[1], found, strings.Join(seen, "\n"))
	}
}

func cmdAwait(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 2 && !neg, "await VAR MATCH")
	match, err := regexp.Compile(args[1])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ts.Check(faultsOf(ts, args[0]).Await(ctx, match))
}

func cmdGone(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 1 && !neg, "gone TEXT")
	if left := awaitGone(args[0]); len(left) > 0 {
		ts.Fatalf("still there:\n%s", strings.Join(left, "\n"))
	}
}

// awaitGone returns what is left of the processes that name text after at most
// ten seconds: a process that was killed takes a moment to go.
func awaitGone(text string) []string {
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		left := processesNaming(text)
		if len(left) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return left
		}
	}
}

// processesNaming lists other processes that name text in their command line,
// working folder or mounts.
func processesNaming(text string) []string {
	var found []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if dir == fmt.Sprintf("/proc/%d", os.Getpid()) {
			continue
		}
		// A process that ends while it is looked at leaves nothing to read.
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		mounts, _ := os.ReadFile(dir + "/mountinfo")
		cwd, _ := os.Readlink(dir + "/cwd")
		command := strings.ReplaceAll(string(cmdline), "\x00", " ")
		for what, where := range map[string]string{"command line": command, "mounts": string(mounts), "folder": cwd} {
			if strings.Contains(where, text) {
				found = append(found, fmt.Sprintf("%s %s: in its %s", dir, command, what))
			}
		}
	}
	return found
}

func cmdBase(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 2 && !neg, "base VAR debian|tiny|tools")
	made, err := Base(context.Background(), args[1])
	ts.Check(err)
	ts.Setenv(args[0], made)
}

func cmdSigstore(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 6 && !neg, "sigstore DIR LAYOUT PREDICATETYPE PREDICATE SAN ISSUER")
	ts.Check(Sigstore(ts.MkAbs(args[0]), ts.MkAbs(args[1]), args[2], ts.MkAbs(args[3]), args[4], args[5]))
}

func cmdSeal(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 3 && !neg, "seal DIR LAYOUT LIST")
	ts.Check(Seal(ts.MkAbs(args[0]), ts.MkAbs(args[1]), ts.MkAbs(args[2])))
}

func cmdTamper(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 4 && !neg, "tamper LAYOUT PREDICATETYPE OLD NEW")
	ts.Check(Tamper(ts.MkAbs(args[0]), args[1], args[2], args[3]))
}

func cmdJSON(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 3, "json FILE PATH VALUE")
	var doc any
	if err := json.Unmarshal([]byte(ts.ReadFile(args[0])), &doc); err != nil {
		ts.Fatalf("%s is no JSON: %v", args[0], err)
	}
	values, err := selectJSON(doc, args[1])
	ts.Check(err)
	holds := func(v string) bool { return v == args[2] }
	if pattern, ok := strings.CutPrefix(args[2], "~"); ok {
		re, err := regexp.Compile(pattern)
		ts.Check(err)
		holds = re.MatchString
	}
	if slices.ContainsFunc(values, holds) == neg {
		ts.Fatalf("%s %s is %q", args[0], args[1], values)
	}
}

// selectJSON returns the values at path (".a.b[0].c"; "[]" is every element) as
// text: strings as they are, everything else as JSON.
func selectJSON(doc any, path string) ([]string, error) {
	now := []any{doc}
	for _, step := range regexp.MustCompile(`\."[^"]*"|\.[^.\["]+|\[\d*\]`).FindAllString(path, -1) {
		var next []any
		for _, value := range now {
			name := strings.Trim(strings.TrimPrefix(step, "."), `"`)
			switch v := value.(type) {
			case map[string]any:
				if field, ok := v[name]; ok {
					next = append(next, field)
				}
			case []any:
				if step == "[]" {
					next = append(next, v...)
				} else if i, err := strconv.Atoi(strings.Trim(step, "[]")); err == nil && i < len(v) {
					next = append(next, v[i])
				}
			}
		}
		now = next
	}
	texts := make([]string, 0, len(now))
	for _, value := range now {
		if s, ok := value.(string); ok {
			texts = append(texts, s)
			continue
		}
		raw, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		texts = append(texts, string(raw))
	}
	return texts, nil
}

func cmdBig(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, (len(args) == 2 || len(args) == 3) && !neg, "big FILE SIZE [TEXT]")
	size, err := strconv.Atoi(args[1])
	ts.Check(err)
	text := "x"
	if len(args) == 3 {
		text = args[2]
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Repeat(text, size/len(text)+1)[:size]), 0o644))
}
