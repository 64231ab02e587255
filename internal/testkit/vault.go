package testkit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// Vault is a real Vault server, in memory, with its transit engine.
type Vault struct {
	URL   string
	Token string // may do everything
	Close func()
}

// StartVault starts the vault program at path.
func StartVault(path, dir string) (*Vault, error) {
	port, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	addr := "127.0.0.1:" + port[0]
	v := &Vault{URL: "http://" + addr, Token: "root-of-all"}
	child := exec.Command(path, "server", "-dev", "-dev-no-store-token", "-dev-root-token-id="+v.Token, "-dev-listen-address="+addr)
	child.Dir, child.Env = dir, []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	said, err := os.Create(filepath.Join(dir, "vault.log"))
	if err != nil {
		return nil, err
	}
	defer said.Close()
	child.Stdout = said
	if _, v.Close, err = startUntil(child, regexp.MustCompile(`core: vault is unsealed`)); err != nil {
		return nil, fmt.Errorf("starting Vault: %w", err)
	}
	if _, err := v.Do(context.Background(), http.MethodPost, "sys/mounts/transit", map[string]any{"type": "transit"}); err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

// Do asks Vault's API, at a path below /v1/.
func (v *Vault) Do(ctx context.Context, method, path string, body any) (map[string]any, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, v.URL+"/v1/"+path, bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Vault-Token", v.Token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("asking Vault for %s: %s: %s", path, resp.Status, said)
	}
	var out map[string]any
	if len(said) > 0 {
		err = json.Unmarshal(said, &out)
	}
	return out, err
}

// TokenFor is a token that may do what a policy (HCL) says, and nothing else.
func (v *Vault) TokenFor(ctx context.Context, name, policy string) (string, error) {
	if _, err := v.Do(ctx, http.MethodPost, "sys/policies/acl/"+name, map[string]any{"policy": policy}); err != nil {
		return "", err
	}
	made, err := v.Do(ctx, http.MethodPost, "auth/token/create", map[string]any{"policies": []string{name}, "no_default_policy": true})
	if err != nil {
		return "", err
	}
	auth, _ := made["auth"].(map[string]any)
	token, _ := auth["client_token"].(string)
	return token, nil
}

// cmdVault starts a Vault with transit keys of Vault's types, or has a running
// one rotate a key. VAR is its address, and there are tokens: VAR_TOKEN may read
// all keys and sign with those whose name is not "other", VAR_READER only read.
func cmdVault(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) >= 2 && !neg, "vault VAR NAME=TYPE... | vault VAR rotate NAME")
	ctx := context.Background()
	if args[1] == "rotate" {
		v := &Vault{URL: ts.Getenv(args[0]), Token: ts.Getenv(args[0] + "_ROOT")}
		_, err := v.Do(ctx, http.MethodPost, "transit/keys/"+args[2]+"/rotate", nil)
		ts.Check(err)
		return
	}
	dir := ts.MkAbs(".vault-" + args[0])
	ts.Check(os.Mkdir(dir, 0o755))
	v, err := StartVault(filepath.Join(peersOf(ts), "vault"), dir)
	ts.Check(err)
	ts.Defer(v.Close)
	for _, arg := range args[1:] {
		name, kind, ok := strings.Cut(arg, "=")
		usage(ts, ok, "vault VAR NAME=TYPE...")
		_, err := v.Do(ctx, http.MethodPost, "transit/keys/"+name, map[string]any{"type": kind})
		ts.Check(err)
	}
	read := `path "transit/keys/*" { capabilities = ["read"] }`
	for variable, policy := range map[string]string{
		"_TOKEN":  read + ` path "transit/sign/*" { capabilities = ["update"] } path "transit/sign/other/*" { capabilities = ["deny"] }`,
		"_READER": read,
	} {
		token, err := v.TokenFor(ctx, strings.ToLower(strings.Trim(variable, "_")), policy)
		ts.Check(err)
		ts.Setenv(args[0]+variable, token)
	}
	ts.Setenv(args[0], v.URL)
	ts.Setenv(args[0]+"_ROOT", v.Token)
}
