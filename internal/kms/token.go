//go:build cgo

package kms

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/pkcs11"
	pkcs11uri "github.com/stefanberger/go-pkcs11uri"

	"github.com/waxseal/waxseal/pkg/keys"
)

// Of PKCS #11 v3.0, which the library does not name.
const (
	ckkEdwards = 0x40
	ckmEdDSA   = 0x1057
)

// tokenKey is a key on a PKCS#11 token, in a session of its own.
type tokenKey struct {
	module  *pkcs11.Ctx
	slot    uint
	session pkcs11.SessionHandle
	label   string // of the token
	private pkcs11.ObjectHandle
	public  crypto.PublicKey
	// always is a key that wants the PIN for each signature. pin is that; nil: the
	// reader asks for it.
	always bool
	pin    []byte
}

func openToken(r keys.Request) (key, error) {
	uri := pkcs11uri.New()
	if err := uri.Parse(r.Ref); err != nil {
		return nil, &refused{keys.ClassReference, err}
	}
	path, ok := uri.GetQueryAttribute("module-path", false)
	if !ok {
		path = r.Module
	}
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return nil, &refused{keys.ClassReference, fmt.Errorf("there is no PKCS#11 library %q", path)}
	}
	module := pkcs11.New(path)
	if module == nil {
		return nil, &refused{keys.ClassReference, fmt.Errorf("%q is no PKCS#11 library", path)}
	}
	if err := module.Initialize(); err != nil {
		module.Destroy()
		return nil, fmt.Errorf("starting the PKCS#11 library %q: %w", path, tokenError(err))
	}
	t := &tokenKey{module: module}
	if err := t.open(uri, r); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *tokenKey) open(uri *pkcs11uri.Pkcs11URI, r keys.Request) error {
	if err := t.find(uri); err != nil {
		return err
	}
	var err error
	if t.session, err = t.module.OpenSession(t.slot, pkcs11.CKF_SERIAL_SESSION); err != nil {
		return fmt.Errorf("opening a session: %w", tokenError(err))
	}
	which := named(uri)
	if !r.Sign {
		t.public, err = t.publicHalf(which)
		return err
	}
	if err := t.login(r.PIN); err != nil {
		return err
	}
	if t.private, err = t.object(pkcs11.CKO_PRIVATE_KEY, which); err != nil {
		return err
	}
	// The public half has the private one's id, and maybe another label.
	if id := t.attribute(t.private, pkcs11.CKA_ID); len(id) > 0 {
		which = []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, id)}
	}
	if t.public, err = t.publicHalf(which); err != nil {
		return err
	}
	if always := t.attribute(t.private, pkcs11.CKA_ALWAYS_AUTHENTICATE); len(always) == 1 && always[0] == 1 {
		t.always, t.pin = true, bytes.Clone(r.PIN)
	}
	return nil
}

// find picks the one token that the URI's path names (RFC 7512, section 2.3).
func (t *tokenKey) find(uri *pkcs11uri.Pkcs11URI) error {
	slots, err := t.module.GetSlotList(true)
	if err != nil {
		return fmt.Errorf("listing the tokens: %w", tokenError(err))
	}
	var there, fit []string
	for _, slot := range slots {
		info, err := t.module.GetTokenInfo(slot)
		if err != nil || info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue
		}
		there = append(there, strconv.Quote(info.Label))
		fits := true
		for name, is := range map[string]string{
			"token": info.Label, "serial": info.SerialNumber, "manufacturer": info.ManufacturerID, "model": info.Model, "slot-id": strconv.FormatUint(uint64(slot), 10),
		} {
			if want, ok := uri.GetPathAttribute(name, false); ok && strings.TrimRight(want, " ") != strings.TrimRight(is, " \x00") {
				fits = false
			}
		}
		if fits {
			fit = append(fit, fmt.Sprintf("%q with serial=%s", info.Label, info.SerialNumber))
			t.slot, t.label = slot, info.Label
		}
	}
	switch {
	case len(there) == 0:
		return &refused{keys.ClassNotFound, errors.New("no token is plugged in")}
	case len(fit) == 0:
		return &refused{keys.ClassNotFound, fmt.Errorf("no such token; there are %s", strings.Join(there, ", "))}
	case len(fit) > 1:
		return &refused{keys.ClassReference, fmt.Errorf("several tokens fit, say which: %s", strings.Join(fit, ", "))}
	}
	return nil
}

// named is what the URI says of the object.
func named(uri *pkcs11uri.Pkcs11URI) (which []*pkcs11.Attribute) {
	if label, ok := uri.GetPathAttribute("object", false); ok {
		which = append(which, pkcs11.NewAttribute(pkcs11.CKA_LABEL, label))
	}
	if id, ok := uri.GetPathAttribute("id", false); ok {
		which = append(which, pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(id)))
	}
	return which
}

// login gives the PIN, once: a token counts the wrong ones.
func (t *tokenKey) login(pin []byte) error {
	info, err := t.module.GetTokenInfo(t.slot)
	switch {
	case err != nil:
		return tokenError(err)
	case info.Flags&pkcs11.CKF_LOGIN_REQUIRED == 0:
		return nil
	case info.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return t.pinRefused(pkcs11.Error(pkcs11.CKR_PIN_LOCKED))
	case len(pin) == 0 && info.Flags&pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH == 0: // else the reader asks
		return &refused{keys.ClassPIN, errors.New(t.label + left(info.Flags))}
	}
	err = t.module.Login(t.session, pkcs11.CKU_USER, string(pin))
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN)) {
		return nil
	}
	return t.pinRefused(err)
}

// left says how near a token is to being locked, for the question for its PIN.
func left(flags uint) string {
	switch {
	case flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return " (one try is left before it is locked)"
	case flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0:
		return " (few tries are left before it is locked)"
	}
	return ""
}

// pinRefused says why a login failed, and how often it may fail yet.
func (t *tokenKey) pinRefused(err error) error {
	var flags uint
	if info, err := t.module.GetTokenInfo(t.slot); err == nil {
		flags = info.Flags
	}
	no := func(format string, args ...any) error {
		return &refused{keys.ClassPINRefused, fmt.Errorf(format, args...)}
	}
	var code pkcs11.Error
	switch errors.As(err, &code); {
	case err == nil:
		return nil
	case code == pkcs11.CKR_PIN_LOCKED || flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return no("the PIN of the token %q is locked after too many wrong ones", t.label)
	case code == pkcs11.CKR_PIN_EXPIRED || flags&pkcs11.CKF_USER_PIN_TO_BE_CHANGED != 0:
		return no("the PIN of the token %q has to be changed first", t.label)
	case code == pkcs11.CKR_USER_PIN_NOT_INITIALIZED:
		return no("the token %q has no PIN yet", t.label)
	case code == pkcs11.CKR_PIN_INCORRECT || code == pkcs11.CKR_PIN_INVALID || code == pkcs11.CKR_PIN_LEN_RANGE:
		switch {
		case flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
			return no("the PIN of the token %q is wrong; one try is left before it is locked", t.label)
		case flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0:
			return no("the PIN of the token %q is wrong; few tries are left before it is locked (it does not say how many)", t.label)
		}
		return no("the PIN of the token %q is wrong", t.label)
	}
	return fmt.Errorf("logging in to the token %q: %w", t.label, tokenError(err))
}

// object is the one object of a class that is named so.
func (t *tokenKey) object(class uint, which []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	if err := t.module.FindObjectsInit(t.session, append([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class)}, which...)); err != nil {
		return 0, fmt.Errorf("looking for the key: %w", tokenError(err))
	}
	found, _, err := t.module.FindObjects(t.session, 2)
	if end := t.module.FindObjectsFinal(t.session); err == nil {
		err = end
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("looking for the key: %w", tokenError(err))
	case len(found) == 0:
		return 0, &refused{keys.ClassNotFound, fmt.Errorf("the token %q shows no such key", t.label)}
	case len(found) > 1:
		return 0, &refused{keys.ClassReference, fmt.Errorf("the token %q has several such keys, say which with id=", t.label)}
	}
	return found[0], nil
}

// attribute is a value of an object; nil where it has none or keeps it.
func (t *tokenKey) attribute(object pkcs11.ObjectHandle, kind uint) []byte {
	got, err := t.module.GetAttributeValue(t.session, object, []*pkcs11.Attribute{pkcs11.NewAttribute(kind, nil)})
	if err != nil || len(got) != 1 {
		return nil
	}
	return got[0].Value
}

// publicHalf is read from the public key object, else from a certificate's.
func (t *tokenKey) publicHalf(which []*pkcs11.Attribute) (crypto.PublicKey, error) {
	object, err := t.object(pkcs11.CKO_PUBLIC_KEY, which)
	if err != nil {
		cert, none := t.object(pkcs11.CKO_CERTIFICATE, which)
		if none != nil {
			return nil, err
		}
		c, err := x509.ParseCertificate(t.attribute(cert, pkcs11.CKA_VALUE))
		if err != nil {
			return nil, &refused{keys.ClassReference, fmt.Errorf("reading its certificate: %w", err)}
		}
		return c.PublicKey, nil
	}
	kind := uint64(1<<64 - 1)
	if raw := t.attribute(object, pkcs11.CKA_KEY_TYPE); len(raw) == 8 {
		kind = binary.NativeEndian.Uint64(raw)
	}
	switch kind {
	case pkcs11.CKK_RSA:
		n, e := new(big.Int).SetBytes(t.attribute(object, pkcs11.CKA_MODULUS)), new(big.Int).SetBytes(t.attribute(object, pkcs11.CKA_PUBLIC_EXPONENT))
		if !e.IsInt64() || e.Int64() > 1<<31-1 {
			return nil, &refused{keys.ClassUnsupported, errors.New("its RSA exponent is too large")}
		}
		return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
	case pkcs11.CKK_EC:
		return ecKey(t.attribute(object, pkcs11.CKA_EC_PARAMS), t.attribute(object, pkcs11.CKA_EC_POINT))
	case ckkEdwards:
		point := unwrapped(t.attribute(object, pkcs11.CKA_EC_POINT))
		if len(point) != ed25519.PublicKeySize {
			return nil, &refused{keys.ClassUnsupported, errors.New("it is an Edwards key, but none of Ed25519")}
		}
		return ed25519.PublicKey(point), nil
	default:
		return nil, &refused{keys.ClassUnsupported, fmt.Errorf("it is of a type (0x%x) that signs nothing here; use ECDSA, Ed25519 or RSA", kind)}
	}
}

// unwrapped is a point without the OCTET STRING that most tokens have around
// it (PKCS #11 v3.0, section 2.3.3).
func unwrapped(point []byte) []byte {
	var inner []byte
	if rest, err := asn1.Unmarshal(point, &inner); err == nil && len(rest) == 0 {
		return inner
	}
	return point
}

func ecKey(params, point []byte) (crypto.PublicKey, error) {
	// A bare point may look like an OCTET STRING; its length tells.
	if bare := []int{65, 97, 133}; !slices.Contains(bare, len(point)) || point[0] != 4 {
		point = unwrapped(point)
	}
	der, err := asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}{
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}, Parameters: asn1.RawValue{FullBytes: params}},
		asn1.BitString{Bytes: point, BitLength: 8 * len(point)},
	})
	var pub crypto.PublicKey
	if err == nil {
		pub, err = x509.ParsePKIXPublicKey(der)
	}
	if err != nil {
		return nil, &refused{keys.ClassUnsupported, fmt.Errorf("its curve or point: %w; use ECDSA P-256", err)}
	}
	return pub, nil
}

func (t *tokenKey) Public() crypto.PublicKey { return t.public }

func (t *tokenKey) Hash() string {
	if _, ok := t.public.(ed25519.PublicKey); ok {
		return ""
	}
	return "sha256"
}

func (t *tokenKey) Sign(_ context.Context, input []byte) ([]byte, error) {
	mechanism := uint(ckmEdDSA)
	switch t.public.(type) {
	case *ecdsa.PublicKey:
		mechanism = pkcs11.CKM_ECDSA
	case *rsa.PublicKey:
		mechanism = pkcs11.CKM_RSA_PKCS
		// The DigestInfo of SHA-256 (RFC 8017, section 9.2, note 1).
		input = append([]byte{0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20}, input...)
	}
	if err := t.module.SignInit(t.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, t.private); err != nil {
		return nil, tokenError(err)
	}
	if t.always {
		if err := t.pinRefused(t.module.Login(t.session, pkcs11.CKU_CONTEXT_SPECIFIC, string(t.pin))); err != nil {
			return nil, err
		}
	}
	sig, err := t.module.Sign(t.session, input)
	if err != nil {
		return nil, tokenError(err)
	}
	if _, ok := t.public.(*ecdsa.PublicKey); !ok {
		return sig, nil
	}
	half := len(sig) / 2
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig[:half]), new(big.Int).SetBytes(sig[half:])})
}

func (t *tokenKey) Close() {
	clear(t.pin)
	// The process ends next, whatever these say.
	if t.session != 0 {
		_ = t.module.Logout(t.session)
		_ = t.module.CloseSession(t.session)
	}
	_ = t.module.Finalize()
	t.module.Destroy()
}

// tokenError tells what may pass, a token that is away, from what will not.
func tokenError(err error) error {
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return err
	}
	class := keys.ClassUnsupported
	switch code {
	case pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_SESSION_COUNT:
		class = keys.ClassUnanswered
	case pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED:
		return &refused{keys.ClassPermission, errors.New("the key is one that may not sign (CKA_SIGN)")}
	}
	return &refused{class, err}
}
