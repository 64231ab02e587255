package corpus

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/waxseal/waxseal/internal/testkit"
)

// serve serves the layout of a case as the repository acme/app of a registry on
// loopback, with the faults of the case.
func (c *Case) serve() (addr string, done func(), err error) {
	r := c.Question.Registry
	faults := new(testkit.Faults)
	var list []testkit.Fault
	for _, f := range r.Faults {
		list = append(list, testkit.Fault{Kind: f.Kind, Match: f.Request})
	}
	if err := faults.Set(list...); err != nil {
		return "", nil, err
	}
	s := httptest.NewServer(faults.Around(&layout{dir: c.path(c.Question.Image), Registry: *r}))
	return s.Listener.Addr().String(), s.Close, nil
}

// layout answers for an OCI layout what a registry answers.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md
type layout struct {
	dir string
	Registry
}

type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Size         int64             `json:"size"`
	Digest       string            `json:"digest"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	Platform     *platform         `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// manifest is a manifest or an index.
type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType,omitempty"`
	Config        *descriptor       `json:"config,omitempty"`
	Layers        []descriptor      `json:"layers,omitempty"`
	Manifests     []descriptor      `json:"manifests,omitempty"`
	Subject       *descriptor       `json:"subject,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

const refName = "org.opencontainers.image.ref.name"

func (l *layout) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	const base = "/v2/acme/app/"
	kind, ref, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, base), "/")
	switch {
	case r.URL.Path == "/v2/":
		w.WriteHeader(http.StatusOK)
	case !strings.HasPrefix(r.URL.Path, base):
		notFound(w, "NAME_UNKNOWN")
	case kind == "manifests":
		l.manifest(w, ref)
	case kind == "blobs":
		http.ServeFile(w, r, l.blob(ref))
	case kind == "referrers" && !l.NoReferrers:
		l.referrers(w, r, ref)
	default:
		notFound(w, "UNSUPPORTED")
	}
}

func notFound(w http.ResponseWriter, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"not in the layout"}]}`, code)
}

func (l *layout) blob(digest string) string {
	return filepath.Join(l.dir, "blobs", "sha256", filepath.Base(strings.TrimPrefix(digest, "sha256:")))
}

func (l *layout) index() manifest {
	var m manifest
	raw, err := os.ReadFile(filepath.Join(l.dir, "index.json"))
	if err == nil {
		err = json.Unmarshal(raw, &m)
	}
	if err != nil {
		panic(err) // a case that is broken; the connection ends
	}
	return m
}

func (l *layout) manifest(w http.ResponseWriter, ref string) {
	digest := ref
	if !strings.HasPrefix(ref, "sha256:") {
		digest = ""
		for _, d := range l.index().Manifests {
			if d.Annotations[refName] == ref {
				digest = d.Digest
			}
		}
	}
	raw, err := os.ReadFile(l.blob(digest))
	if digest == "" || err != nil {
		notFound(w, "MANIFEST_UNKNOWN")
		return
	}
	var m manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", m.MediaType)
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	w.Write(raw)
}

func (l *layout) referrers(w http.ResponseWriter, r *http.Request, subject string) {
	list := []descriptor{}
	for _, d := range l.index().Manifests {
		var m manifest
		raw, err := os.ReadFile(l.blob(d.Digest))
		if err == nil {
			err = json.Unmarshal(raw, &m)
		}
		if err != nil || m.Subject == nil || m.Subject.Digest != subject {
			continue
		}
		d.ArtifactType, d.Annotations = m.ArtifactType, m.Annotations
		if d.ArtifactType == "" && m.Config != nil {
			d.ArtifactType = m.Config.MediaType
		}
		list = append(list, d)
	}
	slices.SortFunc(list, func(a, b descriptor) int { return strings.Compare(a.Digest, b.Digest) })
	from, _ := strconv.Atoi(r.URL.Query().Get("from"))
	list = list[min(from, len(list)):]
	if l.PageSize > 0 && len(list) > l.PageSize {
		list = list[:l.PageSize]
		w.Header().Set("Link", fmt.Sprintf(`<%s?from=%d>; rel="next"`, r.URL.Path, from+l.PageSize))
	}
	w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
	json.NewEncoder(w).Encode(struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []descriptor `json:"manifests"`
	}{2, "application/vnd.oci.image.index.v1+json", list})
}
