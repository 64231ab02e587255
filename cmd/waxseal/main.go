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
	_ "github.com/waxseal/waxseal/internal/start" // fewer milliseconds for each process
)

func main() {
	lookup, secret := cli.Environment()
	os.Exit(run(os.Args, cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, LookupEnv: lookup, Secret: secret}))
}

// run maps a panic to "not decided": Go's own exit code for one is 2, which a
// caller could mistake for an answer.
func run(args []string, s cli.Streams) (code int) {
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(s.Err, "waxseal: internal error: %v (please report it, with the command line)\n", p)
			code = cli.ExitUndecided
		}
	}()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// After the first signal the default action is back: a second one kills.
	context.AfterFunc(ctx, stop)
	if filepath.Base(args[0]) == cli.VerifierName {
		return cli.Verifier(ctx, args[1:], s)
	}
	return cli.Main(ctx, args[1:], s)
}
