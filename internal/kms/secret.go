package kms

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"github.com/waxseal/waxseal/pkg/keys"
	seal "github.com/waxseal/waxseal/pkg/sign"
)

// secretRef is k8s://NAMESPACE/SECRET, in the names that Kubernetes gives
// (RFC 1123).
var secretRef = regexp.MustCompile(`^k8s://([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)/([a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?)$`)

// maxSecret bounds the answer: a secret has at most 1 MiB.
const maxSecret = 2 << 20

// secret is a key that was read out of a Kubernetes secret. Its private half
// stays in this process.
type secret struct {
	private crypto.Signer // nil: only to verify
	public  crypto.PublicKey
}

// openSecret reads what cosign generate-key-pair k8s:// writes: cosign.key,
// cosign.password and cosign.pub.
func openSecret(ctx context.Context, r keys.Request) (key, error) {
	name := secretRef.FindStringSubmatch(r.Ref)
	if name == nil {
		return nil, &refused{keys.ClassReference, errors.New("want k8s://NAMESPACE/SECRET")}
	}
	data, err := readSecret(ctx, name[1], name[2])
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, raw := range data {
			clear(raw)
		}
	}()
	pub, err := cryptoutils.UnmarshalPEMToPublicKey(data["cosign.pub"])
	if err != nil {
		return nil, &refused{keys.ClassReference, errors.New("the secret has no public key as cosign.pub (cosign generate-key-pair k8s://… makes one)")}
	}
	s := &secret{public: pub}
	if !r.Sign {
		return s, nil
	}
	s.private, err = seal.ParsePrivateKey(data["cosign.key"], func() ([]byte, error) { return bytes.Clone(data["cosign.password"]), nil })
	if errors.Is(err, seal.ErrPassword) {
		err = errors.New("wrong password; its cosign.password is of another key")
	}
	if err != nil {
		return nil, &refused{keys.ClassReference, fmt.Errorf("its cosign.key: %w", err)}
	}
	if same, ok := s.private.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !same.Equal(pub) {
		return nil, &refused{keys.ClassReference, errors.New("its cosign.key and cosign.pub are not of one pair")}
	}
	return s, nil
}

func readSecret(ctx context.Context, namespace, name string) (map[string][]byte, error) {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
	if err != nil {
		if clientcmd.IsEmptyConfig(err) || errors.Is(err, rest.ErrNotInCluster) {
			err = errors.New("nothing says which cluster: set KUBECONFIG, or run this in a pod")
		}
		return nil, &refused{keys.ClassReference, err}
	}
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, &refused{keys.ClassReference, err}
	}
	ip := net.ParseIP(base.Hostname())
	if config.Insecure || base.Scheme != "https" && base.Hostname() != "localhost" && !ip.IsLoopback() {
		return nil, &refused{keys.ClassReference, errors.New("the kubeconfig has the cluster's certificate unchecked (insecure-skip-tls-verify, or http): a key is read only from a cluster that proves itself")}
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, &refused{keys.ClassReference, err}
	}
	// https://kubernetes.io/docs/reference/kubernetes-api/config-and-storage-resources/secret-v1/#get-read-the-specified-secret
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath("api/v1/namespaces", namespace, "secrets", name).String(), nil)
	if err != nil {
		return nil, &refused{keys.ClassReference, err}
	}
	req.Header.Set("Accept", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxSecret+1))
	if err != nil {
		return nil, err
	}
	defer clear(raw)
	var said struct {
		Message string            `json:"message"` // of a Status
		Data    map[string][]byte `json:"data"`    // of a Secret
	}
	if err := json.Unmarshal(raw, &said); err != nil || len(raw) > maxSecret {
		said.Message = "the answer is no Kubernetes object"
	}
	if resp.StatusCode != http.StatusOK {
		return nil, &refused{classOfStatus(resp.StatusCode), fmt.Errorf("the cluster says %s: %s", resp.Status, said.Message)}
	}
	if said.Data == nil {
		return nil, &refused{keys.ClassReference, errors.New("the secret is empty")}
	}
	return said.Data, nil
}

func (s *secret) Public() crypto.PublicKey { return s.public }

func (s *secret) Hash() string {
	if _, ok := s.public.(ed25519.PublicKey); ok {
		return ""
	}
	return "sha256"
}

func (s *secret) Sign(_ context.Context, input []byte) ([]byte, error) {
	switch k := s.private.(type) {
	case nil:
		return nil, &refused{keys.ClassReference, errors.New("it was opened to verify")}
	case ed25519.PrivateKey:
		return k.Sign(nil, input, crypto.Hash(0))
	case *ecdsa.PrivateKey:
		// The same digest has the same signature, as with a key in a file.
		return k.Sign(nil, input, crypto.SHA256)
	}
	return s.private.Sign(rand.Reader, input, crypto.SHA256)
}

func (s *secret) Close() {
	if k, ok := s.private.(ed25519.PrivateKey); ok {
		clear(k)
	}
	s.private = nil
}
