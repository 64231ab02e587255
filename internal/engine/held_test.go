package engine

import (
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
)

// Which outputs docker's own builder leaves in the Docker daemon.
func TestWhatIsLeftInTheDaemon(t *testing.T) {
	image := func(attrs ...string) ClientEntry {
		e := ClientEntry{Type: client.ExporterImage, Attrs: map[string]string{}}
		for i := 0; i < len(attrs); i += 2 {
			e.Attrs[attrs[i]] = attrs[i+1]
		}
		return e
	}
	for _, x := range []struct {
		what    string
		entry   ClientEntry
		dockers bool
		asked   int
		want    bool
	}{
		{"an image", image(), true, 1, true},
		{"one that is pushed", image("push", "true", "unpack", "false"), true, 1, true},
		{"of another builder", image("push", "true"), false, 1, false},
		{"an archive, which the client loads", ClientEntry{Type: client.ExporterDocker}, true, 1, false},
		{"files", ClientEntry{Type: client.ExporterLocal}, true, 1, false},
		{"the image of files", image(), true, 0, false},
		{"one to store", image("store", "true"), true, 1, true},
		{"one not to store", image("store", "false"), true, 1, false},
		{"one without a tag", image("push", "true", "push-by-digest", "true"), true, 1, false},
	} {
		c := newClients(Config{}, InputsPlan{})
		if err := c.add(&ClientSolve{Ref: "it", Exports: []ClientEntry{x.entry}, Docker: x.dockers, asked: x.asked}); err != nil {
			t.Fatal(err)
		}
		if got := c.leaves("it", 0); got != x.want {
			t.Errorf("%s: %t", x.what, got)
		}
		c = newClients(Config{}, InputsPlan{})
		loaded := ClientEntry{Type: client.ExporterOCI, Attrs: map[string]string{"prefer-image-digest": "true"}}
		if err := c.add(&ClientSolve{Ref: "it", Exports: []ClientEntry{x.entry, loaded}, Docker: true, asked: 2}); err != nil {
			t.Fatal(err)
		}
		if c.leaves("it", 0) || c.leaves("it", 1) {
			t.Errorf("%s, beside an archive that the client loads", x.what)
		}
		if c.leaves("waxseal's own", 0) {
			t.Error("a build of waxseal's own is left")
		}
	}
}

func TestNamesInTheDaemon(t *testing.T) {
	for list, want := range map[string]string{
		"": "", "app": "docker.io/library/app:latest", "app:1,reg.test:5000/a/b": "docker.io/library/app:1 reg.test:5000/a/b:latest",
		"App": "reading the image's name", "app:1@sha256:" + strings.Repeat("0", 64): "it has a digest",
	} {
		names, err := namesOf(list)
		got := strings.Join(names, " ")
		if err != nil {
			got = err.Error()
		}
		if got != want && (err == nil || !strings.Contains(got, want)) {
			t.Errorf("%q: %q, want %q", list, got, want)
		}
	}
}
