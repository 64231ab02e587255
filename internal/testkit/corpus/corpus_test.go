package corpus

import (
	"path/filepath"
	"testing"

	"github.com/waxseal/waxseal/internal/testkit"
)

func corpusDir(t testing.TB) string {
	t.Helper()
	root, err := testkit.Root()
	must(t, err)
	return filepath.Join(root, "testdata", "corpus")
}

func cases(t testing.TB) []*Case {
	t.Helper()
	list, err := List(corpusDir(t))
	must(t, err)
	return list
}

// TestVerdicts judges every case, by the code of the command and in this
// process.
func TestVerdicts(t *testing.T) {
	for _, c := range cases(t) {
		t.Run(c.Name, func(t *testing.T) {
			t.Chdir(c.Dir)
			wantExpected(t, c, Waxseal(InProcess))
		})
	}
}

func wantExpected(t *testing.T, c *Case, v Verifier) {
	t.Helper()
	a, err := v(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range c.Compare(a) {
		t.Error(d)
	}
	if t.Failed() {
		t.Logf("%s\nanswer: %+v", c.Title, *a)
	}
}
