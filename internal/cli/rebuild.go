package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/build"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/lock"
	"github.com/waxseal/waxseal/pkg/rebuild"
	"github.com/waxseal/waxseal/pkg/store"
)

// rebuildFlags are the flags of `waxseal rebuild`.
type rebuildFlags struct {
	judge judgeFlags

	sign                                                signFlags
	store, context, builderID, out, progress, output    string
	secrets, ssh, allow                                 []string
	unverified, noAttach, acceptEquivalent, compareOnly bool
}

func newRebuildCmd(s *Streams) *cobra.Command {
	var f rebuildFlags
	cmd := &cobra.Command{
		Use:   "rebuild [flags] IMAGE | --compare-only IMAGE IMAGE",
		Short: "Build an image again from its evidence, offline, and say what differs and why",
		Long: `rebuild takes an image's provenance and record of inputs, both verified with
--key or --policy, and builds the image again: offline, every step anew, held to
a lock made from that record, with the bytes of the store. What the store lacks
is fetched from beside the image, where build --push-inputs put it.

Then it compares the two: digest, configuration, layer by layer, file by file,
inside archives, text and programs; and says why bytes differ. "reproduced" is
the same digest; "equivalent" is equal once named normalisers have left out what
is no content; everything else is "different".

With --sign-key it signs what it found, match or not, and the second build's
provenance, and attaches both to the image.

Exit codes: 0 reproduced (or equivalent, with --accept-equivalent), 3 different,
4 could not decide, 64 wrong usage.`,
		Example: `  waxseal rebuild --key waxseal.pub registry.example/app:1.0
  waxseal rebuild --policy policy.yaml --sign-key rebuilder.key --out again registry.example/app:1.0
  waxseal rebuild --compare-only oci:one oci:two`,
		Args: func(cmd *cobra.Command, args []string) error {
			if f.compareOnly {
				return cobra.ExactArgs(2)(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
	}
	f.judge.register(cmd, false)
	fs := cmd.Flags()
	fs.BoolVar(&f.unverified, "unverified", false, "believe evidence that nobody vouches for; the result says so")
	fs.StringVar(&f.store, "store", "", "`DIR` of the bytes that builds took in (default: ~/.local/share/waxseal/store)")
	fs.StringVar(&f.context, "context", "", "folder `PATH` to take the build context from where the store lacks it; it must be the same, byte for byte")
	fs.StringArrayVar(&f.secrets, "secret", nil, "`SECRET` that the build used, again: id=ID[,src=FILE] or id=ID,env=NAME")
	fs.StringArrayVar(&f.ssh, "ssh", nil, "`AGENT` that the build used, again: default, ID, ID=SOCKET or ID=KEYFILE")
	fs.StringArrayVar(&f.allow, "allow", nil, "`WHAT` the build let its steps have, again: network.host or security.insecure")
	f.sign.register(fs, "sign-key", "private `KEY` to sign what was found with")
	fs.BoolVar(&f.noAttach, "no-attach", false, "attach nothing to the image")
	fs.StringVar(&f.builderID, "builder-id", "", "`URI` that names this builder in the second provenance (default: an unhosted local one)")
	fs.StringVar(&f.out, "out", "", "write the rebuilt image, statements and the report to `DIR`")
	fs.BoolVar(&f.acceptEquivalent, "accept-equivalent", false, "exit 0 for an equivalent image, too")
	fs.BoolVar(&f.compareOnly, "compare-only", false, "build nothing: compare two images that are there")
	fs.StringVar(&f.progress, "progress", "", "`STYLE` of the progress: auto, plain, tty, quiet or rawjson (default: auto)")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f.output = *output
		if err := checkOutput(f.output); err != nil {
			return err
		}
		if f.compareOnly {
			return compareImages(cmd.Context(), s, &f, args[0], args[1])
		}
		return rebuildImage(cmd.Context(), s, &f, args[0])
	}
	return cmd
}

// rebuildSchema names the schema of what --output json prints.
const rebuildSchema = "https://waxseal.dev/schemas/rebuild/v1.json"

// rebuilt is what the command prints as JSON: the fields of the predicate, and
// what became of it.
type rebuilt struct {
	Schema string `json:"schema"`
	Image  string `json:"image"`
	attestations.RebuildComparison
	Build     *attestations.RebuildBuild `json:"build,omitempty"`
	Doubts    []string                   `json:"doubts,omitempty"` // what the first record does not hold
	Statement attest.Digest              `json:"statement,omitempty"`
	Signed    bool                       `json:"signed"`
	Attached  []string                   `json:"attached"`
}

func compareImages(ctx context.Context, s *Streams, f *rebuildFlags, first, second string) error {
	var images []rebuild.Image
	for _, arg := range []string{first, second} {
		ref, err := store.Parse(arg)
		if err != nil {
			return exitError{ExitUsage, err}
		}
		place, err := store.Open(ctx, ref, store.Options{Insecure: f.judge.insecure, Images: imageHome(s.Env)})
		if err != nil {
			return exitError{ExitUndecided, err}
		}
		desc, err := place.Resolve(ctx)
		if err != nil {
			return exitError{ExitUndecided, err}
		}
		images = append(images, rebuild.Image{Place: place, Digest: attest.Digest(desc.Digest.String())})
	}
	c, err := rebuild.Compare(ctx, images[0], images[1], rebuild.Options{})
	if err != nil {
		return undecided(ctx, err)
	}
	return f.print(s, &rebuilt{Image: first, RebuildComparison: *c, Attached: []string{}}, "")
}

// newCompareLayoutsCmd is the process in which rebuild compares: it is given no
// key and no environment. What goes wrong in it is no answer.
func newCompareLayoutsCmd(s *Streams) *cobra.Command {
	return &cobra.Command{
		Use:    rebuild.CompareCommand + " LAYOUT DIGEST LAYOUT DIGEST",
		Short:  "Compare two images (started by rebuild)",
		Hidden: true,
		Args:   cobra.ExactArgs(4),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			var images [2]rebuild.Image
			for i := range images {
				d, err := attest.ParseDigest(args[2*i+1])
				if err != nil {
					return exitError{ExitUsage, err}
				}
				place, err := store.Open(ctx, store.Reference{Kind: store.Layout, Place: args[2*i], Digest: d}, store.Options{})
				if err != nil {
					return undecided(ctx, err)
				}
				images[i] = rebuild.Image{Place: place, Digest: d}
			}
			c, err := rebuild.Compare(ctx, images[0], images[1], rebuild.Options{})
			if err != nil {
				return undecided(ctx, err)
			}
			if err := json.NewEncoder(s.Out).Encode(c); err != nil {
				return exitError{ExitUndecided, fmt.Errorf("writing the result: %w", err)}
			}
			return nil
		},
	}
}

// undecided is an error that says nothing about the image. An interrupt stays
// what it is.
func undecided(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	return exitError{ExitUndecided, err}
}

func rebuildImage(ctx context.Context, s *Streams, f *rebuildFlags, image string) error {
	readyForEngine(s)
	req, err := f.request(s)
	if err != nil {
		return exitError{ExitUsage, err}
	}
	greq, err := f.judge.request(ctx, s, image)
	if err != nil {
		return err
	}
	found, err := gate.Gate{}.Statements(ctx, greq, f.unverified, attestations.ProvenanceV1, attestations.InputsV1)
	if err != nil {
		var usage *gate.UsageError
		if errors.As(err, &usage) {
			return exitError{ExitUsage, usageOrUnverified(err)}
		}
		return undecided(ctx, err)
	}
	if err := f.believe(&req, found); err != nil {
		return exitError{ExitUndecided, err}
	}
	if f.sign.wanted() {
		signer, err := f.sign.openLate(ctx, s, f.judge.anchorFlags)
		if err != nil {
			return undecided(ctx, err)
		}
		defer signer.Close()
		req.Deps.Signer, req.Deps.TrySigner = func(context.Context) (build.Signer, error) { return signer, nil }, ready(signer)
	}
	if req.Deps.Signer != nil && !f.noAttach {
		if req.Attach, err = attachTo(ctx, greq); err != nil {
			return undecided(ctx, err)
		}
	}
	dir := f.store
	if dir == "" {
		dir = s.Env("WAXSEAL_STORE")
	}
	if dir == "" {
		dir = inputsHome(s.Env)
	}
	if req.Store, err = lock.OpenStore(dir); err != nil {
		return undecided(ctx, err)
	}
	defer req.Store.Close()
	res, err := rebuild.Run(ctx, req)
	if err != nil {
		var usage build.UsageError
		if errors.As(err, &usage) {
			return exitError{ExitUsage, err}
		}
		var no rebuild.UndecidedError
		if errors.As(err, &no) {
			return undecided(ctx, err)
		}
		return err
	}
	for _, d := range res.Doubts {
		fmt.Fprintln(s.Err, "note: not in the first build's record: "+d)
	}
	if res.Attached == nil {
		res.Attached = []string{}
	}
	return f.print(s, &rebuilt{
		Image: image, RebuildComparison: res.Rebuild.RebuildComparison, Build: &res.Rebuild.Build,
		Doubts: res.Doubts, Statement: res.Statement.Digest(), Signed: req.Deps.Signer != nil, Attached: res.Attached,
	}, image)
}

func usageOrUnverified(err error) error {
	return hinted{err, "--unverified uses what nobody vouches for, and says so in the result"}
}

// request reads the flags that say how to build.
func (f *rebuildFlags) request(s *Streams) (rebuild.Request, error) {
	req := rebuild.Request{Context: f.context, Allow: f.allow, BuilderID: f.builderID, Out: f.out, Unverified: f.unverified}
	var errs flagErrors
	errs.read("secret", func() (err error) { req.Secrets, err = build.ParseSecrets(f.secrets); return })
	errs.read("ssh", func() (err error) { req.SSH, err = build.ParseSSH(f.ssh); return })
	errs.read("progress", func() error { return build.CheckProgress(f.progress) })
	if errs.first != nil {
		return req, errs.first
	}
	if f.out != "" {
		if err := build.CheckOut(f.out); err != nil {
			return req, err
		}
	}
	req.Deps = build.Deps{
		Home: imageHome(s.Env), Store: inputsHome(s.Env), Env: s.Env, Version: Version(),
		Display: display(s, f.progress),
		Engine:  build.EngineOptions{Notify: func(text string) { fmt.Fprintln(s.Err, "waxseal: "+text) }},
	}
	if f.sign.wanted() {
		return req, errors.Join(f.sign.check(f.judge.anchorFlags), f.sign.hold(s), guard())
	}
	return req, nil
}

// believe takes over what the gate believes. Where it believes nothing, the
// reason is what is said of the evidence that comes closest.
func (f *rebuildFlags) believe(req *rebuild.Request, found *gate.Statements) error {
	req.Image = rebuild.Image{Place: found.Place, Digest: found.Digest}
	for _, b := range found.Believed {
		c := rebuild.Claim{Statement: b.Statement}
		if b.Evidence.Signer != nil && b.Evidence.Accepted {
			c.Signer = b.Evidence.Signer.Key
		}
		if b.Statement.PredicateType == attestations.InputsV1 {
			req.Inputs = append(req.Inputs, c)
		} else {
			req.Provenance = append(req.Provenance, c)
		}
	}
	lacks := func(predicateType, name string, have int) error {
		if have > 0 {
			return nil
		}
		i := slices.IndexFunc(found.Rejected, func(e gate.Evidence) bool { return e.PredicateType == predicateType })
		if i < 0 {
			return hinted{fmt.Errorf("the image has no %s", name), "only an image that waxseal build or run made, and signed, can be built again"}
		}
		return hinted{fmt.Errorf("the image's %s is not believed: %s", name, found.Rejected[i].Message), "give the key that signed it with --key, or --unverified"}
	}
	if err := lacks(attestations.ProvenanceV1, "provenance", len(req.Provenance)); err != nil {
		return err
	}
	return lacks(attestations.InputsV1, "record of inputs", len(req.Inputs))
}

// attachTo opens the image's place for writing, before anything is built.
func attachTo(ctx context.Context, req gate.Request) (store.Writable, error) {
	ref, err := store.Parse(req.Reference)
	if err != nil {
		return nil, err
	}
	w, err := store.OpenWritable(ctx, ref, req.Store)
	if err != nil {
		return nil, hinted{err, "--no-attach signs without attaching; with --out the bundles are written to a folder"}
	}
	return w, nil
}

// print says what was found and returns the error that carries the exit code.
func (f *rebuildFlags) print(s *Streams, r *rebuilt, image string) error {
	var err error
	if f.output == "json" {
		r.Schema = rebuildSchema
		enc := json.NewEncoder(s.Out)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		err = enc.Encode(r)
	} else {
		_, err = io.WriteString(s.Out, f.text(r, image))
	}
	if err != nil {
		return exitError{ExitUndecided, fmt.Errorf("writing the result: %w", err)}
	}
	if r.Verdict == attestations.RebuildReproduced || r.Verdict == attestations.RebuildEquivalent && f.acceptEquivalent {
		return nil
	}
	return exitError{code: ExitDenied}
}

// maxShown bounds the differences that the text lists; JSON has them all.
const maxShown = 25

// text is the result for people: the verdict, what differs and why, and what to
// do about it.
func (f *rebuildFlags) text(r *rebuilt, image string) string {
	var b strings.Builder
	line := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s"+format+"\n", append([]any{key}, args...)...)
	}
	b.WriteString(strings.ToUpper(r.Verdict) + ": " + rebuild.Words(r.Verdict) + "\n\n")
	line("original", "%s", r.Original)
	line("rebuilt", "%s", r.Rebuilt)
	for _, p := range r.Platforms {
		line("platform", "%s  %s", p.Name, p.Verdict)
	}
	if r.Build != nil {
		f.buildText(line, r)
	}
	f.differencesText(&b, r)
	if len(r.Normalisers) > 0 {
		b.WriteString("\nnormalisers\n")
	}
	for _, n := range r.Normalisers {
		fmt.Fprintf(&b, "  %s (%d): %s\n", n.Name, n.Uses, n.Reason)
	}
	if next := f.next(r, image); next != "" {
		fmt.Fprintf(&b, "\n%-10s%s\n", "next", next)
	}
	return b.String()
}

// differencesText lists what differs, what has one cause together.
func (f *rebuildFlags) differencesText(b *strings.Builder, r *rebuilt) {
	if len(r.Differences) == 0 {
		return
	}
	b.WriteString("\nwhat differs\n")
	const each = 3 // examples of one cause
	type cause struct {
		layer                    int
		platform, kind, text, by string
	}
	causeOf := func(d attestations.RebuildDifference) cause {
		return cause{d.Layer, d.Platform, d.Kind, d.Cause, strings.Join(d.Normalisers, ", ")}
	}
	count, shown, lines := map[cause]int{}, map[cause]int{}, 0
	for _, d := range r.Differences {
		count[causeOf(d)]++
	}
	for _, d := range r.Differences {
		c := causeOf(d)
		if shown[c] == each || lines == maxShown {
			continue
		}
		shown[c]++
		lines++
		b.WriteString(differenceText(d))
		if n := count[c] - each; shown[c] == each && n > 0 {
			fmt.Fprintf(b, "  ... and %d more for which the same holds\n", n)
		}
	}
	left := r.MoreDifferences
	for c, n := range count {
		if shown[c] < each {
			left += n - shown[c]
		}
	}
	if left > 0 {
		fmt.Fprintf(b, "  and %d more (--output json lists up to %d)\n", left, attest.MaxDifferences)
	}
}

func (f *rebuildFlags) buildText(line func(key, format string, args ...any), r *rebuilt) {
	line("built", "offline, held to the lock %s", r.Build.Lock)
	for _, c := range r.Build.Changed {
		line("changed", "%s: %s, then %s", c.Name, orNone(c.Original), orNone(c.Rebuilt))
	}
	if r.Build.Unverified {
		line("evidence", "UNVERIFIED: nobody vouches for what was built again")
	}
	switch {
	case !r.Signed:
		line("signed", "no: give --sign-key FILE or --keyless")
	case len(r.Attached) > 3:
		line("signed", "and attached: %d statements", len(r.Attached))
	case len(r.Attached) > 0:
		line("signed", "and attached: %s", strings.Join(r.Attached, ", "))
	default:
		line("signed", "and not attached")
	}
	if f.out != "" {
		line("wrote", "%s", f.out)
	}
}

func orNone(v string) string {
	if v == "" {
		return "none"
	}
	return v
}

func differenceText(d attestations.RebuildDifference) string {
	var b strings.Builder
	where := d.Path
	if where == "" {
		where = d.Kind
	}
	if d.Layer > 0 {
		where = fmt.Sprintf("layer %d %s", d.Layer, where)
	}
	if d.Platform != "" {
		where = d.Platform + " " + where
	}
	fmt.Fprintf(&b, "  %s: %s", where, d.Cause)
	if len(d.Normalisers) > 0 {
		fmt.Fprintf(&b, " [%s]", strings.Join(d.Normalisers, ", "))
	}
	b.WriteString("\n")
	if d.Original != "" {
		fmt.Fprintf(&b, "      - %s\n", d.Original)
	}
	if d.Rebuilt != "" {
		fmt.Fprintf(&b, "      + %s\n", d.Rebuilt)
	}
	return b.String()
}

// next is what a reader can do about it.
func (f *rebuildFlags) next(r *rebuilt, image string) string {
	by := func(names ...string) bool {
		return slices.ContainsFunc(r.Normalisers, func(n attestations.RebuildNormaliser) bool { return slices.Contains(names, n.Name) })
	}
	switch {
	case r.Verdict == attestations.RebuildReproduced, r.Verdict == attestations.RebuildEquivalent && f.acceptEquivalent:
		return ""
	case by("file-times/v1", "config-times/v1"):
		return "build with SOURCE_DATE_EPOCH set (or from a git checkout, which sets it): files and configuration then have its time"
	case r.Verdict == attestations.RebuildEquivalent:
		return "--accept-equivalent takes this for enough; or remove what differs in the step that writes it"
	case f.out == "" && image != "":
		return "--out DIR keeps the rebuilt image to look at; remove logs, caches and times in the step that writes them"
	}
	return "remove logs, caches and times in the step that writes them, and build again"
}
