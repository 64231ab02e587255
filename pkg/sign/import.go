package sign

import (
	"errors"
	"fmt"
)

// ImportKeyPair reads the private key in the file at path, plain PEM (PKCS#8,
// SEC1 or PKCS#1; ECDSA, Ed25519, RSA of 2048 bits and more), and returns it as
// GenerateKeyPair does: encrypted with password, and its public half. The file
// is left as it is.
func ImportKeyPair(path string, password []byte) (private, public []byte, err error) {
	private, public, err = importKeyPair(path, password)
	if err != nil {
		return nil, nil, fmt.Errorf("importing key %q: %w", path, err)
	}
	return private, public, nil
}

func importKeyPair(path string, password []byte) (private, public []byte, err error) {
	raw, err := readKey(path)
	if err != nil {
		return nil, nil, err
	}
	defer clear(raw)
	priv, err := ParsePrivateKey(raw, func() ([]byte, error) {
		return nil, errors.New("it is in that form already; use it as it is")
	})
	if err != nil {
		return nil, nil, err
	}
	defer forget(priv)
	return seal(priv, password)
}
