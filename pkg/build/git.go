package build

import (
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // git's
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// GitState is what git says about a context folder. It is the word of the
// machine that built, no proof.
type GitState struct {
	Remote  string   // URL of the remote, credentials removed; may be empty
	Commit  string   // full id
	Time    int64    // the committer's time, seconds
	Subdir  string   // the context's place in the work tree, "" for its root
	Changed []string // paths of the context that are not as in the commit
	More    int      // changed paths beyond those listed
}

const (
	maxChanged   = 1000
	maxGitOutput = 64 << 20
)

// gitHead asks git for the commit of dir. A folder that is in no work tree
// gives nil and no error; a work tree that git will not answer for gives an
// error that says why.
func gitHead(ctx context.Context, dir string) (*GitState, error) {
	if !hasGitDir(dir) {
		return nil, nil
	}
	if _, err := exec.LookPath("git"); err != nil {
		return nil, errors.New("git is not installed")
	}
	prefix, err := runGit(ctx, dir, "rev-parse", "--show-prefix")
	if err != nil {
		return nil, err
	}
	head, err := runGit(ctx, dir, "log", "-1", "--format=%H %ct", "HEAD")
	if err != nil {
		return nil, err
	}
	g := &GitState{Subdir: strings.TrimSuffix(strings.TrimSuffix(string(prefix), "\n"), "/")}
	commit, when, _ := strings.Cut(strings.TrimSpace(string(head)), " ")
	if g.Time, err = strconv.ParseInt(when, 10, 64); err != nil {
		return nil, fmt.Errorf("reading commit time: %w", err)
	}
	g.Commit = commit
	return g, nil
}

// details adds the remote and what differs from the commit. inContext reports
// whether a path of the context takes part in the build.
func (g *GitState) details(ctx context.Context, dir string, inContext func(string) bool) error {
	if remote, err := runGit(ctx, dir, "config", "--get-regexp", `^remote\..*\.url$`); err == nil {
		g.Remote = pickRemote(string(remote))
	}
	changed, err := changes(ctx, dir, g.Subdir, g.Commit, 0)
	if err != nil {
		return err
	}
	g.note(changed, inContext)
	return nil
}

// maxSubmoduleDepth bounds how deep submodules are looked into.
const maxSubmoduleDepth = 8

// changes asks git what in dir, which lies at a place in its repository, is not
// as in the commit, and in submodules not as in the commit that theirs is. The
// folder's own index is not believed: it can say that a file is not to be looked
// at, or has been. Git gets one of the commit that knows of no file.
func changes(ctx context.Context, dir, at, commit string, depth int) ([]gitChange, error) {
	if depth > maxSubmoduleDepth {
		return nil, errors.New("submodules are nested too deep")
	}
	tree, err := listTree(ctx, dir, commit)
	if err != nil {
		return nil, err
	}
	temp, err := os.MkdirTemp("", "waxseal-git-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	index := filepath.Join(temp, "index")
	if err := os.WriteFile(index, freshIndex(tree, len(commit)/2), 0o600); err != nil {
		return nil, err
	}
	filters, err := localFilters(ctx, dir)
	if err != nil {
		return nil, err
	}
	// Ignored files are asked for too: a build output that git ignores and the
	// context holds is not in the commit either.
	status, err := runGitWith(ctx, dir, "GIT_INDEX_FILE="+index, append(filters, "status", "--porcelain=v1", "-z", "--untracked-files=all", "--ignored=traditional", "--ignore-submodules=dirty", "--no-renames", "--", ".")...)
	if err != nil {
		return nil, err
	}
	out := parseStatus(status)
	for _, name := range sortedKeys(tree) {
		inside, ok := strings.CutPrefix(name, at+"/")
		if at == "" {
			inside, ok = name, true
		}
		if !ok || tree[name].mode != gitModule {
			continue
		}
		more, err := moduleChanges(ctx, filepath.Join(dir, filepath.FromSlash(inside)), tree[name].id, depth+1)
		if err != nil {
			return nil, err
		}
		for _, c := range more {
			c.path = name + "/" + c.path
			out = append(out, c)
		}
	}
	return out, nil
}

// moduleChanges is changes of a submodule. One that is at another commit is a
// change itself, which the repository above tells; without a repository there
// is nothing that its files could be from.
func moduleChanges(ctx context.Context, dir, commit string, depth int) ([]gitChange, error) {
	files, err := os.ReadDir(dir)
	if err != nil || len(files) == 0 {
		return nil, nil // it is told as missing, or not checked out
	}
	if _, err := os.Lstat(filepath.Join(dir, ".git")); err == nil {
		if head, err := gitHead(ctx, dir); err != nil {
			return nil, err
		} else if head.Subdir == "" {
			if head.Commit != commit {
				return nil, nil
			}
			return changes(ctx, dir, "", commit, depth)
		}
	}
	var out []gitChange
	for _, f := range files {
		out = append(out, gitChange{path: f.Name()})
	}
	return out, nil
}

// freshIndex is an index of the files of a commit, whose ids have so many bytes,
// that says of none of them when it was looked at last.
// https://git-scm.com/docs/index-format
func freshIndex(tree map[string]gitFile, idLength int) []byte {
	out := binary.BigEndian.AppendUint32([]byte("DIRC\x00\x00\x00\x02"), uint32(len(tree)))
	for _, name := range sortedKeys(tree) {
		begin := len(out)
		mode, _ := strconv.ParseUint(tree[name].mode, 8, 32)
		if mode>>12 == 0o10 { // the first versions of git wrote other permissions as well
			mode = 0o100644 | mode&0o100/0o100*0o111
		}
		out = append(out, make([]byte, 24)...) // two times, device and inode
		out = binary.BigEndian.AppendUint32(out, uint32(mode))
		out = append(out, make([]byte, 12)...) // owner, group, size
		id, _ := hex.DecodeString(tree[name].id)
		out = append(out, id...)
		out = binary.BigEndian.AppendUint16(out, uint16(min(len(name), 0xfff)))
		out = append(out, name...)
		out = append(out, make([]byte, 8-(len(out)-begin)%8)...)
	}
	if idLength == sha256.Size {
		sum := sha256.Sum256(out)
		return append(out, sum[:]...)
	}
	sum := sha1.Sum(out) //nolint:gosec // git's
	return append(out, sum[:]...)
}

// pickRemote takes the URL of origin, or of the first remote, from the lines
// "remote.NAME.url URL".
func pickRemote(lines string) string {
	out := ""
	for _, line := range strings.Split(lines, "\n") {
		key, u, ok := strings.Cut(line, " ")
		if !ok {
			continue
		}
		if key == "remote.origin.url" {
			return cleanURL(u)
		}
		if out == "" {
			out = cleanURL(u)
		}
	}
	return out
}

// note keeps the changed paths that take part in the build.
func (g *GitState) note(changed []gitChange, inContext func(string) bool) {
	for _, c := range changed {
		p := c.path
		if g.Subdir != "" {
			var ok bool
			if p, ok = strings.CutPrefix(p, g.Subdir+"/"); !ok {
				continue
			}
		}
		// A deleted file is missing from the context: that is a change of it.
		if !c.deleted && !inContext(strings.TrimSuffix(p, "/")) {
			continue
		}
		if len(g.Changed) >= maxChanged {
			g.More++
			continue
		}
		g.Changed = append(g.Changed, p)
	}
}

type gitChange struct {
	path    string
	deleted bool
}

// parseStatus reads the output of git status --porcelain=v1 -z without renames.
func parseStatus(raw []byte) []gitChange {
	var out []gitChange
	for _, rec := range bytes.Split(raw, []byte{0}) {
		if len(rec) < 4 || rec[2] != ' ' {
			continue
		}
		out = append(out, gitChange{path: string(rec[3:]), deleted: rec[0] == 'D' || rec[1] == 'D'})
	}
	return out
}

// localFilters are the options that switch off the content filters which the
// repository configures for itself, and what it has the filter of git-lfs run:
// git status would run them. Those of the user and the machine, as git-lfs
// installs them, stay.
func localFilters(ctx context.Context, dir string) ([]string, error) {
	// Only an error can be told from "there are none" by git's output.
	found, err := runGit(ctx, dir, "config", "-z", "--show-scope", "--name-only", "--get-regexp", `^(filter\..*\.(clean|process|required)|lfs\.extension\..*\.clean)$`)
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
		return nil, err
	}
	var out []string
	fields := strings.Split(string(found), "\x00")
	for i := 0; i+1 < len(fields); i += 2 {
		if scope := fields[i]; scope != "local" && scope != "worktree" {
			continue
		}
		// -c would end the name at the first "=" in it.
		out = append(out, "--config-env="+fields[i+1]+"="+emptyVar)
	}
	return out, nil
}

// emptyVar is a variable that git is given, with nothing in it.
const emptyVar = "WAXSEAL_NOTHING"

// gitVariables are all that git gets of an environment: where it and its
// configuration are. What signs or logs in is not among them, nor what would
// have git answer for another repository.
func gitVariables() []string {
	return []string{
		"PATH", "HOME", "USER", "LOGNAME", "XDG_CONFIG_HOME", "TMPDIR", "SUDO_UID", "LD_LIBRARY_PATH",
		"GIT_CONFIG_*", "GIT_EXEC_PATH", "GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM",
	}
}

// gitEnv is git's environment. An object that is missing is not fetched: the
// repository would say by which program. Where git does not know the variable
// for that yet, no protocol is allowed for it.
func gitEnv(environ []string) []string {
	env := slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return !matches(gitVariables(), name)
	})
	return append(env, emptyVar+"=", "GIT_NO_LAZY_FETCH=1", "GIT_ALLOW_PROTOCOL=none", "GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0", "LC_ALL=C")
}

// runGit runs git so that nothing the repository configures is executed, and
// with nothing in its environment that is of use to anybody.
func runGit(ctx context.Context, dir string, args ...string) ([]byte, error) {
	return runGitWith(ctx, dir, "", args...)
}

// runGitWith is runGit with a variable more, as NAME=VALUE; empty for none.
func runGitWith(ctx context.Context, dir, variable string, args ...string) ([]byte, error) {
	// It reads every file of the folder, which may be on a slow disk.
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	safe := []string{"-C", dir, "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.quotePath=false", "-c", "log.showSignature=false",
		// So that it looks at files as closely as it can.
		"-c", "core.trustctime=true", "-c", "core.checkStat=default", "-c", "core.untrackedCache=false",
		"-c", "core.fileMode=true", "-c", "core.symlinks=true", "-c", "core.ignoreCase=false",
		// A fetch asks for bundles before it asks which protocols are allowed.
		"-c", "fetch.bundleURI=",
		// A repository in the files of another, without a .git, is none.
		"-c", "safe.bareRepository=explicit",
		// A replacement would show another commit than the one that is named.
		"-c", "core.useReplaceRefs=false"}
	cmd := exec.CommandContext(ctx, "git", append(safe, args...)...)
	cmd.Env = gitEnv(os.Environ())
	if variable != "" {
		cmd.Env = append(cmd.Env, variable)
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &limitedBuffer{&out, maxGitOutput}, &limitedBuffer{&errs, 4 << 10}
	if err := cmd.Run(); err != nil {
		if line, _, _ := strings.Cut(strings.TrimSpace(errs.String()), "\n"); line != "" {
			return nil, fmt.Errorf("git %s: %s", args[0], strings.TrimPrefix(line, "fatal: "))
		}
		return nil, fmt.Errorf("git %s: %w", args[0], err)
	}
	return out.Bytes(), nil
}

type limitedBuffer struct {
	w    *bytes.Buffer
	left int
}

func (l *limitedBuffer) Write(p []byte) (int, error) {
	if len(p) > l.left {
		return 0, io.ErrShortWrite
	}
	l.left -= len(p)
	return l.w.Write(p)
}

func hasGitDir(dir string) bool {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return false
	}
	for {
		if _, err := os.Lstat(filepath.Join(abs, ".git")); err == nil {
			return true
		}
		up := filepath.Dir(abs)
		if up == abs {
			return false
		}
		abs = up
	}
}

// cleanURL removes what can be a credential from a URL: user and password, and
// the values of its query except the ones that BuildKit gives a meaning to. A
// user name in the ssh form (git@host:path) is kept: it is the same for all.
func cleanURL(s string) string {
	if !strings.Contains(s, "://") {
		if at := strings.Index(s, "@"); at > 0 && strings.Contains(s[:at], ":") {
			return s[at+1:] // user:password@host:path
		}
		return s
	}
	u, err := url.Parse(s)
	if err != nil {
		scheme, rest, _ := strings.Cut(s, "://")
		if at := strings.LastIndex(rest, "@"); at >= 0 {
			rest = rest[at+1:]
		}
		rest, _, _ = strings.Cut(rest, "?")
		return scheme + "://" + rest
	}
	if u.User != nil {
		if u.Scheme == "ssh" && u.User.Username() == "git" {
			u.User = url.User("git")
		} else {
			u.User = nil
		}
	}
	if u.RawQuery != "" {
		keep := url.Values{}
		for k, v := range u.Query() {
			switch k {
			case "ref", "tag", "branch", "commit", "checksum", "subdir", "keep-git-dir", "submodules", "mtime", "fetch-by-commit":
				keep[k] = v
			default:
				keep[k] = []string{"REMOVED"}
			}
		}
		u.RawQuery = keep.Encode()
	}
	return u.String()
}

// repositoryURI is the SPDX form of a git remote, as SLSA wants it.
func repositoryURI(remote string) string {
	switch {
	case remote == "":
		return ""
	case strings.HasPrefix(remote, "git+"):
		return remote
	case strings.Contains(remote, "://"):
		return "git+" + remote
	}
	if host, p, ok := strings.Cut(remote, ":"); ok && !strings.Contains(host, "/") {
		return "git+ssh://" + host + "/" + strings.TrimPrefix(p, "/")
	}
	return "git+file://" + path.Clean(remote)
}
