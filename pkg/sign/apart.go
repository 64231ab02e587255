package sign

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"syscall"

	"github.com/waxseal/waxseal/pkg/attest"
)

// A key is tried in a process that ends right after it: what Go's runtime and
// its crypto packages copy of a key and its password is in no memory then.

// The first byte of what TryKey says.
const (
	saidOpens byte = iota
	saidWrong
	saidError
)

// maxTried bounds what is said either way.
const maxTried = 4 * attest.MaxKey

// TryKey is the other end of OpenOptions.Apart: it reads a key and its password,
// tries one on the other, and writes what came of it. An error is one of in and
// out.
func TryKey(in io.Reader, out io.Writer) error {
	raw, err := io.ReadAll(io.LimitReader(in, maxTried))
	if err != nil {
		return err
	}
	size, n := binary.Uvarint(raw)
	if n <= 0 || size > uint64(len(raw)-n) {
		return errors.New("that is no password and key")
	}
	opener, public, err := tryKey(raw[n:n+int(size)], raw[n+int(size):])
	answer := append(append([]byte{saidOpens}, opener...), public...)
	switch {
	case errors.Is(err, ErrPassword):
		answer = []byte{saidWrong}
	case err != nil:
		answer = append([]byte{saidError}, err.Error()...)
	}
	_, err = out.Write(answer)
	return err
}

// tryKey returns what opens the box in text, zeros for a plain key, and the
// public half.
func tryKey(password, text []byte) (opener, public []byte, err error) {
	block, err := privateBlock(text)
	if err != nil {
		return nil, nil, err
	}
	defer clear(block.Bytes)
	opener = make([]byte, openerSize)
	typ, der := block.Type, block.Bytes
	if isSealed(block) {
		box, err := parseBox(block.Bytes)
		if err != nil {
			return nil, nil, err
		}
		if opener, err = box.opener(password); err != nil {
			return nil, nil, err
		}
		if der, err = box.open(opener); err != nil {
			return nil, nil, err
		}
		defer clear(der)
		typ = plainKey
	}
	priv, err := parseDER(typ, der)
	if err != nil {
		return nil, nil, err
	}
	s, err := newKeySigner(priv)
	if err != nil {
		return nil, nil, err
	}
	return opener, s.pub, s.Close()
}

// tryApart has command do what tryKey does; where there is none it is done here.
func tryApart(ctx context.Context, command []string, password, text []byte) (opener, public []byte, err error) {
	if len(command) == 0 {
		return tryKey(password, text)
	}
	given := make([]byte, 0, binary.MaxVarintLen64+len(password)+len(text))
	defer func() { clear(given[:cap(given)]) }()
	given = append(append(binary.AppendUvarint(given, uint64(len(password))), password...), text...)
	scrub(widest)
	said := &fixed{make([]byte, 0, maxTried)}
	defer func() { clear(said.room[:cap(said.room)]) }()
	child := exec.CommandContext(ctx, command[0], command[1:]...)
	child.Env = []string{}                                  // it has no use for ours,
	child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // nor for the terminal's signals
	child.Stdin, child.Stdout = bytes.NewReader(given), said
	if err := child.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		return nil, nil, fmt.Errorf("trying it in a process of its own: %w", err)
	}
	switch {
	case len(said.room) > openerSize && said.room[0] == saidOpens:
		return bytes.Clone(said.room[1 : 1+openerSize]), bytes.Clone(said.room[1+openerSize:]), nil
	case len(said.room) == 1 && said.room[0] == saidWrong:
		return nil, nil, errWrong
	case len(said.room) > 1 && said.room[0] == saidError:
		return nil, nil, errors.New(clip(string(said.room[1:])))
	}
	return nil, nil, errors.New("trying it in a process of its own: it said nothing of use")
}

// fixed reads what fits into its room, without a buffer on the way.
type fixed struct{ room []byte }

func (f *fixed) ReadFrom(r io.Reader) (n int64, err error) {
	for err == nil && len(f.room) < cap(f.room) {
		var m int
		m, err = r.Read(f.room[len(f.room):cap(f.room)])
		f.room = f.room[:len(f.room)+m]
		n += int64(m)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (f *fixed) Write(p []byte) (int, error) {
	n, err := f.ReadFrom(bytes.NewReader(p))
	if err == nil && int(n) < len(p) {
		err = io.ErrShortWrite
	}
	return int(n), err
}
