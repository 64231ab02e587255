// Command waxseal-kms reads the public half of a key out of a key management
// service for waxseal, which starts it when a key is named by such a reference.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/waxseal/waxseal/internal/kms"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run prints one kms.Reply and returns 0, whatever the service says: only a
// whole reply is one.
func run(args []string, stdout, stderr io.Writer) int {
	if len(args) != 2 || args[0] != "public-key" {
		fmt.Fprintln(stderr, "waxseal-kms is started by waxseal; by hand: waxseal-kms public-key REFERENCE")
		return 64
	}
	log.SetOutput(io.Discard) // the providers' own
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := json.NewEncoder(stdout).Encode(kms.Answer(ctx, args[1])); err != nil {
		fmt.Fprintln(stderr, "waxseal-kms:", err)
		return 1
	}
	return 0
}
