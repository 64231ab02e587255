// Command waxseal-sandbox runs a command with its files and its traffic watched,
// or watches the traffic of docker's steps, for waxseal, which starts it as a child and is its only user. It gets no key
// and no token. It is a program of its own because it must start quickly.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/waxseal/waxseal/internal/sandbox"
)

const usage = "waxseal-sandbox is started by waxseal and has nothing to offer by hand, but for: waxseal-sandbox version"

func main() {
	if filepath.Base(os.Args[0]) == sandbox.RuntimeName {
		fmt.Fprintln(os.Stderr, "waxseal:", sandbox.Runtime(os.Args[1:])) // it returns where nothing was started
		os.Exit(1)
	}
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "waxseal-sandbox:", err)
		os.Exit(1)
	}
	os.Exit(code) // a command's own: it has said what there is to say
}

func run(args []string) (int, error) {
	if len(args) == 2 && args[0] == "hold" {
		return 0, sandbox.Hold(args[1])
	}
	if len(args) != 1 {
		return 0, errors.New(usage)
	}
	switch args[0] {
	case "legacy":
		return 0, sandbox.Legacy(context.Background(), version())
	case "keep":
		return sandbox.Keep(context.Background(), version()) // signals are the command's
	case "first":
		return 0, sandbox.First()
	case "version":
		_, err := fmt.Println("waxseal-sandbox", version())
		return 0, err
	}
	return 0, errors.New(usage)
}

func version() string {
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" {
		return bi.Main.Version
	}
	return "(devel)"
}
