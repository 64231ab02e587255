package sign

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

// KeyFile is what a key file shows to somebody who has no password.
type KeyFile struct {
	Mode      fs.FileMode // permissions
	Private   bool
	Encrypted bool
	// Public is the public half (PEM); nil for a private key that is encrypted.
	Public []byte
}

// ReadKeyFile looks at a file with a public or a private key, without opening
// one that is encrypted. A private key that others may read is refused.
func ReadKeyFile(path string) (*KeyFile, error) {
	k, err := readKeyFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading key %q: %w", path, err)
	}
	return k, nil
}

func readKeyFile(path string) (*KeyFile, error) {
	raw, err := readKey(path)
	if err != nil {
		return nil, err
	}
	defer clear(raw)
	info, err := os.Stat(path)
	if err != nil {
		return nil, cause(err)
	}
	k := &KeyFile{Mode: info.Mode().Perm()}
	if block, _ := pem.Decode(raw); block != nil && block.Type == "PUBLIC KEY" {
		k.Public = bytes.Clone(raw)
		return k, nil
	}
	sealed := errors.New("encrypted")
	priv, err := ParsePrivateKey(raw, func() ([]byte, error) { return nil, sealed })
	k.Private = true
	switch {
	case errors.Is(err, sealed):
		k.Encrypted = true
		return k, nil
	case err != nil:
		return nil, err
	}
	k.Public, err = cryptoutils.MarshalPublicKeyToPEM(priv.Public())
	forget(priv)
	return k, err
}
