package corpus

import (
	"strings"

	"github.com/waxseal/waxseal/attestations"
)

// builtFrom is provenance that names images that the image was built from.
func (d *draft) builtFrom(images ...any) []byte {
	deps := append([]any{object{"name": attestations.DependencySource, "uri": "git+" + repository, "digest": object{"gitCommit": commit}}}, images...)
	return d.seal("ours", d.provenance(definition("resolvedDependencies", deps)))
}

func dependencyCases() []entry {
	const demand = "dependencies: {registries: [\"registry.example/base/**\", \"127.0.0.1:1/base/**\"], level: {build: 2}}"
	pinned := object{"sha256": strings.Repeat("a", 64)}
	of := func(name, title string, make func(*draft), images ...any) entry {
		return entry{"dependency/" + name, title, "in-toto and SLSA: transitive inputs", func(d *draft) {
			d.more = demand
			if make != nil {
				make(d)
			}
			d.file("provenance.json", d.builtFrom(images...), Accepted)
		}}
	}
	denied := func(d *draft) { d.deny(3, "dependency") }
	return []entry{
		of("none", "A level is demanded of base images, and the image was built from none.", nil),
		of("no-image", "It was built with a file and a commit, which are no images.", nil,
			object{"uri": "https://files.example/tool.tar.gz", "digest": pinned}, object{"uri": "git+https://git.example/lib", "digest": object{"gitCommit": commit}}),
		of("not-listed", "The base image lies in a registry that nobody lists: whoever writes provenance does not choose whom we ask.", denied,
			object{"uri": "docker-image://evil.example/base@sha256:" + strings.Repeat("a", 64), "digest": pinned}),
		of("not-pinned", "The base image is not named by digest.", denied, object{"uri": "docker-image://registry.example/base/debian:12"}),
		of("not-to-be-told", "The base image's package URL cannot be read.", denied, object{"uri": "pkg:oci/base?repository_url=%zz", "digest": pinned}),
		of("no-answer", "The registry of the base image does not answer: there is no decision, and no denial.", func(d *draft) {
			denied(d)
			d.c.Expect.Decision = Undecided
		},
			object{"uri": "docker-image://127.0.0.1:1/base/debian@sha256:" + strings.Repeat("a", 64), "digest": pinned}),
		of("not-demanded", "The base image lies in a registry that nobody lists, and nothing is demanded of it.", func(d *draft) { d.more = "" },
			object{"uri": "docker-image://evil.example/base@sha256:" + strings.Repeat("a", 64), "digest": pinned}),
	}
}
