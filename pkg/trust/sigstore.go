package trust

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sigstore/sigstore-go/pkg/tuf"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"

	"github.com/waxseal/waxseal/pkg/attest"
)

const (
	// DefaultMaxAge is how long a copy is used before it is fetched again. TUF's
	// own expiry may end it sooner.
	DefaultMaxAge = 24 * time.Hour
	// budget bounds one fetch, whatever a mirror does.
	budget = time.Minute
	// maxRotations bounds the roots between the one that is given and the newest.
	maxRotations = 128

	target        = "trusted_root.json"
	signingTarget = "signing_config.v0.2.json"
)

// Sigstore is an instance of Sigstore that publishes its trusted root in a TUF
// repository. Make one with Public or At.
type Sigstore struct {
	name string
	url  string
	root []byte
}

// Public is Sigstore's public good instance.
func Public() Sigstore {
	return Sigstore{name: "Sigstore's public good instance", url: tuf.DefaultMirror, root: tuf.DefaultRoot()}
}

// At is the instance whose TUF repository is at an address. root is a root.json
// of that repository, of any version: all trust in it begins there.
func At(address string, root []byte) (Sigstore, error) {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return Sigstore{}, fmt.Errorf("reading the address of a TUF repository %q: want https://HOST/PATH", address)
	case !allowed(u):
		return Sigstore{}, fmt.Errorf("reading the address of a TUF repository %q: only https is asked, or http on this machine", address)
	case len(root) > attest.MaxTUF:
		return Sigstore{}, fmt.Errorf("reading the TUF root: it is larger than the %d bytes allowed", attest.MaxTUF)
	}
	if _, err := trustedmetadata.New(root); err != nil {
		return Sigstore{}, fmt.Errorf("reading the TUF root: %w", err)
	}
	return Sigstore{name: strings.TrimRight(address, "/"), url: strings.TrimRight(address, "/"), root: root}, nil
}

// Name is what people call the instance.
func (s Sigstore) Name() string { return s.name }

// Unusable is the error of a root that the instance publishes and that cannot
// be read.
func Unusable(s Sigstore, err error) error {
	return &UnavailableError{"using the trusted root of " + s.name, err, "a newer waxseal may be able to; or give --trusted-root FILE"}
}

// folder is the instance's own in a cache: one that is reached from another
// root shares nothing with it. No text of a repository's gets into a path.
func (s Sigstore) folder(cache string) string {
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\n", s.url)
	sum.Write(s.root)
	return filepath.Join(cache, "sigstore", hex.EncodeToString(sum.Sum(nil)[:16]))
}

// FetchOptions configures Fetch.
type FetchOptions struct {
	// Cache is the folder below which copies are kept. Required.
	Cache string
	// MaxAge is how old a copy may be before it is fetched anew; zero:
	// DefaultMaxAge; negative: always fetched anew.
	MaxAge time.Duration
	// Signing fetches the signing config as well.
	Signing bool
	// Offline takes the copy whatever its age, as long as it has not expired,
	// and asks nobody.
	Offline bool
	// Now is the time that expiry is judged at; default: time.Now.
	Now func() time.Time
	// Transport reaches the repository; default: the usual one.
	Transport http.RoundTripper
}

// Fetched is a trusted root, as its instance publishes it.
type Fetched struct {
	Raw        []byte
	Signing    []byte    // the signing config, where it was asked for
	Name       string    // of the instance
	FetchedAt  time.Time // when the repository said last that this is the newest
	ValidUntil time.Time // when the first of the TUF metadata that it rests on expires
}

// Fetch returns the trusted root that the instance publishes, from a copy that
// is young enough or from its repository. Both ways everything is verified from
// the instance's root on, by the TUF specification's client workflow
// (https://theupdateframework.github.io/specification/v1.0.33/#detailed-client-workflow):
// a copy saves requests, and no check. Any error of a Sigstore that was made
// well is an *UnavailableError.
func (s Sigstore) Fetch(ctx context.Context, o FetchOptions) (*Fetched, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxAge == 0 {
		o.MaxAge = DefaultMaxAge
	}
	c := &client{Sigstore: s, dir: s.folder(o.Cache), now: o.Now(), targets: []string{target}}
	if o.Signing {
		c.targets = append(c.targets, signingTarget)
	}
	fail := func(err error, way string) (*Fetched, error) {
		return nil, &UnavailableError{"fetching the trusted root of " + s.name, err, way}
	}
	kept := c.fetchedAt()
	age := c.now.Sub(kept)
	if o.Offline || !kept.IsZero() && age >= 0 && age <= o.MaxAge {
		f, err := c.run(&courier{})
		if err == nil {
			f.FetchedAt = kept
			return f, nil
		}
		if o.Offline && kept.IsZero() {
			return fail(errors.New("it was never fetched, and --offline asks nobody"), "run once without --offline, or give --trusted-root FILE")
		}
		if o.Offline {
			return fail(plain(err), "run without --offline to fetch a new one, or give --trusted-root FILE")
		}
	}
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	way := "give --trusted-root FILE, which nothing is fetched for"
	f, err := c.run(newCourier(ctx, o.Transport))
	if err != nil {
		if ctx.Err() == nil && !kept.IsZero() {
			way += fmt.Sprintf("; --offline uses the copy of %s while it is valid", kept.UTC().Format(time.RFC3339))
		}
		return fail(plain(err), way)
	}
	f.FetchedAt = c.now
	return f, nil
}

// errDamaged is a copy that is not what was kept.
var errDamaged = errors.New("the copy is damaged")

// client is one run of the workflow. Its folder holds copies under TUF's names:
// N.root.json, timestamp.json, snapshot.json, targets.json and the target.
type client struct {
	Sigstore
	dir     string
	now     time.Time
	targets []string
}

// run goes through the workflow with what is kept and what by brings. A courier
// without a client brings nothing but what is kept.
func (c *client) run(by *courier) (*Fetched, error) {
	by.kept = c.roots()
	if by.http == nil {
		if raw := c.read(metadata.TIMESTAMP + ".json"); raw != nil {
			by.kept[metadata.TIMESTAMP+".json"] = raw
		}
	}
	cfg, err := config.New(c.url, c.root)
	if err != nil {
		return nil, err
	}
	// The library reads what is kept, which is how it sees that a repository
	// went backwards. It writes nothing: a whole run is kept, or none of it.
	cfg.DisableLocalCache = true
	if c.readable() {
		cfg.LocalMetadataDir = c.dir
	} else if by.http == nil {
		return nil, errDamaged
	} else {
		cfg.LocalMetadataDir = filepath.Join(c.dir, "none")
	}
	cfg.Fetcher = by
	cfg.MaxRootRotations = maxRotations
	cfg.RootMaxLength, cfg.TimestampMaxLength, cfg.SnapshotMaxLength, cfg.TargetsMaxLength = attest.MaxTUF, attest.MaxTUF, attest.MaxTUF, attest.MaxTUF
	up, err := updater.New(cfg)
	if err != nil {
		return nil, err
	}
	up.UnsafeSetRefTime(c.now) // our clock, which tests set
	if err := up.Refresh(); err != nil {
		if by.http != nil {
			return nil, err
		}
		if ts := up.GetTrustedMetadataSet().Timestamp; ts != nil && ts.Signed.IsExpired(c.now) {
			return nil, &metadata.ErrExpiredMetadata{Msg: "timestamp.json is expired"}
		}
		if errors.As(err, new(*metadata.ErrDownloadHTTP)) {
			return nil, errDamaged
		}
		return nil, err
	}
	taken := map[string][]byte{}
	for _, name := range c.targets {
		if taken[name], err = c.take(up, name, by); err != nil {
			return nil, err
		}
	}
	set := up.GetTrustedMetadataSet()
	until := slices.MinFunc([]time.Time{
		set.Root.Signed.Expires, set.Timestamp.Signed.Expires, set.Snapshot.Signed.Expires, set.Targets[metadata.TARGETS].Signed.Expires,
	}, time.Time.Compare)
	if by.http != nil {
		if err := c.keep(by.brought, taken); err != nil {
			return nil, fmt.Errorf("keeping a copy: %w", err)
		}
	}
	return &Fetched{Raw: taken[target], Signing: taken[signingTarget], Name: c.name, ValidUntil: until.UTC()}, nil
}

// take returns one target, from its copy or from the repository.
func (c *client) take(up *updater.Updater, name string, by *courier) ([]byte, error) {
	// Delegated roles have no say in these targets: a role that somebody else
	// holds must not give a root.
	info := up.GetTopLevelTargets()[name]
	if info == nil {
		return nil, fmt.Errorf("the repository has no %s", name)
	}
	if info.Length > attest.MaxTrustedRoot {
		return nil, fmt.Errorf("its %s is larger than the %d bytes a trusted root may have", name, attest.MaxTrustedRoot)
	}
	raw := c.read(name)
	if raw != nil && info.VerifyLengthHashes(raw) == nil {
		return raw, nil
	}
	if by.http == nil && name == signingTarget && raw == nil {
		return nil, errors.New("its signing config was never fetched")
	}
	_, raw, err := up.DownloadTarget(info, "", "")
	return raw, err
}

// roots are the copies of root metadata that lead on from the first one. What
// does not hold is as if it were not there.
func (c *client) roots() map[string][]byte {
	out := map[string][]byte{}
	chain, err := trustedmetadata.New(c.root)
	if err != nil {
		return out
	}
	for range maxRotations {
		name := fmt.Sprintf("%d.root.json", chain.Root.Signed.Version+1)
		raw := c.read(name)
		if raw == nil {
			return out
		}
		if _, err := chain.UpdateRoot(raw); err != nil {
			return out
		}
		out[name] = raw
	}
	return out
}

// readable reports whether the library can read the copies: one that is no
// metadata would stop it, and one that does not hold would not.
func (c *client) readable() bool {
	_, timestamp := metadata.Timestamp().FromBytes(c.read("timestamp.json"))
	_, snapshot := metadata.Snapshot().FromBytes(c.read("snapshot.json"))
	_, targets := metadata.Targets().FromBytes(c.read("targets.json"))
	return timestamp == nil && snapshot == nil && targets == nil
}

func (c *client) read(name string) []byte {
	path := filepath.Join(c.dir, name)
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > attest.MaxTUF {
		return nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return raw
}

// stamp is when the copies were fetched.
type stamp struct {
	FetchedAt time.Time `json:"fetchedAt"`
}

const stampName = "fetched.json"

// fetchedAt is when the copy was fetched; zero: there is none.
func (c *client) fetchedAt() time.Time {
	var s stamp
	if raw := c.read(stampName); raw == nil || attest.UnmarshalStrict(raw, &s) != nil {
		return time.Time{}
	}
	return s.FetchedAt
}

// keep writes what a run brought. The time comes last: without it the rest is
// no copy.
func (c *client) keep(brought, taken map[string][]byte) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(c.dir, stampName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s, err := json.Marshal(stamp{c.now.UTC()})
	if err != nil {
		return err
	}
	for name, raw := range brought {
		if name := keptName(name); name != "" {
			if err := writeWhole(filepath.Join(c.dir, name), raw); err != nil {
				return err
			}
		}
	}
	for name, raw := range taken {
		if err := writeWhole(filepath.Join(c.dir, name), raw); err != nil {
			return err
		}
	}
	return writeWhole(filepath.Join(c.dir, stampName), s)
}

// keptName is the name of the copy of a file of the repository, or "" for one
// that is not kept under its name.
func keptName(name string) string {
	switch role := strings.TrimLeft(name, "0123456789"); role {
	case ".root.json":
		return name
	case ".snapshot.json", ".targets.json":
		return role[1:]
	case "timestamp.json", "snapshot.json", "targets.json":
		return role
	}
	return ""
}

func writeWhole(path string, raw []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), path)
}

// plain says an error of the library in our words, where those say more.
func plain(err error) error {
	var expired *metadata.ErrExpiredMetadata
	var version *metadata.ErrBadVersionNumber
	var status *metadata.ErrDownloadHTTP
	var unsigned *metadata.ErrUnsignedMetadata
	switch {
	case errors.As(err, &expired):
		return fmt.Errorf("its metadata has expired (%w)", err)
	case errors.As(err, &version):
		return fmt.Errorf("the repository went backwards (%w)", err)
	case errors.As(err, &unsigned):
		return fmt.Errorf("its metadata is not signed as it must be (%w)", err)
	case errors.As(err, &status):
		return fmt.Errorf("the repository answers %d to %s", status.StatusCode, status.URL)
	case errors.Is(err, context.DeadlineExceeded):
		return errors.New("the repository did not answer whole in time")
	}
	return err
}
