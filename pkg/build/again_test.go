package build

import (
	"strings"
	"testing"

	"github.com/waxseal/waxseal/attestations"
)

func TestUnrepeatable(t *testing.T) {
	folder := attestations.InputSource{Kind: "context", URI: "context", Digest: "sha256:1", Tree: "sha256:2", Stored: true}
	lost, old := folder, folder
	lost.Stored, old.Tree, old.Stored = false, "", false
	other := folder
	other.Tree = "sha256:3"
	sources := func(s ...attestations.InputSource) []*attestations.Inputs {
		return []*attestations.Inputs{{Sources: s}}
	}
	gap := []attestations.InputGap{{Kind: attestations.GapCacheImport}}
	run := attestations.ContainerBuildInternal{Grade: "full"}
	directory := attestations.ContainerContext{Kind: "directory"}
	for _, c := range []struct {
		name string
		r    Replay
		want string // "" for none
	}{
		{"of a client", Replay{Chosen: run, Records: sources(folder)}, ""},
		{"with harmless parameters", Replay{Chosen: run, Records: sources(folder), Asked: attestations.ContainerBuild{Attrs: map[string]string{"attest:provenance": "mode=max", "multi-platform": "1"}}}, ""},
		{"that took nothing of its context", Replay{Chosen: run, Records: sources(), Asked: attestations.ContainerBuild{Context: directory}}, ""},
		{"of waxseal build with the word", Replay{Records: sources(folder), Asked: attestations.ContainerBuild{BuildArgs: map[string]string{"A": removed}}}, ""},
		{"with a proxy", Replay{Chosen: run, Asked: attestations.ContainerBuild{BuildArgs: map[string]string{"HTTP_PROXY": "http://p?t=" + removed}}}, ""},
		{"with a secret argument", Replay{Chosen: run, Asked: attestations.ContainerBuild{BuildArgs: map[string]string{"A": "x" + removed}}}, `build argument "A" held`},
		{"with a secret label", Replay{Chosen: run, Asked: attestations.ContainerBuild{Labels: map[string]string{"l": removed}}}, `label "l" held`},
		{"with a cache of elsewhere", Replay{Records: []*attestations.Inputs{{Gaps: gap}}}, "imported cache"},
		{"with a step of it", Replay{Records: []*attestations.Inputs{{Steps: []attestations.InputStep{{Gaps: gap}}}}}, "imported cache"},
		{"with a source policy", Replay{Chosen: attestations.ContainerBuildInternal{Grade: "partial", Unobserved: []string{unknownPolicy}}}, "source policy"},
		{"with another target", Replay{Chosen: run, Asked: attestations.ContainerBuild{BuildContexts: map[string]string{"b": otherTarget}}}, `build context "b" is another target`},
		{"with a host name", Replay{Chosen: run, Asked: attestations.ContainerBuild{Attrs: map[string]string{"hostname": "h"}}}, `parameter "hostname"`},
		{"whose context the store was not given", Replay{Chosen: run, Records: sources(lost)}, "files of its context were not kept"},
		{"from before contexts were kept", Replay{Chosen: run, Records: sources(old)}, "files of its context were not kept"},
		{"whose platforms differ", Replay{Chosen: run, Records: append(sources(folder), sources(other)...)}, "took different files"},
		{"of an archive", Replay{Chosen: run, Records: sources(), Asked: attestations.ContainerBuild{Context: attestations.ContainerContext{Kind: "tar"}}}, "standard input"},
		{"of a definition", Replay{Chosen: run, Records: sources(), Asked: attestations.ContainerBuild{Context: attestations.ContainerContext{Kind: contextDefinition}}}, "came as a definition"},
		{"with a layout", Replay{Chosen: run, Records: sources(), deps: []dependency{{URI: "pkg:oci/more@1"}}}, "OCI layout"},
		{"with a layout that was kept", Replay{Chosen: run, deps: []dependency{{URI: "pkg:oci/more@1"}}, Records: sources(attestations.InputSource{Kind: "named-context", URI: "named-context:more", Stored: true})}, ""},
		{"of docker's own builder", Replay{Chosen: attestations.ContainerBuildInternal{Grade: "record-only", Engine: attestations.ContainerEngine{Name: "docker"}}}, "legacy builder"},
	} {
		got := strings.Join(c.r.Unrepeatable(), "; ")
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}
