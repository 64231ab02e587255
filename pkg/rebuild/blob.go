package rebuild

import (
	"context"
	"fmt"
	"io"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/store"
)

// readBlob reads a small blob whole and checks it.
func readBlob(ctx context.Context, place store.Repository, d descriptor) ([]byte, error) {
	want, err := attest.ParseDigest(d.Digest)
	if err != nil {
		return nil, err
	}
	rc, err := place.Blob(ctx, want)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	raw, err := io.ReadAll(io.LimitReader(rc, attest.MaxManifest+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > attest.MaxManifest {
		return nil, fmt.Errorf("reading blob %s: larger than the %d bytes allowed", want, attest.MaxManifest)
	}
	if attest.DigestOf(raw) != want {
		return nil, fmt.Errorf("reading blob %s: the content is not what the digest says", want)
	}
	return raw, nil
}
