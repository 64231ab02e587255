package testkit

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// Cluster is as much of a Kubernetes API server as reading secrets takes, over
// TLS: one token may read them all, another none
// (https://kubernetes.io/docs/reference/kubernetes-api/config-and-storage-resources/secret-v1/).
type Cluster struct {
	*httptest.Server
	secrets map[string]map[string][]byte // by NAMESPACE/NAME
}

// The tokens of a Cluster.
const (
	ClusterToken   = "may-read-secrets"
	ClusterVisitor = "may-read-nothing"
)

// NewCluster starts one with secrets, by NAMESPACE/NAME.
func NewCluster(secrets map[string]map[string][]byte) *Cluster {
	c := &Cluster{secrets: secrets}
	c.Server = httptest.NewTLSServer(http.HandlerFunc(c.serve))
	return c
}

func (c *Cluster) serve(w http.ResponseWriter, r *http.Request) {
	refuse := func(code int, reason, message string) {
		reply(w, code, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code})
	}
	var namespace, name string
	if parts := strings.Split(r.URL.Path, "/"); len(parts) == 7 && path.Join(parts[1:4]...) == "api/v1/namespaces" && parts[5] == "secrets" {
		namespace, name = parts[4], parts[6]
	}
	switch r.Header.Get("Authorization") {
	case "Bearer " + ClusterToken:
	case "Bearer " + ClusterVisitor:
		refuse(http.StatusForbidden, "Forbidden", fmt.Sprintf("secrets %q is forbidden: User \"visitor\" cannot get resource \"secrets\" in API group \"\" in the namespace %q", name, namespace))
		return
	default:
		refuse(http.StatusUnauthorized, "Unauthorized", "Unauthorized")
		return
	}
	data, ok := c.secrets[namespace+"/"+name]
	if !ok {
		refuse(http.StatusNotFound, "NotFound", fmt.Sprintf("secrets %q not found", name))
		return
	}
	reply(w, http.StatusOK, map[string]any{
		"kind": "Secret", "apiVersion": "v1", "type": "Opaque",
		"metadata": map[string]any{"name": name, "namespace": namespace}, "data": data,
	})
}

// Kubeconfig is a configuration for it with a token.
func (c *Cluster) Kubeconfig(token string) []byte {
	ca := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate().Raw}))
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: test, user: {token: %s}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
`, c.URL, ca, token)
}

// cmdCluster starts a Cluster with one secret, as cosign writes it. VAR is a
// kubeconfig for who may read it, VAR_VISITOR for who may not.
func cmdCluster(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 5 && !neg, "cluster VAR NAMESPACE/SECRET KEY PUBLIC PASSWORD")
	c := NewCluster(map[string]map[string][]byte{args[1]: {
		"cosign.key": []byte(ts.ReadFile(args[2])), "cosign.pub": []byte(ts.ReadFile(args[3])), "cosign.password": []byte(args[4]),
	}})
	ts.Defer(c.Close)
	for variable, token := range map[string]string{args[0]: ClusterToken, args[0] + "_VISITOR": ClusterVisitor} {
		file := ts.MkAbs("." + variable + ".kubeconfig")
		ts.Check(os.WriteFile(file, c.Kubeconfig(token), 0o600))
		ts.Setenv(variable, file)
	}
}
