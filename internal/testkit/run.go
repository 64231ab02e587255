package testkit

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// RunImage runs the image tagged tag of an OCI layout under runc, on the
// host's network, as the user the image names, until stop. It waits for a line
// of output that matches ready and returns its submatches. dir is an empty
// folder for the container's files.
func RunImage(ctx context.Context, path, tag, dir string, env []string, ready *regexp.Regexp) (found []string, stop func(), err error) {
	img, err := taggedImage(path, tag)
	if err != nil {
		return nil, nil, err
	}
	if err := unpack(ctx, img, filepath.Join(dir, "rootfs")); err != nil {
		return nil, nil, err
	}
	if err := writeSpec(ctx, img, dir, env); err != nil {
		return nil, nil, err
	}
	runc := func(args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, "runc", append([]string{"--root", filepath.Join(dir, "state")}, args...)...)
	}
	const id = "waxseal-test"
	child := runc("run", "--bundle", dir, id)
	out, in := io.Pipe()
	child.Stdout, child.Stderr = in, in
	if err := startLeashed(child); err != nil {
		return nil, nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		child.Wait()
		in.Close()
	}()
	stop = func() {
		runc("kill", id, "KILL").Run()
		<-ended
		runc("delete", "--force", id).Run()
	}
	match := make(chan []string, 1)
	said := make(chan string, 1)
	go func() {
		var all strings.Builder
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			all.WriteString(lines.Text() + "\n")
			if m := ready.FindStringSubmatch(lines.Text()); m != nil {
				match <- m
				break
			}
		}
		io.Copy(io.Discard, out)
		said <- all.String()
	}()
	select {
	case found := <-match:
		return found, stop, nil
	case text := <-said:
		stop()
		return nil, nil, fmt.Errorf("running the image: it ended: %s", text)
	case <-time.After(30 * time.Second):
		stop()
		return nil, nil, errors.New("running the image: not ready after 30 seconds")
	}
}

// taggedImage finds the image in a layout: the manifest tagged so or, where the
// tag is an index, its first manifest for a platform.
func taggedImage(path, tag string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(path)
	if err != nil {
		return nil, err
	}
	for {
		manifest, err := index.IndexManifest()
		if err != nil {
			return nil, err
		}
		var found *v1.Descriptor
		for _, d := range manifest.Manifests {
			if tag == "" && d.Platform != nil || tag != "" && d.Annotations["org.opencontainers.image.ref.name"] == tag {
				found = &d
				break
			}
		}
		switch {
		case found == nil:
			return nil, fmt.Errorf("no image %q in the layout %q", tag, path)
		case found.MediaType.IsIndex():
			if index, err = index.ImageIndex(found.Digest); err != nil {
				return nil, err
			}
			tag = ""
		default:
			return index.Image(found.Digest)
		}
	}
}

func unpack(ctx context.Context, img v1.Image, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	files := mutate.Extract(img)
	defer files.Close()
	untar := exec.CommandContext(ctx, "tar", "--extract", "--numeric-owner", "--same-permissions", "--directory", dir)
	untar.Stdin = files
	if out, err := untar.CombinedOutput(); err != nil {
		return fmt.Errorf("unpacking the image: %w\n%s", err, out)
	}
	return nil
}

// writeSpec makes runc's own default specification run what the image's
// configuration says.
func writeSpec(ctx context.Context, img v1.Image, dir string, env []string) error {
	if out, err := exec.CommandContext(ctx, "runc", "spec", "--bundle", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("asking runc for a specification: %w\n%s", err, out)
	}
	file := filepath.Join(dir, "config.json")
	var spec map[string]any
	if err := readJSON(file, &spec); err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	uid, gid := 0, 0
	if _, err := fmt.Sscanf(config.Config.User, "%d:%d", &uid, &gid); err != nil && config.Config.User != "" {
		return fmt.Errorf("the image's user %q is not UID:GID: %w", config.Config.User, err)
	}
	process, ok := spec["process"].(map[string]any)
	if !ok {
		return errors.New("runc's specification has no process")
	}
	process["terminal"] = false
	process["user"] = map[string]int{"uid": uid, "gid": gid}
	process["args"] = append(append([]string{}, config.Config.Entrypoint...), config.Config.Cmd...)
	process["env"] = append(append([]string{}, config.Config.Env...), env...)
	if config.Config.WorkingDir != "" {
		process["cwd"] = config.Config.WorkingDir
	}
	linux, ok := spec["linux"].(map[string]any)
	if !ok {
		return errors.New("runc's specification has no Linux part")
	}
	var kept []any
	namespaces, _ := linux["namespaces"].([]any)
	for _, n := range namespaces {
		if ns, _ := n.(map[string]any); ns["type"] != "network" {
			kept = append(kept, n)
		}
	}
	linux["namespaces"] = kept
	raw, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(file, raw, 0o644)
}
