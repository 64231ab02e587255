package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// The SBOM formats a policy can ask for.
const (
	FormatSPDX      = "spdx"
	FormatCycloneDX = "cyclonedx"
)

// SBOMFormat returns the format of a predicate type, or "" when it is no SBOM.
// The types carry a version suffix in the wild, as "…/bom/v1.6".
func SBOMFormat(predicateType string) string {
	for _, f := range []struct{ uri, format string }{{attestations.SPDX, FormatSPDX}, {attestations.CycloneDX, FormatCycloneDX}} {
		if predicateType == f.uri || (len(predicateType) > len(f.uri) && predicateType[:len(f.uri)+1] == f.uri+"/") {
			return f.format
		}
	}
	return ""
}

// SBOMContent looks at the top of an SBOM predicate, without decoding the
// packages into memory, and returns its version and how many it lists. It
// errs when the document is not what its predicate type says.
func SBOMContent(format string, predicate json.RawMessage) (version string, packages int, err error) {
	if len(predicate) > attest.MaxSBOM {
		return "", 0, fmt.Errorf("%d bytes, more than the %d an SBOM may have", len(predicate), attest.MaxSBOM)
	}
	marker, versionKey, items := "spdxVersion", "spdxVersion", "packages"
	if format == FormatCycloneDX {
		marker, versionKey, items = "bomFormat", "specVersion", "components"
	}
	top := map[string]string{}
	dec := json.NewDecoder(bytes.NewReader(predicate))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return "", 0, fmt.Errorf("not a JSON object")
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return "", 0, err
		}
		switch k := key.(string); k {
		case items:
			if packages, err = countItems(dec); err != nil {
				return "", 0, err
			}
		default:
			var v json.RawMessage
			if err := dec.Decode(&v); err != nil {
				return "", 0, err
			}
			if slices.Contains([]string{marker, versionKey}, k) {
				var s string
				if json.Unmarshal(v, &s) == nil {
					top[k] = s
				}
			}
		}
	}
	switch {
	case format == FormatSPDX && !bytes.HasPrefix([]byte(top[marker]), []byte("SPDX-2.")):
		return "", 0, fmt.Errorf(`"/predicate/spdxVersion" is %q, want SPDX-2.x`, clip(top[marker]))
	case format == FormatCycloneDX && top[marker] != "CycloneDX":
		return "", 0, fmt.Errorf(`"/predicate/bomFormat" is %q, want CycloneDX`, clip(top[marker]))
	case format == FormatCycloneDX && top[versionKey] == "":
		return "", 0, fmt.Errorf(`"/predicate/specVersion" is missing`)
	}
	return top[versionKey], packages, nil
}

// countItems reads one array and returns its length.
func countItems(dec *json.Decoder) (int, error) {
	t, err := dec.Token()
	if err != nil {
		return 0, err
	}
	if t != json.Delim('[') {
		return 0, fmt.Errorf("the list of packages is not a list")
	}
	n := 0
	for dec.More() {
		var skip json.RawMessage
		if err := dec.Decode(&skip); err != nil {
			return 0, err
		}
		n++
	}
	_, err = dec.Token()
	return n, err
}
