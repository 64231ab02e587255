package keys

import (
	"errors"
	"fmt"
	"strings"
)

// Request is a line that the helper reads, as JSON. The first ones open a key,
// until it is open; each later one has it sign.
type Request struct {
	Ref    string `json:"ref,omitempty"`    // the key to open
	Sign   bool   `json:"sign,omitempty"`   // it is to sign, not only to verify
	Module string `json:"module,omitempty"` // the PKCS#11 library where Ref has no module-path
	PIN    []byte `json:"pin,omitempty"`    // of the token
	ID     string `json:"id,omitempty"`     // sha256:… of the key that is wanted, where an older version may be it

	Digest  []byte `json:"digest,omitempty"`  // to be signed
	Message []byte `json:"message,omitempty"` // to be signed by an Ed25519 key
}

// Reply is a line that the helper prints, as JSON: what was asked for, or why
// there is none.
type Reply struct {
	PublicKey string `json:"publicKey,omitempty"` // PEM
	Hash      string `json:"hash,omitempty"`      // sha256, sha384 or sha512: what the key signs; "": messages
	Signature []byte `json:"signature,omitempty"`
	Class     Class  `json:"class,omitempty"`
	Message   string `json:"message,omitempty"`
}

// Class is why there is no key, or no signature.
type Class string

// The classes.
const (
	ClassReference   Class = "reference"   // the reference is wrong, or names something that is no public key
	ClassNotFound    Class = "not-found"   // the service has no such key
	ClassPermission  Class = "permission"  // it does not tell us, or sign for us
	ClassLogin       Class = "login"       // it does not know who we are
	ClassPIN         Class = "pin"         // the token wants its PIN; the message is its label, and how many tries are left
	ClassPINRefused  Class = "pin-refused" // the PIN is wrong, or the token is locked
	ClassUnsupported Class = "unsupported" // the helper, or waxseal, cannot do it with this key
	ClassUntrusted   Class = "untrusted"   // its certificate leads to no authority that this machine trusts
	ClassUnanswered  Class = "unreachable" // anything else
)

// Error is a key that could not be had, or that did not sign.
type Error struct {
	Class Class
	what  string
	err   error
	way   string
}

func (e *Error) Error() string { return e.what + ": " + e.err.Error() }
func (e *Error) Unwrap() error { return e.err }

// Hint is the way out; "": the error says it.
func (e *Error) Hint() string { return e.way }

// Cause is the error without what was being done, for who says that itself.
func (e *Error) Cause() error { return e.err }

// doing is what an error begins with.
func (k *Key) doing(signing bool) string {
	switch {
	case signing:
		return fmt.Sprintf("signing with the key %q", k.name)
	case k.opts.Sign:
		return fmt.Sprintf("opening the key %q", k.name)
	}
	return fmt.Sprintf("fetching the key %q", k.name)
}

// refusal is the error that a reply is.
func (k *Key) refusal(r Reply, signing bool) *Error {
	what := k.doing(signing)
	if !signing && (r.Class == ClassReference || r.Class == ClassUnsupported) {
		what = fmt.Sprintf("reading the key %q", k.name)
	}
	e := &Error{Class: r.Class, what: what, err: errors.New(line(r.Message))}
	scheme, _, _ := strings.Cut(k.name, ":")
	switch r.Class {
	case ClassReference, ClassUnsupported, ClassPIN:
	case ClassPINRefused:
		switch {
		case strings.Contains(r.Message, " is wrong"):
			e.way = "see that it is the PIN of this token: one that is wrong too often locks it"
		case strings.Contains(r.Message, " is locked "):
			e.way = "its security officer can set a new one"
		}
	case ClassNotFound:
		e.way = "see whether the reference and the account are right: the service has no such key"
		if scheme == token {
			e.way = "see whether the URI is right; an object that shows itself only after the PIN cannot be read to verify: export its public half to a file"
		}
	case ClassPermission:
		e.way = "allow whoever runs this " + k.permission(signing)
	case ClassLogin:
		e.way = "log in: " + k.login()
	case ClassUntrusted:
		e.way = "trust the authority that issued its certificate (SSL_CERT_FILE), or see who answers there"
	default:
		e.Class = ClassUnanswered
		e.way = "try again; or give the public key as a file"
		if k.opts.Sign {
			e.way = "nothing was signed; run it again when the service is up"
		}
	}
	return e
}

// login is how whoever runs this says who they are.
func (k *Key) login() string {
	scheme, _, _ := strings.Cut(k.name, ":")
	return map[string]string{
		aws:    "AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role of the machine's",
		azure:  "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, a federated token, a managed identity or az login",
		google: "GOOGLE_APPLICATION_CREDENTIALS with the file of an account that is still valid, or gcloud auth application-default login",
	}[scheme]
}

// permission is what reading a public key takes, or signing.
func (k *Key) permission(signing bool) string {
	scheme, rest, _ := strings.Cut(k.name, ":")
	name := strings.TrimPrefix(rest, "//")
	if i := strings.Index(name, "@"); i > 0 {
		name = name[:i]
	}
	if signing {
		path := "transit/sign/" + name
		if k.hash != 0 {
			path += "/*" // the hash
		}
		return map[string]string{
			aws:     "kms:Sign on the key",
			azure:   "the key permission \"sign\" (Key Vault Crypto User)",
			google:  "cloudkms.cryptoKeyVersions.useToSign (roles/cloudkms.signer)",
			vault:   "to update " + path + ", and log in (VAULT_TOKEN)",
			openbao: "to update " + path + ", and log in (BAO_TOKEN)",
		}[scheme]
	}
	return map[string]string{
		aws:        "kms:GetPublicKey and kms:DescribeKey on the key",
		azure:      "the key permission \"get\" (Key Vault Crypto User)",
		google:     "cloudkms.cryptoKeys.get, and of cloudkms.cryptoKeyVersions get, viewPublicKey and, where the reference names no version, list (roles/cloudkms.viewer and roles/cloudkms.publicKeyViewer)",
		vault:      "to read transit/keys/" + name + ", and log in (VAULT_TOKEN)",
		openbao:    "to read transit/keys/" + name + ", and log in (BAO_TOKEN)",
		kubernetes: "to get the secret (resources: secrets, verbs: get, resourceNames: its name), and no other",
	}[scheme]
}

// line is somebody else's message on one printable line.
func line(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd"))
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > 300 {
		s = string(r[:300]) + "…"
	}
	return s
}
