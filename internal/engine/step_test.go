package engine

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/internal/testkit"
)

// An empty folder can still hold what an earlier build wrote.
func TestAnEmptyCacheMountHoldsNothing(t *testing.T) {
	dir := t.TempDir()
	bare := func() bool {
		t.Helper()
		d, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		ok, err := isBare(d)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if !bare() {
		t.Error("a new folder is not empty")
	}
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if bare() {
		t.Error("a folder with a file is empty")
	}
	if err := os.Remove(filepath.Join(dir, "x")); err != nil {
		t.Fatal(err)
	}
	err := unix.Setxattr(dir, "user.waxseal", []byte("from an earlier build"), 0)
	if errors.Is(err, unix.ENOTSUP) {
		testkit.Unavailable(t, "no extended attributes here")
	}
	if err != nil {
		t.Fatal(err)
	}
	if bare() {
		t.Error("a folder with an attribute is empty")
	}
}

// The step's own tools show no more than a status.
func TestAFailedStepSaysWhatTheGatewayKnows(t *testing.T) {
	failed := errors.New("exit code: 22")
	lost := attestations.InputRequest{Method: "GET", URI: "https://a.example/", Unanswered: "asking upstream: EOF"}
	for _, c := range []struct {
		record *attestations.InputStep
		want   string
	}{
		{nil, "exit code: 22"},
		{&attestations.InputStep{Requests: []attestations.InputRequest{{Method: "GET", URI: "https://a.example/", Status: 200}}}, "exit code: 22"},
		{&attestations.InputStep{
			Refusals: []attestations.InputRefusal{{Destination: "b.example:443", Reason: "the host is not allowed"}},
			Requests: []attestations.InputRequest{lost, lost},
		}, "exit code: 22\n  denied by the gateway: b.example:443: the host is not allowed\n  not answered: GET https://a.example/: asking upstream: EOF"},
	} {
		err := withRefusals(failed, c.record)
		if err.Error() != c.want || !errors.Is(err, failed) {
			t.Errorf("got %q, want %q", err, c.want)
		}
	}
}
