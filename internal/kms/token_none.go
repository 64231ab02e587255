//go:build !cgo

package kms

import (
	"errors"

	"github.com/waxseal/waxseal/pkg/keys"
)

// openToken says what is missing: a token's library is C.
func openToken(keys.Request) (key, error) {
	return nil, &refused{keys.ClassUnsupported, errors.New("this waxseal-kms was built without cgo, which a PKCS#11 library needs; where a C compiler is: CGO_ENABLED=1 go build ./cmd/waxseal-kms, and put it beside waxseal")}
}
