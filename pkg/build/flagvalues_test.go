package build

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestParseOutputs(t *testing.T) {
	for in, want := range map[string]Output{
		"out":                           {Kind: OutputLocal, Dest: "out"},
		"-":                             {Kind: OutputTar, Dest: "-", Tar: true},
		"type=local,dest=a/b/":          {Kind: OutputLocal, Dest: "a/b", Tar: true},
		"type=tar":                      {Kind: OutputTar, Dest: "-", Tar: true},
		"type=oci":                      {Kind: OutputOCI, Dest: "-", Tar: true},
		"type=oci,tar=false,dest=l":     {Kind: OutputOCI, Dest: "l"},
		"type=docker":                   {Kind: OutputDocker, Tar: true},
		"type=registry":                 {Kind: OutputImage, Push: true, Tar: true},
		"type=image,name=a:1,push=true": {Kind: OutputImage, Push: true, Tar: true, Names: []string{"a:1"}},
		`type=image,"name=a:1,b:2"`:     {Kind: OutputImage, Tar: true, Names: []string{"a:1", "b:2"}},
		"type=oci,dest=f,compression=zstd,force-compression=true": {
			Kind: OutputOCI, Dest: "f", Tar: true, Layers: map[string]string{"compression": "zstd", "force-compression": "true"}},
		"type=image,annotation-index.k=v": {Kind: OutputImage, Tar: true, Annotations: []Annotation{{Level: "index", Key: "k", Value: "v"}}},
		"type=image,annotation-manifest[linux/arm64].k=v": {
			Kind: OutputImage, Tar: true, Annotations: []Annotation{{Level: "manifest", Platform: "linux/arm64", Key: "k", Value: "v"}}},
	} {
		got, err := ParseOutputs([]string{in})
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if !reflect.DeepEqual(got[0], want) {
			t.Errorf("%q:\n got %+v\nwant %+v", in, got[0], want)
		}
	}
	for in, sign := range map[string]string{
		"":                                "no destination",
		"type=vhd,dest=x":                 `"vhd" is not supported`,
		"dest=x":                          "no type=",
		"type=local":                      "needs dest=",
		"type=oci,tar=false":              "needs dest=",
		"type=oci,tar=perhaps":            "neither true nor false",
		"type=local,compression=gzip":     `"compression" is not supported`,
		"type=image,oci-mediatypes=false": "oci-mediatypes=false is not supported",
		"type=image,unpack=true":          `"unpack" is not supported`,
		"type=docker,tar=false,dest=x":    "tar=false is not supported",
		"type=local,dest=x,mode=delete":   `"mode" is not supported`,
		"type=image,dest=x":               `"dest" is not supported`,
		"type=image,nonsense":             "KEY=VALUE",
	} {
		if _, err := ParseOutputs([]string{in}); err == nil || !strings.Contains(err.Error(), sign) {
			t.Errorf("%q: error %v, want %q in it", in, err, sign)
		}
	}
}

func TestParseSecretsAndSSH(t *testing.T) {
	got, err := ParseSecrets([]string{"id=a,src=f", "id=b,env=E", "type=env,id=c,src=X", "id=d"})
	want := []Secret{{ID: "a", File: "f"}, {ID: "b", Env: "E"}, {ID: "c", Env: "X"}, {ID: "d"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"src=f", "id=a,colour=red", "id=a,src=f,env=E", "id=a,type=vault", "a"} {
		if _, err := ParseSecrets([]string{bad}); err == nil {
			t.Errorf("secret %q: accepted", bad)
		}
	}
	if _, err := ParseSecrets([]string{"id=a", "id=a"}); err == nil {
		t.Error("the same id twice: accepted")
	}
	ssh, err := ParseSSH([]string{"default", "k=~/.ssh/a,~/.ssh/b", "r=/run/s.sock,raw=true"})
	wantSSH := []SSH{{ID: "default"}, {ID: "k", Paths: []string{"~/.ssh/a", "~/.ssh/b"}}, {ID: "r", Paths: []string{"/run/s.sock"}, Raw: true}}
	if err != nil || !reflect.DeepEqual(ssh, wantSSH) {
		t.Errorf("got %+v, %v", ssh, err)
	}
	for _, bad := range []string{"", "=x", "a=b,raw=maybe", "a=b,c,raw=true"} {
		if _, err := ParseSSH([]string{bad}); err == nil {
			t.Errorf("ssh %q: accepted", bad)
		}
	}
}

func TestParseAnnotations(t *testing.T) {
	got, err := ParseAnnotations([]string{"k=v=w", "index,manifest[linux/amd64]:k=v"})
	want := []Annotation{{Key: "k", Value: "v=w"}, {Level: "index", Key: "k", Value: "v"}, {Level: "manifest", Platform: "linux/amd64", Key: "k", Value: "v"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"k", "=v", "layer:k=v", "index[linux/amd64]:k=v", "manifest[]:k=v", "index:=v"} {
		if _, err := ParseAnnotations([]string{bad}); err == nil {
			t.Errorf("annotation %q: accepted", bad)
		}
	}
}

func TestParseSmallValues(t *testing.T) {
	hosts, err := ParseAddHosts([]string{"a:10.0.0.1", "b=10.0.0.2", "c:::1", "d=[::1]"})
	if want := []string{"a=10.0.0.1", "b=10.0.0.2", "c=::1", "d=::1"}; err != nil || !reflect.DeepEqual(hosts, want) {
		t.Errorf("hosts %v, %v", hosts, err)
	}
	for _, bad := range []string{"a", "a:host-gateway", "a:nowhere", ":1.2.3.4"} {
		if _, err := ParseAddHosts([]string{bad}); err == nil {
			t.Errorf("host %q: accepted", bad)
		}
	}
	if n, err := ParseSize("64m"); n != 64<<20 || err != nil {
		t.Errorf("size %d, %v", n, err)
	}
	for _, bad := range []string{"x", "-1m", "0"} {
		if _, err := ParseSize(bad); err == nil {
			t.Errorf("size %q: accepted", bad)
		}
	}
	if err := CheckHostPatterns([]string{"*", "a.test", "*.A.test", "a.test.", "10.0.0.1", "2001:db8::1", "x_y-z.1a"}); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", ".test", "a..b", "a*b.test", "*.*.test", "*.", "*.10.0.0.1", "10.0.0", "0x7f.1", "2130706433", "http://x", "a/b", "x:80", "[::1]", "fe80::1%eth0", "u@x", strings.Repeat("a", 64) + ".test"} {
		if CheckHostPatterns([]string{bad}) == nil {
			t.Errorf("pattern of hosts %q: accepted", bad)
		}
	}
	if u, err := ParseUlimits([]string{"nofile=1024", "nproc=1:2"}); err != nil || !reflect.DeepEqual(u, []string{"nofile=1024:1024", "nproc=1:2"}) {
		t.Errorf("ulimits %v, %v", u, err)
	}
	if _, err := ParseUlimits([]string{"files=1"}); err == nil {
		t.Error("an unknown ulimit: accepted")
	}
	if p, err := ParsePlatforms([]string{"linux/amd64,linux/arm64", "linux/x86_64"}); err != nil || !reflect.DeepEqual(p, []string{"linux/amd64", "linux/arm64"}) {
		t.Errorf("platforms %v, %v", p, err)
	}
	args, err := ParseArgs([]string{"A=1", "B", "C"}, func(n string) (string, bool) { return "from-" + n, n == "B" })
	if err != nil || !reflect.DeepEqual(args, map[string]string{"A": "1", "B": "from-B"}) {
		t.Errorf("args %v, %v", args, err)
	}
	named, err := ParseNamedContexts([]string{"base=oci:x", "docker.io/library/debian:latest=docker:y"})
	if err != nil || !reflect.DeepEqual(named, map[string]string{"base": "oci:x", "debian": "docker:y"}) {
		t.Errorf("contexts %v, %v", named, err)
	}
	for _, bad := range []string{"base", "base=", "B A D=x"} {
		if _, err := ParseNamedContexts([]string{bad}); err == nil {
			t.Errorf("context %q: accepted", bad)
		}
	}
}

func TestParseCacheEntries(t *testing.T) {
	from, err := ParseCacheEntries([]string{"r.example/c", "type=local,src=d"}, false)
	if err != nil || from[0].public() != "type=registry,ref=r.example/c" || from[1].public() != "type=local,src=d" {
		t.Errorf("got %+v, %v", from, err)
	}
	to, err := ParseCacheEntries([]string{"type=local,dest=d", "type=inline"}, true)
	if err != nil || to[0].Attrs["mode"] != "min" || to[1].Type != "inline" {
		t.Errorf("got %+v, %v", to, err)
	}
	for _, bad := range []string{"type=gha", "type=s3,bucket=b", "type=local", "type=ftp", "ref=x", "type=registry,ref"} {
		if _, err := ParseCacheEntries([]string{bad}, false); err == nil {
			t.Errorf("cache %q: accepted", bad)
		}
	}
}

func TestRequestRefusesBeforeAnythingIsDone(t *testing.T) {
	ok := func() Request { return Request{Seal: Seal{Unsigned: true}} }
	for name, c := range map[string]struct {
		change func(*Request)
		sign   string
	}{
		"nothing to sign with": {func(r *Request) { r.Seal.Unsigned = false }, "--key"},
		"no-cache twice":       {func(r *Request) { r.Cache = Cache{None: true, Except: []string{"a"}} }, "--no-cache-filter"},
		"stdin twice":          {func(r *Request) { r.Source.Context, r.Source.Dockerfile = "-", "-" }, "standard input"},
		"a bad tag":            {func(r *Request) { r.Image.Tags = []string{"UPPER"} }, "UPPER"},
		"a tag with a digest":  {func(r *Request) { r.Image.Tags = []string{"a@sha256:" + strings.Repeat("0", 64)} }, "digest"},
		"push without a name":  {func(r *Request) { r.Outputs = []Output{{Kind: OutputImage, Push: true}} }, "name"},
		"two on stdout": {func(r *Request) {
			r.Outputs = []Output{{Kind: OutputTar, Dest: "-"}, {Kind: OutputOCI, Tar: true, Dest: "-"}}
		}, "standard output"},
		"two compressions": {func(r *Request) {
			r.Outputs = []Output{{Kind: OutputImage, Layers: map[string]string{"compression": "zstd"}}, {Kind: OutputOCI, Dest: "x", Layers: map[string]string{"compression": "gzip"}}}
		}, "agree"},
		"index annotation": {func(r *Request) { r.Image.Annotations = []Annotation{{Level: "index", Key: "k"}} }, "index"},
		"an annotation of an entry that is not there": {func(r *Request) {
			r.Image.Annotations = []Annotation{{Level: "manifest-descriptor", Key: "k"}}
		}, "entry in an index"},
		"an annotation outside of the image": {func(r *Request) {
			r.Source.Platforms = []string{"linux/amd64", "linux/arm64"}
			r.Image.Annotations = []Annotation{{Level: "index-descriptor", Key: "k"}}
		}, "index-descriptor is not supported"},
		"several to docker": {func(r *Request) {
			r.Source.Platforms = []string{"linux/amd64", "linux/arm64"}
			r.Outputs = []Output{{Kind: OutputDocker}}
		}, "one platform"},
		"an unknown SBOM format": {func(r *Request) { r.Seal.SBOM = []string{"swid"} }, "swid"},
	} {
		r := ok()
		c.change(&r)
		_, err := Run(t.Context(), r, Deps{Home: t.TempDir()})
		if usage := (UsageError{}); !errors.As(err, &usage) || !strings.Contains(err.Error(), c.sign) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzFlagValues(f *testing.F) {
	for _, s := range []string{"type=oci,dest=x", `type=image,"name=a,b"`, "id=a,src=b", "default=a,raw=true", "index[linux/amd64]:k=v", "a=b", "-", "type=registry,ref=x", "linux/arm/v7", "git@host:p#r:s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v := []string{s}
		if out, err := ParseOutputs(v); err == nil && out[0].Kind == "" {
			t.Errorf("output %q has no kind", s)
		}
		if secrets, err := ParseSecrets(v); err == nil && secrets[0].ID == "" {
			t.Errorf("secret %q has no id", s)
		}
		_, _ = ParseSSH(v)
		_, _ = ParseAnnotations(v)
		_, _ = ParseCacheEntries(v, true)
		_, _ = ParseNamedContexts(v)
		_, _ = ParsePlatforms(v)
		_, _ = ParseAddHosts(v)
		_, _ = ParseUlimits(v)
		_, _ = ParseSize(s)
		_ = cleanNamed(s)
		_, _, _, _ = splitLayout(s)
	})
}
