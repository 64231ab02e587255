package sbom

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/CycloneDX/cyclonedx-go"
	"github.com/spdx/tools-golang/spdx"

	"github.com/waxseal/waxseal/pkg/attest"

	"github.com/waxseal/waxseal/attestations"
)

const (
	minimalSPDX = `{"spdxVersion":"SPDX-2.3","dataLicense":"CC0-1.0","SPDXID":"SPDXRef-DOCUMENT","name":"app","documentNamespace":"https://example.com/1",
"creationInfo":{"created":"2025-01-01T00:00:00Z","creators":["Tool: t"]},
"packages":[{"SPDXID":"SPDXRef-root","name":"app","downloadLocation":"NOASSERTION"},{"SPDXID":"SPDXRef-a","name":"a","downloadLocation":"NOASSERTION"}],
"relationships":[{"spdxElementId":"SPDXRef-DOCUMENT","relationshipType":"DESCRIBES","relatedSpdxElement":"SPDXRef-root"}]}`
	minimalCycloneDX = `{"bomFormat":"CycloneDX","specVersion":"1.6","version":1,
"metadata":{"component":{"type":"container","name":"app"}},
"components":[{"type":"operating-system","name":"debian"},{"type":"library","name":"a"},{"type":"file","name":"/f"}]}`
)

func TestCheck(t *testing.T) {
	for _, tc := range []struct {
		name, format, raw string
		want              Summary
		err               string
	}{
		{name: "spdx", format: SPDX, raw: minimalSPDX, want: Summary{SPDX, "2.3", "app", 1, ""}},
		{name: "cyclonedx", format: CycloneDX, raw: minimalCycloneDX, want: Summary{CycloneDX, "1.6", "app", 1, ""}},
		{name: "spdx that lacks some", format: SPDX, raw: strings.Replace(minimalSPDX, `"name":"app",`, `"name":"app","comment":"By hand.\nwaxseal:unread /a: cut\nwaxseal:unread /b: odd",`, 1), want: Summary{SPDX, "2.3", "app", 1, "/a: cut; /b: odd"}},
		{name: "cyclonedx that lacks some", format: CycloneDX, raw: strings.Replace(minimalCycloneDX, `"version":1,`, `"version":1,"properties":[{"name":"x","value":"y"},{"name":"waxseal:unread","value":"/a: cut"}],`, 1), want: Summary{CycloneDX, "1.6", "app", 1, "/a: cut"}},
		{name: "text that a terminal obeys", format: CycloneDX, raw: strings.Replace(minimalCycloneDX, `"version":1,`, `"version":1,"properties":[{"name":"waxseal:unread","value":"/a\u001b[2J\n::error::"}],`, 1), want: Summary{CycloneDX, "1.6", "app", 1, "/a?[2J?::error::"}},
		{name: "one for the other", format: SPDX, raw: minimalCycloneDX, err: `spdxVersion is ""`},
		{name: "the other for one", format: CycloneDX, raw: minimalSPDX, err: `bomFormat is ""`},
		{name: "older spdx", format: SPDX, raw: strings.Replace(minimalSPDX, "SPDX-2.3", "SPDX-2.2", 1), err: `spdxVersion is "SPDX-2.2"`},
		{name: "newer cyclonedx", format: CycloneDX, raw: strings.Replace(minimalCycloneDX, "1.6", "1.7", 1), err: `specVersion is "1.7"`},
		{name: "no namespace", format: SPDX, raw: strings.Replace(minimalSPDX, "https://example.com/1", "", 1), err: "documentNamespace is missing"},
		{name: "key twice", format: SPDX, raw: `{"spdxVersion":"SPDX-2.3","spdxVersion":"SPDX-2.3"}`, err: "spdxVersion"},
		{name: "key in two cases", format: CycloneDX, raw: `{"bomFormat":"CycloneDX","BomFormat":"x"}`, err: "omFormat"},
		{name: "more after the end", format: CycloneDX, raw: minimalCycloneDX + "{}", err: "reading a cyclonedx document"},
		{name: "not json", format: SPDX, raw: "SPDXVersion: SPDX-2.3", err: "reading a spdx document"},
		{name: "empty", format: SPDX, raw: "", err: "reading a spdx document"},
		{name: "array", format: SPDX, raw: "[]", err: "reading a spdx document"},
		{name: "wrong type", format: CycloneDX, raw: strings.Replace(minimalCycloneDX, `"version":1`, `"version":"x"`, 1), err: "reading a cyclonedx document"},
		{name: "null package", format: SPDX, raw: strings.Replace(minimalSPDX, `"packages":[`, `"packages":[null,`, 1), err: "its reader gave up"},
		{name: "unknown format", format: "syft", raw: "{}", err: `format "syft" is unknown`},
		{name: "too large", format: SPDX, raw: strings.Repeat(" ", attest.MaxSBOM+1), err: "over the limit"},
		{name: "too deep", format: SPDX, raw: strings.Repeat(`{"a":`, 1000) + "1" + strings.Repeat("}", 1000), err: "reading a spdx document"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Check(tc.format, []byte(tc.raw))
			if tc.err == "" {
				if err != nil || got != tc.want {
					t.Fatalf("got %+v, %v; want %+v", got, err, tc.want)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Fatalf("the error is %v, want one with %q", err, tc.err)
			}
			if got != (Summary{}) {
				t.Errorf("an error comes with %+v", got)
			}
		})
	}
	if _, err := Check(SPDX, []byte(minimalCycloneDX)); !errors.Is(err, ErrFormat) {
		t.Errorf("%v is no ErrFormat", err)
	}
}

func TestPredicateTypes(t *testing.T) {
	for format, want := range map[string]string{SPDX: attestations.SPDX, CycloneDX: attestations.CycloneDX, "x": ""} {
		if got := PredicateType(format); got != want {
			t.Errorf("the predicate type of %q is %q, want %q", format, got, want)
		}
	}
}

func TestEncodeIsOneOrderAndItsOwnName(t *testing.T) {
	stamp := Stamp{Created: time.Unix(1700000000, 0), Tools: []string{"syft-v1"}}
	doc := func(names ...string) *spdx.Document {
		d := &spdx.Document{SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT", DocumentName: "app", CreationInfo: &spdx.CreationInfo{}, DocumentNamespace: "https://random/" + names[0]}
		for _, n := range names {
			d.Packages = append(d.Packages, &spdx.Package{PackageSPDXIdentifier: spdx.ElementID(n), PackageName: n, PackageDownloadLocation: "NOASSERTION"})
			d.Relationships = append(d.Relationships, &spdx.Relationship{RefA: spdx.DocElementID{ElementRefID: "DOCUMENT"}, Relationship: "CONTAINS", RefB: spdx.DocElementID{ElementRefID: spdx.ElementID(n)}})
		}
		return d
	}
	one, err := EncodeSPDX(doc("a", "b", "c"), stamp)
	if err != nil {
		t.Fatal(err)
	}
	two, err := EncodeSPDX(doc("c", "a", "b"), stamp)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, two) {
		t.Errorf("the order shows:\n%s\n%s", one, two)
	}
	other, err := EncodeSPDX(doc("a", "b", "d"), stamp)
	if err != nil {
		t.Fatal(err)
	}
	if namespace(t, one) == namespace(t, other) {
		t.Error("two documents share a namespace")
	}
	if !bytes.Contains(one, []byte(`"created":"2023-11-14T22:13:20Z"`)) || !bytes.Contains(one, []byte("Tool: syft-v1")) {
		t.Errorf("the stamp is missing: %s", one)
	}

	bom := func(names ...string) *cyclonedx.BOM {
		b := cyclonedx.NewBOM()
		b.SerialNumber = "urn:uuid:" + names[0]
		b.Metadata = &cyclonedx.Metadata{}
		var cs []cyclonedx.Component
		for _, n := range names {
			cs = append(cs, cyclonedx.Component{BOMRef: n, Name: n, Type: cyclonedx.ComponentTypeLibrary})
		}
		b.Components = &cs
		return b
	}
	first, err := EncodeCycloneDX(bom("a", "b"), stamp)
	if err != nil {
		t.Fatal(err)
	}
	second, err := EncodeCycloneDX(bom("b", "a"), stamp)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Errorf("the order shows:\n%s\n%s", first, second)
	}
	if _, err := Check(CycloneDX, first); err != nil {
		t.Error(err)
	}
	if _, err := EncodeSPDX(nil, stamp); err == nil {
		t.Error("no document was written as one")
	}
	if _, err := EncodeCycloneDX(nil, stamp); err == nil {
		t.Error("no document was written as one")
	}
}

func namespace(t *testing.T, doc []byte) string {
	t.Helper()
	var d struct {
		Namespace string `json:"documentNamespace"`
	}
	if err := attest.UnmarshalStrict(doc, &d); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(d.Namespace, "https://waxseal.dev/spdx/") {
		t.Errorf("the namespace is %q", d.Namespace)
	}
	return d.Namespace
}

func FuzzCheck(f *testing.F) {
	for _, format := range Formats() {
		f.Add(format, []byte(minimalSPDX))
		f.Add(format, []byte(minimalCycloneDX))
		f.Add(format, []byte(`{"spdxVersion":"SPDX-2.3","SPDXID":"SPDXRef-DOCUMENT","documentNamespace":"x","packages":[null],"relationships":[null]}`))
		f.Add(format, []byte(`{"bomFormat":"CycloneDX","specVersion":"1.6","components":[{}],"dependencies":[{"ref":1}]}`))
	}
	seeds, _ := filepath.Glob("testdata/*.json")
	for _, s := range seeds {
		raw, err := os.ReadFile(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(SPDX, raw)
		f.Add(CycloneDX, raw)
	}
	f.Fuzz(func(t *testing.T, format string, raw []byte) {
		s, err := Check(format, raw)
		if err != nil {
			if s != (Summary{}) {
				t.Fatalf("an error comes with %+v", s)
			}
			return
		}
		if s.Format != format || s.Version == "" || s.Packages < 0 {
			t.Fatalf("accepted as %+v", s)
		}
	})
}
