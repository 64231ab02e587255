package attest

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"google.golang.org/protobuf/encoding/protojson"
)

// What cosign keeps beside a DSSE envelope in ".att", as annotations of its
// layer.
// https://github.com/sigstore/cosign/blob/v2.6.5/pkg/oci/static/signature.go
const (
	cosignCertificate = "dev.sigstore.cosign/certificate"      // PEM
	cosignBundle      = "dev.sigstore.cosign/bundle"           // JSON: the promise of a Rekor v1 log
	cosignTimestamp   = "dev.sigstore.cosign/rfc3161timestamp" // JSON: a time stamp
)

// keyless is how long a certificate may last for its key to be taken for one
// that nobody kept.
const keyless = 24 * time.Hour

// AssembleCosign makes of an envelope that cosign signed keyless, and of what
// it keeps beside it, the Sigstore bundle v0.1 that carries the same. Nil: what
// signed is not keyless, and the envelope stands for itself. Only the form is
// checked, as in ParseBundle.
func AssembleCosign(envelope []byte, annotations map[string]string) ([]byte, error) {
	text := annotations[cosignCertificate]
	if text == "" {
		return nil, nil
	}
	raw, err := assemble(envelope, text, annotations)
	if err != nil {
		return nil, fmt.Errorf("reading what cosign keeps beside an envelope: %w", err)
	}
	return raw, nil
}

func assemble(envelope []byte, certificate string, annotations map[string]string) ([]byte, error) {
	block, _ := pem.Decode([]byte(certificate))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("the certificate is not PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the certificate: %w", err)
	}
	if cert.NotAfter.Sub(cert.NotBefore) > keyless {
		return nil, nil
	}
	if len(envelope) > MaxBundle {
		return nil, fmt.Errorf("%d bytes, more than the %d allowed", len(envelope), MaxBundle)
	}
	pb, err := parseDSSE(envelope)
	if err != nil {
		return nil, err
	}
	pb.MediaType = "application/vnd.dev.sigstore.bundle+json;version=0.1"
	pb.VerificationMaterial = &protobundle.VerificationMaterial{Content: &protobundle.VerificationMaterial_X509CertificateChain{
		X509CertificateChain: &protocommon.X509CertificateChain{Certificates: []*protocommon.X509Certificate{{RawBytes: block.Bytes}}},
	}}
	if text := annotations[cosignBundle]; text != "" {
		entry, err := cosignEntry([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("the log's promise: %w", err)
		}
		pb.VerificationMaterial.TlogEntries = []*protorekor.TransparencyLogEntry{entry}
	}
	if text := annotations[cosignTimestamp]; text != "" {
		var stamp struct{ SignedRFC3161Timestamp []byte }
		if err := UnmarshalStrict([]byte(text), &stamp); err != nil {
			return nil, fmt.Errorf("the time stamp: %w", err)
		}
		pb.VerificationMaterial.TimestampVerificationData = &protobundle.TimestampVerificationData{
			Rfc3161Timestamps: []*protocommon.RFC3161SignedTimestamp{{SignedTimestamp: stamp.SignedRFC3161Timestamp}},
		}
	}
	spaced, err := protojson.Marshal(pb)
	if err != nil {
		return nil, err
	}
	// protojson varies its spaces; one bundle must have one digest.
	var raw bytes.Buffer
	err = json.Compact(&raw, spaced)
	return raw.Bytes(), err
}

// cosignEntry is a log entry as cosign keeps it: without a proof of inclusion.
func cosignEntry(text []byte) (*protorekor.TransparencyLogEntry, error) {
	var kept struct {
		SignedEntryTimestamp []byte
		Payload              struct {
			Body           string `json:"body"`
			IntegratedTime int64  `json:"integratedTime"`
			LogIndex       int64  `json:"logIndex"`
			LogID          string `json:"logID"`
		}
	}
	if err := UnmarshalStrict(text, &kept); err != nil {
		return nil, err
	}
	id, err := hex.DecodeString(kept.Payload.LogID)
	if err != nil {
		return nil, errors.New("the log's id is not hex")
	}
	body, err := base64.StdEncoding.DecodeString(kept.Payload.Body)
	if err != nil {
		return nil, errors.New("the entry is not base64")
	}
	var entry struct {
		Kind       string `json:"kind"`
		APIVersion string `json:"apiVersion"`
	}
	if err := UnmarshalStrict(body, &entry); err != nil {
		return nil, fmt.Errorf("the entry: %w", err)
	}
	return &protorekor.TransparencyLogEntry{
		LogIndex: kept.Payload.LogIndex, LogId: &protocommon.LogId{KeyId: id}, IntegratedTime: kept.Payload.IntegratedTime,
		KindVersion:       &protorekor.KindVersion{Kind: entry.Kind, Version: entry.APIVersion},
		InclusionPromise:  &protorekor.InclusionPromise{SignedEntryTimestamp: kept.SignedEntryTimestamp},
		CanonicalizedBody: body,
	}, nil
}
