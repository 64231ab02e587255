package cli

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/build"
)

// The flags of docker build 28 and docker buildx build 0.36, by their help.
func dockerFlags() []string {
	return strings.Fields(`add-host allow annotation attest build-arg build-context builder cache-from cache-to call
		cgroup-parent check compress cpu-period cpu-quota cpu-shares cpuset-cpus cpuset-mems debug
		disable-content-trust file force-rm iidfile isolation label load memory memory-swap metadata-file network
		no-cache no-cache-filter output platform policy print progress provenance pull push quiet rm sbom secret
		security-opt shm-size squash ssh tag target ulimit`)
}

func TestEveryDockerFlagIsKnown(t *testing.T) {
	cmd := newBuildCmd(&Streams{})
	for _, name := range dockerFlags() {
		if cmd.Flags().Lookup(name) == nil {
			t.Errorf("--%s is neither supported nor refused by name", name)
		}
	}
}

func runCLI(args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	code = Main(context.Background(), args, Streams{In: strings.NewReader(""), Out: &o, Err: &e, LookupEnv: func(string) (string, bool) { return "", false }})
	return code, o.String(), e.String()
}

func TestRefusedFlagsSaySoByName(t *testing.T) {
	for _, r := range dockerOnly() {
		flag := "--" + r.name
		if r.takesValue {
			flag += "=1"
		}
		code, _, errs := runCLI("build", "--unsigned", flag, ".")
		if code != ExitUsage || !strings.Contains(errs, "--"+r.name+" ") || !strings.Contains(errs, r.instead) {
			t.Errorf("%s: exit code %d, %s", flag, code, errs)
		}
	}
}

func TestBadFlagValuesNameTheFlag(t *testing.T) {
	for flag, sign := range map[string]string{
		"--network=bridge":            "bridge",
		"--sbom=true":                 "--sbom=none",
		"--sbom=none,spdx":            "stands alone",
		"--sbom=generator=x":          "generator",
		"--engine=docker":             "buildkit:ADDRESS",
		"--progress=fancy":            "rawjson",
		"--output=type=vhd":           "vhd",
		"--secret=src=x":              "id=",
		"--ssh=":                      "id",
		"--add-host=a":                "NAME:IP",
		"--allow=devices":             "security.insecure",
		"--allow-host=https://a/":     "without scheme",
		"--inputs=all":                "offline",
		"--upstream=a":                "NAME[:PORT]=ADDRESS[:PORT]",
		"--upstream=a=b":              "IP address",
		"--upstream=a:99999=1.2.3.4":  "a:99999",
		"--shm-size=much":             "much",
		"--ulimit=x":                  "x",
		"--cache-from=type=gha":       "token",
		"--cache-to=type=local":       "dest",
		"--platform=moon/amd64/v/x/y": "moon",
		"--annotation=x":              "KEY=VALUE",
		"--build-context=base":        "NAME=",
		"--build-arg==x":              "name",
	} {
		code, out, errs := runCLI("build", "--unsigned", flag, ".")
		name, _, _ := strings.Cut(flag, "=")
		if code != ExitUsage || out != "" || !strings.Contains(errs, name) || !strings.Contains(errs, sign) {
			t.Errorf("%s: exit code %d, %s", flag, code, errs)
		}
	}
}

func TestBuildFlagsBecomeARequest(t *testing.T) {
	env := map[string]string{
		"WAXSEAL_KEY": "env.key", "WAXSEAL_BUILDER_ID": "https://b.example", "BUILDKIT_PROGRESS": "plain",
		"DOCKER_DEFAULT_PLATFORM": "linux/arm64", "FROM_ENV": "value", "HOME": "/home/me",
	}
	get := func(n string) string { return env[n] }
	lookup := func(n string) (string, bool) { v, ok := env[n]; return v, ok }
	var f buildFlags
	cmd := newBuildCmd(&Streams{})
	cmd.ResetFlags()
	f.register(cmd.Flags())
	if err := cmd.ParseFlags([]string{"-t", "a:1", "-t", "b:1", "--build-arg", "FROM_ENV", "--push", "--load", "-o", "type=image,name=r.example/x", "--sbom=spdx"}); err != nil {
		t.Fatal(err)
	}
	f.fromEnv(cmd.Flags(), get)
	req, err := f.request(".", lookup)
	if err != nil {
		t.Fatal(err)
	}
	if f.sign.key != "env.key" || req.Seal.BuilderID != "https://b.example" || f.mode() != "plain" || req.Engine.CacheDir != "/home/me/.cache/waxseal" {
		t.Errorf("environment: %+v, %+v", f, req.Engine)
	}
	if req.Source.Args["FROM_ENV"] != "value" || strings.Join(req.Source.Platforms, " ") != "linux/arm64" || strings.Join(req.Seal.SBOM, " ") != "spdx" {
		t.Errorf("request: %+v", req)
	}
	// --push turns the image output into a push instead of adding another.
	if len(req.Outputs) != 2 || !req.Outputs[0].Push || req.Outputs[1].Kind != "docker" {
		t.Errorf("outputs: %+v", req.Outputs)
	}
	f.quiet = true
	if f.mode() != "quiet" {
		t.Error("--quiet shows progress")
	}
}

func TestShellWord(t *testing.T) {
	for in, want := range map[string]string{"oci:a/b:1@sha256:0": "oci:a/b:1@sha256:0", "a b": "'a b'", "it's": `'it'\''s'`} {
		if got := shellWord(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

func TestProgressOnADumbTerminalIsPlain(t *testing.T) {
	for _, c := range []struct{ term, mode, want string }{
		{"xterm", "", ""}, {"dumb", "", "plain"}, {"dumb", "auto", "plain"}, {"dumb", "tty", "tty"}, {"dumb", "quiet", "quiet"},
	} {
		s := &Streams{LookupEnv: func(name string) (string, bool) { return c.term, name == "TERM" }}
		if got := display(s, c.mode).Mode; got != c.want {
			t.Errorf("TERM=%s --progress %q: %q, want %q", c.term, c.mode, got, c.want)
		}
	}
}

// A file that a command made may be called anything.
func TestNamesOfFilesAreInert(t *testing.T) {
	digest := map[string]string{"sha256": strings.Repeat("0", 64)}
	res := &build.CommandResult{Sealed: &build.Sealed{Subjects: []attest.Subject{{Name: "dist/a\n\x1b[2Jwaxseal: sealed b", Digest: digest}}}}
	got := (&runFlags{}).summaryOf(res)
	if strings.ContainsRune(got, 0x1b) || strings.Contains(got, "\nwaxseal: sealed b") || !strings.Contains(got, "sealed dist/a??[2Jwaxseal: sealed b sha256:0000") {
		t.Errorf("the summary is %q", got)
	}
}
