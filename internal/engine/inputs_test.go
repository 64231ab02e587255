package engine

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/waxseal/waxseal/attestations"
)

func TestInstruction(t *testing.T) {
	exec := func(args ...string) *pb.Op {
		return &pb.Op{Op: &pb.Op_Exec{Exec: &pb.ExecOp{Meta: &pb.Meta{Args: args}}}}
	}
	for _, tc := range []struct{ shown, command, name, stage string }{
		{"[2/5] RUN apt-get update", "", "RUN apt-get update", ""},
		{"[build 12/15] RUN make", "", "RUN make", "build"},
		{"[linux/amd64 build  2/15] RUN make", "", "RUN make", "build"},
		{"[linux/amd64->arm64 2/15] RUN make", "", "RUN make", ""},
		{"[stage-1 2/3] RUN make", "", "RUN make", ""},
		{"[2/3] RUN echo hush", "RUN echo $TOKEN", "RUN echo $TOKEN", ""},
		{"[2/3] RUN a   b", "run a \n   b", "RUN a b", ""},
		{"something else] 1/2", "", "SOMETHING else] 1/2", ""},
		{"[not a counter] RUN x", "", "[NOT a counter] RUN x", ""},
	} {
		name, stage := instruction(node{op: exec("sh"), name: tc.shown, description: map[string]string{"com.docker.dockerfile.v1.command": tc.command}})
		if name != tc.name || stage != tc.stage {
			t.Errorf("%q with %q is %q in stage %q, want %q in %q", tc.shown, tc.command, name, stage, tc.name, tc.stage)
		}
	}
	one, _ := instruction(node{op: exec("sh", "-c", "one"), name: "[2/3] RUN <<EOF"})
	two, _ := instruction(node{op: exec("sh", "-c", "two"), name: "[2/3] RUN <<EOF"})
	if one == two {
		t.Errorf("two here-documents are both %q", one)
	}
	long, _ := instruction(node{op: exec("sh"), name: "RUN " + strings.Repeat("ä", maxStepName)})
	if len(long) > maxStepName || !strings.HasPrefix(long, "RUN ä") {
		t.Errorf("a long name has %d bytes", len(long))
	}
}

// What changes from run to run is no part of a step's id.
func TestStepID(t *testing.T) {
	definition := func(session, image, proxy string, args ...string) node {
		src := &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: image, Attrs: map[string]string{pb.AttrOCILayoutSessionID: session, "b": "1", "a": "2", "c": "3"}}}}
		run := &pb.Op{
			Inputs: []*pb.Input{{Digest: session}},
			Op:     &pb.Op_Exec{Exec: &pb.ExecOp{Meta: &pb.Meta{Args: args, ProxyEnv: &pb.ProxyEnv{HttpProxy: proxy}}}},
		}
		s := node{op: src, digest: digest.FromString("source" + session + image)}
		return node{op: run, digest: digest.FromString("run" + session + image + proxy + strings.Join(args, " ")), inputs: []func() (node, bool){func() (node, bool) { return s, true }}}
	}
	base := definition("one", "oci-layout://x@sha256:1", "", "true").id(stepIDs{})
	if got := definition("two", "oci-layout://x@sha256:1", "http://proxy", "true").id(stepIDs{}); got != base {
		t.Errorf("in another session the id is %s, was %s", got, base)
	}
	for what, n := range map[string]node{
		"another base image": definition("one", "oci-layout://x@sha256:2", "", "true"),
		"another command":    definition("one", "oci-layout://x@sha256:1", "", "false"),
	} {
		if n.id(stepIDs{}) == base {
			t.Errorf("%s has the same id", what)
		}
	}
}

func allow(*attestations.InputStep) bool { return true }

func TestLineage(t *testing.T) {
	root := t.TempDir()
	l := newLineage(root)
	step := func(name string) *attestations.InputStep {
		return &attestations.InputStep{Name: name, Verdict: attestations.VerdictRecorded}
	}
	base := edge{Ref: "base", Source: true}
	l.put(base, result{}, nil)
	l.put(edge{Ref: "a"}, result{Inputs: []edge{base}, Step: "a"}, step("RUN a"))
	l.put(edge{Ref: "b"}, result{Inputs: []edge{{Ref: "a"}}}, nil)
	l.put(edge{Ref: "c"}, result{Inputs: []edge{{Ref: "b"}, {Ref: "a"}}, Step: "c"}, step("RUN c"))
	l.put(edge{Ref: "foreign"}, result{Imported: true}, nil)
	l.put(edge{Ref: "d"}, result{Inputs: []edge{{Ref: "foreign"}}, Step: "d"}, step("RUN d"))
	l.put(edge{Ref: "base"}, result{Inputs: []edge{base}}, nil) // a copy of nothing onto the base
	check := func(l *lineage) {
		t.Helper()
		for _, tc := range []struct {
			ref     string
			imports bool
			want    bool
		}{{"c", false, true}, {"b", false, true}, {"base", false, true}, {"foreign", false, false}, {"foreign", true, true}, {"d", false, false}, {"d", true, true}, {"unknown", true, false}} {
			for range 2 {
				if got := l.complete(edge{Ref: tc.ref}, tc.imports, allow); got != tc.want {
					t.Errorf("%s with imports %v is complete: %v", tc.ref, tc.imports, got)
				}
			}
		}
		var names []string
		l.walk(edge{Ref: "c"}, func(e edge, r result, ok bool) { names = append(names, e.key()) })
		if want := []string{"sbase", "oa", "ob", "oc"}; !slices.Equal(names, want) {
			t.Errorf("the walk is %q, want %q", names, want)
		}
	}
	check(l)
	if l.complete(edge{Ref: "x"}, false, allow) {
		t.Error("an unknown result is complete")
	}
	fresh := newLineage(root)
	l.close(func(string) bool { return true })
	check(fresh)
	if st := fresh.step("a"); st == nil || st.Name != "RUN a" {
		t.Errorf("the step is %+v", st)
	}

	// What nothing in the cache comes of goes; what something came of stays.
	fresh.put(edge{Ref: "e"}, result{Step: "e"}, step("RUN e"))
	fresh.close(func(ref string) bool { return ref == "c" })
	last := newLineage(root)
	for ref, want := range map[string]bool{"c": true, "a": true, "b": true, "d": false, "e": false} {
		if _, ok := last.get(edge{Ref: ref}); ok != want {
			t.Errorf("after pruning %s is there: %v", ref, ok)
		}
	}
	if last.step("a") == nil || last.step("d") != nil {
		t.Error("the records of steps do not follow their results")
	}
}

func TestLineageRefusesWhatIsNotAllowed(t *testing.T) {
	l := newLineage(t.TempDir())
	l.put(edge{Ref: "a"}, result{Step: "a"}, &attestations.InputStep{Name: "RUN a"})
	l.put(edge{Ref: "b"}, result{Inputs: []edge{{Ref: "a"}}}, nil)
	if l.complete(edge{Ref: "b"}, false, func(*attestations.InputStep) bool { return false }) {
		t.Error("a result of a refused step is complete")
	}
}

func TestLineageBounds(t *testing.T) {
	l := newLineage(t.TempDir())
	all, keep := map[string]result{}, map[string]bool{}
	for i := range 10 {
		key := fmt.Sprintf("o%d", i)
		all[key], keep[key] = result{Step: key, At: int64(i)}, true
	}
	steps := l.bound(all, keep, func(string) int { return keptRecordBytes / 4 })
	if len(keep) != 4 || !keep["o9"] || keep["o5"] || len(steps) != 4 {
		t.Errorf("kept are %v with the steps %v", keep, steps)
	}
}

func TestLineageWithoutItsFile(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "steps.db"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "steps.db", "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l := newLineage(root)
	l.put(edge{Ref: "a"}, result{Step: "a"}, &attestations.InputStep{Name: "RUN a"})
	if !l.complete(edge{Ref: "a"}, false, allow) || l.step("a") == nil {
		t.Error("what this engine saw is not known")
	}
	l.close(func(string) bool { return true })
}

func TestLimits(t *testing.T) {
	s := &specs.Spec{}
	limits{pids: 7, memory: 9}.set(s)
	if *s.Linux.Resources.Pids.Limit != 7 || *s.Linux.Resources.Memory.Limit != 9 {
		t.Errorf("the limits are %+v", s.Linux.Resources)
	}
	none := &specs.Spec{}
	limits{}.set(none)
	if none.Linux.Resources.Pids != nil || none.Linux.Resources.Memory != nil {
		t.Errorf("without controllers the limits are %+v", none.Linux.Resources)
	}
	if got := findLimits(); got.memory < 0 || got.pids != 0 && got.pids != maxStepPids {
		t.Errorf("here the limits are %+v", got)
	}
}

func TestRegistryPath(t *testing.T) {
	for path, want := range map[string]string{
		"/v2/":                            "",
		"/v2/library/debian/manifests/12": "library/debian manifests 12",
		"/v2/a/b/c/blobs/sha256:00":       "a/b/c blobs sha256:00",
		"/v2/manifests/12":                "",
		"/v2/a/tags/list":                 "",
		"/token":                          "",
	} {
		name, kind, what, ok := parseRegistryPath(path)
		if got := strings.Join([]string{name, kind, what}, " "); ok != (want != "") || ok && got != want {
			t.Errorf("%s is %q, %v, want %q", path, got, ok, want)
		}
	}
}

func TestPlanIsBounded(t *testing.T) {
	for raw, want := range map[string]string{
		"":                  "",
		`{"mode":"locked"}`: "locked",
		`{"mode":"wild"}`:   "error",
		`{"mode":`:          "error",
	} {
		p, err := readPlan(strings.NewReader(raw))
		if want == "error" != (err != nil) || err == nil && p.Mode != want {
			t.Errorf("%q is %+v, %v", raw, p, err)
		}
	}
}

func gitTree(t testing.TB, files map[string]string) []byte {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if to, ok := strings.CutPrefix(content, "-> "); ok {
			if err := os.Symlink(to, p); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var b bytes.Buffer
	if err := writeTree(&b, root, map[string]string{gitKeyRecord: "key", gitCommitRecord: "tree 1\n"}, false); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestTreeComesBack(t *testing.T) {
	files := map[string]string{"a": "1", "dir/b": "2", "link": "-> ../../etc/passwd"}
	raw := gitTree(t, files)
	if !bytes.Equal(raw, gitTree(t, files)) {
		t.Error("the same files give another archive")
	}
	dir := t.TempDir()
	if err := readTree(bytes.NewReader(raw), dir); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var again bytes.Buffer
	if err := writeTree(&again, root, map[string]string{gitKeyRecord: "key", gitCommitRecord: "tree 1\n"}, false); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(raw, again.Bytes()) {
		t.Error("what came back is something else")
	}
}

// FuzzReadTree unpacks what a store of somebody else may hold.
func FuzzReadTree(f *testing.F) {
	f.Add(gitTree(f, map[string]string{"a": "1", "dir/b": "2", "link": "-> a"}))
	evil := func(headers ...tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			if err := w.WriteHeader(&h); err != nil {
				f.Fatal(err)
			}
		}
		w.Close()
		return b.Bytes()
	}
	f.Add(evil(tar.Header{Name: "../out", Typeflag: tar.TypeReg}))
	f.Add(evil(tar.Header{Name: "/out", Typeflag: tar.TypeReg}))
	f.Add(evil(tar.Header{Name: "up", Linkname: "..", Typeflag: tar.TypeSymlink}, tar.Header{Name: "up/out", Typeflag: tar.TypeReg}))
	f.Add(evil(tar.Header{Name: "hard", Linkname: "../out", Typeflag: tar.TypeLink}))
	f.Add(evil(tar.Header{Name: "dev", Typeflag: tar.TypeChar}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 1<<20 {
			return
		}
		outer := t.TempDir()
		dir := filepath.Join(outer, "in")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = readTree(bytes.NewReader(raw), dir)
		entries, err := os.ReadDir(outer)
		if err != nil || len(entries) != 1 {
			t.Errorf("something was written outside: %v, %v", entries, err)
		}
	})
}
