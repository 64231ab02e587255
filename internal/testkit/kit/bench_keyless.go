package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/sign"
	"github.com/waxseal/waxseal/pkg/verify"
)

// keylessRatio is what signing many statements of one build may take of the
// time that one takes.
const keylessRatio = 1.5

// manyStatements is how many those are.
const manyStatements = 10

// certificates counts those that were asked for.
type certificates struct {
	http.RoundTripper
	n atomic.Int64
}

func (c *certificates) RoundTrip(req *http.Request) (*http.Response, error) {
	if strings.HasSuffix(req.URL.Path, "/signingCert") {
		c.n.Add(1)
	}
	return c.RoundTripper.RoundTrip(req)
}

// keyless compares signing ten statements at once, as a build does, with signing
// one, each with a signer of its own, at the real Fulcio, time-stamping
// authority and Rekor v2.
func (b *bench) keyless() error {
	dir := b.path("sigstore")
	peers, err := sigstorePeers(b.ctx)
	if err != nil {
		return err
	}
	i, err := testkit.StartInstance(b.ctx, peers, dir, testkit.InstanceOptions{})
	if err != nil {
		return err
	}
	defer i.Close()
	token, err := i.Token("bench@acme.example", nil)
	if err != nil {
		return err
	}
	source, err := sign.FindToken(sign.TokenOptions{Ref: "-", Stdin: strings.NewReader(token)})
	if err != nil {
		return err
	}
	config, err := os.ReadFile(filepath.Join(dir, "signing_config.json"))
	if err != nil {
		return err
	}
	check, err := keylessChecker(dir, i.Issuer)
	if err != nil {
		return err
	}
	st, err := attest.NewStatement("https://bench.example/v1", []attest.Subject{{Name: "app", Digest: map[string]string{"sha256": attest.DigestOf(nil).Hex()}}}, struct{}{})
	if err != nil {
		return err
	}
	asked := &certificates{RoundTripper: http.DefaultTransport}
	// Each sample is a run of its own, certificate and all.
	signing := func(n int) func() (sample, error) {
		return func() (sample, error) {
			start := time.Now()
			signer, err := sign.OpenKeyless(sign.KeylessOptions{Token: source, Config: config, Check: check, Transport: asked})
			if err != nil {
				return sample{}, err
			}
			defer signer.Close()
			all, ctx := errgroup.WithContext(b.ctx)
			for range n {
				all.Go(func() error {
					_, err := signer.Sign(ctx, st)
					return err
				})
			}
			err = all.Wait()
			return sample{Wall: time.Since(start)}, err
		}
	}
	const rounds = 15
	m, err := b.runs(rounds, true, signing(1), signing(manyStatements))
	if err != nil {
		return err
	}
	ratio := float64(m[1].Wall) / float64(m[0].Wall)
	b.judge(fmt.Sprintf("keyless, %d statements", manyStatements), fmt.Sprintf("%.2f of one (%v : %v, budget %.2f)", ratio, ms(m[1].Wall), ms(m[0].Wall), keylessRatio), ratio <= keylessRatio)
	n := asked.n.Load()
	b.judge("keyless, certificates", fmt.Sprintf("%d in %d runs (budget 1 for each)", n, 2*rounds), n == 2*rounds)
	return nil
}

// keylessChecker accepts what the instance in dir signs for this bench.
func keylessChecker(dir, issuer string) (func(*attest.Bundle, sign.Identity) error, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "trusted_root.json"))
	if err != nil {
		return nil, err
	}
	root, err := verify.ParseRoot("bench", raw)
	if err != nil {
		return nil, err
	}
	id, err := verify.NewIdentity(verify.IdentityOptions{Issuer: issuer, SAN: "bench@acme.example"})
	if err != nil {
		return nil, err
	}
	return func(b *attest.Bundle, _ sign.Identity) error {
		checker, err := verify.NewChecker(verify.Trust{Roots: []*verify.Root{root}, Identities: []verify.Identity{id}}, time.Now())
		if err != nil {
			return err
		}
		_, err = checker.Check(b, attest.DigestOf(nil))
		return err
	}, nil
}
