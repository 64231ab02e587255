package trust

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

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
	// Memory is a folder that all may write to, in memory, as /dev/shm is. In one
	// below it that is this user's alone, keys are kept until the machine ends
	// whose reference names a version (keys.OneVersion), for each Cache and each
	// environment apart that says who is asked (keys.Asked); "" keeps none. Nothing
	// proves such a copy, so it must lie where no CI cache is restored to and no
	// other user writes.
	Memory string
	// InFile says that the reference stands in a file, which may be somebody
	// else's. A PKCS#11 URI there must pin its key and name no library: whoever
	// wrote the file would choose what runs here.
	InFile bool
}

// PublicKey returns the public half (PEM) of a key that something else holds,
// see keys.Open. One that its reference pins, or that it names the version of, is
// asked for once. A reference that can name no key is a plain error; a service
// that gives none an *UnavailableError.
func PublicKey(ctx context.Context, ref string, o KeyOptions) ([]byte, error) {
	uri, pin, err := keys.CutPin(ref)
	if err != nil {
		return nil, fmt.Errorf("reading the key %q: %w", keys.Name(ref), err)
	}
	if o.InFile && strings.HasPrefix(uri, "pkcs11:") && (pin == "" || keys.Module(uri) != "") {
		return nil, fmt.Errorf("reading the key %q: in a file a PKCS#11 URI must end in @sha256:…, the digest of its key, and have no module-path; or export the public half and name that", keys.Name(ref))
	}
	kept := o.keptKey(uri, pin)
	if raw := readKept(kept); raw != nil && (pin == "" || keyID(raw) == pin) {
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

// keptKey is where a key is kept; "": nowhere, for nothing would tell that a
// copy was changed.
func (o KeyOptions) keptKey(uri string, pin attest.Digest) string {
	switch {
	case pin != "" && o.Cache != "":
		return filepath.Join(o.Cache, "kms", pin.Hex()+".pub")
	case pin != "" || !keys.OneVersion(uri):
		return ""
	}
	own := OwnMemory(o.Memory)
	if own == "" {
		return ""
	}
	name := strings.Join(append(keys.Asked(uri, o.Keys.Environ), o.Cache, uri), "\x00")
	return filepath.Join(own, attest.DigestOf([]byte(name)).Hex()+".pub")
}

// OwnMemory is the folder below KeyOptions.Memory that is this user's alone; it
// is made. "" where there is none, as when somebody else made it first or could
// put another in its place, or it would outlive the machine.
func OwnMemory(dir string) string {
	if dir == "" {
		return ""
	}
	own := filepath.Join(dir, fmt.Sprintf("waxseal-%d", os.Geteuid()))
	if err := os.Mkdir(own, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return ""
	}
	var on unix.Statfs_t
	var in, is unix.Stat_t
	switch {
	case unix.Stat(dir, &in) != nil, in.Mode&0o022 != 0 && in.Mode&unix.S_ISVTX == 0,
		unix.Lstat(own, &is) != nil, is.Mode != unix.S_IFDIR|0o700, is.Uid != uint32(os.Geteuid()),
		unix.Statfs(own, &on) != nil, on.Type != unix.TMPFS_MAGIC:
		return ""
	}
	return own
}

// readKept reads a key that was kept; nil: there is none.
func readKept(path string) []byte {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, attest.MaxKey+1))
	if err != nil || len(raw) > attest.MaxKey || keyID(raw) == "" {
		return nil
	}
	return raw
}

// keyID is the sha256 of a key's PKIX form.
func keyID(raw []byte) attest.Digest {
	block, _ := pem.Decode(raw)
	if block == nil {
		return ""
	}
	return attest.DigestOf(block.Bytes)
}
