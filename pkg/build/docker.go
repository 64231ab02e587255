package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/waxseal/waxseal/pkg/store"
)

const noDocker = "install the Docker client and start its daemon, or build into an OCI layout with -o type=oci,tar=false,dest=FOLDER"

// reachDocker asks the Docker daemon whether it is there.
func reachDocker(ctx context.Context) error {
	if _, err := exec.LookPath("docker"); err != nil {
		return hinted(errors.New("loading into Docker: there is no docker on PATH"), noDocker)
	}
	cmd := exec.CommandContext(ctx, "docker", "version", "--format", "{{.Server.Version}}")
	cmd.Env = helperEnv(os.Environ())
	var said bytes.Buffer
	cmd.Stderr = &limitedBuffer{&said, 64 << 10}
	if err := cmd.Run(); err != nil {
		return hinted(fmt.Errorf("loading into Docker: %s", firstLine(said.String(), err)), noDocker)
	}
	return nil
}

// loadIntoDocker pipes an image archive into docker load.
func loadIntoDocker(ctx context.Context, write func(io.Writer) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", "image", "load", "--quiet")
	cmd.Env = helperEnv(os.Environ())
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd.Stderr, cmd.Stdout = &limitedBuffer{&said, 64 << 10}, io.Discard
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("loading into Docker: %w", err)
	}
	writeErr := write(stdin)
	if errors.Is(writeErr, syscall.EPIPE) {
		writeErr = nil // docker gave up, and says why
	}
	if writeErr != nil {
		cancel() // half an archive is not for loading
	}
	_ = stdin.Close() // an error here is one of docker's, too
	if err := cmd.Wait(); err != nil && writeErr == nil {
		return hinted(fmt.Errorf("loading into Docker: %s", firstLine(said.String(), err)), "docker info tells how its daemon does; -o type=oci,tar=false,dest=FOLDER needs none")
	}
	if writeErr != nil {
		return fmt.Errorf("loading into Docker: %w", writeErr)
	}
	return nil
}

// saveFromDocker writes the daemon's image of that name into dir as an OCI
// layout. Its blobs are checked by digest when they are used.
func saveFromDocker(ctx context.Context, name, dir string) error {
	if _, err := exec.LookPath("docker"); err != nil {
		return hinted(errors.New("taking an image from Docker: there is no docker on PATH"), "install the Docker client, or give the image as oci:LAYOUT")
	}
	if strings.HasPrefix(name, "-") || name == "" {
		return fmt.Errorf("taking an image from Docker: %q is no name", name)
	}
	cmd := exec.CommandContext(ctx, "docker", "image", "save", oneImage(name))
	cmd.Env = helperEnv(os.Environ())
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd.Stderr = &limitedBuffer{&said, 64 << 10}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("taking an image from Docker: %w", err)
	}
	readErr := store.UnpackSaved(ctx, stdout, dir)
	_, _ = io.Copy(io.Discard, stdout)
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		text := firstLine(said.String(), err)
		if strings.Contains(text, "reference does not exist") { // of a name with a tag, as save says it
			text = "No such image: " + oneImage(name)
		}
		return hinted(fmt.Errorf("taking image %q from Docker: %s", name, text), wayToDocker(text))
	}
	if readErr != nil {
		return fmt.Errorf("taking image %q from Docker: %w", name, readErr)
	}
	return nil
}

// oneImage is a name as docker save must have it: a repository alone would be all
// that it has, whatever the tags, and to every other command it is its latest. An
// image's ID, or the beginning of one, stays.
func oneImage(name string) string {
	_, last, ok := strings.Cut(name[strings.LastIndexByte(name, '/')+1:], ":")
	id := strings.Trim(name, "0123456789abcdef") == ""
	if ok && last != "" || id || strings.Contains(name, "@") {
		return name
	}
	return name + ":latest"
}

// wayToDocker is the way out of what docker said when it gave no image.
func wayToDocker(said string) string {
	if strings.Contains(strings.ToLower(said), "no such image") {
		return "docker image ls shows what it has; an image of a registry is docker-image://NAME"
	}
	return "check that its daemon runs (docker info), or give the image as oci:LAYOUT"
}

func firstLine(said string, err error) string {
	if line, _, _ := strings.Cut(strings.TrimSpace(said), "\n"); line != "" {
		return line
	}
	return err.Error()
}
