package engine

import (
	"context"
	"errors"
	"io"
)

// CatalogRequest is what Catalog needs to know.
type CatalogRequest struct {
	Layout string
	Digest string
	Format string
	Epoch  string
}

// Catalog writes the SBOM documents of an image in an OCI layout.
func Catalog(ctx context.Context, req CatalogRequest, out io.Writer) error {
	return errors.New("not yet")
}
