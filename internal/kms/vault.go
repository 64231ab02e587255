package kms

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"

	vault "github.com/hashicorp/vault/api"
	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/keys"
)

func inVault(ref string) bool {
	return strings.HasPrefix(ref, "hashivault://") || strings.HasPrefix(ref, "openbao://")
}

// olderVersion looks for the version of a key in Vault that the request wants,
// where the latest is another: what was signed before a key was rotated is
// verified after it. Nil: there is none. sigstore's client sees the latest only.
func olderVersion(ctx context.Context, r keys.Request, latest crypto.PublicKey) crypto.PublicKey {
	if r.ID == "" || !inVault(r.Ref) || keyID(latest) == r.ID {
		return nil
	}
	client, err := vault.NewClient(&vault.Config{Address: cmp.Or(os.Getenv("VAULT_ADDR"), os.Getenv("BAO_ADDR"))})
	if err != nil {
		return nil
	}
	token := cmp.Or(os.Getenv("VAULT_TOKEN"), os.Getenv("BAO_TOKEN"))
	if token == "" {
		raw, _ := os.ReadFile(filepath.Join(os.Getenv("HOME"), ".vault-token"))
		token = strings.TrimSpace(string(raw))
	}
	client.SetToken(token)
	_, name, _ := strings.Cut(r.Ref, "://")
	// https://developer.hashicorp.com/vault/api-docs/secret/transit#read-key
	read, err := client.Logical().ReadWithContext(ctx, cmp.Or(os.Getenv("TRANSIT_SECRET_ENGINE_PATH"), "transit")+"/keys/"+name)
	if err != nil || read == nil {
		return nil
	}
	versions, _ := read.Data["keys"].(map[string]any)
	for _, v := range versions {
		version, _ := v.(map[string]any)
		text, _ := version["public_key"].(string)
		pub, err := cryptoutils.UnmarshalPEMToPublicKey([]byte(text))
		if raw, plain := base64.StdEncoding.DecodeString(text); plain == nil && len(raw) == ed25519.PublicKeySize {
			pub, err = ed25519.PublicKey(raw), nil
		}
		if err == nil && keyID(pub) == r.ID {
			return pub
		}
	}
	return nil
}

// keyID is how waxseal names a key: the sha256 of its PKIX form.
func keyID(pub crypto.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return ""
	}
	return string(attest.DigestOf(der))
}
