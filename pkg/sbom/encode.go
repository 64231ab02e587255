package sbom

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/CycloneDX/cyclonedx-go"
	"github.com/spdx/tools-golang/spdx"
)

// Stamp is what a document says about its own making.
type Stamp struct {
	Created time.Time
	Tools   []string // "syft-v1.2.3", beside waxseal itself
	// Unread are the package databases that could not be read, "PATH: why", whose
	// packages the document lacks.
	Unread []string
}

// EncodeSPDX writes doc as SPDX 2.3 JSON in one order, with a namespace that
// is a digest of the rest: the same contents give the same bytes. It changes doc.
func EncodeSPDX(doc *spdx.Document, stamp Stamp) ([]byte, error) {
	if doc == nil || doc.CreationInfo == nil {
		return nil, errors.New("writing an SPDX document: it is empty")
	}
	doc.DocumentNamespace = ""
	for _, u := range gaps(stamp.Unread) {
		doc.DocumentComment = strings.TrimPrefix(doc.DocumentComment+"\n"+unreadMark+" "+u, "\n")
	}
	doc.CreationInfo.Created = stamp.Created.UTC().Format(time.RFC3339)
	doc.CreationInfo.Creators = []spdx.Creator{{CreatorType: "Tool", Creator: "waxseal"}}
	for _, t := range stamp.Tools {
		doc.CreationInfo.Creators = append(doc.CreationInfo.Creators, spdx.Creator{CreatorType: "Tool", Creator: t})
	}
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
			compareRefs(a.RefA, b.RefA),
			cmp.Compare(a.Relationship, b.Relationship),
			compareRefs(a.RefB, b.RefB))
	})
	sum, err := digest(doc)
	if err != nil {
		return nil, err
	}
	doc.DocumentNamespace = "https://waxseal.dev/spdx/" + hex.EncodeToString(sum[:])
	return encode(doc)
}

func compareRefs(a, b spdx.DocElementID) int {
	return cmp.Or(
		cmp.Compare(a.DocumentRefID, b.DocumentRefID),
		cmp.Compare(a.ElementRefID, b.ElementRefID),
		cmp.Compare(a.SpecialID, b.SpecialID))
}

// EncodeCycloneDX writes bom as CycloneDX 1.6 JSON in one order, with a serial
// number that is a digest of the rest. It changes bom.
func EncodeCycloneDX(bom *cyclonedx.BOM, stamp Stamp) ([]byte, error) {
	if bom == nil || bom.Metadata == nil {
		return nil, errors.New("writing a CycloneDX document: it is empty")
	}
	bom.SerialNumber = ""
	if len(stamp.Unread) > 0 {
		var marks []cyclonedx.Property
		if bom.Properties != nil {
			marks = *bom.Properties
		}
		for _, u := range gaps(stamp.Unread) {
			marks = append(marks, cyclonedx.Property{Name: unreadMark, Value: u})
		}
		bom.Properties = &marks
		whole := cyclonedx.Composition{Aggregate: cyclonedx.CompositionAggregateIncomplete}
		if c := bom.Metadata.Component; c != nil && c.BOMRef != "" {
			whole.Assemblies = &[]cyclonedx.BOMReference{cyclonedx.BOMReference(c.BOMRef)}
		}
		bom.Compositions = &[]cyclonedx.Composition{whole}
	}
	bom.Metadata.Timestamp = stamp.Created.UTC().Format(time.RFC3339)
	if bom.Components != nil {
		slices.SortStableFunc(*bom.Components, func(a, b cyclonedx.Component) int {
			return cmp.Compare(a.BOMRef, b.BOMRef)
		})
	}
	sum, err := digest(bom)
	if err != nil {
		return nil, err
	}
	bom.SerialNumber = uuid(sum)
	var b bytes.Buffer
	enc := cyclonedx.NewBOMEncoder(&b, cyclonedx.BOMFileFormatJSON).SetEscapeHTML(false)
	if err := enc.EncodeVersion(bom, cyclonedx.SpecVersion1_6); err != nil {
		return nil, fmt.Errorf("writing a CycloneDX document: %w", err)
	}
	return bytes.TrimSpace(b.Bytes()), nil
}

// uuid makes a UUID of a digest, version 8: https://www.rfc-editor.org/rfc/rfc9562#section-5.8
func uuid(sum [sha256.Size]byte) string {
	id := sum[:16]
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	h := hex.EncodeToString(id)
	return fmt.Sprintf("urn:uuid:%s-%s-%s-%s-%s", h[:8], h[8:12], h[12:16], h[16:20], h[20:])
}

func digest(v any) ([sha256.Size]byte, error) {
	b, err := encode(v)
	return sha256.Sum256(b), err
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("writing an SBOM: %w", err)
	}
	return bytes.TrimSpace(b.Bytes()), nil
}
