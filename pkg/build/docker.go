package build

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

const noDocker = "install the Docker client and start its daemon, or build into an OCI layout with -o type=oci,tar=false,dest=FOLDER"

// reachDocker asks the Docker daemon whether it is there.
func reachDocker(ctx context.Context) error {
	if _, err := exec.LookPath("docker"); err != nil {
		return hinted(errors.New("loading into Docker: there is no docker on PATH"), noDocker)
	}
	cmd := exec.CommandContext(ctx, "docker", "version", "--format", "{{.Server.Version}}")
	var said bytes.Buffer
	cmd.Stderr = &limitedBuffer{&said, 64 << 10}
	if err := cmd.Run(); err != nil {
		return hinted(fmt.Errorf("loading into Docker: %s", firstLine(said.String(), err)), noDocker)
	}
	return nil
}

// loadIntoDocker pipes an image archive into docker load.
func loadIntoDocker(ctx context.Context, write func(io.Writer) error) error {
	cmd := exec.CommandContext(ctx, "docker", "image", "load", "--quiet")
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
	closeErr := stdin.Close()
	if err := cmd.Wait(); err != nil {
		return hinted(fmt.Errorf("loading into Docker: %s", firstLine(said.String(), err)), noDocker)
	}
	return errors.Join(writeErr, closeErr)
}

var blobName = regexp.MustCompile(`^blobs/sha256/[0-9a-f]{64}$`)

// saveFromDocker writes the daemon's image of that name into dir as an OCI
// layout. Its blobs are checked by digest when they are used.
func saveFromDocker(ctx context.Context, name, dir string) error {
	if _, err := exec.LookPath("docker"); err != nil {
		return hinted(errors.New("taking an image from Docker: there is no docker on PATH"), "install the Docker client, or give the image as oci:LAYOUT")
	}
	if strings.HasPrefix(name, "-") || name == "" {
		return fmt.Errorf("taking an image from Docker: %q is no name", name)
	}
	cmd := exec.CommandContext(ctx, "docker", "image", "save", name)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var said bytes.Buffer
	cmd.Stderr = &limitedBuffer{&said, 64 << 10}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("taking an image from Docker: %w", err)
	}
	readErr := unpackLayout(stdout, dir)
	_, _ = io.Copy(io.Discard, stdout)
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("taking image %q from Docker: %s", name, firstLine(said.String(), err))
	}
	if readErr != nil {
		return fmt.Errorf("taking image %q from Docker: %w", name, readErr)
	}
	if _, err := os.Stat(filepath.Join(dir, "index.json")); err != nil {
		return hinted(fmt.Errorf("taking image %q from Docker: it was not saved as an OCI layout", name), "Docker 25 and later do; with an older one push the image to a registry")
	}
	return nil
}

// unpackLayout writes the parts of an OCI layout that are in a tar archive,
// and nothing else that is in it.
func unpackLayout(in io.Reader, dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
		return err
	}
	r := tar.NewReader(in)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(h.Name, "./")
		if h.Typeflag != tar.TypeReg || (name != "index.json" && name != "oci-layout" && !blobName.MatchString(name)) {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, filepath.FromSlash(name)), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
}

func firstLine(said string, err error) string {
	if line, _, _ := strings.Cut(strings.TrimSpace(said), "\n"); line != "" {
		return line
	}
	return err.Error()
}
