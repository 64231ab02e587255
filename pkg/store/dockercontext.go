package store

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/moby/client"

	"github.com/waxseal/waxseal/pkg/attest"
)

// dockerClient speaks with the daemon that the docker command would speak
// with: DOCKER_HOST's, else that of the context in use, else the local one.
func dockerClient() (*client.Client, error) {
	opts := []client.Opt{client.FromEnv}
	if os.Getenv(client.EnvOverrideHost) == "" {
		host, err := contextHost()
		if err != nil {
			return nil, err
		}
		if host != "" {
			opts = append(opts, client.WithHost(host))
		}
	}
	return client.New(opts...)
}

// contextHost is the daemon's address in the docker context in use; "" when
// that is the default one.
// https://docs.docker.com/engine/manage-resources/contexts/
func contextHost() (string, error) {
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", nil // no configuration either
		}
		dir = filepath.Join(home, ".docker")
	}
	name := os.Getenv("DOCKER_CONTEXT")
	if name == "" {
		var config struct{ CurrentContext string }
		// The docker command, too, works with a configuration that is not there.
		if err := readConfig(filepath.Join(dir, "config.json"), &config); err != nil && !os.IsNotExist(err) {
			return "", err
		}
		name = config.CurrentContext
	}
	if name == "" || name == "default" {
		return "", nil
	}
	var meta struct {
		Endpoints map[string]struct{ Host string }
	}
	sum := sha256.Sum256([]byte(name))
	if err := readConfig(filepath.Join(dir, "contexts", "meta", hex.EncodeToString(sum[:]), "meta.json"), &meta); err != nil {
		return "", fmt.Errorf("docker context %q: %w", name, err)
	}
	host := meta.Endpoints["docker"].Host
	if strings.HasPrefix(host, "ssh://") {
		return "", fmt.Errorf("docker context %q: waxseal does not speak with a daemon over %s", name, host)
	}
	return host, nil
}

func readConfig(name string, v any) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, attest.MaxManifest))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
