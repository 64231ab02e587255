package sign

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
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
	priv, err := parsePrivate(raw, func() ([]byte, error) {
		return nil, errors.New("it is in that form already; use it as it is")
	})
	if err != nil {
		return nil, nil, err
	}
	public, err = cryptoutils.MarshalPublicKeyToPEM(priv.Public())
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return nil, nil, err
	}
	defer clear(der)
	sealed, err := encrypted.Encrypt(der, password)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: sealedKey, Bytes: sealed}), public, nil
}
