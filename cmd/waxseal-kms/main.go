// Command waxseal-kms speaks with key management services, Kubernetes clusters
// and PKCS#11 tokens for waxseal, which starts it when a key is named by such a
// reference.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/waxseal/waxseal/internal/kms"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run returns 0 whatever a service says: only a whole reply is one.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	log.SetOutput(io.Discard) // the providers' own
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case slices.Equal(args, []string{"serve"}):
		err = kms.Serve(ctx, stdin, stdout)
	case len(args) == 2 && args[0] == "public-key":
		err = json.NewEncoder(stdout).Encode(kms.PublicKey(ctx, args[1]))
	default:
		fmt.Fprintln(stderr, "waxseal-kms is started by waxseal; by hand: waxseal-kms public-key REFERENCE")
		return 64
	}
	if err != nil {
		fmt.Fprintln(stderr, "waxseal-kms:", err)
		return 1
	}
	return 0
}
