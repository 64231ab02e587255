package kms

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"google.golang.org/grpc/status"

	"github.com/waxseal/waxseal/pkg/keys"
)

// noGoogle begins what sigstore's client says where it has no credentials.
const noGoogle = "new gcp kms client: "

// understood gives an error its class where the client makes no type of it, and
// says what it means.
func understood(err error) error {
	var login *azidentity.AuthenticationFailedError
	var fromAzure *azcore.ResponseError
	text := err.Error()
	switch {
	case errors.As(err, &login):
		if login.RawResponse != nil && login.RawResponse.StatusCode < 500 {
			return &refused{keys.ClassLogin, errors.New("logging in to Azure: " + azureSays(login.RawResponse))}
		}
	case errors.As(err, &fromAzure) && strings.Contains(text, `"KeyDisabled"`):
		return &refused{keys.ClassReference, errors.New("the key is disabled: " + azureSays(fromAzure.RawResponse))}
	case strings.Contains(text, "DefaultAzureCredential: failed to acquire a token"):
		return &refused{keys.ClassLogin, errors.New("nothing was found to log in to Azure with")}
	// Google's, in sigstore's words.
	case strings.Contains(text, "no more items in iterator"):
		return &refused{keys.ClassReference, errors.New("it has no version that is enabled: enable one, or add one")}
	case strings.Contains(text, "specified key cannot be used to sign"):
		return &refused{keys.ClassReference, errors.New("its purpose is not ASYMMETRIC_SIGN: it makes no signatures")}
	case strings.Contains(text, "unknown algorithm specified by KMS"):
		return &refused{keys.ClassUnsupported, errors.New("its algorithm is none that is supported; use EC_SIGN_P256_SHA256, EC_SIGN_P384_SHA384 or RSA_SIGN_PKCS1_2048_SHA256")}
	case strings.HasPrefix(text, noGoogle):
		return &refused{keys.ClassLogin, errors.New(text[len(noGoogle):])}
	}
	return err
}

// said is an error without what a client puts around what the service says.
func said(err error) string {
	var fromAzure *azcore.ResponseError
	var fromGoogle interface{ GRPCStatus() *status.Status }
	switch {
	case errors.As(err, &fromAzure) && fromAzure.RawResponse != nil:
		return azureSays(fromAzure.RawResponse)
	case errors.As(err, &fromGoogle):
		return fmt.Sprintf("%s: %s", fromGoogle.GRPCStatus().Code(), fromGoogle.GRPCStatus().Message())
	}
	return err.Error()
}

// azureSays is the message in an answer of Key Vault, or of Entra ID.
func azureSays(r *http.Response) string {
	var answer struct {
		Error       json.RawMessage
		Description string `json:"error_description"`
	}
	var inner struct{ Message string }
	raw, err := runtime.Payload(r)
	if err != nil || json.Unmarshal(raw, &answer) != nil {
		return r.Status
	}
	if answer.Description == "" && json.Unmarshal(answer.Error, &inner) == nil {
		answer.Description = inner.Message
	}
	return r.Status + ": " + answer.Description
}
