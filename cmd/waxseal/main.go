// Command waxseal builds container images with signed provenance, verifies
// what an image's evidence carries, and promotes what passes.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/waxseal/waxseal/internal/cli"
)

func main() {
	os.Exit(run())
}

// run maps a panic to "not decided": Go's own exit code for one is 2, which a
// caller could mistake for an answer.
func run() (code int) {
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(os.Stderr, "waxseal: internal error: %v (please report it, with the command line)\n", p)
			code = cli.ExitUndecided
		}
	}()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// After the first signal the default action is back: a second one kills.
	context.AfterFunc(ctx, stop)
	streams := cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, LookupEnv: os.LookupEnv}
	if filepath.Base(os.Args[0]) == cli.VerifierName {
		return cli.Verifier(ctx, os.Args[1:], streams)
	}
	return cli.Main(ctx, os.Args[1:], streams)
}
