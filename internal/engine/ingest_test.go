package engine

import (
	"io"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
)

// A build that was killed while its base image was loaded leaves the part that
// had come; the next engine must begin anew, see dropPartial.
func TestPartialLoadsDoNotOutliveTheEngine(t *testing.T) {
	root := t.TempDir()
	before, err := local.NewStore(root)
	if err != nil {
		t.Fatal(err)
	}
	w, err := before.Writer(t.Context(), content.WithRef("layer-sha256:1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "half of"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}

	next, err := local.NewStore(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := dropPartial(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	w, err = next.Writer(t.Context(), content.WithRef("layer-sha256:1"))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if st, err := w.Status(); err != nil || st.Offset != 0 {
		t.Errorf("the next load of the blob begins at %d (%v), want 0", st.Offset, err)
	}
}
