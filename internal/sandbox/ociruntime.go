package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/pkg/egress"
)

// RuntimeName is the name of a link to this program among a command's files, by
// which podman and buildah call it for an OCI runtime.
const RuntimeName = "oci-runtime"

// maxSpec bounds the specification of one container.
const maxSpec = 16 << 20

const runtimePath = egress.MountPoint + "/" + RuntimeName

// containersConf leads podman and buildah to the runtime, and their containers
// to the command's network, which is the only one that goes anywhere.
const containersConf = "[containers]\nnetns = \"host\"\n\n[engine]\nruntime = \"waxseal\"\n\n[engine.runtimes]\nwaxseal = [\"" + runtimePath + "\"]\n"

// lendRuntime gives the containers that a command starts by podman or buildah
// what a step of ours has: the gateway's trust, and mounts that can be made
// inside of a sandbox. files is the folder that comes to egress.MountPoint, env
// the command's variables; what it sets itself stays.
func lendRuntime(files string, env []string) ([]string, error) {
	set := func(name, value string) {
		if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") }) {
			env = append(env, name+"="+value)
		}
	}
	if _, err := ociRuntime(); err != nil {
		set("BUILDAH_ISOLATION", "chroot")
		return env, nil
	}
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(files, RuntimeName))
	}
	const conf = "containers.conf"
	if err == nil {
		err = os.WriteFile(filepath.Join(files, conf), []byte(containersConf), 0o644)
	}
	if err == nil { // whatever the umask
		err = os.Chmod(filepath.Join(files, conf), 0o644)
	}
	if err != nil {
		return nil, fmt.Errorf("lending podman and buildah a runtime: %w", err)
	}
	set("BUILDAH_RUNTIME", runtimePath)
	set("CONTAINERS_CONF_OVERRIDE", egress.MountPoint+"/"+conf)
	if !configuresContainers(env) {
		// Before podman 4.5 there is no other way, and it stands for all other files.
		set("CONTAINERS_CONF", egress.MountPoint+"/"+conf)
	}
	return env, nil
}

// configuresContainers reports whether somebody on this machine has configured
// podman and buildah.
func configuresContainers(env []string) bool {
	dirs := []string{"/etc"}
	for _, kv := range env {
		if home, ok := strings.CutPrefix(kv, "HOME="); ok {
			dirs = append(dirs, filepath.Join(home, ".config"))
		}
		if dir, ok := strings.CutPrefix(kv, "XDG_CONFIG_HOME="); ok {
			dirs = append(dirs, dir)
		}
	}
	return slices.ContainsFunc(dirs, func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, "containers/containers.conf"))
		_, errMore := os.Stat(filepath.Join(dir, "containers/containers.conf.d"))
		return err == nil || errMore == nil
	})
}

// ociRuntime finds the machine's own.
func ociRuntime() (string, error) {
	for _, name := range []string{"runc", "crun"} {
		for _, dir := range []string{"", "/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"} {
			if program, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return program, nil
			}
		}
	}
	return "", errors.New("starting a container: there is neither runc nor crun")
}

// Runtime is what a call of this program by RuntimeName does: args are those of
// an OCI runtime, and the machine's own takes this program's place. A container
// that is going to be made is fitted to the sandbox before.
func Runtime(args []string) error {
	program, err := ociRuntime()
	if err != nil {
		return err
	}
	if slices.Contains(args, "create") || slices.Contains(args, "run") {
		if err := fitBundle(bundleOf(args)); err != nil {
			return fmt.Errorf("fitting a container to waxseal's sandbox: %w", err)
		}
	}
	return fmt.Errorf("starting %q: %w", program, unix.Exec(program, append([]string{program}, args...), os.Environ()))
}

// bundleOf is the folder of the container that a runtime is told to make.
func bundleOf(args []string) string {
	for i, a := range args {
		flag, dir, joined := strings.Cut(a, "=")
		if flag != "--bundle" && flag != "-b" {
			continue
		}
		if !joined && i+1 < len(args) {
			dir = args[i+1]
		}
		return dir
	}
	return "."
}

func fitBundle(dir string) error {
	name := filepath.Join(dir, "config.json")
	raw, err := readBounded(name, maxSpec)
	if err != nil {
		return err
	}
	if raw, err = fitSpec(raw); err != nil {
		return fmt.Errorf("reading %q: %w", name, err)
	}
	return os.WriteFile(name, raw, 0o600)
}

// fitSpec changes the specification of a container, of which what it does not
// know stays: the variables and files of a step of ours are added, /proc is the
// sandbox's, because the kernel lets nobody in there mount another, and there are
// no control groups.
func fitSpec(raw []byte) ([]byte, error) {
	var spec map[string]any
	in := json.NewDecoder(bytes.NewReader(raw))
	in.UseNumber()
	if err := in.Decode(&spec); err != nil {
		return nil, err
	}
	process, _ := spec["process"].(map[string]any)
	if process == nil {
		return nil, errors.New("there is no process in it")
	}
	var env []string
	given, _ := process["env"].([]any)
	for _, kv := range given {
		if text, ok := kv.(string); ok {
			env = append(env, text)
		}
	}
	process["env"] = egress.Environ(env)
	bind := func(path string, options ...string) map[string]any {
		return map[string]any{"destination": path, "type": "bind", "source": path, "options": append(options, "rbind", "nosuid", "nodev", "noexec")}
	}
	var mounts []any
	had, _ := spec["mounts"].([]any)
	for _, m := range had {
		mount, _ := m.(map[string]any)
		switch mount["type"] {
		case "cgroup", "cgroup2":
			continue
		case "proc":
			m = bind("/proc")
		}
		mounts = append(mounts, m)
	}
	spec["mounts"] = append(mounts, bind(egress.MountPoint, "ro"))
	if linux, ok := spec["linux"].(map[string]any); ok {
		delete(linux, "resources")
		delete(linux, "cgroupsPath")
		if spaces, ok := linux["namespaces"].([]any); ok {
			linux["namespaces"] = slices.DeleteFunc(spaces, func(n any) bool {
				space, _ := n.(map[string]any)
				return space["type"] == "cgroup"
			})
		}
	}
	return json.Marshal(spec)
}
