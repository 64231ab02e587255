package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/waxseal/waxseal/pkg/build"
	"github.com/waxseal/waxseal/pkg/sbom"
)

func newSBOMCmd(s *Streams) *cobra.Command {
	var req build.SBOMRequest
	var file string
	cmd := &cobra.Command{
		Use:   "sbom [flags] REF",
		Short: "Write an SBOM of an image",
		Long: `sbom looks into an image and writes what is installed in it, as SPDX 2.3 or
CycloneDX 1.6 JSON. The image is neither run nor changed, nothing is signed or
attached, and the same image always gives the same document. Where the image has a
package database that cannot be read, the document and a note name it.

REF is a registry reference, oci:PATH[:TAG][@DIGEST] or docker:NAME. Of an index
it is the image for this machine's platform, or the one --platform names.`,
		Example: `  waxseal sbom registry.example/app:1.0
  waxseal sbom --format cyclonedx -o app.cdx.json oci:out/image:app`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Reference = args[0]
			doc, err := build.ImageSBOM(cmd.Context(), req)
			if usage := (build.UsageError{}); errors.As(err, &usage) {
				return exitError{ExitUsage, err}
			}
			if err != nil {
				return err
			}
			if sum, err := sbom.Check(req.Format, doc); err == nil && sum.Unread != "" {
				fmt.Fprintln(s.Err, "note: the SBOM lacks the packages of "+sum.Unread)
			}
			doc = append(doc, '\n')
			if file != "" {
				return writeWhole(file, doc)
			}
			_, err = s.Out.Write(doc)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Format, "format", sbom.SPDX, "`FORMAT` of the document: "+strings.Join(sbom.Formats(), " or "))
	f.StringVar(&req.Platform, "platform", "", "`OS/ARCH` to take from an index (default: this machine's)")
	f.StringVarP(&file, "output-file", "o", "", "write to `FILE` instead of the terminal")
	f.BoolVar(&req.Store.Insecure, "insecure", false, "allow plain HTTP or an unverified certificate for the registry")
	completeValues(cmd, map[string][]string{"format": sbom.Formats()})
	return cmd
}
