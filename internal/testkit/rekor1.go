package testkit

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// startRekor1 starts a Rekor v1 log and returns its port: rekor-server over
// Trillian's two servers, over MariaDB. rekor-server makes its tree when it
// starts. It would take port 2112 too, and does without.
func (i *Instance) startRekor1(ctx context.Context, peers string) (port string, err error) {
	socket, err := i.startMariaDB(ctx)
	if err != nil {
		return "", err
	}
	ports, err := freePorts(5)
	if err != nil {
		return "", err
	}
	port = ports[4]
	storage := []string{"--mysql_uri=root@unix(" + socket + ")/trillian", "--storage_system=mysql", "--quota_system=noop"}
	for name, args := range map[string][]string{
		"trillian_log_server": {"--rpc_endpoint=127.0.0.1:" + ports[0], "--http_endpoint=127.0.0.1:" + ports[1]},
		"trillian_log_signer": {"--rpc_endpoint=127.0.0.1:" + ports[2], "--http_endpoint=127.0.0.1:" + ports[3], "--force_master", "--sequencer_interval=50ms"},
	} {
		addr := strings.TrimPrefix(args[0], "--rpc_endpoint=")
		if err := i.start(ctx, peers, append(append([]string{name}, args...), storage...), addr); err != nil {
			return "", err
		}
	}
	return port, i.start(ctx, peers, []string{"rekor-server", "serve", "--rekor_server.address=127.0.0.1", "--port=" + port, "--rekor_server.hostname=127.0.0.1",
		"--rekor_server.signer=" + filepath.Join(i.dir, "rekor1.pem"), "--trillian_log_server.port=" + ports[0],
		"--enable_retrieve_api=false", "--enabled_api_endpoints=createLogEntry,getLogEntryByUUID,getLogInfo,getPublicKey"}, "127.0.0.1:"+port)
}

// startMariaDB starts a database server with Trillian's schema on a socket,
// whose path it returns.
func (i *Instance) startMariaDB(ctx context.Context) (socket string, err error) {
	// A socket's path must be short.
	dir, err := os.MkdirTemp("", "mariadb-")
	if err != nil {
		return "", err
	}
	i.stop = append(i.stop, func() { os.RemoveAll(dir) })
	schema, err := trillianSchema(ctx)
	if err != nil {
		return "", err
	}
	first := filepath.Join(dir, "first.sql")
	if err := os.WriteFile(first, append([]byte("CREATE DATABASE trillian;\nUSE trillian;\n"), schema...), 0o644); err != nil {
		return "", err
	}
	data := []string{"--no-defaults", "--datadir=" + filepath.Join(dir, "data")}
	if os.Geteuid() == 0 {
		data = append(data, "--user=root")
	}
	install := exec.CommandContext(ctx, "mariadb-install-db", append(data, "--auth-root-authentication-method=normal", "--skip-test-db")...)
	if out, err := install.CombinedOutput(); err != nil {
		return "", fmt.Errorf("making a database: %w\n%s", err, out)
	}
	server, err := exec.LookPath("mariadbd")
	if err != nil {
		return "", err
	}
	socket = filepath.Join(dir, "s")
	return socket, i.start(ctx, "", append(append([]string{server}, data...), "--socket="+socket, "--skip-networking", "--init-file="+first, "--innodb-flush-log-at-trx-commit=0"), socket)
}

// trillianSchema is what Trillian's tables are made with, from the module of
// the very version that peers.sh builds.
func trillianSchema(ctx context.Context) ([]byte, error) {
	path, err := BuildPeer(ctx, "trillian_log_server")
	if err != nil {
		return nil, err
	}
	target, err := os.Readlink(path)
	if err != nil {
		return nil, err
	}
	version := target[strings.LastIndex(target, "-")+1:]
	download := exec.CommandContext(ctx, "go", "mod", "download", "-json", "github.com/google/trillian@"+version)
	download.Dir = os.TempDir() // no module of its own, whose sums would change
	out, err := download.Output()
	if err != nil {
		return nil, fmt.Errorf("finding Trillian's schema: %w", err)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(module.Dir, "storage/mysql/schema/storage.sql"))
}
