package attestations_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/attestations"
)

func exampleInputs(t *testing.T) *attestations.Inputs {
	t.Helper()
	var in attestations.Inputs
	decode(t, read(t, "inputs/v1/example.json"), &in)
	return &in
}

// fits says why a record is not as the schema has it.
func fits(t *testing.T, in *attestations.Inputs) error {
	t.Helper()
	raw, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	return schemaOf(t, attestations.InputsSchema()).Validate(document(t, raw))
}

func limits() attestations.InputLimits {
	return attestations.InputLimits{Requests: 100, Refusals: 10, Names: 10, Steps: 10, URI: 8192, Text: 4096}
}

func TestInputsExampleFitsItsSchemaAndStructs(t *testing.T) {
	raw := read(t, "inputs/v1/example.json")
	if err := schemaOf(t, attestations.InputsSchema()).Validate(document(t, raw)); err != nil {
		t.Fatal(err)
	}
	in := exampleInputs(t)
	if err := fits(t, in); err != nil {
		t.Errorf("as the struct writes it: %v", err)
	}
	if err := in.Check(limits()); err != nil {
		t.Error(err)
	}
	again, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var a, b any
	if json.Unmarshal(raw, &a) != nil || json.Unmarshal(again, &b) != nil {
		t.Fatal("not JSON")
	}
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	if !bytes.Equal(x, y) {
		t.Errorf("the struct loses something:\n%s\n%s", x, y)
	}
	if recorded, gaps, refused := in.Count(); recorded != 5 || gaps != 0 || refused != 3 {
		t.Errorf("counted %d, %d, %d", recorded, gaps, refused)
	}
}

// TestInputsThatSayTooMuch: a record that claims what it does not hold is
// refused, by the schema too where a schema can see it.
func TestInputsThatSayTooMuch(t *testing.T) {
	for name, c := range map[string]struct {
		change func(in *attestations.Inputs)
		want   string
		schema bool // sees it as well
	}{
		"an unknown mode":               {func(in *attestations.Inputs) { in.Mode = "loose" }, `mode "loose"`, true},
		"hermetic in mode record":       {func(in *attestations.Inputs) { in.Mode, in.Lock = "record", "" }, "hermetic", true},
		"locked without a lock":         {func(in *attestations.Inputs) { in.Lock = "" }, "no lock", true},
		"a lock that is none":           {func(in *attestations.Inputs) { in.Lock = "sha256:1" }, "not a digest", true},
		"a lock in mode record":         {func(in *attestations.Inputs) { in.Mode, in.Hermetic = "record", false }, "has a lock", true},
		"better than the worst step":    {func(in *attestations.Inputs) { in.Verdict = "isolated" }, `makes it "recorded"`, false},
		"an unknown verdict":            {func(in *attestations.Inputs) { in.Verdict = "fine" }, `"fine"`, true},
		"not hermetic though it is":     {func(in *attestations.Inputs) { in.Hermetic = false }, "makes that true", false},
		"isolated with requests":        {func(in *attestations.Inputs) { in.Steps[0].Verdict = "isolated" }, "no better than", true},
		"recorded with a gap":           {func(in *attestations.Inputs) { in.Steps[2].Gaps = gap("cache-mount") }, "no better than", true},
		"gaps without one":              {func(in *attestations.Inputs) { in.Steps[2].Verdict = "gaps" }, "none is listed", true},
		"the host's network but gaps":   {func(in *attestations.Inputs) { in.Steps[2].Verdict, in.Steps[2].Gaps = "gaps", gap("host-network") }, "unobserved", false},
		"a gap nobody knows but gaps":   {func(in *attestations.Inputs) { in.Steps[2].Verdict, in.Steps[2].Gaps = "gaps", gap("other") }, "unobserved", true},
		"a step nobody knows as better": {func(in *attestations.Inputs) { in.Steps[2].Verdict = "perfect" }, `"perfect"`, true},
		"a gap of the build":            {func(in *attestations.Inputs) { in.Gaps = gap("cache-import") }, "unobserved", true},
		"requests without a network":    {func(in *attestations.Inputs) { in.Mode, in.Lock = "none", "" }, "had no network", true},
		"requests nobody saw":           {func(in *attestations.Inputs) { in.Gateway = attestations.InputGateway{} }, "no gateway", false},
		"a step without id":             {func(in *attestations.Inputs) { in.Steps[0].ID = "x" }, "id", true},
		"an ordinal twice":              {func(in *attestations.Inputs) { in.Steps[0].Requests[1].Ordinal = 1 }, "twice", false},
		"a digest that is none":         {func(in *attestations.Inputs) { in.Steps[0].Requests[1].Digest = "md5:1" }, "digest", true},
		"a keyed digest not withheld":   {func(in *attestations.Inputs) { r := &in.Steps[0].Requests[1]; r.Digest = "hmac-" + r.Digest }, "withheld", true},
		"withheld without a gap": {func(in *attestations.Inputs) {
			r := &in.Steps[0].Requests[1]
			r.Digest, r.Withheld = "hmac-"+r.Digest, true
		}, "no gap", false},
		"a password":        {func(in *attestations.Inputs) { in.Steps[0].Requests[0].URI = "https://me:secret@host/" }, "password", false},
		"a source password": {func(in *attestations.Inputs) { in.Sources[3].URI = "https://me:secret@host/" }, "password", false},
		"a URI of two lines": {func(in *attestations.Inputs) {
			in.Steps[0].Requests[0].URI = "https://host/\nGET"
		}, "one word", true},
		"a URI over the limit": {func(in *attestations.Inputs) {
			in.Steps[0].Requests[0].URI = "https://host/" + strings.Repeat("a", 9000)
		}, "too long", true},
		"a git source without commit": {func(in *attestations.Inputs) { in.Sources[3].Digest = in.Sources[0].Digest }, "not one", true},
		"an image by commit":          {func(in *attestations.Inputs) { in.Sources[0].Digest = in.Sources[3].Digest }, "not one", false},
		"too many requests": {func(in *attestations.Inputs) {
			for i := range 101 {
				r := in.Steps[1].Requests[0]
				r.Ordinal = i + 1
				in.Steps[1].Requests = append(in.Steps[1].Requests[:i:i], r)
			}
		}, "more than 100", false},
		"an answer of no status":             {func(in *attestations.Inputs) { in.Steps[0].Requests[0].Status = 0 }, "status", true},
		"an answer to what was not answered": {func(in *attestations.Inputs) { in.Steps[0].Requests[0].Unanswered = "EOF" }, "none came", true},
		"a refusal of no kind":               {func(in *attestations.Inputs) { in.Steps[0].Refusals[0].Kind = "magic" }, "magic", true},
		"a refusal of no count":              {func(in *attestations.Inputs) { in.Steps[0].Refusals[0].Count = 0 }, "count", true},
		"a header in upper case":             {func(in *attestations.Inputs) { in.Steps[0].Requests[0].Headers = map[string]string{"ETag": "1"} }, "lower case", true},
	} {
		t.Run(name, func(t *testing.T) {
			in := exampleInputs(t)
			c.change(in)
			err := in.Check(limits())
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("checked: %v, want %q", err, c.want)
			}
			if c.schema && fits(t, in) == nil {
				t.Error("the schema lets it pass")
			}
		})
	}
}

func TestARequestWithoutAnAnswer(t *testing.T) {
	in := exampleInputs(t)
	r := &in.Steps[0].Requests[0]
	*r = attestations.InputRequest{
		Ordinal: r.Ordinal, Method: "POST", URI: r.URI, RequestDigest: r.Digest, RequestSize: 9, Unanswered: "asking upstream: EOF",
		Digest: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
	}
	if err := in.Check(limits()); err != nil {
		t.Error(err)
	}
	if err := fits(t, in); err != nil {
		t.Error(err)
	}
	in.Steps[0].Requests = []attestations.InputRequest{*r}
	if got := attestations.StepVerdict(&in.Steps[0]); got != attestations.VerdictRecorded {
		t.Errorf("a step that sent something is %s", got)
	}
}

func gap(kind string) []attestations.InputGap {
	return []attestations.InputGap{{Kind: kind, Detail: "said so"}}
}

func TestJudge(t *testing.T) {
	const lock = "sha256:1"
	step := func(verdict string, gaps ...attestations.InputGap) attestations.InputStep {
		return attestations.InputStep{Verdict: verdict, Gaps: gaps}
	}
	for name, c := range map[string]struct {
		in       attestations.Inputs
		verdict  string
		hermetic bool
	}{
		"nothing at all":              {attestations.Inputs{Mode: "none"}, "isolated", true},
		"locked and recorded":         {attestations.Inputs{Mode: "locked", Lock: lock, Steps: []attestations.InputStep{step("isolated"), step("recorded")}}, "recorded", true},
		"offline":                     {attestations.Inputs{Mode: "offline", Lock: lock, Steps: []attestations.InputStep{step("recorded")}}, "recorded", true},
		"recorded only":               {attestations.Inputs{Mode: "record", Steps: []attestations.InputStep{step("recorded")}}, "recorded", false},
		"isolated, mode record":       {attestations.Inputs{Mode: "record", Steps: []attestations.InputStep{step("isolated")}}, "isolated", false},
		"locked to nothing":           {attestations.Inputs{Mode: "locked"}, "isolated", false},
		"a gap":                       {attestations.Inputs{Mode: "locked", Lock: lock, Steps: []attestations.InputStep{step("gaps", gap("cache-mount")...), step("recorded")}}, "gaps", false},
		"unobserved is the worst":     {attestations.Inputs{Mode: "locked", Lock: lock, Steps: []attestations.InputStep{step("unobserved"), step("gaps", gap("insecure")...)}}, "unobserved", false},
		"no verdict is no pass":       {attestations.Inputs{Mode: "locked", Lock: lock, Steps: []attestations.InputStep{step("")}}, "unobserved", false},
		"an invented one neither":     {attestations.Inputs{Mode: "none", Steps: []attestations.InputStep{step("great")}}, "unobserved", false},
		"a gap the step left out":     {attestations.Inputs{Mode: "locked", Lock: lock, Steps: []attestations.InputStep{step("recorded", gap("no-record")...)}}, "unobserved", false},
		"an imported cache":           {attestations.Inputs{Mode: "locked", Lock: lock, Gaps: gap("cache-import")}, "unobserved", false},
		"none, and a file was added":  {attestations.Inputs{Mode: "none", Sources: []attestations.InputSource{{Kind: "http"}}}, "isolated", false},
		"none, and git was":           {attestations.Inputs{Mode: "none", Sources: []attestations.InputSource{{Kind: "git"}}}, "isolated", false},
		"none, of a tag":              {attestations.Inputs{Mode: "none", Sources: []attestations.InputSource{{Kind: "image", Ref: "docker.io/library/debian:12"}}}, "isolated", false},
		"none, of a name unknown":     {attestations.Inputs{Mode: "none", Sources: []attestations.InputSource{{Kind: "image"}}}, "isolated", false},
		"none, of a digest":           {attestations.Inputs{Mode: "none", Sources: []attestations.InputSource{{Kind: "image", Ref: "docker.io/library/debian@sha256:1"}}}, "isolated", true},
		"locked, of a tag":            {attestations.Inputs{Mode: "locked", Lock: lock, Sources: []attestations.InputSource{{Kind: "image", Ref: "docker.io/library/debian:12"}}}, "isolated", true},
		"none, of what was given":     {attestations.Inputs{Mode: "none", Sources: []attestations.InputSource{{Kind: "context"}, {Kind: "named-context"}}}, "isolated", true},
		"a source that is not pinned": {attestations.Inputs{Mode: "locked", Lock: lock, Gaps: gap("source")}, "gaps", false},
	} {
		t.Run(name, func(t *testing.T) {
			if verdict, hermetic := c.in.Judge(); verdict != c.verdict || hermetic != c.hermetic {
				t.Errorf("%s, hermetic %t; want %s, %t", verdict, hermetic, c.verdict, c.hermetic)
			}
		})
	}
}
