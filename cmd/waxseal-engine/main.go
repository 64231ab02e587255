// Command waxseal-engine builds images and catalogues them for waxseal, which
// starts it as a child and is its only user. It gets no key and no token.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/waxseal/waxseal/internal/engine"
)

const usage = `waxseal-engine is started by waxseal and has nothing to offer by hand, but for:
  waxseal-engine catalog --layout DIR --digest sha256:... [--format spdx|cyclonedx]
  waxseal-engine version`

func main() {
	// As process 1 of its namespace the engine has no default actions for
	// signals. The lifetime pipe is how it is told to stop; SIGTERM does the same.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "waxseal-engine:", err)
		var h interface{ Hint() string }
		if errors.As(err, &h) {
			fmt.Fprintln(os.Stderr, "  hint:", h.Hint())
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	command := ""
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	f := flag.NewFlagSet("waxseal-engine "+command, flag.ContinueOnError)
	f.SetOutput(stderr)
	switch command {
	case "serve":
		cfg := engine.Config{Version: version()}
		var allow, insecure string
		f.StringVar(&cfg.Root, "root", "", "folder of the build cache")
		f.StringVar(&allow, "allow", "", "entitlements builds may use, with commas: network.host, security.insecure")
		f.StringVar(&insecure, "insecure-registry", "", "registry hosts with plain HTTP or unverified TLS, with commas")
		if err := f.Parse(args); err != nil {
			return err
		}
		cfg.Entitlements, cfg.InsecureRegistries = list(allow), list(insecure)
		return engine.Serve(ctx, cfg)
	case "catalog":
		var req engine.CatalogRequest
		f.StringVar(&req.Layout, "layout", "", "folder of an OCI layout")
		f.StringVar(&req.Digest, "digest", "", "digest of an image manifest in it")
		f.StringVar(&req.Format, "format", "", "spdx or cyclonedx; both in one object when empty")
		f.StringVar(&req.Name, "name", "", "what the documents call the image")
		f.StringVar(&req.Epoch, "epoch", "", "seconds since 1970 for the documents' time; default the image's own")
		f.BoolVar(&req.Lifetime, "lifetime", false, "end when the pipe on file descriptor 3 does")
		if err := f.Parse(args); err != nil {
			return err
		}
		return engine.Catalog(ctx, req, stdout)
	case "secrets":
		if err := f.Parse(args); err != nil {
			return err
		}
		return engine.Secrets(ctx, os.Stdin, stdout)
	case "version":
		_, err := fmt.Fprintln(stdout, "waxseal-engine", version())
		return err
	default:
		return errors.New(usage)
	}
}

func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

func version() string {
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" {
		return bi.Main.Version
	}
	return "(devel)"
}
