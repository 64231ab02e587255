package build

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/waxseal/waxseal/pkg/attest"
)

// maxCommits bounds the commits that a History lists.
const maxCommits = 200

// History is what lies between two commits. It is the word of the work tree
// that was asked, no proof.
type History struct {
	Commits []Commit `json:"commits"`        // newest first
	More    int      `json:"more,omitempty"` // commits beyond those listed
	Files   int      `json:"files"`          // changed between the two, or in the tree where there is no base
	Authors []string `json:"authors"`        // of all of the commits: names and mail addresses, sorted
}

// Commit is one commit of a History.
type Commit struct {
	ID      string `json:"id"`
	Author  string `json:"author"` // mail address
	Subject string `json:"subject"`
}

// ReadHistory asks git in the work tree at dir what commit has that base has
// not; base may be empty: all of it. Both are whole ids. Authors are those of
// the commits, and those that their messages name as "Co-authored-by".
func ReadHistory(ctx context.Context, dir, base, commit string) (*History, error) {
	h, err := readHistory(ctx, dir, base, commit)
	if err != nil {
		return nil, fmt.Errorf("reading the history of %s in %q: %w", commit[:min(12, len(commit))], dir, err)
	}
	return h, nil
}

func readHistory(ctx context.Context, dir, base, commit string) (*History, error) {
	if !attest.IsCommit(commit) || base != "" && !attest.IsCommit(base) {
		return nil, errors.New("give the whole ids of commits")
	}
	if _, err := exec.LookPath("git"); err != nil {
		return nil, errors.New("git is not installed")
	}
	span, tree := commit, []string{"ls-tree", "-r", "-z", "--name-only", commit}
	if base != "" {
		// Only what was renamed as it is counts as one file: a partial clone does
		// not have what more would have to be compared.
		span, tree = base+".."+commit, []string{"diff", "-z", "--name-only", "--find-renames=100%", "--no-ext-diff", "--no-textconv", base, commit, "--"}
	}
	shallow, err := runGit(ctx, dir, "rev-parse", "--is-shallow-repository")
	if err != nil {
		return nil, err
	}
	if strings.TrimSpace(string(shallow)) == "true" {
		return nil, errors.New("the work tree has a part of the history only; run git fetch --unshallow")
	}
	log, err := runGit(ctx, dir, "log", "-z", "--no-mailmap",
		"--format=%H%x01%an%x01%ae%x01%s%x01%(trailers:key=Co-authored-by,valueonly,unfold,separator=%x02)", span, "--")
	if err != nil {
		return nil, err
	}
	files, err := runGit(ctx, dir, tree...)
	if err != nil {
		return nil, err
	}
	h := &History{Commits: []Commit{}, Authors: []string{}, Files: strings.Count(string(files), "\x00")}
	for entry := range strings.SplitSeq(strings.TrimRight(string(log), "\x00"), "\x00") {
		f := strings.SplitN(entry, "\x01", 5)
		if entry == "" {
			continue
		}
		if len(f) != 5 {
			return nil, fmt.Errorf("git log answered %s", strconv.Quote(entry[:min(100, len(entry))]))
		}
		h.Authors = append(h.Authors, f[1], f[2])
		for who := range strings.SplitSeq(f[4], "\x02") {
			name, mail, _ := strings.Cut(strings.TrimSpace(who), "<")
			h.Authors = append(h.Authors, strings.TrimSpace(name), strings.TrimSuffix(strings.TrimSpace(mail), ">"))
		}
		if len(h.Commits) == maxCommits {
			h.More++
			continue
		}
		h.Commits = append(h.Commits, Commit{ID: f[0], Author: f[2], Subject: f[3]})
	}
	slices.Sort(h.Authors)
	h.Authors = slices.DeleteFunc(slices.Compact(h.Authors), func(a string) bool { return a == "" })
	return h, nil
}
