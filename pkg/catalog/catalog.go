// Package catalog looks into an image's file system and writes down what is
// installed there, as SBOM documents. Call Rootfs on a folder that holds the
// image's files. The documents are a function of those files, the options and
// this program's version: no random identifiers, no clock, no network, nothing
// read from outside the folder.
package catalog

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/CycloneDX/cyclonedx-go"
	"github.com/anchore/syft/syft"
	"github.com/anchore/syft/syft/artifact"
	"github.com/anchore/syft/syft/cataloging"
	"github.com/anchore/syft/syft/cataloging/pkgcataloging"
	"github.com/anchore/syft/syft/format/common/cyclonedxhelpers"
	"github.com/anchore/syft/syft/format/common/spdxhelpers"
	"github.com/anchore/syft/syft/pkg/cataloger/golang"
	"github.com/anchore/syft/syft/pkg/cataloger/java"
	"github.com/anchore/syft/syft/pkg/cataloger/javascript"
	"github.com/anchore/syft/syft/pkg/cataloger/python"
	syftsbom "github.com/anchore/syft/syft/sbom"
	"github.com/anchore/syft/syft/source"
	"github.com/anchore/syft/syft/source/directorysource"
	"github.com/spdx/tools-golang/spdx"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/sbom"
)

// Options configures Rootfs; the zero value writes both formats for an image
// without a name, dated 1970.
type Options struct {
	// Formats are the documents wanted; default all that package sbom knows.
	Formats []string
	// Epoch is the time the documents give as their own: decimal seconds
	// since 1970, as in SOURCE_DATE_EPOCH.
	Epoch string
	// Name is what the documents call the image; default "image".
	Name string
	// Digest is the image's manifest, when it is known already.
	Digest attest.Digest
	// Architecture is the image's, "amd64".
	Architecture string
}

// Validate reports what is wrong with the options.
func (o Options) Validate() error {
	for _, f := range o.Formats {
		if !slices.Contains(sbom.Formats(), f) {
			return fmt.Errorf("choosing SBOM formats: %q is unknown, there are %s", f, strings.Join(sbom.Formats(), " and "))
		}
	}
	if _, err := o.created(); err != nil {
		return err
	}
	return nil
}

func (o Options) created() (time.Time, error) {
	if o.Epoch == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	sec, err := strconv.ParseInt(o.Epoch, 10, 64)
	if err != nil || sec < 0 || sec > 253402300799 {
		return time.Time{}, fmt.Errorf("reading SOURCE_DATE_EPOCH %q: not a number of seconds since 1970", o.Epoch)
	}
	return time.Unix(sec, 0).UTC(), nil
}

// Rootfs catalogues the files below root, as the root file system of an image,
// and returns one document for each format. Symbolic links stay inside root.
func Rootfs(ctx context.Context, root string, opts Options) (map[string][]byte, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	created, err := opts.created()
	if err != nil {
		return nil, err
	}
	src, err := newRootSource(root, opts)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	bill, err := syft.CreateSBOM(ctx, src, config())
	if err != nil {
		return nil, fmt.Errorf("cataloguing the image: %w", err)
	}
	if err := ctx.Err(); err != nil {
		// Syft logs what a cancelled cataloger missed, and goes on.
		return nil, fmt.Errorf("cataloguing the image: %w", context.Cause(ctx))
	}
	formats := opts.Formats
	if len(formats) == 0 {
		formats = sbom.Formats()
	}
	docs := make(map[string][]byte, len(formats))
	for _, f := range formats {
		var doc []byte
		switch f {
		case sbom.SPDX:
			doc, err = spdxDocument(*bill, created)
		case sbom.CycloneDX:
			doc, err = cyclonedxDocument(*bill, created)
		}
		if err != nil {
			return nil, fmt.Errorf("writing the %s document: %w", f, err)
		}
		// What we would refuse to read we do not hand out.
		if _, err := sbom.Check(f, doc); err != nil {
			return nil, err
		}
		docs[f] = doc
	}
	return docs, nil
}

// rootSource is a folder that Syft treats as an image: what is installed in it
// is wanted, not what lock files lying about say could be.
type rootSource struct {
	source.Source
	desc source.Description
}

func newRootSource(root string, opts Options) (*rootSource, error) {
	name := cmp.Or(opts.Name, "image")
	dir, err := directorysource.New(directorysource.Config{
		Path: root, Base: root,
		// Without an alias the source's id would come from the temporary path.
		Alias: source.Alias{Name: name, Version: string(opts.Digest)},
	})
	if err != nil {
		return nil, fmt.Errorf("opening the image's files: %w", err)
	}
	desc := dir.Describe()
	desc.Name, desc.Version = name, string(opts.Digest)
	desc.Metadata = source.ImageMetadata{
		UserInput:      name,
		ManifestDigest: string(opts.Digest),
		OS:             "linux",
		Architecture:   opts.Architecture,
	}
	return &rootSource{Source: dir, desc: desc}, nil
}

func (s *rootSource) Describe() source.Description { return s.desc }
func (s *rootSource) ID() artifact.ID              { return artifact.ID(s.desc.ID) }

// config says no to the network and to this machine's own package caches by
// name, whatever the library's defaults become.
func config() *syft.CreateSBOMConfig {
	packages := pkgcataloging.DefaultConfig().
		WithGolangConfig(golang.DefaultCatalogerConfig().
			WithSearchRemoteLicenses(false).
			WithSearchLocalModCacheLicenses(false).
			WithSearchLocalVendorLicenses(false)).
		WithJavaArchiveConfig(java.DefaultArchiveCatalogerConfig().
			WithUseNetwork(false).
			WithUseMavenLocalRepository(false)).
		WithJavascriptConfig(javascript.DefaultCatalogerConfig().WithSearchRemoteLicenses(false)).
		WithPythonConfig(python.DefaultCatalogerConfig().WithSearchRemoteLicenses(false))
	return syft.DefaultCreateSBOMConfig().
		WithPackagesConfig(packages).
		WithUnknownsConfig(cataloging.UnknownsConfig{}).
		WithoutFiles()
}

func spdxDocument(s syftsbom.SBOM, created time.Time) ([]byte, error) {
	doc := spdxhelpers.ToFormatModel(s)
	if doc == nil {
		return nil, fmt.Errorf("converting to SPDX: nothing came of it")
	}
	doc.DocumentNamespace = ""
	doc.CreationInfo.Created = created.Format(time.RFC3339)
	doc.CreationInfo.Creators = []spdx.Creator{{Creator: "waxseal", CreatorType: "Tool"}, {Creator: s.Descriptor.Name + "-" + s.Descriptor.Version, CreatorType: "Tool"}}
	slices.SortStableFunc(doc.Packages, func(a, b *spdx.Package) int {
		return cmp.Compare(a.PackageSPDXIdentifier, b.PackageSPDXIdentifier)
	})
	slices.SortStableFunc(doc.Files, func(a, b *spdx.File) int {
		return cmp.Compare(a.FileSPDXIdentifier, b.FileSPDXIdentifier)
	})
	slices.SortStableFunc(doc.OtherLicenses, func(a, b *spdx.OtherLicense) int {
		return cmp.Compare(a.LicenseIdentifier, b.LicenseIdentifier)
	})
	slices.SortStableFunc(doc.Relationships, func(a, b *spdx.Relationship) int {
		return cmp.Or(
			cmp.Compare(refKey(a.RefA), refKey(b.RefA)),
			cmp.Compare(a.Relationship, b.Relationship),
			cmp.Compare(refKey(a.RefB), refKey(b.RefB)))
	})
	// The namespace must be unique to the document: it is the document's own digest.
	sum, err := digest(doc)
	if err != nil {
		return nil, err
	}
	doc.DocumentNamespace = "https://waxseal.dev/spdx/" + hex.EncodeToString(sum[:])
	return encode(doc)
}

func refKey(id spdx.DocElementID) string {
	return string(id.DocumentRefID) + ":" + string(id.ElementRefID) + ":" + id.SpecialID
}

func cyclonedxDocument(s syftsbom.SBOM, created time.Time) ([]byte, error) {
	bom := cyclonedxhelpers.ToFormatModel(s)
	bom.SerialNumber = ""
	bom.Metadata.Timestamp = created.Format(time.RFC3339)
	if bom.Components != nil {
		slices.SortStableFunc(*bom.Components, func(a, b cyclonedx.Component) int {
			return cmp.Compare(a.BOMRef, b.BOMRef)
		})
	}
	sum, err := digest(bom)
	if err != nil {
		return nil, err
	}
	// A UUID of the form for other hashes (RFC 9562, section 5.8).
	id := sum[:16]
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	h := hex.EncodeToString(id)
	bom.SerialNumber = fmt.Sprintf("urn:uuid:%s-%s-%s-%s-%s", h[:8], h[8:12], h[12:16], h[16:20], h[20:])
	var b bytes.Buffer
	enc := cyclonedx.NewBOMEncoder(&b, cyclonedx.BOMFileFormatJSON).SetEscapeHTML(false)
	if err := enc.EncodeVersion(bom, cyclonedx.SpecVersion1_6); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func digest(v any) ([sha256.Size]byte, error) {
	b, err := encode(v)
	return sha256.Sum256(b), err
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return b.Bytes(), err
}

