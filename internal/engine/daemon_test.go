package engine

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/util/contentutil"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// toServer has every request go to one server, whatever host it names.
type toServer struct{ *httptest.Server }

func (s toServer) RoundTrip(r *http.Request) (*http.Response, error) {
	r.URL.Host = s.Listener.Addr().String()
	return http.DefaultTransport.RoundTrip(r)
}

// An archive is for every kind of daemon, and the ID that is told what the daemon's
// kind calls the image.
func TestAnImageIsLoaded(t *testing.T) {
	blobs := contentutil.NewBuffer()
	put := func(form string, v any) ocispecs.Descriptor {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		d := ocispecs.Descriptor{MediaType: form, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
		if err := content.WriteBlob(t.Context(), blobs, d.Digest.String(), strings.NewReader(string(raw)), d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	image := func(p ocispecs.Platform) (manifest, config ocispecs.Descriptor) {
		config = put(ocispecs.MediaTypeImageConfig, ocispecs.Image{Platform: p})
		m := ocispecs.Manifest{MediaType: ocispecs.MediaTypeImageManifest, Config: config, Layers: []ocispecs.Descriptor{}}
		m.SchemaVersion = 2
		manifest = put(ocispecs.MediaTypeImageManifest, m)
		manifest.Platform = &p
		return manifest, config
	}
	index := func(all ...ocispecs.Descriptor) ocispecs.Descriptor {
		i := ocispecs.Index{MediaType: ocispecs.MediaTypeImageIndex, Manifests: all}
		i.SchemaVersion = 2
		return put(ocispecs.MediaTypeImageIndex, i)
	}
	here, hereConfig := image(platforms.DefaultSpec())
	other, otherConfig := image(ocispecs.Platform{OS: "linux", Architecture: "s390x"})
	attested, _ := image(ocispecs.Platform{OS: "unknown", Architecture: "unknown"})

	answer := `{}`
	var names, files []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		names, files = r.URL.Query()["name"], nil
		in := tar.NewReader(r.Body)
		for r.Method == http.MethodPost {
			h, err := in.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Error(err)
				break
			}
			files = append(files, h.Name)
		}
		fmt.Fprint(w, answer)
	}))
	defer srv.Close()
	d := &daemonImages{client: &http.Client{Transport: toServer{srv}}}
	const name = "docker.io/library/app:1"
	for _, x := range []struct {
		what   string
		answer string
		image  ocispecs.Descriptor
		id     digest.Digest
		failed string
	}{
		{"an image", `{}`, here, hereConfig.Digest, ""},
		{"an image, with containerd's store", `{"index":true}`, here, here.Digest, ""},
		{"an index", `{}`, index(other, attested, here), hereConfig.Digest, ""},
		{"an index, with containerd's store", `{"index":true}`, index(here, attested), index(here, attested).Digest, ""},
		{"another machine's", `{}`, index(attested, other), otherConfig.Digest, ""},
		{"no image", `{}`, index(attested), "", "has no image"},
		{"where no daemon is", `{"absent":true}`, here, "", ""},
		{"what the daemon refuses", `{"error":"no space"}`, here, "", "no space"},
		{"what is not answered", ``, here, "", "EOF"},
		{"what is not there", `{}`, ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageManifest, Digest: digest.FromString("?"), Size: 1}, "", "not found"},
	} {
		answer, names, files = x.answer, nil, nil
		id, err := d.load(t.Context(), blobs, x.image, []string{name})
		if id != x.id || (err == nil) != (x.failed == "") || err != nil && !strings.Contains(err.Error(), x.failed) {
			t.Errorf("%s: %q, %v", x.what, id, err)
		}
		if err == nil && (!slices.Equal(names, []string{name}) || !slices.Contains(files, "index.json") || !slices.Contains(files, "manifest.json")) {
			t.Errorf("%s: loaded %q of %q", x.what, files, names)
		}
	}

	for said, want := range map[string]bool{`{}`: true, `{"index":true}`: false, `{"absent":true}`: false, ``: false} {
		answer = said
		if got := d.keepsNoIndex(t.Context()); got != want {
			t.Errorf("a daemon of which is said %s keeps no index: %t", said, got)
		}
	}
	if (*daemonImages)(nil).keepsNoIndex(t.Context()) {
		t.Error("no daemon keeps no index")
	}
}
