package sign

import (
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/crypto/nacl/secretbox"
	"golang.org/x/crypto/scrypt"
)

// box is an encrypted key as cosign writes it: JSON, see package encrypted of
// go-securesystemslib. It is opened in two steps: what opens it takes a tenth of
// a second to make of the password, and can be kept in the password's place.
type box struct {
	KDF struct {
		Name   string `json:"name"`
		Params struct {
			N int `json:"N"`
			R int `json:"r"`
			P int `json:"p"`
		} `json:"params"`
		Salt []byte `json:"salt"`
	} `json:"kdf"`
	Cipher struct {
		Name  string `json:"name"`
		Nonce []byte `json:"nonce"`
	} `json:"cipher"`
	Ciphertext []byte `json:"ciphertext"`
}

// The sizes that NaCl's secretbox has.
const (
	openerSize = 32
	nonceSize  = 24
)

func parseBox(raw []byte) (*box, error) {
	var b box
	err := json.Unmarshal(raw, &b)
	p := b.KDF.Params
	switch {
	case err != nil:
	case b.KDF.Name != "scrypt" || b.Cipher.Name != "nacl/secretbox" || len(b.Cipher.Nonce) != nonceSize:
		err = errors.New("it is encrypted in a way that cosign does not use")
	// Those that cosign writes; others could ask for any amount of memory.
	case p.N != 1<<15 && p.N != 1<<16 && p.N != 1<<17 || p.R != 8 || p.P != 1:
		err = errors.New("unsupported scrypt parameters")
	}
	if err != nil {
		return nil, fmt.Errorf("the encrypted part is damaged: %w", err)
	}
	return &b, nil
}

// opener makes of the password what opens the box. The caller overwrites it.
func (b *box) opener(password []byte) ([]byte, error) {
	p := b.KDF.Params
	return scrypt.Key(password, b.KDF.Salt, p.N, p.R, p.P, openerSize)
}

// open returns the key inside, PKCS#8. The caller overwrites it.
func (b *box) open(opener []byte) ([]byte, error) {
	key, nonce := [openerSize]byte(opener), [nonceSize]byte(b.Cipher.Nonce)
	defer clear(key[:])
	plain, ok := secretbox.Open(nil, b.Ciphertext, &nonce, &key)
	if !ok {
		return nil, errWrong
	}
	return plain, nil
}

var errWrong = fmt.Errorf("%w; the password is asked for on a terminal or taken from COSIGN_PASSWORD", ErrPassword)
