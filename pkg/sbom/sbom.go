// Package sbom reads SBOM documents that came from somewhere else. Call Check
// before anything is done with one: it bounds the document, reads it strictly
// and with its format's own library, and says in short what is in it.
package sbom

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/CycloneDX/cyclonedx-go"
	"github.com/spdx/tools-golang/spdx"

	"github.com/waxseal/waxseal/pkg/attest"
)

// The formats, as flags and file names call them.
const (
	SPDX      = "spdx"      // SPDX 2.3 as JSON
	CycloneDX = "cyclonedx" // CycloneDX 1.6 as JSON
)

// The predicate types under which the formats are attested.
const (
	PredicateSPDX      = "https://spdx.dev/Document"
	PredicateCycloneDX = "https://cyclonedx.org/bom"
)

// Formats returns the formats in the order in which they are written.
func Formats() []string { return []string{SPDX, CycloneDX} }

// PredicateType returns the predicate type of a format, "" for an unknown one.
func PredicateType(format string) string {
	switch format {
	case SPDX:
		return PredicateSPDX
	case CycloneDX:
		return PredicateCycloneDX
	}
	return ""
}

// Summary says what a document is and how much is in it.
type Summary struct {
	Format   string // SPDX or CycloneDX
	Version  string // "2.3", "1.6"
	Name     string // the document's own name, if it has one
	Packages int    // without the entry for the image itself
	// Unread are the package databases that could not be read, "PATH: why" with "; "
	// between, when a document of ours says that there were some: one line, to be shown.
	Unread string
}

// unreadMark begins a line of an SPDX document's comment, and is the name of a
// CycloneDX document's property, that tells of a package database which could not
// be read. CycloneDX also has the composition be incomplete; documents of others
// say that for many reasons.
const unreadMark = "waxseal:unread"

// Property is a property of a CycloneDX document.
type Property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Unread is Summary.Unread of a document of which comment (SPDX) or properties
// (CycloneDX) have been read already.
func Unread(comment string, properties ...Property) string {
	var out []string
	for line := range strings.Lines(comment) {
		if u, ok := strings.CutPrefix(strings.TrimSpace(line), unreadMark+" "); ok {
			out = append(out, u)
		}
	}
	for _, p := range properties {
		if p.Name == unreadMark {
			out = append(out, p.Value)
		}
	}
	return strings.Join(gaps(out), "; ")
}

// gaps makes each of what a document says that it lacks one printable line, of a
// length to show, and keeps a few: it comes from an image.
func gaps(unread []string) []string {
	const most, longest = 20, 300
	var out []string
	for _, s := range unread[:min(len(unread), most)] {
		s = strings.Map(func(r rune) rune {
			if !unicode.IsPrint(r) {
				return '?'
			}
			return r
		}, strings.ToValidUTF8(s, "?"))
		if len(s) > longest {
			s = strings.ToValidUTF8(s[:longest], "") + "…"
		}
		out = append(out, s)
	}
	return out
}

// ErrFormat is in the chain of errors about a document that is not of the
// format or version that was asked for.
var ErrFormat = errors.New("not of the format")

// Check reads one document. It accepts exactly the versions that waxseal
// writes; everything else is an error that names what was found.
func Check(format string, raw []byte) (Summary, error) {
	if len(raw) > attest.MaxSBOM {
		return Summary{}, fmt.Errorf("reading a %s document: %d bytes, over the limit of %d", format, len(raw), attest.MaxSBOM)
	}
	var s Summary
	var err error
	switch format {
	case SPDX:
		s, err = checkSPDX(raw)
	case CycloneDX:
		s, err = checkCycloneDX(raw)
	default:
		return Summary{}, fmt.Errorf("reading an SBOM: format %q is unknown, there are %s and %s", format, SPDX, CycloneDX)
	}
	if err != nil {
		return Summary{}, fmt.Errorf("reading a %s document: %w", format, err)
	}
	return s, nil
}

// guarded runs a format's own reader. Some of them panic on what is allowed
// JSON and no document (a null where an object belongs), and a document must
// not be able to end who reads it.
func guarded(read func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: its reader gave up: %v", ErrFormat, r)
		}
	}()
	return read()
}

func checkSPDX(raw []byte) (Summary, error) {
	var head struct {
		Version   string `json:"spdxVersion"`
		ID        string `json:"SPDXID"`
		Name      string `json:"name"`
		Namespace string `json:"documentNamespace"`
	}
	if err := attest.UnmarshalStrict(raw, &head); err != nil {
		return Summary{}, err
	}
	if head.Version != "SPDX-2.3" {
		return Summary{}, fmt.Errorf("%w: spdxVersion is %q, not \"SPDX-2.3\"", ErrFormat, head.Version)
	}
	if head.ID != "SPDXRef-DOCUMENT" || head.Namespace == "" {
		return Summary{}, fmt.Errorf("%w: SPDXID or documentNamespace is missing", ErrFormat)
	}
	var doc *spdx.Document
	err := guarded(func() error {
		// The library's own reader does the same to a document of this version,
		// and links a processor of JSON-LD for another.
		return json.Unmarshal(raw, &doc)
	})
	if err != nil {
		return Summary{}, err
	}
	described := map[string]bool{}
	for _, r := range doc.Relationships {
		if r != nil && r.Relationship == "DESCRIBES" && r.RefA.ElementRefID == "DOCUMENT" {
			described[string(r.RefB.ElementRefID)] = true
		}
	}
	n := 0
	for _, p := range doc.Packages {
		if p != nil && !described[string(p.PackageSPDXIdentifier)] {
			n++
		}
	}
	return Summary{Format: SPDX, Version: "2.3", Name: head.Name, Packages: n, Unread: Unread(doc.DocumentComment)}, nil
}

func checkCycloneDX(raw []byte) (Summary, error) {
	var head struct {
		Format   string          `json:"bomFormat"`
		Version  string          `json:"specVersion"`
		Metadata json.RawMessage `json:"metadata"`
	}
	if err := attest.UnmarshalStrict(raw, &head); err != nil {
		return Summary{}, err
	}
	if head.Format != "CycloneDX" {
		return Summary{}, fmt.Errorf("%w: bomFormat is %q, not \"CycloneDX\"", ErrFormat, head.Format)
	}
	if head.Version != "1.6" {
		return Summary{}, fmt.Errorf("%w: specVersion is %q, not \"1.6\"", ErrFormat, head.Version)
	}
	var bom cyclonedx.BOM
	err := guarded(func() error {
		return cyclonedx.NewBOMDecoder(bytes.NewReader(raw), cyclonedx.BOMFileFormatJSON).Decode(&bom)
	})
	if err != nil {
		return Summary{}, err
	}
	s := Summary{Format: CycloneDX, Version: "1.6"}
	if bom.Metadata != nil && bom.Metadata.Component != nil {
		s.Name = bom.Metadata.Component.Name
	}
	if bom.Properties != nil {
		var marks []Property
		for _, p := range *bom.Properties {
			marks = append(marks, Property{p.Name, p.Value})
		}
		s.Unread = Unread("", marks...)
	}
	if bom.Components != nil {
		for _, c := range *bom.Components {
			if c.Type != cyclonedx.ComponentTypeFile && c.Type != cyclonedx.ComponentTypeOS {
				s.Packages++
			}
		}
	}
	return s, nil
}
