package trust

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/keys"
)

// KeyOptions configures PublicKey.
type KeyOptions struct {
	// Keys is how the key is asked for.
	Keys keys.Options
	// Cache is the folder below which keys are kept that a reference pins; ""
	// keeps none.
	Cache string
	// InFile says that the reference stands in a file, which may be somebody
	// else's. A PKCS#11 URI there must pin its key and name no library: whoever
	// wrote the file would choose what runs here.
	InFile bool
}

// PublicKey returns the public half (PEM) of a key that something else holds,
// see keys.Open. One that its reference pins is asked for once: a version of a
// key has one digest. A reference that can name no key is a plain error; a
// service that gives none an *UnavailableError.
func PublicKey(ctx context.Context, ref string, o KeyOptions) ([]byte, error) {
	uri, pin, err := keys.CutPin(ref)
	if err != nil {
		return nil, fmt.Errorf("reading the key %q: %w", keys.Name(ref), err)
	}
	if o.InFile && strings.HasPrefix(uri, "pkcs11:") && (pin == "" || keys.Module(uri) != "") {
		return nil, fmt.Errorf("reading the key %q: in a file a PKCS#11 URI must end in @sha256:…, the digest of its key, and have no module-path; or export the public half and name that", keys.Name(ref))
	}
	kept := keptKey(o.Cache, pin)
	if raw, err := os.ReadFile(kept); pin != "" && err == nil && keyID(raw) == pin {
		return raw, nil
	}
	o.Keys.Sign = false
	if pin == "" {
		o.Keys.Module = "" // a variable says whom to ask only where that changes no answer
	}
	k, err := keys.Open(ctx, ref, o.Keys)
	var refused *keys.Error
	switch {
	case errors.As(err, &refused) && (refused.Class == keys.ClassReference || refused.Class == keys.ClassUnsupported):
		return nil, err
	case errors.As(err, &refused):
		return nil, &UnavailableError{fmt.Sprintf("fetching the key %q", keys.Name(ref)), refused.Cause(), refused.Hint()}
	case err != nil:
		return nil, err
	}
	defer k.Close()
	if kept != "" && os.MkdirAll(filepath.Dir(kept), 0o700) == nil {
		_ = writeWhole(kept, k.PEM()) // the next one asks again
	}
	return k.PEM(), nil
}

// keptKey is where a pinned key is kept; others are not, for nothing would tell
// that a copy was changed.
func keptKey(cache string, pin attest.Digest) string {
	if cache == "" || pin == "" {
		return ""
	}
	return filepath.Join(cache, "kms", pin.Hex()+".pub")
}

// keyID is the sha256 of a key's PKIX form.
func keyID(raw []byte) attest.Digest {
	block, _ := pem.Decode(raw)
	if block == nil {
		return ""
	}
	return attest.DigestOf(block.Bytes)
}
