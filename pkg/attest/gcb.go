package attest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
)

// GCBEnvelope is one signature in what Google Cloud says of an image.
type GCBEnvelope struct {
	Pointer string // where it stands in the document
	KeyID   string // whose it says it is; NOT verified
	// DSSE is the envelope with this signature alone, for ParseBundle: Cloud
	// Build signs one payload with several keys, and elsewhere exactly one
	// signature is accepted. Nil where there is nothing to read.
	DSSE []byte
	// Problem is why there is not.
	Problem string
}

// LooksLikeGCB reports whether a document may be one for ParseGCB.
func LooksLikeGCB(raw []byte) bool {
	return bytes.HasPrefix(bytes.TrimLeft(raw, " \t\r\n"), []byte("{")) && bytes.Contains(raw, []byte(`"provenance_summary"`))
}

type gcbImage struct {
	Summary *struct {
		Provenance []struct {
			Kind     string          `json:"kind"`
			Envelope json.RawMessage `json:"envelope"`
		} `json:"provenance"`
	} `json:"provenance_summary"`
}

// ParseGCB reads, strictly, what
//
//	gcloud artifacts docker images describe IMAGE --show-provenance --format json
//
// prints of an image that Google Cloud Build made: each signature of each
// provenance. The readable text beside an envelope is not read, for nobody has
// signed it, and neither is the rest of the document.
func ParseGCB(raw []byte) ([]GCBEnvelope, error) {
	out, err := parseGCB(raw)
	if err != nil {
		return nil, fmt.Errorf("reading a description of an image by Google Cloud: %w", err)
	}
	return out, nil
}

func parseGCB(raw []byte) ([]GCBEnvelope, error) {
	if len(raw) > MaxBundle {
		return nil, fmt.Errorf("%d bytes, more than the %d allowed", len(raw), MaxBundle)
	}
	var in gcbImage
	if err := UnmarshalStrict(raw, &in); err != nil {
		return nil, err
	}
	if in.Summary == nil {
		return nil, fmt.Errorf(`"/provenance_summary" is missing`)
	}
	var out []GCBEnvelope
	for i, p := range in.Summary.Provenance {
		pointer := fmt.Sprintf("/provenance_summary/provenance/%d", i)
		switch {
		case p.Kind != "BUILD":
			out = append(out, GCBEnvelope{Pointer: pointer, Problem: fmt.Sprintf("it is of the kind %q, not BUILD", clip(p.Kind))})
		case len(p.Envelope) == 0:
			out = append(out, GCBEnvelope{Pointer: pointer, Problem: "it has a text that nobody signed, and no envelope"})
		default:
			one, err := splitGCB(p.Envelope, pointer+"/envelope")
			if err != nil {
				return nil, fmt.Errorf("%q: %w", pointer+"/envelope", err)
			}
			out = append(out, one...)
		}
		if len(out) > MaxGCB {
			return nil, fmt.Errorf("more than %d signatures", MaxGCB)
		}
	}
	return out, nil
}

// splitGCB gives each signature of an envelope an envelope of its own.
func splitGCB(raw []byte, pointer string) ([]GCBEnvelope, error) {
	var env dsse.Envelope
	if err := UnmarshalStrict(raw, &env); err != nil {
		return nil, err
	}
	if len(env.Signatures) == 0 {
		return []GCBEnvelope{{Pointer: pointer, Problem: "its envelope carries no signature"}}, nil
	}
	if len(env.Signatures) > maxSignatures {
		return nil, fmt.Errorf("%d signatures, more than the %d allowed", len(env.Signatures), maxSignatures)
	}
	var out []GCBEnvelope
	for i, sig := range env.Signatures {
		e := GCBEnvelope{Pointer: fmt.Sprintf("%s/signatures/%d", pointer, i), KeyID: sig.KeyID}
		if strings.Contains(sig.KeyID, "/cryptoKeys/builtByGCB/") {
			e.Problem = "the regional builtByGCB keys sign the payload and not the envelope, which is no DSSE; newer provenance has another signature beside theirs"
			out = append(out, e)
			continue
		}
		var err error
		if e.DSSE, err = marshal(dsse.Envelope{PayloadType: env.PayloadType, Payload: env.Payload, Signatures: []dsse.Signature{sig}}); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}
