package sign

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/keys"
)

// late is the signer of OpenLate.
type late struct {
	ref  string
	opts OpenOptions
	once sync.Once
	err  error // of the one try

	mu       sync.Mutex
	variable *Hidden    // what was in it; nil for a file
	password *Hidden    // until the key was tried; nil for a plain key
	opener   *Hidden    // opens the box with the salt, as the password did
	salt     []byte     // of that box
	public   []byte     // PEM; nil: not tried yet
	signer   *keySigner // once the key was read
	closed   bool
}

// OpenLate returns a signer like Open's, for one who signs much later and would
// rather not have the key in memory until then: it is read when the first
// statement is signed. What can be seen of the file or variable is checked at
// once, and the password asked for. Call the signer's method
//
//	Ready(context.Context) error
//
// to know early whether the key opens. An encrypted one costs a tenth of a
// second: call it beside other things. Sign waits for it. PublicKey reads the
// key, and returns nil where it does not open.
//
// What waits meanwhile is Hidden: the password until Ready is done, then what
// opens this key alone; and the text of a variable. A key that something else
// holds is asked for by Ready, and stays where it is.
func OpenLate(ctx context.Context, ref string, opts OpenOptions) (Signer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l := &late{ref: ref, opts: opts}
	if l.held() {
		return l, nil
	}
	if err := l.look(); err != nil {
		return nil, errors.Join(fmt.Errorf("opening key %q: %w", ref, err), l.Close())
	}
	return l, nil
}

func (l *late) held() bool { return keys.IsRef(l.ref) && !l.inVariable() }

func (l *late) inVariable() bool { return strings.HasPrefix(l.ref, variableScheme) }

// look checks what can be seen without a password, and has that.
func (l *late) look() error {
	if l.inVariable() {
		raw, err := takeVariable(l.ref, l.opts)
		if err != nil {
			return err
		}
		l.variable = Hide(raw)
	}
	block, err := l.block()
	if err != nil {
		return err
	}
	defer clear(block.Bytes)
	if !isSealed(block) {
		return nil
	}
	box, err := parseBox(block.Bytes)
	if err != nil {
		return err
	}
	if l.opts.Password == nil {
		return errNoPassword
	}
	pass, err := l.opts.Password()
	if err != nil {
		return err
	}
	l.password, l.salt = Hide(pass), box.KDF.Salt
	return nil
}

// text is what is in the file or variable. The caller overwrites it.
func (l *late) text() ([]byte, error) {
	if l.variable == nil {
		return readKey(l.ref)
	}
	if raw := l.variable.Reveal(); raw != nil {
		return raw, nil
	}
	return nil, errClosed
}

// block is the key in the text. The caller overwrites its bytes.
func (l *late) block() (*pem.Block, error) {
	raw, err := l.text()
	if err != nil {
		return nil, err
	}
	defer clear(raw)
	return privateBlock(raw)
}

// Ready reports whether the key opens, and keeps nothing of it.
func (l *late) Ready(ctx context.Context) error {
	l.once.Do(func() {
		if l.held() {
			l.err = l.ask(ctx)
		} else if l.err = l.try(ctx); l.err != nil {
			l.err = fmt.Errorf("opening key %q: %w", l.ref, l.err)
		}
	})
	return l.err
}

func (l *late) try(ctx context.Context) error {
	raw, err := l.text()
	if err != nil {
		return err
	}
	defer clear(raw)
	var pass []byte
	if l.password != nil {
		pass = l.password.Reveal()
		defer clear(pass)
	}
	opener, public, err := tryApart(ctx, l.opts.Apart, pass, raw)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.public = public
	if l.password != nil {
		l.opener = Hide(opener)
		l.password.Forget()
	}
	if l.closed {
		l.opener.Forget()
	}
	return nil
}

// ask opens a key that something else holds. What comes to the helper as a key,
// to sign with it there, ends with the helper, and is fetched again.
func (l *late) ask(ctx context.Context) error {
	s, err := openKey(ctx, l.ref, l.opts)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.public = s.pub
	if l.closed || strings.HasPrefix(l.ref, "k8s:") {
		return s.Close()
	}
	l.signer = s
	return nil
}

// tried is the public half as Ready has seen it; nil: it has not.
func (l *late) tried() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.public
}

// key reads the key, once.
func (l *late) key(ctx context.Context) (*keySigner, error) {
	if err := l.Ready(ctx); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return nil, errClosed
	case l.signer != nil:
		return l.signer, nil
	case l.held():
		s, err := openKey(ctx, l.ref, l.opts)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(s.pub, l.public) {
			return nil, fmt.Errorf("opening key %q: %w", keys.Name(l.ref), errors.Join(errChanged, s.Close()))
		}
		l.signer = s
		return s, nil
	}
	s, err := l.open()
	if err == nil && !bytes.Equal(s.pub, l.public) {
		err = errors.Join(errChanged, s.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("opening key %q: %w", l.ref, err)
	}
	l.signer = s
	l.opener.Forget()
	l.variable.Forget()
	return s, nil
}

var errChanged = errors.New("it is not the key that was there when this began; nothing was signed with it")

func (l *late) open() (*keySigner, error) {
	block, err := l.block()
	if err != nil {
		return nil, err
	}
	defer clear(block.Bytes)
	typ, der := block.Type, block.Bytes
	if isSealed(block) {
		box, err := parseBox(block.Bytes)
		if err != nil {
			return nil, err
		}
		if l.opener == nil || !bytes.Equal(box.KDF.Salt, l.salt) {
			return nil, errChanged
		}
		opener := l.opener.Reveal()
		defer clear(opener)
		if der, err = box.open(opener); err != nil {
			return nil, errChanged
		}
		defer clear(der)
		typ = plainKey
	}
	priv, err := parseDER(typ, der)
	if err != nil {
		return nil, err
	}
	return newKeySigner(priv)
}

func (l *late) Sign(ctx context.Context, st *attest.Statement) (*attest.Bundle, error) {
	s, err := l.key(ctx)
	if err != nil {
		return nil, err
	}
	return s.Sign(ctx, st)
}

func (l *late) PublicKey() []byte {
	s, err := l.key(context.Background())
	if err != nil {
		return nil
	}
	return s.PublicKey()
}

// Close does not wait for Ready.
func (l *late) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.password.Forget()
	l.opener.Forget()
	l.variable.Forget()
	if l.signer == nil {
		return nil
	}
	return l.signer.Close()
}
