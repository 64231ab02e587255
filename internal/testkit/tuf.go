package testkit

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// TUF is a TUF repository in a folder, which any web server can serve, with one
// trusted_root.json in it. Root is the first root.json.
type TUF struct {
	Root []byte

	dir     string
	keys    map[string]ed25519.PrivateKey // by role
	root    int64                         // version of the newest root
	version int64                         // of the rest
}

// TUFOptions is one publication; the zero value is a good one with the content
// {}.
type TUFOptions struct {
	Content []byte               // of trusted_root.json
	Signing []byte               // of signing_config.v0.2.json; nil: there is none
	Expires map[string]time.Time // by role; default: in a week
	Forge   string               // a role that is signed with a key nobody knows
	Rotate  bool                 // new keys for root and timestamp, by a new root
	Version int64                // of timestamp, snapshot and targets; default: one more
	Swap    []byte               // what is served as the target instead
	Lent    bool                 // the target is in a role that is delegated to somebody else
}

// NewTUF makes a repository in dir.
func NewTUF(dir string) (*TUF, error) {
	t := &TUF{dir: dir, keys: map[string]ed25519.PrivateKey{}}
	if err := os.MkdirAll(filepath.Join(dir, "targets"), 0o755); err != nil {
		return nil, err
	}
	for _, role := range metadata.TOP_LEVEL_ROLE_NAMES {
		if err := t.newKey(role); err != nil {
			return nil, err
		}
	}
	raw, err := t.nextRoot(nil, time.Now().AddDate(0, 6, 0))
	t.Root = raw
	return t, err
}

func (t *TUF) newKey(role string) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	t.keys[role] = key
	return err
}

// nextRoot writes a root with the keys that are in force, signed by them and
// by the one before.
func (t *TUF) nextRoot(before ed25519.PrivateKey, expires time.Time) ([]byte, error) {
	root := metadata.Root(expires)
	t.root++
	root.Signed.Version, root.Signed.ConsistentSnapshot = t.root, true
	for role, key := range t.keys {
		public, err := metadata.KeyFromPublicKey(key.Public())
		if err != nil {
			return nil, err
		}
		if err := root.Signed.AddKey(public, role); err != nil {
			return nil, err
		}
	}
	signers := []ed25519.PrivateKey{t.keys[metadata.ROOT]}
	if before != nil {
		signers = append(signers, before)
	}
	return publish(t, root, fmt.Sprintf("%d.root.json", t.root), signers...)
}

// publish signs metadata and writes it under a name.
func publish[T metadata.Roles](t *TUF, m *metadata.Metadata[T], name string, signers ...ed25519.PrivateKey) ([]byte, error) {
	for _, key := range signers {
		signer, err := signature.LoadSigner(key, crypto.Hash(0))
		if err != nil {
			return nil, err
		}
		if _, err := m.Sign(signer); err != nil {
			return nil, err
		}
	}
	raw, err := m.ToBytes(false)
	if err != nil {
		return nil, err
	}
	return raw, os.WriteFile(filepath.Join(t.dir, name), raw, 0o644)
}

// Publish writes the next version of everything.
func (t *TUF) Publish(o TUFOptions) error {
	if o.Content == nil {
		o.Content = []byte("{}")
	}
	expires := func(role string) time.Time {
		if at, ok := o.Expires[role]; ok {
			return at
		}
		return time.Now().AddDate(0, 0, 7)
	}
	if at, ok := o.Expires[metadata.ROOT]; o.Rotate || ok {
		if !ok {
			at = time.Now().AddDate(0, 6, 0)
		}
		before := t.keys[metadata.ROOT]
		for _, role := range []string{metadata.ROOT, metadata.TIMESTAMP} {
			if err := t.newKey(role); err != nil {
				return err
			}
		}
		if _, err := t.nextRoot(before, at); err != nil {
			return err
		}
	}
	key := func(role string) ed25519.PrivateKey {
		if role == o.Forge {
			_, forged, _ := ed25519.GenerateKey(rand.Reader) // never fails
			return forged
		}
		return t.keys[role]
	}
	t.version++
	if o.Version != 0 {
		t.version = o.Version
	}
	targets := metadata.Targets(expires(metadata.TARGETS))
	targets.Signed.Version = t.version
	contents := map[string][]byte{"trusted_root.json": o.Content}
	if o.Signing != nil {
		contents["signing_config.v0.2.json"] = o.Signing
	}
	for name, content := range contents {
		info, err := metadata.TargetFile().FromBytes(name, content, "sha256")
		if err != nil {
			return err
		}
		if o.Lent && name == "trusted_root.json" {
			if err := t.lend(targets, info); err != nil {
				return err
			}
			continue
		}
		targets.Signed.Targets[name] = info
	}
	if _, err := publish(t, targets, fmt.Sprintf("%d.targets.json", t.version), key(metadata.TARGETS)); err != nil {
		return err
	}
	snapshot := metadata.Snapshot(expires(metadata.SNAPSHOT))
	snapshot.Signed.Version = t.version
	snapshot.Signed.Meta["targets.json"] = metadata.MetaFile(t.version)
	if o.Lent {
		snapshot.Signed.Meta["lent.json"] = metadata.MetaFile(t.version)
	}
	if _, err := publish(t, snapshot, fmt.Sprintf("%d.snapshot.json", t.version), key(metadata.SNAPSHOT)); err != nil {
		return err
	}
	timestamp := metadata.Timestamp(expires(metadata.TIMESTAMP))
	timestamp.Signed.Version = t.version
	timestamp.Signed.Meta["snapshot.json"] = metadata.MetaFile(t.version)
	if _, err := publish(t, timestamp, "timestamp.json", key(metadata.TIMESTAMP)); err != nil {
		return err
	}
	for name, content := range contents {
		sum := sha256.Sum256(content)
		if o.Swap != nil && name == "trusted_root.json" {
			content = o.Swap
		}
		if err := os.WriteFile(filepath.Join(t.dir, "targets", hex.EncodeToString(sum[:])+"."+name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// lend delegates all targets to a role with a key of its own, which has the
// target.
func (t *TUF) lend(from *metadata.Metadata[metadata.TargetsType], target *metadata.TargetFiles) error {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	theirs, err := metadata.KeyFromPublicKey(public)
	if err != nil {
		return err
	}
	id, err := theirs.ID()
	if err != nil {
		return err
	}
	from.Signed.Delegations = &metadata.Delegations{
		Keys:  map[string]*metadata.Key{id: theirs},
		Roles: []metadata.DelegatedRole{{Name: "lent", KeyIDs: []string{id}, Threshold: 1, Paths: []string{"*"}}},
	}
	to := metadata.Targets(time.Now().AddDate(0, 0, 7))
	to.Signed.Version = t.version
	to.Signed.Targets["trusted_root.json"] = target
	_, err = publish(t, to, fmt.Sprintf("%d.lent.json", t.version), key)
	return err
}

// cmdTUF makes a TUF repository in DIR whose trusted_root.json is FILE;
// DIR/root.json is the root that trust in it begins with. Once more: it
// publishes the next version, with new keys, or with one that has expired. A
// signing config is published beside it.
func cmdTUF(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, (len(args) == 2 || len(args) == 3) && !neg, "tuf DIR FILE [rotated|expired|signing=FILE]")
	all := ts.Value(tufKey{}).(map[string]*TUF)
	dir := ts.MkAbs(args[0])
	repo := all[dir]
	if repo == nil {
		var err error
		repo, err = NewTUF(dir)
		ts.Check(err)
		ts.Check(os.WriteFile(filepath.Join(dir, "root.json"), repo.Root, 0o644))
		all[dir] = repo
	}
	o := TUFOptions{Content: []byte(ts.ReadFile(args[1]))}
	kind := append(args, "")[2]
	if file, ok := strings.CutPrefix(kind, "signing="); ok {
		o.Signing, kind = []byte(ts.ReadFile(file)), ""
	}
	switch kind {
	case "rotated":
		o.Rotate = true
	case "expired":
		o.Expires = map[string]time.Time{metadata.TIMESTAMP: time.Now().Add(-time.Hour)}
	case "":
	default:
		ts.Fatalf("unknown kind of publication %q", kind)
	}
	ts.Check(repo.Publish(o))
}

type tufKey struct{}
