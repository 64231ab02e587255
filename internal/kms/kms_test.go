package kms

import (
	"errors"
	"fmt"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	vault "github.com/hashicorp/vault/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/waxseal/waxseal/pkg/keys"
)

type awsError string

func (e awsError) Error() string     { return "operation error KMS: " + string(e) }
func (e awsError) ErrorCode() string { return string(e) }

// What no test here can ask, Google's and Azure's services, answers in these
// forms.
func TestClasses(t *testing.T) {
	for _, c := range []struct {
		err  error
		want keys.Class
	}{
		{errors.New("dial tcp: connection refused"), keys.ClassUnanswered},
		{&refused{keys.ClassReference, errors.New("x")}, keys.ClassReference},
		{awsError("NotFoundException"), keys.ClassNotFound},
		{awsError("AccessDeniedException"), keys.ClassPermission},
		{awsError("UnsupportedOperationException"), keys.ClassReference},
		{awsError("ThrottlingException"), keys.ClassUnanswered},
		{&vault.ResponseError{StatusCode: 403}, keys.ClassPermission},
		{&vault.ResponseError{StatusCode: 503}, keys.ClassUnanswered},
		{&azcore.ResponseError{StatusCode: 404}, keys.ClassNotFound},
		{&azcore.ResponseError{StatusCode: 401}, keys.ClassPermission},
		{&azcore.ResponseError{StatusCode: 429}, keys.ClassUnanswered},
		{status.Error(codes.NotFound, "x"), keys.ClassNotFound},
		{status.Error(codes.PermissionDenied, "x"), keys.ClassPermission},
		{status.Error(codes.Unauthenticated, "x"), keys.ClassPermission},
		{status.Error(codes.InvalidArgument, "x"), keys.ClassReference},
		{status.Error(codes.Unavailable, "x"), keys.ClassUnanswered},
		{status.Error(codes.DeadlineExceeded, "x"), keys.ClassUnanswered},
	} {
		if got := classOf(fmt.Errorf("public key: %w", c.err)); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
}

func TestAVaultIsAskedOverHTTPSOnly(t *testing.T) {
	for address, ok := range map[string]bool{
		"https://vault.example": true, "http://127.0.0.1:8200": true, "http://localhost:8200": true,
		"": false, "http://vault.example": false, "http://localhost.example": false, "vault.example:8200": false, "unix:///run/vault": false,
	} {
		t.Setenv("VAULT_ADDR", address)
		if err := onTheWire("hashivault://k"); (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
	}
	t.Setenv("VAULT_ADDR", "http://vault.example")
	if err := onTheWire("gcpkms://projects/p"); err != nil {
		t.Error(err)
	}
}
