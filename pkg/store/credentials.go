package store

import (
	"fmt"
	"os"

	"github.com/docker/cli/cli/config"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// keychain is where the credentials of a registry come from.
func keychain(opts Options) authn.Keychain {
	if opts.NoHelpers {
		return fileKeychain{}
	}
	return authn.DefaultKeychain
}

// fileKeychain reads docker's configuration and starts no helper. A child that
// is left behind would hold open what our own caller waits for.
type fileKeychain struct{}

func (fileKeychain) Resolve(target authn.Resource) (authn.Authenticator, error) {
	cf, err := config.Load(os.Getenv("DOCKER_CONFIG"))
	if err != nil {
		return nil, fmt.Errorf("reading docker's configuration: %w", err)
	}
	cf.CredentialsStore, cf.CredentialHelpers = "", nil
	for _, key := range []string{target.String(), target.RegistryStr()} {
		if key == name.DefaultRegistry {
			key = authn.DefaultAuthKey
		}
		got, err := cf.GetAuthConfig(key)
		if err != nil {
			return nil, fmt.Errorf("reading docker's configuration: %w", err)
		}
		if got.Username+got.Password+got.Auth+got.IdentityToken+got.RegistryToken != "" {
			return authn.FromConfig(authn.AuthConfig{Username: got.Username, Password: got.Password, Auth: got.Auth,
				IdentityToken: got.IdentityToken, RegistryToken: got.RegistryToken}), nil
		}
	}
	return authn.Anonymous, nil
}
