package testkit

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
)

// Docker is a Docker daemon of its own. Host is what DOCKER_HOST names it by.
type Docker struct {
	Host  string
	Close func()
}

// dockerScript starts the daemon in $1. It sees neither this machine's
// configuration nor its run-time files, and leaves its network alone.
const dockerScript = `set -e
mkdir -p /etc/docker
mount -t tmpfs none /etc/docker
mount -t tmpfs none /run
exec dockerd --host "unix://$1/sock" --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/pid" \
	--bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false --userland-proxy=false`

// StartDocker starts dockerd with its data in a temporary folder. It is the
// first process of its own process and mount namespaces, so that Close, or the
// death of this process, leaves no process and no mount behind.
func StartDocker() (*Docker, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("starting dockerd needs root")
	}
	for _, program := range []string{"dockerd", "docker", "unshare"} {
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
	_, stop, err := startUntil(child, regexp.MustCompile(`API listen on `))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting dockerd: %w", err), os.RemoveAll(dir))
	}
	return &Docker{Host: "unix://" + filepath.Join(dir, "sock"), Close: func() {
		stop()
		os.RemoveAll(dir)
	}}, nil
}
