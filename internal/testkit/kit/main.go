// Command kit gives the Makefile and the demo what package testkit gives tests:
//
//	kit base debian|tools|tiny                  makes a base image, prints its OCI layout's path
//	kit registry FILE                           runs a registry until its standard input ends; its address is in FILE
//	kit instance DIR                            runs real servers of Sigstore until its standard input ends; DIR has what
//	                                            testkit.StartInstance writes and, when they are there, the issuer's address
//	kit tamper LAYOUT PREDICATETYPE OLD NEW     changes evidence in a layout, as an attacker would
//	kit sigstore DIR LAYOUT PREDICATETYPE PREDICATE SAN ISSUER   bundles and roots of a Sigstore instance in memory
//	kit corpus [--with PROGRAM]                 puts testdata/corpus to waxseal, cosign, slsa-verifier or a program
//	kit corpus verify --case DIR                answers one case as waxseal does, in the corpus's protocol
//	kit summary                                 reads `go test -json`, prints what matters and what was skipped
//	kit bench [start|bundles|images|keyless|verify|builds|inputs|run [N]]   measures waxseal against sigstore-go, slsa-verifier, cosign and
//	                                            buildctl, the gateway against none, and make and buildx under
//	                                            waxseal run against themselves; images takes their number
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/waxseal/waxseal/internal/testkit"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kit:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 1 && args[0] == "measure" { // for bench
		return measure(ctx, os.Stdout, args[1], args[2:]...)
	}
	if len(args) > 0 && args[0] == "corpus" {
		return runCorpus(ctx, args[1:])
	}
	args = append(args, "", "", "", "", "", "")
	switch args[0] {
	case "base":
		path, err := testkit.Base(ctx, args[1])
		if err != nil {
			return err
		}
		fmt.Println(path)
		return nil
	case "registry":
		return serve(ctx, args[1])
	case "instance":
		return serveInstance(ctx, args[1])
	case "tamper":
		return testkit.Tamper(args[1], args[2], args[3], args[4])
	case "sigstore":
		return testkit.Sigstore(args[1], args[2], args[3], args[4], args[5], args[6])
	case "summary":
		return summarize(os.Stdin, os.Stdout, testkit.OnCI())
	case "bench":
		return runBench(ctx, os.Stdout, args[1], args[2])
	}
	return errors.New("usage: kit base|registry|instance|tamper|sigstore|corpus|summary|bench ARGUMENTS")
}

// serve runs a registry that keeps its blobs beside file, writes its address
// into file, and ends with ctx or with standard input.
func serve(ctx context.Context, file string) error {
	dir, err := os.MkdirTemp(filepath.Dir(file), "registry-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	reg, err := testkit.NewRegistry(testkit.RegistryOptions{Dir: dir})
	if err != nil {
		return err
	}
	defer reg.Close()
	return until(ctx, file, reg.Addr)
}

// serveInstance runs a Sigstore instance in dir, and ends as serve does.
func serveInstance(ctx context.Context, dir string) error {
	peers, err := sigstorePeers(ctx)
	if err != nil {
		return err
	}
	i, err := testkit.StartInstance(ctx, peers, dir, testkit.InstanceOptions{})
	if err != nil {
		return err
	}
	defer i.Close()
	return until(ctx, filepath.Join(dir, "issuer"), i.Issuer)
}

// sigstorePeers is the folder of Sigstore's servers.
func sigstorePeers(ctx context.Context) (dir string, err error) {
	for _, name := range []string{"fulcio", "timestamp-server", "rekor-server-posix"} {
		path, err := testkit.BuildPeer(ctx, name)
		if err != nil {
			return "", err
		}
		dir = filepath.Dir(path)
	}
	return dir, nil
}

// until keeps text in file until ctx or standard input ends.
func until(ctx context.Context, file, text string) error {
	if err := os.WriteFile(file+".new", []byte(text+"\n"), 0o644); err != nil {
		return err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return err
	}
	defer os.Remove(file)
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		ended <- err
	}()
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		return err
	}
}
