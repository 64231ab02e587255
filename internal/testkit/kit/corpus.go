package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/internal/testkit/corpus"
)

// runCorpus puts the corpus to a verifier, or answers one case of it.
func runCorpus(ctx context.Context, args []string) error {
	root, err := testkit.Root()
	if err != nil {
		return err
	}
	with := "waxseal"
	switch {
	case len(args) == 3 && args[0] == "verify" && args[1] == "--case":
		return answer(ctx, args[2])
	case len(args) == 2 && args[0] == "--with":
		with = args[1]
	case len(args) > 0:
		return errors.New("usage: kit corpus [--with waxseal|cosign|slsa-verifier|PROGRAM], or kit corpus verify --case DIR")
	}
	cases, err := corpus.List(filepath.Join(root, "testdata", "corpus"))
	if err != nil {
		return err
	}
	switch with {
	case "waxseal":
		dir, err := testkit.Shipped(ctx)
		if err != nil {
			return err
		}
		return corpus.Report(ctx, os.Stdout, cases, corpus.Waxseal(corpus.Program(filepath.Join(dir, "waxseal"))))
	case "cosign", "slsa-verifier":
		path, err := testkit.BuildPeer(ctx, with)
		if err != nil {
			return err
		}
		if with == "cosign" {
			return corpus.Pieces(ctx, os.Stdout, cases, path)
		}
		return corpus.Report(ctx, os.Stdout, cases, corpus.SLSAVerifier(path))
	}
	return corpus.Report(ctx, os.Stdout, cases, corpus.Entry(with))
}

// answer prints the one line of the protocol and exits with its code.
func answer(ctx context.Context, dir string) error {
	c, err := corpus.Load(dir)
	if err != nil {
		return err
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	c.Dir = "."
	a, err := corpus.Waxseal(corpus.InProcess)(ctx, c)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
		return err
	}
	if code := corpus.Exit(a.Decision); code != 0 {
		os.Exit(code)
	}
	return nil
}
