package attestations_test

import (
	"testing"

	"github.com/waxseal/waxseal/attestations"
)

func TestReviewExampleFitsItsSchemaAndStruct(t *testing.T) {
	predicate := predicateIn(t, "review/v1/example.json", attestations.ReviewV1)
	const commit = `"commit":"1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a"`
	const rest = `"repository":"https://git.example/a","reviewedOn":"2026-03-01T12:00:00Z"`
	fit(t, attestations.ReviewSchema(), []string{
		string(predicate),
		`{` + rest + `,` + commit + `,"decision":"rejected"}`,
	}, []string{
		`{` + rest + `,` + commit + `}`,
		`{` + rest + `,` + commit + `,"decision":"maybe"}`,
		`{` + rest + `,"commit":"1a1a1a1","decision":"approved"}`,
		`{` + rest + `,` + commit + `,"decision":"approved","authors":[]}`,
		`{` + rest + `,` + commit + `,"decision":"approved","more":1}`,
	})
	var r attestations.Review
	if decode(t, predicate, &r); len(r.Authors) != 1 || r.ReviewedOn.IsZero() {
		t.Errorf("%+v", r)
	}
}
