package testkit

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
)

// Docker is a Docker daemon of its own. Host is what DOCKER_HOST names it by, and
// Programs the folder of its client, "" for that on PATH.
type Docker struct {
	Host, Programs string
	Close          func()
}

// dockerScript starts the daemon in $1, with the flag $2. It sees neither this
// machine's configuration nor its run-time files, and leaves its network alone.
const dockerScript = `set -e
mkdir -p /etc/docker
mount -t tmpfs none /etc/docker
mount -t tmpfs none /run
exec dockerd --host "unix://$1/sock" --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/pid" \
	--bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false --userland-proxy=false $2`

// StartDocker starts dockerd with its data in a temporary folder. It and what it
// starts come from the folder programs, or where that is "" or has not got them,
// from PATH. It is the first process of its own process and mount namespaces, so
// that Close, or the death of this process, leaves no process and no mount behind.
func StartDocker(programs string) (*Docker, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("starting dockerd needs root")
	}
	needed := []string{"unshare", "runc"}
	if programs == "" {
		needed = append(needed, "dockerd", "docker")
	}
	for _, program := range needed {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("starting dockerd: there is no %s on PATH (apt-get install docker.io)", program)
		}
	}
	// A socket's path must be short.
	dir, err := os.MkdirTemp("", "dockerd-")
	if err != nil {
		return nil, err
	}
	child := exec.Command("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", dockerScript, "sh", dir)
	if programs != "" {
		// The distribution's runc may be too old for them.
		child.Args = append(child.Args, "--feature=time-namespaces=false")
		child.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"))
	}
	_, stop, err := startUntil(child, regexp.MustCompile(`API listen on `))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting dockerd: %w", err), os.RemoveAll(dir))
	}
	return &Docker{Host: "unix://" + filepath.Join(dir, "sock"), Programs: programs, Close: func() {
		stop()
		os.RemoveAll(dir)
	}}, nil
}
