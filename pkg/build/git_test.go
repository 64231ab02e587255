package build

import (
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func git(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=n", "-c", "user.email=e@example.com"}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=2024-05-06T07:08:09Z", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
}

func TestGitState(t *testing.T) {
	dir := folder(t, map[string]string{
		"app/Dockerfile": "FROM scratch", "app/kept": "k", "app/gone": "g", "app/edited": "e", "app/left-out": "l",
		"other/x": "x", ".gitignore": "*.bin\n",
	})
	git(t, dir, "init", "-q")
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-qm", "x")
	git(t, dir, "remote", "add", "upstream", "ssh://bob@git.example/a")
	git(t, dir, "remote", "add", "origin", "https://user:hunter2@git.example/acme/app.git")
	app := filepath.Join(dir, "app")
	for name, content := range map[string]string{"edited": "changed", "new name é": "n", "made.bin": "b", "left-out": "changed", "../other/x": "changed"} {
		if err := os.WriteFile(filepath.Join(app, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(app, "gone")); err != nil {
		t.Fatal(err)
	}
	g, err := gitHead(t.Context(), app)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := walkFolder(t.Context(), app, []byte("left-out"), ".dockerignore", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.details(t.Context(), app, tr.has()); err != nil {
		t.Fatal(err)
	}
	if g.Remote != "https://git.example/acme/app.git" || len(g.Commit) != 40 || g.Time != 1714979289 || g.Subdir != "app" {
		t.Errorf("got %+v", g)
	}
	got := map[string]bool{}
	for _, c := range g.Changed {
		got[c] = true
	}
	if want := map[string]bool{"edited": true, "gone": true, "new name é": true, "made.bin": true}; !reflect.DeepEqual(got, want) {
		t.Errorf("changed %v, want %v", g.Changed, want)
	}
}

// The index of the folder is the folder's own: what it says of files is not
// believed, of those of a submodule neither.
func TestGitStateBelievesNoIndex(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		t.Run(format, func(t *testing.T) {
			repository := func(files map[string]string) string {
				dir := folder(t, files)
				git(t, dir, "init", "-q", "--object-format="+format)
				git(t, dir, "add", "-A")
				git(t, dir, "commit", "-qm", "x")
				return dir
			}
			files := map[string]string{"app/as it was": "k", "app/assumed": "a", "app/run.sh": "r", "app/skipped": "s", "app/stat": "t", "app/unlisted": "u", "other/x": "x"}
			dir, bare := repository(files), repository(map[string]string{"b": "b"})
			module := filepath.Join(dir, "app/mod")
			for at, from := range map[string]string{"app/mod": repository(files), "app/bare": bare} {
				if err := os.Rename(from, filepath.Join(dir, at)); err != nil {
					t.Fatal(err)
				}
				git(t, dir, "add", at)
			}
			git(t, dir, "commit", "-qm", "with submodules")
			app := filepath.Join(dir, "app")
			changed := func() []string {
				t.Helper()
				g, err := gitHead(t.Context(), app)
				if err != nil {
					t.Fatal(err)
				}
				if err := g.details(t.Context(), app, func(string) bool { return true }); err != nil {
					t.Fatal(err)
				}
				slices.Sort(g.Changed)
				return g.Changed
			}
			if got := changed(); len(got) > 0 {
				t.Errorf("as committed, and %q changed", got)
			}
			for _, dir := range []string{dir, module} {
				app := filepath.Join(dir, "app")
				git(t, dir, "config", "core.trustctime", "false")
				git(t, dir, "config", "core.checkStat", "minimal")
				old := time.Unix(1e9, 0)
				at := func(name string) string {
					if err := os.Chtimes(filepath.Join(app, name), old, old); err != nil {
						t.Fatal(err)
					}
					return filepath.Join(app, name)
				}
				at("stat")
				git(t, dir, "status")
				write(t, at("stat"), "T")
				at("stat")
				git(t, dir, "update-index", "--assume-unchanged", "app/assumed")
				git(t, dir, "update-index", "--skip-worktree", "app/skipped")
				write(t, filepath.Join(app, "assumed"), "changed")
				write(t, filepath.Join(app, "skipped"), "changed")
				if err := os.Chmod(filepath.Join(app, "run.sh"), 0o755); err != nil {
					t.Fatal(err)
				}
				git(t, dir, "rm", "-q", "--cached", "app/unlisted")
				write(t, filepath.Join(dir, ".git/info/exclude"), "unlisted\n")
				write(t, filepath.Join(app, "unlisted"), "changed")
			}
			// Without a repository, what lies in a submodule's place is of no commit.
			if err := os.RemoveAll(filepath.Join(app, "bare/.git")); err != nil {
				t.Fatal(err)
			}
			want := []string{"bare/b"}
			for _, name := range []string{"assumed", "run.sh", "skipped", "stat", "unlisted"} {
				want = append(want, name, "mod/app/"+name)
			}
			slices.Sort(want)
			if got := changed(); !slices.Equal(got, want) {
				t.Errorf("changed %q, want %q", got, want)
			}
			// One at another commit is a change.
			git(t, module, "commit", "-qam", "y")
			if got := changed(); !slices.Contains(got, "mod") {
				t.Errorf("a submodule at another commit, and %q changed", got)
			}
		})
	}
}

func TestGitStateOfNoRepository(t *testing.T) {
	if g, err := gitHead(t.Context(), t.TempDir()); g != nil || err != nil {
		t.Errorf("a plain folder: %v, %v", g, err)
	}
	empty := t.TempDir()
	git(t, empty, "init", "-q")
	if g, err := gitHead(t.Context(), empty); g != nil || err == nil {
		t.Errorf("a repository without a commit: %v, %v", g, err)
	}
}

func TestCleanURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://user:pass@git.example/a.git":       "https://git.example/a.git",
		"https://token@git.example/a.git#main:sub":  "https://git.example/a.git#main:sub",
		"ssh://git@git.example/a":                   "ssh://git@git.example/a",
		"ssh://bob@git.example/a":                   "ssh://git.example/a",
		"git@git.example:a/b.git":                   "git@git.example:a/b.git",
		"user:pass@git.example:a/b.git":             "git.example:a/b.git",
		"https://dl.example/x?X-Amz-Signature=abc":  "https://dl.example/x?X-Amz-Signature=REMOVED",
		"https://git.example/a.git?ref=v1&subdir=x": "https://git.example/a.git?ref=v1&subdir=x",
		"https://u:p@bad%zz/x?token=1":              "https://bad%zz/x",
		"/srv/repo":                                 "/srv/repo",
	} {
		if got := cleanURL(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
	for in, want := range map[string]string{
		"https://git.example/a.git": "git+https://git.example/a.git",
		"git@git.example:a/b.git":   "git+ssh://git@git.example/a/b.git",
		"":                          "",
	} {
		if got := repositoryURI(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

func TestGitContextWithoutItsSubfolder(t *testing.T) {
	for in, want := range map[string]string{
		"https://git.example/a.git#main:sub":        "https://git.example/a.git#main",
		"https://git.example/a.git#:sub":            "https://git.example/a.git",
		"https://git.example/a.git?ref=v1&subdir=x": "https://git.example/a.git?ref=v1",
		"git@git.example:a.git#v1:x":                "git@git.example:a.git#v1",
	} {
		if got := withoutSubdir(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

func FuzzGit(f *testing.F) {
	f.Add(" M a\x00?? b c\x00!! d/\x00 D e\x00", "https://u:p@h/a?x=y")
	f.Add("", "git@h:p")
	f.Fuzz(func(t *testing.T, status, u string) {
		g := GitState{Subdir: "sub"}
		g.note(parseStatus([]byte(status)), func(string) bool { return true })
		if len(g.Changed) > maxChanged {
			t.Errorf("%d paths listed", len(g.Changed))
		}
		if p, err := url.Parse(cleanURL(u)); err == nil && p.User != nil {
			if _, has := p.User.Password(); has {
				t.Errorf("%q became %q", u, cleanURL(u))
			}
		}
		_ = repositoryURI(u)
		_ = withoutSubdir(u)
	})
}

// What a repository configures for itself must not run: a context can come
// from anywhere, and a wrapped command has written what it likes.
func TestGitRunsNothingOfTheRepository(t *testing.T) {
	ran := filepath.Join(t.TempDir(), "ran")
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho \"$0 $*\" >>"+ran+"\ncat\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	commit := func(dir string) {
		git(t, dir, "init", "-q")
		git(t, dir, "add", "-A")
		git(t, dir, "commit", "-qm", "x")
		// A commit with a signature, which log.showSignature has checked.
		raw := gitOut(t, dir, "", "cat-file", "commit", "HEAD")
		head, message, _ := strings.Cut(raw, "\n\n")
		signed := head + "\ngpgsig -----BEGIN PGP SIGNATURE-----\n \n x\n -----END PGP SIGNATURE-----\n\n" + message
		git(t, dir, "reset", "-q", strings.TrimSpace(gitOut(t, dir, signed, "hash-object", "-t", "commit", "-w", "--stdin")))
		for _, kv := range [][2]string{
			{"filter.evil.clean", program}, {"filter.a=b.process", program}, {"filter.a=b.required", "true"},
			{"core.fsmonitor", program}, {"gpg.program", program}, {"log.showSignature", "true"},
			{"include.path", "more"}, {"core.hooksPath", filepath.Dir(program)}, {"hook.evil.command", program}, {"hook.evil.event", "post-index-change"},
			{"core.pager", program}, {"pager.log", "true"}, {"core.editor", program}, {"alias.log", "!" + program}, {"trailer.x.cmd", program},
			{"diff.external", program}, {"diff.evil.command", program}, {"diff.evil.textconv", program}, {"merge.evil.driver", program},
			{"core.sshCommand", program}, {"core.gitProxy", program}, {"core.askPass", program}, {"credential.helper", program},
			{"core.alternateRefsCommand", program}, {"uploadpack.packObjectsHook", program}, {"submodule.sub.update", "!" + program},
			{"lfs.extension.evil.clean", program},
		} {
			git(t, dir, "config", kv[0], kv[1])
		}
		write(t, filepath.Join(dir, ".git/more"), "[filter \"included\"]\n\tclean = "+program+"\n[status]\n\tsubmoduleSummary = true\n")
	}
	stale := func(names ...string) {
		for _, name := range names {
			if err := os.Chtimes(name, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Symlink(program, filepath.Join(filepath.Dir(program), "post-index-change")); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{".gitattributes": "x filter=evil diff=evil\ny filter=a=b\nz filter=included\n", "x": "x", "y": "y", "z": "z"}
	dir, sub := folder(t, files), folder(t, files)
	commit(sub)
	if err := os.Rename(sub, filepath.Join(dir, "sub")); err != nil {
		t.Fatal(err)
	}
	commit(dir)
	// Its own configuration can be elsewhere.
	apart := filepath.Join(t.TempDir(), "git")
	if err := os.Rename(filepath.Join(dir, "sub/.git"), apart); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "sub/.git"), "gitdir: "+apart+"\n")
	c := &candidate{repo: &repository{root: dir}, sent: &sentFiles{context: map[string]gitFile{}, buf: make([]byte, 1024)}, differ: map[string]bool{}}
	tree, err := listCommit(t.Context(), dir, strings.TrimSpace(gitOut(t, dir, "", "rev-parse", "HEAD")))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x", "y", "z", "sub/x", "sub/y", "sub/z"} {
		stale(filepath.Join(dir, name))
		c.sent.context[name], c.differ[name] = tree[name], true
	}
	g, err := gitHead(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.details(t.Context(), dir, func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if len(g.Changed) != 0 {
		t.Errorf("changed: %q", g.Changed)
	}
	if same, err := c.filtered(t.Context(), tree); err != nil || !maps.Equal(same, c.differ) {
		t.Errorf("as committed: %v, %v", same, err)
	}
	if off, err := localFilters(t.Context(), dir); err != nil || !slices.Contains(off, "--config-env=lfs.extension.evil.clean="+emptyVar) {
		t.Errorf("switched off: %q, %v", off, err)
	}
	// Nor is one believed that is no more than files of this one.
	git(t, dir, "clone", "-q", "--bare", ".", "bare")
	if g, err := gitHead(t.Context(), filepath.Join(dir, "bare")); err == nil {
		t.Errorf("of a repository in the files of another: %+v", g)
	}
	if _, err := ReadHistory(t.Context(), dir, "", g.Commit); err != nil {
		t.Error(err)
	}
	if raw, err := os.ReadFile(ran); err == nil {
		t.Errorf("ran:\n%s", raw)
	}
}

// An object that is missing must stay missing: where the repository says that
// it is a part of another, git would fetch it, by a program that it names.
func TestGitFetchesNothing(t *testing.T) {
	ran := filepath.Join(t.TempDir(), "ran")
	program := filepath.Join(t.TempDir(), "program")
	write(t, program, "#!/bin/sh\necho \"$0 $* $VAULT_TOKEN\" >>"+ran+"\nexit 1\n")
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("VAULT_TOKEN", "hunter2")
	local := "file://" + t.TempDir()
	for name, config := range map[string][][2]string{
		"upload-pack": {{"remote.origin.url", local}, {"remote.origin.uploadpack", program}},
		"ssh":         {{"remote.origin.url", "ssh://git.test/a"}, {"core.sshCommand", program}},
		"git":         {{"remote.origin.url", "git://git.test/a"}, {"core.gitProxy", program}},
		"ext":         {{"remote.origin.url", "ext::" + program}, {"protocol.ext.allow", "always"}},
		"bundles":     {{"remote.origin.url", local}, {"remote.origin.uploadpack", program}, {"fetch.bundleURI", local}, {"core.alternateRefsCommand", program}},
		"allowed":     {{"remote.origin.url", local}, {"remote.origin.uploadpack", program}, {"protocol.allow", "always"}, {"protocol.file.allow", "always"}},
	} {
		for _, missing := range []string{"HEAD", "HEAD^{tree}", "the submodule's HEAD^{tree}"} {
			t.Run(name+" "+missing, func(t *testing.T) {
				dir := folder(t, map[string]string{"x": "x", "d/y": "y", "sub/z": "z"})
				hurt := dir
				repository := func(dir string) {
					git(t, dir, "init", "-q")
					git(t, dir, "add", "-A")
					git(t, dir, "commit", "-qm", "x")
				}
				repository(filepath.Join(dir, "sub"))
				repository(dir)
				what, inSub := strings.CutPrefix(missing, "the submodule's ")
				if inSub {
					hurt = filepath.Join(dir, "sub")
				}
				commit := strings.TrimSpace(gitOut(t, dir, "", "rev-parse", "HEAD"))
				id := strings.TrimSpace(gitOut(t, hurt, "", "rev-parse", what))
				for _, kv := range append([][2]string{{"core.repositoryFormatVersion", "1"}, {"extensions.partialClone", "origin"}, {"remote.origin.promisor", "true"}}, config...) {
					git(t, hurt, "config", kv[0], kv[1])
				}
				if err := os.Remove(filepath.Join(hurt, ".git/objects", id[:2], id[2:])); err != nil {
					t.Fatal(err)
				}
				if g, err := gitHead(t.Context(), dir); err == nil {
					_ = g.details(t.Context(), dir, func(string) bool { return true })
				}
				_, _ = listCommit(t.Context(), dir, commit)
				_, _ = ReadHistory(t.Context(), dir, "", commit)
				if raw, err := os.ReadFile(ran); err == nil {
					t.Errorf("ran:\n%s", raw)
					os.Remove(ran)
				}
			})
		}
	}
}

// A clone that left the content of old files where it was has all that is asked.
func TestGitOfAPartialClone(t *testing.T) {
	dir := folder(t, map[string]string{"old": strings.Repeat("line\n", 100)})
	git(t, dir, "init", "-q")
	git(t, dir, "config", "uploadpack.allowFilter", "true")
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-qm", "x")
	base := strings.TrimSpace(gitOut(t, dir, "", "rev-parse", "HEAD"))
	git(t, dir, "mv", "old", "new")
	write(t, filepath.Join(dir, "new"), strings.Repeat("line\n", 101))
	git(t, dir, "commit", "-qam", "y")
	clone := filepath.Join(t.TempDir(), "clone")
	git(t, dir, "clone", "-q", "--filter=blob:none", "file://"+dir, clone)
	if err := os.Chtimes(filepath.Join(clone, "new"), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	g, err := gitHead(t.Context(), clone)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.details(t.Context(), clone, func(string) bool { return true }); err != nil || len(g.Changed) > 0 {
		t.Errorf("changed: %q, %v", g.Changed, err)
	}
	if tree, err := listCommit(t.Context(), clone, g.Commit); err != nil || len(tree) != 1 {
		t.Errorf("files: %v, %v", tree, err)
	}
	if h, err := ReadHistory(t.Context(), clone, base, g.Commit); err != nil || len(h.Commits) != 1 || h.Files != 2 {
		t.Errorf("history: %+v, %v", h, err)
	}
}

func TestGitEnv(t *testing.T) {
	got := gitEnv([]string{
		"PATH=/bin", "HOME=/root", "GIT_CONFIG_GLOBAL=/g", "GIT_CONFIG_COUNT=0", "SUDO_UID=7",
		"COSIGN_PASSWORD=x", "VAULT_TOKEN=x", "AWS_SECRET_ACCESS_KEY=x", "GITHUB_TOKEN=x", "GIT_PASSWORD=x", "GIT_AUTH_TOKEN=x", "SSH_AUTH_SOCK=/s",
		"GIT_DIR=/d", "GIT_WORK_TREE=/w", "GIT_INDEX_FILE=/i", "GIT_EXTERNAL_DIFF=/e", "GIT_TRACE=/t", "GIT_ALLOW_PROTOCOL=ext",
	})
	want := []string{"PATH=/bin", "HOME=/root", "GIT_CONFIG_GLOBAL=/g", "GIT_CONFIG_COUNT=0", "SUDO_UID=7"}
	if !reflect.DeepEqual(got[:min(len(want), len(got))], want) {
		t.Errorf("got %q", got)
	}
	for _, kv := range got[len(want):] {
		if name, _, _ := strings.Cut(kv, "="); !reflect.DeepEqual(gitEnv([]string{name + "=x"}), gitEnv(nil)) {
			t.Errorf("%s can be set from outside", name)
		}
	}
}

func gitOut(t *testing.T, dir, in string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", dir}, args...)...)
	cmd.Stdin = strings.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git %v: %v", args, err)
	}
	return string(out)
}
