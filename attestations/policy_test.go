package attestations_test

import (
	"testing"

	"github.com/waxseal/waxseal/attestations"
)

func TestPolicyExampleFitsItsSchemaAndStruct(t *testing.T) {
	predicate := predicateIn(t, "policy/v1/example.json", attestations.PolicyV1)
	fit(t, attestations.PolicySchema(), []string{
		string(predicate),
		`{"apiVersion":"waxseal.dev/v1"}`,
	}, []string{
		`{}`,
		`{"apiVersion":"waxseal.dev/v2"}`,
		`{"apiVersion":"waxseal.dev/v1","extends":["md5:00"]}`,
		`{"apiVersion":"waxseal.dev/v1","more":1}`,
		`{"apiVersion":"waxseal.dev/v1","files":[{"name":"k.pub"}]}`,
	})
	var p attestations.Policy
	if decode(t, predicate, &p); len(p.Extends) != 1 || len(p.Files) != 1 {
		t.Errorf("%+v", p)
	}
}
