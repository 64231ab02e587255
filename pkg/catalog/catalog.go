// Package catalog looks into an image's file system and writes down what is
// installed there, as SBOM documents. Call Catalog.Rootfs on a folder that
// holds the image's files. The documents are a function of those files, the options and
// this program's version: no random identifiers, no clock, no network, nothing
// read from outside the folder.
package catalog

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/anchore/syft/syft"
	"github.com/anchore/syft/syft/artifact"
	"github.com/anchore/syft/syft/cataloging"
	"github.com/anchore/syft/syft/cataloging/pkgcataloging"
	"github.com/anchore/syft/syft/file"
	"github.com/anchore/syft/syft/format/common/cyclonedxhelpers"
	"github.com/anchore/syft/syft/format/common/spdxhelpers"
	"github.com/anchore/syft/syft/pkg"
	"github.com/anchore/syft/syft/pkg/cataloger/golang"
	"github.com/anchore/syft/syft/pkg/cataloger/java"
	"github.com/anchore/syft/syft/pkg/cataloger/javascript"
	"github.com/anchore/syft/syft/pkg/cataloger/python"
	"github.com/anchore/syft/syft/source"
	"github.com/anchore/syft/syft/source/directorysource"

	// Syft refuses to start without a driver for RPM's database.
	_ "modernc.org/sqlite"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/sbom"
)

// Options configures Catalog.Rootfs; the zero value writes both formats for an image
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

// Catalog catalogues images. The zero value is ready; it is safe for
// concurrent use.
type Catalog struct {
	once     sync.Once
	prepared context.Context
	err      error
}

// Prepare does the part of the work that is the same for every image: half a
// second for tables of licence texts. Rootfs does it when nobody has before.
func (c *Catalog) Prepare() error {
	c.once.Do(func() {
		c.prepared, c.err = syft.SetContextLicenseScanner(context.Background(), cataloging.DefaultLicenseConfig())
	})
	if c.err != nil {
		return fmt.Errorf("preparing to read licences: %w", c.err)
	}
	return nil
}

// withValues is a context that also has the values of another one: the only way
// in which Syft takes a licence scanner that is there already.
type withValues struct {
	context.Context
	values context.Context
}

func (c withValues) Value(key any) any {
	if v := c.Context.Value(key); v != nil {
		return v
	}
	return c.values.Value(key)
}

// Rootfs catalogues the files below root, as the root file system of an image,
// and returns one document for each format. Symbolic links stay inside root.
func (c *Catalog) Rootfs(ctx context.Context, root string, opts Options) (map[string][]byte, error) {
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
	if err := c.Prepare(); err != nil {
		return nil, err
	}
	bill, err := syft.CreateSBOM(withValues{ctx, c.prepared}, src, config())
	if err != nil {
		return nil, fmt.Errorf("cataloguing the image: %w", err)
	}
	if err := ctx.Err(); err != nil {
		// Syft logs what a cancelled cataloger missed, and goes on.
		return nil, fmt.Errorf("cataloguing the image: %w", context.Cause(ctx))
	}
	// Without the files' own digests, which the layers' digests cover, a list of
	// files is only bulk: what belongs to which package stays with the packages.
	bill.Relationships = slices.DeleteFunc(bill.Relationships, func(r artifact.Relationship) bool {
		return !isPackage(r.From) || !isPackage(r.To)
	})
	gaps, err := unread(root, bill.Artifacts.Unknowns)
	if err != nil {
		return nil, fmt.Errorf("cataloguing the image: %w", err)
	}
	stamp := sbom.Stamp{Created: created, Tools: []string{bill.Descriptor.Name + "-" + bill.Descriptor.Version}, Unread: gaps}
	formats := opts.Formats
	if len(formats) == 0 {
		formats = sbom.Formats()
	}
	docs := make(map[string][]byte, len(formats))
	for _, f := range formats {
		var doc []byte
		switch f {
		case sbom.SPDX:
			doc, err = sbom.EncodeSPDX(spdxhelpers.ToFormatModel(*bill), stamp)
		case sbom.CycloneDX:
			doc, err = sbom.EncodeCycloneDX(cyclonedxhelpers.ToFormatModel(*bill), stamp)
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

// isDatabase reports whether a package manager writes down there what is installed.
func isDatabase(name string) bool {
	return slices.ContainsFunc([]string{
		"/var/lib/dpkg/status", "/var/lib/dpkg/status.d/", "/usr/lib/dpkg/status", "/lib/apk/db/installed", "/usr/lib/apk/db/installed",
		"/var/lib/rpm/", "/usr/lib/sysimage/rpm/", "/usr/share/rpm/", "/var/lib/pacman/local/",
	}, func(d string) bool { return name == d || strings.HasSuffix(d, "/") && strings.HasPrefix(name, d) })
}

// unread names the package databases of which Syft could not make sense, wholly or
// in part. Of the other files that it tried, few are what their names promise, and
// what an image means by emptying its database is that it has none.
func unread(root string, unknowns map[file.Coordinates][]string) ([]string, error) {
	files, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer files.Close()
	var out []string
	for at, why := range unknowns {
		if !isDatabase(at.RealPath) {
			continue
		}
		if st, err := files.Stat(strings.TrimPrefix(at.RealPath, "/")); err == nil && st.Size() == 0 {
			continue
		}
		why = slices.Sorted(slices.Values(why))
		out = append(out, at.RealPath+": "+strings.Join(why, ", "))
	}
	slices.Sort(out)
	return out, nil
}

func isPackage(i artifact.Identifiable) bool {
	switch i.(type) {
	case pkg.Package, *pkg.Package:
		return true
	}
	return false
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
