// Package kms reads public keys out of key management services, for waxseal-kms:
// a program of its own, because their clients would double what waxseal takes
// to start. Call Answer with a reference.
package kms

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	vault "github.com/hashicorp/vault/api"
	"github.com/sigstore/sigstore/pkg/signature/kms"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/aws"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/azure"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/gcp"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/hashivault"
	"github.com/sigstore/sigstore/pkg/signature/options"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Reply is what waxseal-kms prints, as JSON: a key, or why there is none.
type Reply struct {
	PublicKey string `json:"publicKey,omitempty"` // PEM
	Class     Class  `json:"class,omitempty"`
	Message   string `json:"message,omitempty"`
}

// Class is why there is no key.
type Class string

// The classes.
const (
	ClassReference  Class = "reference"   // the reference is wrong, or names something that is no public key
	ClassNotFound   Class = "not-found"   // the service has no such key
	ClassPermission Class = "permission"  // it does not tell us
	ClassUnanswered Class = "unreachable" // anything else
)

// Answer reads the public half of the key that ref names.
func Answer(ctx context.Context, ref string) Reply {
	pub, err := publicKey(ctx, ref)
	if err != nil {
		return Reply{Class: classOf(err), Message: err.Error()}
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return Reply{Class: ClassReference, Message: fmt.Sprintf("it is no public key that signatures are checked with: %v", err)}
	}
	return Reply{PublicKey: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}
}

// referenceError is a reference that names no key.
type referenceError struct{ error }

func publicKey(ctx context.Context, ref string) (crypto.PublicKey, error) {
	if err := onTheWire(ref); err != nil {
		return nil, referenceError{err}
	}
	sv, err := kms.Get(ctx, ref, crypto.SHA256)
	if err != nil {
		var unknown *kms.ProviderNotFoundError
		if errors.As(err, &unknown) || strings.Contains(err.Error(), "kms specification should be in the format") {
			return nil, referenceError{err}
		}
		return nil, err
	}
	return sv.PublicKey(options.WithContext(ctx))
}

// onTheWire refuses a Vault that anybody on the way could speak for.
func onTheWire(ref string) error {
	if !strings.HasPrefix(ref, "hashivault://") && !strings.HasPrefix(ref, "openbao://") {
		return nil
	}
	address := os.Getenv("VAULT_ADDR")
	if address == "" {
		address = os.Getenv("BAO_ADDR")
	}
	u, err := url.Parse(address)
	if err != nil || address == "" {
		return errors.New("VAULT_ADDR says where the Vault is; it is not set to an address")
	}
	if host := u.Hostname(); u.Scheme != "https" && host != "localhost" && host != "127.0.0.1" && host != "::1" {
		return fmt.Errorf("VAULT_ADDR is %q: a key is fetched over https only", u.Redacted())
	}
	return nil
}

func classOf(err error) Class {
	var reference referenceError
	if errors.As(err, &reference) {
		return ClassReference
	}
	// The AWS client's errors.
	var named interface{ ErrorCode() string }
	if errors.As(err, &named) {
		switch code := named.ErrorCode(); {
		case code == "NotFoundException":
			return ClassNotFound
		case strings.HasPrefix(code, "AccessDenied"), code == "UnrecognizedClientException", code == "InvalidSignatureException", code == "ExpiredTokenException":
			return ClassPermission
		case code == "UnsupportedOperationException", code == "InvalidKeyUsageException", code == "InvalidArnException":
			return ClassReference
		}
	}
	var fromVault *vault.ResponseError
	if errors.As(err, &fromVault) {
		return classOfStatus(fromVault.StatusCode)
	}
	var fromAzure *azcore.ResponseError
	if errors.As(err, &fromAzure) {
		return classOfStatus(fromAzure.StatusCode)
	}
	switch status.Code(err) {
	case codes.NotFound:
		return ClassNotFound
	case codes.PermissionDenied, codes.Unauthenticated:
		return ClassPermission
	case codes.InvalidArgument, codes.FailedPrecondition, codes.Unimplemented:
		return ClassReference
	}
	// Vault's client gives no error for a 404, and sigstore's says these.
	for text, class := range map[string]Class{
		"could not read data from transit key path": ClassNotFound,
		"could not parse transit key keys data":     ClassReference, // a symmetric key has no public half
	} {
		if strings.Contains(err.Error(), text) {
			return class
		}
	}
	return ClassUnanswered
}

func classOfStatus(code int) Class {
	switch code {
	case http.StatusNotFound:
		return ClassNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return ClassPermission
	case http.StatusBadRequest:
		return ClassReference
	}
	return ClassUnanswered
}
