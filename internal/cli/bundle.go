package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/keys"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/store"
	"github.com/waxseal/waxseal/pkg/verify"
)

func newBundleCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Carry an image with its evidence across an air gap, in one file",
		Long: `An archive is an OCI layout in a tar: the image with its platforms, everything
that is attached to it, the evidence in files and git notes, and the policy, keys
and trusted roots by which it can be judged. Where there is no network,
"waxseal verify archive:FILE" gives the verdict, and "waxseal bundle import"
brings the image into a registry or layout there.

Whom to trust must not come from the thing that is judged: a policy in an archive
is believed by nobody unless verify is told its digest with --bundled-trust.
export prints that digest, which covers the policy, what it extends, and every
key and root. Carry it by another way than the archive; or keep a policy of your
own on the far side, which is the better way.`,
		Args: noCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newBundleExportCmd(s), newBundleImportCmd(s), newBundleShowCmd(s))
	return cmd
}

// exportFlags are the flags of `waxseal bundle export`.
type exportFlags struct {
	file     string
	noLayers bool
	policy   string
	keys     []string
	roots    []string
	evidence []string
	insecure bool
}

func newBundleExportCmd(s *Streams) *cobra.Command {
	var flags exportFlags
	cmd := &cobra.Command{
		Use:   "export [flags] -o FILE REF",
		Short: "Write an image, its evidence and whom to trust into one file",
		Long: `export writes an archive: FILE.tar, FILE.tar.gz or FILE.tar.zst. The same content
gives the same bytes. It judges nothing. The digest that it prints for --policy,
--key and --trusted-root is what verify wants to know with --bundled-trust.`,
		Example: `  waxseal bundle export --policy policy.yaml -o app.tar registry.example/app:1.0
  waxseal verify --policy policy.yaml --as registry.example/app archive:app.tar`,
		Args: cobra.ExactArgs(1),
	}
	f := cmd.Flags()
	f.StringVarP(&flags.file, "output-file", "o", "", "write to `FILE`; the end of its name says how it is compressed")
	f.BoolVar(&flags.noLayers, "no-layers", false, "leave the layers out: enough for a verdict, not for the image")
	f.StringVar(&flags.policy, "policy", "", "carry this policy `FILE` along, with what it extends and the keys it names")
	f.StringArrayVar(&flags.keys, "key", nil, "carry this public `KEY` along, as verify takes it; repeatable")
	f.StringArrayVar(&flags.roots, "trusted-root", nil, "carry this Sigstore trusted root `FILE` along; repeatable")
	f.StringArrayVar(&flags.evidence, "evidence", nil, "take evidence from `PATH` too, as verify does; repeatable")
	f.BoolVar(&flags.insecure, "insecure", false, "allow plain HTTP or an unverified certificate for the registry")
	_ = cmd.MarkFlagRequired("output-file") // defined above, so this cannot fail
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		ref, err := store.Parse(args[0])
		if err != nil {
			return exitError{ExitUsage, err}
		}
		opts := store.ArchiveOptions{NoLayers: flags.noLayers}
		if opts.Compression, err = compression(flags.file); err != nil {
			return err
		}
		if opts.Trust, err = flags.trust(cmd.Context(), s); err != nil {
			return exitError{ExitUsage, err}
		}
		src, err := store.Open(cmd.Context(), ref, store.Options{Insecure: flags.insecure, Evidence: flags.evidence, Images: imageHome(s.Env)})
		if err != nil {
			return err
		}
		shown := newCounter(s, "exported")
		defer shown.done()
		opts.Progress = shown.add
		var out *store.Archived
		err = store.WriteWhole(flags.file, func(w io.Writer) error {
			out, err = store.WriteArchive(cmd.Context(), src, ref, w, opts)
			return err
		})
		if err != nil {
			return fmt.Errorf("writing %q: %w", flags.file, err)
		}
		shown.done()
		if *output == "json" {
			return printJSON(s, out)
		}
		return printArchived(s.Out, flags.file, out)
	}
	return cmd
}

func compression(file string) (string, error) {
	for end, how := range map[string]string{".tar": "", ".tar.gz": "gzip", ".tgz": "gzip", ".tar.zst": "zstd"} {
		if strings.HasSuffix(file, end) {
			return how, nil
		}
	}
	return "", usagef("-o %q: the name must end in .tar, .tar.gz or .tar.zst", file)
}

// trust reads the files that are carried along. Each is parsed: what nobody
// could use over there is refused here.
func (f *exportFlags) trust(ctx context.Context, s *Streams) ([]store.TrustFile, error) {
	var out []store.TrustFile
	if f.policy != "" {
		_, files, err := policy.LoadFiles(f.policy, loadOptions(ctx, s))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			out = append(out, store.TrustFile{Role: file.Kind, Name: file.Name, NamedBy: file.NamedBy, Raw: file.Raw})
		}
	}
	for _, path := range f.keys {
		raw, err := readKeyPEM(ctx, s, path)
		if err != nil {
			return nil, fmt.Errorf("reading public key %q: %w", keys.Name(path), err)
		}
		path = keys.Name(path)
		if _, err := verify.ParseKey(path, raw); err != nil {
			return nil, err
		}
		out = append(out, store.TrustFile{Role: policy.FileKey, Name: filepath.Base(path), Raw: raw})
	}
	for _, path := range f.roots {
		raw, err := readSmall(path, attest.MaxTrustedRoot)
		if err != nil {
			return nil, fmt.Errorf("reading trusted root %q: %w", path, err)
		}
		if _, err := verify.ParseRoot(path, raw); err != nil {
			return nil, err
		}
		out = append(out, store.TrustFile{Role: roleRoot, Name: filepath.Base(path), Raw: raw})
	}
	return out, nil
}

// roleRoot is a trusted root beside the policy.
const roleRoot = "root"

func printArchived(w io.Writer, file string, a *store.Archived) error {
	layers := "with its layers"
	if a.Layers != "all" {
		layers = "without layers: for a verdict only"
	}
	fmt.Fprintf(w, "archive   %s\nimage     %s, %s\ndigest    %s\n", file, a.Image, layers, a.Digest)
	if len(a.Platforms) > 0 {
		fmt.Fprintf(w, "platforms %s\n", strings.Join(a.Platforms, ", "))
	}
	fmt.Fprintf(w, "evidence  %d attached, %d in files and notes\n", a.Evidence, a.Files)
	if a.Trust == "" {
		_, err := fmt.Fprintln(w, "trust     none inside: verify it with your own --policy or --key")
		return err
	}
	_, err := fmt.Fprintf(w, "trust     %s: %s\n", a.Trust, strings.Join(a.TrustFiles, ", "))
	return err
}

func newBundleShowCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show [flags] FILE",
		Short: "Say what is in an archive",
		Long: `show lists what an archive holds. All of it is what the archive says of itself;
nothing is verified.`,
		Args: cobra.ExactArgs(1),
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		a, err := store.ReadArchive(cmd.Context(), store.Reference{Kind: store.Archive, Place: args[0]})
		if err != nil {
			return err
		}
		if *output == "json" {
			return printJSON(s, a)
		}
		return printArchived(s.Out, args[0], a)
	}
	return cmd
}

func newBundleImportCmd(s *Streams) *cobra.Command {
	var to string
	var insecure bool
	cmd := &cobra.Command{
		Use:   "import [flags] --to REF FILE",
		Short: "Bring the image of an archive, with its evidence, into a registry or layout",
		Long: `import copies the image, its platforms and its evidence by digest, reads them
again, and tags last. Evidence that was a file or a note becomes an attachment;
what is about a commit stays in the archive. It judges nothing: "waxseal verify"
or "waxseal promote" of archive:FILE does.

REF is HOST/REPO[:TAG] or oci:PATH[:TAG].`,
		Example: `  waxseal bundle import --to registry.inside.example/app:1.0 app.tar`,
		Args:    cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&to, "to", "", "where to: a registry `REF` or oci:PATH[:TAG]")
	cmd.Flags().BoolVar(&insecure, "insecure", false, "allow plain HTTP or an unverified certificate for the registry")
	_ = cmd.MarkFlagRequired("to") // defined above, so this cannot fail
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		dst, err := store.Parse(to)
		if err != nil {
			return exitError{ExitUsage, err}
		}
		d, n, err := importArchive(cmd.Context(), store.Reference{Kind: store.Archive, Place: args[0]}, dst, store.Options{Insecure: insecure})
		if err != nil {
			return fmt.Errorf("importing %q: %w", args[0], err)
		}
		fmt.Fprintf(s.Out, "imported  %s\ndigest    %s\nevidence  %d\n", dst, d, n)
		return nil
	}
	return cmd
}

func importArchive(ctx context.Context, from, to store.Reference, opts store.Options) (d attest.Digest, evidence int, err error) {
	src, err := store.Open(ctx, from, store.Options{})
	if err != nil {
		return "", 0, err
	}
	desc, err := src.Resolve(ctx)
	if err != nil {
		return "", 0, err
	}
	dst, err := store.OpenWritable(ctx, to, opts)
	if err != nil {
		return "", 0, err
	}
	err = store.Copy(ctx, src, dst, desc, store.CopyOptions{Evidence: true, Progress: func(c store.Copied) {
		if c.What == "evidence" {
			evidence++
		}
	}})
	if err != nil {
		return "", 0, err
	}
	return attest.Digest(desc.Digest.String()), evidence, store.Tag(ctx, dst, to.Tag, desc)
}

// archiveFlags are the flags of judging an archive.
type archiveFlags struct{ as, trust string }

func (f *archiveFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.as, "as", "", "the image `NAME` whose rules in the policy hold, as HOST/REPO (default: REF)")
	cmd.Flags().StringVar(&f.trust, "bundled-trust", "", "believe the policy, keys and roots inside archive:FILE, which must have\nthis `DIGEST`, as \"waxseal bundle export\" printed it")
}

// read puts what the flags name into req.
func (f *archiveFlags) read(ctx context.Context, req *gate.Request) error {
	if f.as != "" {
		ref, err := store.Parse(f.as)
		if err != nil {
			return fmt.Errorf("--as: %w", err)
		}
		req.Name = gate.Name(ref)
	}
	if f.trust == "" {
		return nil
	}
	want, err := attest.ParseDigest(f.trust)
	if err != nil {
		return fmt.Errorf("--bundled-trust: %w", err)
	}
	ref, err := store.Parse(req.Reference)
	if err != nil {
		return err
	}
	switch {
	case ref.Kind != store.Archive:
		return errors.New("--bundled-trust: only an archive carries whom to trust; REF is none")
	case req.Policy != nil || len(req.Keys)+len(req.Roots)+len(req.CAs) > 0:
		return errors.New("--bundled-trust: it is either whom the archive names or whom you name")
	}
	files, err := store.ArchiveTrust(ctx, ref, want)
	if err != nil {
		return err
	}
	return believe(files, req)
}

// believe puts the files that an archive carries into req.
func believe(files []store.TrustFile, req *gate.Request) error {
	var ofPolicy []policy.File
	hasPolicy := false
	for _, f := range files {
		switch {
		case f.Role == roleRoot:
			r, err := verify.ParseRoot(f.Name, f.Raw)
			if err != nil {
				return err
			}
			req.Roots = append(req.Roots, r)
		case f.Role == policy.FileKey && f.NamedBy == "":
			k, err := verify.ParseKey(f.Name, f.Raw)
			if err != nil {
				return err
			}
			req.Keys = append(req.Keys, k)
		default:
			hasPolicy = hasPolicy || f.Role == policy.FilePolicy
			ofPolicy = append(ofPolicy, policy.File{Kind: f.Role, Name: f.Name, NamedBy: f.NamedBy, Raw: f.Raw})
		}
	}
	if !hasPolicy {
		return nil
	}
	var err error
	req.Policy, err = policy.ParseFiles("in the archive", ofPolicy)
	return err
}
