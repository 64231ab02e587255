package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/sign"
	"github.com/waxseal/waxseal/pkg/store"
)

// The budgets of verifying many images.
const (
	manyImages    = 1000
	perRepository = 20
	coldRequests  = 3.0
	warmRequests  = 1.0
	growth        = 16 << 20 // peak memory, of ten times as many images
	peerImages    = 100
	bundleRatio   = 1.0
)

// images measures `waxseal verify -` over n images in a registry of this
// process, which counts what it is asked. Every image has one signed provenance
// as `waxseal attest` attaches it.
//
// Cold is the first meeting of a process with an image. Warm is the second one
// of the same process: it knows the manifests and the evidence by their digests
// and asks only whether evidence has come or gone. By digest that is one
// request; a tag may have moved, which is another. Apart from that a process
// asks every registry once how to log in, and every repository once for its
// tags.
func (b *bench) images(n int) error {
	var c counter
	reg, err := testkit.NewRegistry(testkit.RegistryOptions{Around: c.around})
	if err != nil {
		return err
	}
	defer reg.Close()
	tagged, pinned, err := b.pushImages(reg.Addr, n)
	if err != nil {
		return err
	}
	// The registry looks for referrers in every manifest that it has, which
	// takes longer than all the rest. So its answers are taken once.
	c.freeze()
	if _, err := b.verifyMany(append(tagged[:n:n], pinned...)); err != nil {
		return err
	}
	var last sample
	ask := func(refs ...string) (sample, counts, error) {
		before := c.counts()
		s, err := b.verifyMany(refs)
		return s, c.counts().less(before), err
	}
	row := func(name string, images int, s sample, requests, budget float64, apart string) {
		figures := fmt.Sprintf("%.2f requests an image (budget %.0f)%s, %.0f images/s, %.0f a CPU second",
			requests, budget, apart, float64(images)/s.Wall.Seconds(), float64(images)/s.CPU.Seconds())
		b.judge(name, figures, requests <= budget)
	}
	for _, form := range []struct {
		name string
		refs []string
		warm float64
	}{{"tag", tagged, warmRequests + 1}, {"digest", pinned, warmRequests}} {
		cold, coldCount, err := ask(form.refs...)
		if err != nil {
			return err
		}
		row(fmt.Sprintf("%d images, cold, by %s", n, form.name), n, cold, coldCount.each(n), coldRequests,
			fmt.Sprintf(" and %d for tags and logins", coldCount.lists+coldCount.pings))
		both, bothCount, err := ask(append(form.refs[:n:n], form.refs...)...)
		if err != nil {
			return err
		}
		warm := sample{Wall: both.Wall - cold.Wall, CPU: both.CPU - cold.CPU}
		row(fmt.Sprintf("%d images, warm, by %s", n, form.name), n, warm, bothCount.each(n)-coldCount.each(n), form.warm, "")
		last = both
	}
	few, _, err := ask(pinned[:n/10]...)
	if err != nil {
		return err
	}
	b.judge(fmt.Sprintf("%d images, peak memory", 2*n), fmt.Sprintf("%s, of %d images %s (budget %s more, and what the cache may hold: %s)",
		mib(last.RSS), n/10, mib(few.RSS), mib(growth), mib(store.DefaultCache)), last.RSS-few.RSS <= growth+store.DefaultCache)
	return b.peerImages(pinned)
}

// counts is the number of requests to a registry.
type counts struct{ asked, lists, pings int64 }

// each is the requests an image, without those that are not for one.
func (c counts) each(n int) float64 { return float64(c.asked-c.lists-c.pings) / float64(n) }

func (c counts) less(b counts) counts {
	return counts{c.asked - b.asked, c.lists - b.lists, c.pings - b.pings}
}

// counter stands before a registry and counts. With answers it asks the
// registry each thing once.
type counter struct {
	mu      sync.Mutex
	seen    counts
	answers map[string]*httptest.ResponseRecorder
}

func (c *counter) counts() counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen
}

func (c *counter) freeze() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers = map[string]*httptest.ResponseRecorder{}
}

func (c *counter) around(inner http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.seen.asked++
		switch {
		case r.URL.Path == "/v2/":
			c.seen.pings++
		case strings.HasSuffix(r.URL.Path, "/tags/list"):
			c.seen.lists++
		}
		frozen, known := c.answers != nil && r.Method == http.MethodGet, c.answers[r.URL.String()]
		c.mu.Unlock()
		if !frozen {
			inner.ServeHTTP(w, r)
			return
		}
		if known == nil {
			known = httptest.NewRecorder()
			inner.ServeHTTP(known, r)
			c.mu.Lock()
			c.answers[r.URL.String()] = known
			c.mu.Unlock()
		}
		maps.Copy(w.Header(), known.Header())
		w.WriteHeader(known.Code)
		_, _ = w.Write(known.Body.Bytes())
	})
}

// verifyMany verifies refs in one process. All of them have to pass.
func (b *bench) verifyMany(refs []string) (sample, error) {
	file := b.path("references")
	if err := os.WriteFile(file, []byte(strings.Join(refs, "\n")+"\n"), 0o644); err != nil {
		return sample{}, err
	}
	in, err := os.Open(file)
	if err != nil {
		return sample{}, err
	}
	defer in.Close()
	return b.runWith(in, b.bin, "verify", "--policy", b.path("many.yaml"), "-")
}

// pushImages makes n images with a signed provenance each, of about the size
// that a real build has, and a policy that they fulfil.
func (b *bench) pushImages(addr string, n int) (tagged, pinned []string, err error) {
	policy := `apiVersion: waxseal.dev/v1
kind: Policy
trust:
  builders: [{id: "https://ci.example.org/builder", signer: {key: waxseal.pub}, maxLevel: 3}]
images: [{match: "**", level: {build: 3}}]
`
	if err := os.WriteFile(b.path("many.yaml"), []byte(policy), 0o644); err != nil {
		return nil, nil, err
	}
	s, err := sign.Open(b.ctx, b.path("waxseal.key"), sign.OpenOptions{Password: func() ([]byte, error) { return []byte("bench"), nil }})
	if err != nil {
		return nil, nil, err
	}
	defer s.Close()
	tagged, pinned = make([]string, n), make([]string, n)
	var pushing sync.WaitGroup
	failed := make(chan error, n/perRepository+1)
	slots := make(chan struct{}, 4)
	for first := 0; first < n; first += perRepository {
		pushing.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			place := fmt.Sprintf("%s/bench/app%d", addr, first/perRepository)
			for i := first; i < min(first+perRepository, n); i++ {
				d, err := pushImage(b.ctx, s, place, fmt.Sprint("v", i))
				if err != nil {
					failed <- err
					return
				}
				tagged[i], pinned[i] = fmt.Sprintf("%s:v%d", place, i), place+"@"+d.Digest.String()
			}
		})
	}
	pushing.Wait()
	close(failed)
	return tagged, pinned, <-failed
}

func pushImage(ctx context.Context, s sign.Signer, place, tag string) (v1.Descriptor, error) {
	ref, err := store.Parse(place + ":" + tag)
	if err != nil {
		return v1.Descriptor{}, err
	}
	w, err := store.OpenWritable(ctx, ref, store.Options{})
	if err != nil {
		return v1.Descriptor{}, err
	}
	img, err := mutate.ConfigFile(mutate.MediaType(empty.Image, types.OCIManifestSchema1), &v1.ConfigFile{OS: "linux", Architecture: "amd64", Author: tag})
	if err != nil {
		return v1.Descriptor{}, err
	}
	raw, err := img.RawManifest()
	if err != nil {
		return v1.Descriptor{}, err
	}
	d, err := w.PutManifest(ctx, types.OCIManifestSchema1, raw)
	if err != nil {
		return d, err
	}
	if err := store.Tag(ctx, w, tag, d); err != nil {
		return d, err
	}
	var dependencies []map[string]any
	for i := range 100 {
		dependencies = append(dependencies, map[string]any{"uri": fmt.Sprintf("https://example.org/pool/main/p/package-%d.deb", i), "digest": map[string]string{"sha256": fmt.Sprintf("%064x", i)}})
	}
	st, err := attest.NewStatement(attestations.ProvenanceV1, []attest.Subject{{Name: place, Digest: map[string]string{"sha256": d.Digest.Hex}}}, map[string]any{
		"buildDefinition": map[string]any{"buildType": "https://example.org/build/v1", "externalParameters": map[string]any{}, "resolvedDependencies": dependencies},
		"runDetails":      map[string]any{"builder": map[string]any{"id": "https://ci.example.org/builder"}},
	})
	if err != nil {
		return d, err
	}
	bundle, err := s.Sign(ctx, st)
	if err != nil {
		return d, err
	}
	_, err = store.Attach(ctx, w, d, bundle)
	return d, err
}

// peerImages compares with slsa-verifier, which is started for each image.
// Offline, and by a key, it checks summaries alone, given as a file: it asks no
// registry. Like with like is the same summary in both, of an image in a layout
// for us, since a verdict takes an image; and a hundred of them in one process.
func (b *bench) peerImages(pinned []string) error {
	peer, err := testkit.BuildPeer(b.ctx, "slsa-verifier")
	if err != nil {
		fmt.Fprintf(b.out, "%-32s slsa-verifier is not available here: not compared\n", "verify, slsa-verifier")
		return nil //nolint:nilerr // the row says so
	}
	file, resource, err := b.summary(pinned[0])
	if err != nil {
		return err
	}
	_, digest, _ := strings.Cut(pinned[0], "@")
	layout, err := b.layout(pinned[0])
	if err != nil {
		return err
	}
	m, err := b.runs(15, true,
		func() (sample, error) {
			return b.run(peer, "verify-vsa", "--attestation-path", file, "--verifier-id", "https://verifier.example", "--resource-uri", resource, "--subject-digest", digest,
				"--verified-level", "SLSA_BUILD_LEVEL_3", "--public-key-path", b.path("waxseal.pub"))
		},
		func() (sample, error) {
			return b.run(b.bin, "verify", "--policy", b.path("delegating.yaml"), "--evidence", file, layout)
		},
		func() (sample, error) { return b.run(b.bin, "verify", "--policy", b.path("many.yaml"), pinned[0]) },
		func() (sample, error) { return b.verifyMany(pinned[:min(peerImages, len(pinned))]) },
		func() (sample, error) { return b.run(b.bin, "version") })
	if err != nil {
		return err
	}
	ratio := func(i int) float64 { return float64(m[i].Wall) / float64(m[0].Wall) }
	b.judge("verify a summary, wall", fmt.Sprintf("%.2f of slsa-verifier (%v : %v, of which %v to start; budget %.2f)", ratio(1), ms(m[1].Wall), ms(m[0].Wall), ms(m[4].Wall), verifyRatio), ratio(1) <= verifyRatio)
	fmt.Fprintf(b.out, "%-32s %.2f of slsa-verifier, which reads a file and asks no registry (%v : %v)\n", "verify one in a registry", ratio(2), ms(m[2].Wall), ms(m[0].Wall))
	hundred := ratio(3) / peerImages
	b.judge(fmt.Sprintf("verify %d, wall", peerImages), fmt.Sprintf("%.2f of slsa-verifier, started %d times (%v : %v, budget %.2f)", hundred, peerImages, ms(m[3].Wall), ms(peerImages*m[0].Wall), verifyRatio), hundred <= verifyRatio)
	return nil
}

// layout copies an image's manifest into an OCI layout and returns the
// reference to it.
func (b *bench) layout(ref string) (string, error) {
	from, err := store.Parse(ref)
	if err != nil {
		return "", err
	}
	src, err := store.Open(b.ctx, from, store.Options{})
	if err != nil {
		return "", err
	}
	raw, d, err := src.Manifest(b.ctx, from.Digest)
	if err != nil {
		return "", err
	}
	to, err := store.Parse("oci:" + b.path("layout") + ":v0")
	if err != nil {
		return "", err
	}
	dst, err := store.OpenWritable(b.ctx, to, store.Options{})
	if err != nil {
		return "", err
	}
	if _, err := dst.PutManifest(b.ctx, d.MediaType, raw); err != nil {
		return "", err
	}
	return to.String(), store.Tag(b.ctx, dst, "v0", d)
}

// summary signs a verification summary of an image and writes its envelope into
// a file, and beside it a policy that delegates to who signed it.
func (b *bench) summary(ref string) (file, resource string, err error) {
	place, digest, _ := strings.Cut(ref, "@")
	s, err := sign.Open(b.ctx, b.path("waxseal.key"), sign.OpenOptions{Password: func() ([]byte, error) { return []byte("bench"), nil }})
	if err != nil {
		return "", "", err
	}
	defer s.Close()
	st, err := attest.NewStatement(attestations.VSAV1, []attest.Subject{{Name: place, Digest: map[string]string{"sha256": attest.Digest(digest).Hex()}}}, map[string]any{
		"verifier": map[string]string{"id": "https://verifier.example"}, "timeVerified": "2026-01-01T00:00:00Z", "resourceUri": place,
		"policy": map[string]string{"uri": "https://policy.example"}, "verificationResult": "PASSED", "verifiedLevels": []string{"SLSA_BUILD_LEVEL_3"}, "slsaVersion": "1.2",
	})
	if err != nil {
		return "", "", err
	}
	bundle, err := s.Sign(b.ctx, st)
	if err != nil {
		return "", "", err
	}
	envelope, err := bundle.DSSE()
	if err != nil {
		return "", "", err
	}
	policy := fmt.Sprintf(`apiVersion: waxseal.dev/v1
kind: Policy
trust:
  verifiers: [{id: "https://verifier.example", signer: {key: waxseal.pub}, levels: {build: 3}}]
images: [{match: "**", level: {build: 3}, vsa: {delegates: [build], resourceUri: %q}}]
`, place)
	if err := os.WriteFile(b.path("delegating.yaml"), []byte(policy), 0o644); err != nil {
		return "", "", err
	}
	file = b.path("summary.dsse.json")
	return file, place, os.WriteFile(file, envelope, 0o644)
}

// bundles runs the benchmark of package verify, which checks the same bundles
// through sigstore-go alone and through waxseal.
func (b *bench) bundles() error {
	root, err := testkit.Root()
	if err != nil {
		return err
	}
	test := exec.CommandContext(b.ctx, "go", "test", "-run", "^$", "-bench", "^(BenchmarkBundles|BenchmarkPublicGood)$", "-benchtime", "3s", "./pkg/verify")
	test.Dir = root
	raw, err := test.CombinedOutput()
	out := string(raw)
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(test.Args, " "), err, out)
	}
	rates := map[string]float64{}
	for _, m := range regexp.MustCompile(`(?m)^Benchmark(\S+?)(?:-\d+)?\s.*\s([0-9.]+) bundles/cpu-s`).FindAllStringSubmatch(out, -1) {
		if rates[m[1]], err = strconv.ParseFloat(m[2], 64); err != nil {
			return err
		}
	}
	for _, c := range []struct{ name, in string }{{"bundles, seen again", "Bundles/again/"}, {"bundles, each new", "Bundles/fresh/"}, {"bundles, public instance", "PublicGood/"}} {
		ours, theirs := rates[c.in+"waxseal"], rates[c.in+"sigstore-go"]
		if ours == 0 || theirs == 0 {
			fmt.Fprintf(b.out, "%-32s not measured: no fixtures of sigstore-conformance (WAXSEAL_FIXTURES)\n", c.name)
			continue
		}
		b.judge(c.name, fmt.Sprintf("%.2f of sigstore-go alone (%.0f : %.0f a CPU second, budget %.2f)", ours/theirs, ours, theirs, bundleRatio), ours/theirs >= bundleRatio)
	}
	return nil
}
