package verify_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

// vsaText is a summary that counts, with one field changed to a JSON value, or
// removed where the value is "".
func vsaText(t testing.TB, changes ...string) string {
	t.Helper()
	fields := map[string]string{
		"verifier":           `{"id":"https://v.example/v"}`,
		"timeVerified":       `"2026-01-02T03:04:05Z"`,
		"resourceUri":        `"pkg:oci/a"`,
		"policy":             `{"uri":"https://v.example/policy","digest":{"sha256":"` + strings.Repeat("cd", 32) + `"}}`,
		"inputAttestations":  `[{"uri":"https://v.example/1","digest":{"sha256":"` + strings.Repeat("ef", 32) + `"}}]`,
		"verificationResult": `"PASSED"`,
		"verifiedLevels":     `["SLSA_BUILD_LEVEL_3"]`,
		"slsaVersion":        `"1.2"`,
	}
	for pair := range slices.Chunk(changes, 2) {
		if fields[pair[0]] = pair[1]; pair[1] == "" {
			delete(fields, pair[0])
		}
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		out = append(out, fmt.Sprintf("%q:%s", k, fields[k]))
	}
	return "{" + strings.Join(out, ",") + "}"
}

func readVSA(predicate string) (*verify.VSA, error) {
	return verify.ParseVSA(&attest.Statement{PredicateType: attestations.VSAV1, Predicate: json.RawMessage(predicate)})
}

const (
	k1     = attest.Digest("sha256:1111111111111111111111111111111111111111111111111111111111111111")
	k2     = attest.Digest("sha256:2222222222222222222222222222222222222222222222222222222222222222")
	others = `{"sha256":"abababababababababababababababababababababababababababababababab"}`
)

// judgeVSA reads and weighs a summary that k1 signed, for pkg:oci/a.
func judgeVSA(predicate string, change ...func(*verify.VSAOptions)) (*verify.Word, error) {
	v, err := readVSA(predicate)
	if err != nil {
		return nil, err
	}
	trusted := []verify.Verifier{{ID: "https://v.example/v", Key: k1, Build: 3, Source: 4, Properties: verify.Properties()}}
	want := verify.VSAOptions{URIs: []string{"pkg:oci/a"}, At: time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC)}
	for _, f := range change {
		f(&want)
	}
	return verify.JudgeVSA(v, verify.Signer{Key: k1}, trusted, want)
}

// The vectors that a reference verifier was measured with; it gets nine wrong.
func TestVSAVectors(t *testing.T) {
	levels := func(s string) string { return vsaText(t, "verifiedLevels", s) }
	good := vsaText(t)
	for _, c := range []struct {
		name, predicate, bad string
		build                int
		properties           []string
	}{
		{"v_ok", good, "", 3, nil},
		{"v_repro", levels(`["SLSA_BUILD_LEVEL_3","SLSA_BUILD_REPRODUCED"]`), "", 3, []string{verify.PropertyReproduced}},
		{"v_2p", levels(`["SLSA_BUILD_LEVEL_3","SLSA_SOURCE_TWO_PARTY_REVIEWED"]`), "", 3, []string{verify.PropertyTwoParty}},
		{"v_uneval", levels(`["SLSA_BUILD_LEVEL_UNEVALUATED"]`), "", 0, nil},
		{"v_env", levels(`["SLSA_BUILD_LEVEL_3","SLSA_BUILD_ENV_LEVEL_1"]`), "", 3, nil},
		{"v_dup", good[:len(good)-1] + `,"verifiedLevels":["SLSA_BUILD_LEVEL_1"]}`, `duplicate`, 0, nil},
		{"v_case", strings.Replace(good, `"verifiedLevels"`, `"VerifiedLevels"`, 1), `the key is spelled "verifiedLevels" here`, 0, nil},
		{"v_two", levels(`["SLSA_BUILD_LEVEL_1","SLSA_BUILD_LEVEL_3"]`), "more than one level of a track", 0, nil},
		{"v_99", levels(`["SLSA_BUILD_LEVEL_-5"]`), "is no level", 0, nil},
		{"v_99", levels(`["SLSA_BUILD_LEVEL_99"]`), "there is no such level, the track has 0 to 3", 0, nil},
		{"v_03", levels(`["SLSA_BUILD_LEVEL_03"]`), `"03" is no level`, 0, nil},
		{"v_trail", good + `{}`, "data after the end", 0, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			word, err := judgeVSA(c.predicate)
			if c.bad != "" {
				var r *verify.Rejection
				if !errors.As(err, &r) || r.Code != verify.CodePredicate || !strings.Contains(r.Message, c.bad) {
					t.Fatalf("%v, want %q", err, c.bad)
				}
				return
			}
			if err != nil || word.Build != c.build || !slices.Equal(word.Properties, c.properties) {
				t.Errorf("%+v, %v", word, err)
			}
		})
	}
}

func TestParseVSA(t *testing.T) {
	for _, c := range []struct {
		name    string
		changes []string
		bad     string // what the message holds; "" where it is read
	}{
		{"all of it", nil, ""},
		{"only what is required", []string{"timeVerified", "", "inputAttestations", "", "slsaVersion", "", "policy", `{"uri":"p"}`}, ""},
		{"fields of later versions", []string{"https://v.example/more", `{"a":[1]}`}, ""},
		{"no inputs", []string{"inputAttestations", `[]`}, ""},
		{"null inputs", []string{"inputAttestations", `null`}, ""},
		{"no levels at all", []string{"verifiedLevels", `[]`}, ""},
		{"level 0", []string{"verifiedLevels", `["SLSA_BUILD_LEVEL_0"]`}, ""},
		{"both tracks", []string{"verifiedLevels", `["SLSA_BUILD_LEVEL_3","SLSA_SOURCE_LEVEL_4"]`}, ""},
		{"FAILED", []string{"verificationResult", `"FAILED"`, "verifiedLevels", `["FAILED"]`}, ""},
		{"FAILED and unevaluated", []string{"verificationResult", `"FAILED"`, "verifiedLevels", `["FAILED","SLSA_BUILD_LEVEL_UNEVALUATED"]`}, ""},
		{"the first version", []string{"slsaVersion", `"1.0"`}, ""},

		{"no verifier", []string{"verifier", ""}, "/predicate/verifier/id"},
		{"a verifier without id", []string{"verifier", `{"version":{"a":"1"}}`}, "/predicate/verifier/id"},
		{"a verifier that is no URI", []string{"verifier", `{"id":"v"}`}, "no URI"},
		{"no resourceUri", []string{"resourceUri", ""}, "/predicate/resourceUri"},
		{"no policy", []string{"policy", ""}, "/predicate/policy/uri"},
		{"a policy without URI", []string{"policy", `{"digest":` + others + `}`}, "/predicate/policy/uri"},
		{"a policy with half a digest", []string{"policy", `{"uri":"p","digest":{"sha256":"ab"}}`}, "/predicate/policy/digest"},
		{"no levels", []string{"verifiedLevels", ""}, "/predicate/verifiedLevels"},
		{"null for levels", []string{"verifiedLevels", "null"}, "/predicate/verifiedLevels"},
		{"an empty name", []string{"verifiedLevels", `[""]`}, "empty name"},
		{"a null name", []string{"verifiedLevels", `[null]`}, "empty name"},
		{"the same level twice", []string{"verifiedLevels", `["SLSA_BUILD_LEVEL_3","SLSA_BUILD_LEVEL_3"]`}, "more than one level"},
		{"a level and unevaluated", []string{"verifiedLevels", `["SLSA_BUILD_LEVEL_3","SLSA_BUILD_LEVEL_UNEVALUATED"]`}, "more than one level"},
		{"two of an unknown track", []string{"verifiedLevels", `["SLSA_BUILD_ENV_LEVEL_1","SLSA_BUILD_ENV_LEVEL_2"]`}, "more than one level"},
		{"source level 5", []string{"verifiedLevels", `["SLSA_SOURCE_LEVEL_5"]`}, "the track has 1 to 4"},
		{"source level 0", []string{"verifiedLevels", `["SLSA_SOURCE_LEVEL_0"]`}, "the track has 1 to 4"},
		{"a plus", []string{"verifiedLevels", `["SLSA_BUILD_LEVEL_+3"]`}, "is no level"},
		{"a space", []string{"verifiedLevels", `["SLSA_BUILD_LEVEL_3 "]`}, "is no level"},
		{"no number", []string{"verifiedLevels", `["SLSA_BUILD_LEVEL_"]`}, "is no level"},
		{"a level of a level", []string{"verifiedLevels", `["SLSA_BUILD_LEVEL_3_LEVEL_3"]`}, "is no level"},
		{"no track", []string{"verifiedLevels", `["SLSA__LEVEL_3"]`}, "may begin with SLSA_"},
		{"a track in lower case", []string{"verifiedLevels", `["SLSA_build_LEVEL_3"]`}, "may begin with SLSA_"},
		{"a property of its own", []string{"verifiedLevels", `["SLSA_SOURCE_SCS_CONTINUITY"]`}, "may begin with SLSA_"},
		{"PASSED with FAILED", []string{"verifiedLevels", `["FAILED"]`}, "PASSED, and"},
		{"FAILED with a level", []string{"verificationResult", `"FAILED"`}, "FAILED, and"},
		{"FAILED with a property", []string{"verificationResult", `"FAILED"`, "verifiedLevels", `["SLSA_BUILD_REPRODUCED"]`}, "FAILED, and"},
		{"no result", []string{"verificationResult", ""}, "/predicate/verificationResult"},
		{"a result in lower case", []string{"verificationResult", `"passed"`}, "neither PASSED nor FAILED"},
		{"an input without digest", []string{"inputAttestations", `[{"digest":` + others + `},{"uri":"u"}]`}, "/predicate/inputAttestations/1/digest"},
		{"an input with an empty digest", []string{"inputAttestations", `[{"digest":{"sha256":""}}]`}, "/predicate/inputAttestations/0/digest"},
		{"a time that is none", []string{"timeVerified", `"yesterday"`}, "/predicate/timeVerified"},
		{"a version to come", []string{"slsaVersion", `"1.3"`}, "/predicate/slsaVersion"},
		{"a version of long ago", []string{"slsaVersion", `"0.1"`}, "/predicate/slsaVersion"},
		{"an empty version", []string{"slsaVersion", `""`}, "/predicate/slsaVersion"},
		{"half a dependency", []string{"dependencyLevels", `{"SLSA_BUILD_LEVEL_1":0.5}`}, "dependencyLevels"},
		{"less than no dependency", []string{"dependencyLevels", `{"SLSA_BUILD_LEVEL_1":-1}`}, "dependencyLevels"},
		{"a null dependency", []string{"dependencyLevels", `{"SLSA_BUILD_LEVEL_1":null}`}, "is null"},
		{"a dependency of no level", []string{"dependencyLevels", `{"SLSA_BUILD_LEVEL_7":1}`}, "no such level"},
		{"a dependency twice", []string{"dependencyLevels", `{"SLSA_BUILD_LEVEL_1":1,"SLSA_BUILD_LEVEL_1":2}`}, "duplicate"},
		{"a nested key in another case", []string{"verifier", `{"ID":"https://v.example/v"}`}, "spelled"},
		{"levels that are no list", []string{"verifiedLevels", `"SLSA_BUILD_LEVEL_3"`}, "verifiedLevels"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, err := readVSA(vsaText(t, c.changes...))
			switch {
			case c.bad == "" && err != nil:
				t.Fatal(err)
			case c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)):
				t.Fatalf("%+v, %v; want %q", v, err, c.bad)
			}
		})
	}
	if _, err := verify.ParseVSA(&attest.Statement{PredicateType: "https://slsa.dev/verification_summary/v0.2", Predicate: []byte(vsaText(t))}); err == nil {
		t.Error("another version was read")
	}
	if _, err := readVSA(`{"a":"` + strings.Repeat("x", attest.MaxSummary) + `"}`); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Error("too large, and read:", err)
	}
}

// What dependencyLevels leaves open and what it says.
func TestVSADependencies(t *testing.T) {
	for in, want := range map[string]string{
		"":                          "map[] true",
		"null":                      "map[] true",
		"{}":                        "map[] false",
		`{"SLSA_BUILD_LEVEL_2":7}`:  "map[SLSA_BUILD_LEVEL_2:7] false",
		`{"SLSA_BUILD_LEVEL_2":0}`:  "map[SLSA_BUILD_LEVEL_2:0] false",
		`{"ACME":1,"FAILED":2}`:     "map[ACME:1 FAILED:2] false",
		`{"SLSA_DEP_LEVEL_2":12}`:   "map[SLSA_DEP_LEVEL_2:12] false",
		`{"SLSA_SOURCE_LEVEL_4":1}`: "map[SLSA_SOURCE_LEVEL_4:1] false",
	} {
		v, err := readVSA(vsaText(t, "dependencyLevels", in))
		if err != nil {
			t.Fatal(in, err)
		}
		if got := fmt.Sprint(v.Dependencies, v.Dependencies == nil); got != want || v.Dependencies["SLSA_BUILD_LEVEL_1"] != 0 {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestJudgeVSA(t *testing.T) {
	type options = func(*verify.VSAOptions)
	policy := attest.Digest("sha256:" + strings.Repeat("cd", 32))
	image := func(o *verify.VSAOptions) {
		o.URIs, o.Image, o.Digest = []string{"registry.example/prod/App"}, "registry.example/prod/App", k2
	}
	for _, c := range []struct {
		name    string
		changes []string
		want    options
		code    verify.Code // "" where it counts
	}{
		{"as expected", nil, func(*verify.VSAOptions) {}, ""},
		{"nothing expected of the place", nil, func(o *verify.VSAOptions) { o.URIs = nil }, verify.CodeResource},
		{"another place", []string{"resourceUri", `"pkg:oci/b"`}, nil, verify.CodeResource},
		{"a place that begins alike", []string{"resourceUri", `"pkg:oci/ab"`}, nil, verify.CodeResource},
		{"another verifier wanted", nil, func(o *verify.VSAOptions) { o.Verifiers = []string{"https://w.example/v"} }, verify.CodeVerifier},
		{"this one wanted", nil, func(o *verify.VSAOptions) { o.Verifiers = []string{"https://v.example/v"} }, ""},
		{"a verifier with a slash", []string{"verifier", `{"id":"https://v.example/v/"}`}, nil, verify.CodeVerifier},
		{"a stranger", []string{"verifier", `{"id":"https://w.example/v"}`}, nil, verify.CodeVerifier},
		{"the policy wanted", nil, func(o *verify.VSAOptions) { o.PolicyURI, o.PolicyDigest = "https://v.example/policy", policy }, ""},
		{"another policy", nil, func(o *verify.VSAOptions) { o.PolicyURI = "https://v.example/other" }, verify.CodePolicy},
		{"another version of it", nil, func(o *verify.VSAOptions) { o.PolicyDigest = k1 }, verify.CodePolicy},
		{"no version of it", []string{"policy", `{"uri":"https://v.example/policy"}`}, func(o *verify.VSAOptions) { o.PolicyDigest = policy }, verify.CodePolicy},
		{"fresh", nil, func(o *verify.VSAOptions) { o.MaxAge = 24 * time.Hour }, ""},
		{"stale", nil, func(o *verify.VSAOptions) { o.MaxAge = 20 * time.Hour }, verify.CodeAge},
		{"without a time", []string{"timeVerified", ""}, nil, ""},
		{"without a time that is needed", []string{"timeVerified", ""}, func(o *verify.VSAOptions) { o.MaxAge = time.Hour }, verify.CodeAge},
		{"of the future", []string{"timeVerified", `"2026-01-03T00:06:00Z"`}, nil, verify.CodeAge},
		{"of a clock that is ahead", []string{"timeVerified", `"2026-01-03T00:04:00Z"`}, nil, ""},
		{"FAILED", []string{"verificationResult", `"FAILED"`, "verifiedLevels", `["FAILED"]`}, nil, verify.CodeFailed},
		{"a name that is demanded", []string{"verifiedLevels", `["ACME_SCANNED"]`}, func(o *verify.VSAOptions) { o.Names = []string{"ACME_SCANNED"} }, ""},
		{"a name that is missing", nil, func(o *verify.VSAOptions) { o.Names = []string{"ACME_SCANNED"} }, verify.CodeName},

		{"the image", []string{"resourceUri", `"registry.example/prod/App"`}, image, ""},
		{"the image with a tag", []string{"resourceUri", `"registry.example/prod/App:v1"`}, image, verify.CodeResource},
		{"its package URL", []string{"resourceUri", `"pkg:oci/app?repository_url=registry.example/prod/App"`}, image, ""},
		{"with the digest", []string{"resourceUri", `"pkg:oci/app@sha256%3A` + k2.Hex() + `?repository_url=registry.example%2Fprod%2FApp&tag=v1"`}, image, ""},
		{"with another digest", []string{"resourceUri", `"pkg:oci/app@sha256%3A` + k1.Hex() + `?repository_url=registry.example/prod/App"`}, image, verify.CodeResource},
		{"with a version that is none", []string{"resourceUri", `"pkg:oci/app@v1?repository_url=registry.example/prod/App"`}, image, verify.CodeResource},
		{"without a repository", []string{"resourceUri", `"pkg:oci/app"`}, image, verify.CodeResource},
		{"two repositories", []string{"resourceUri", `"pkg:oci/app?repository_url=registry.example/prod/App&repository_url=x"`}, image, verify.CodeResource},
		{"another name", []string{"resourceUri", `"pkg:oci/other?repository_url=registry.example/prod/App"`}, image, verify.CodeResource},
		{"another kind of package", []string{"resourceUri", `"pkg:docker/app?repository_url=registry.example/prod/App"`}, image, verify.CodeResource},

		{"a repository", []string{"resourceUri", `"git+https://git.example/acme/app"`}, func(o *verify.VSAOptions) { o.URIs, o.Repository = nil, "https://git.example/acme/app.git" }, ""},
		{"another repository", []string{"resourceUri", `"git+https://git.example/acme/app-evil"`}, func(o *verify.VSAOptions) { o.URIs, o.Repository = nil, "https://git.example/acme/app" }, verify.CodeResource},
	} {
		t.Run(c.name, func(t *testing.T) {
			var change []options
			if c.want != nil {
				change = append(change, c.want)
			}
			word, err := judgeVSA(vsaText(t, c.changes...), change...)
			var r *verify.Rejection
			if c.code == "" && err != nil || c.code != "" && (!errors.As(err, &r) || r.Code != c.code) {
				t.Errorf("%+v, %v; want %q", word, err, c.code)
			}
		})
	}
}

// What is demanded of a verifier holds for all that it verifies, a revision of
// source too, beside what is demanded of one summary.
func TestVSAVerifierDemands(t *testing.T) {
	const repo = "https://git.example/acme/app"
	v, err := readVSA(vsaText(t, "resourceUri", `"git+`+repo+`"`, "verifiedLevels", `["SLSA_SOURCE_LEVEL_3"]`))
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC)
	policy := attest.Digest("sha256:" + strings.Repeat("cd", 32))
	for _, c := range []struct {
		name   string
		demand verify.Verifier
		own    time.Duration
		code   verify.Code
		until  time.Duration // after it was verified
	}{
		{"none", verify.Verifier{}, 0, "", 0},
		{"fresh", verify.Verifier{MaxAge: 48 * time.Hour}, 0, "", 48 * time.Hour},
		{"fresh for both", verify.Verifier{MaxAge: 48 * time.Hour}, 30 * time.Hour, "", 30 * time.Hour},
		{"stale for one", verify.Verifier{MaxAge: 48 * time.Hour}, 20 * time.Hour, verify.CodeAge, 0},
		{"stale", verify.Verifier{MaxAge: 20 * time.Hour}, 48 * time.Hour, verify.CodeAge, 0},
		{"its policy", verify.Verifier{PolicyURI: "https://v.example/policy", PolicyDigest: policy}, 0, "", 0},
		{"another policy", verify.Verifier{PolicyURI: "https://v.example/other"}, 0, verify.CodePolicy, 0},
		{"another version", verify.Verifier{PolicyURI: "https://v.example/policy", PolicyDigest: k1}, 0, verify.CodePolicy, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			by := c.demand
			by.ID, by.Key, by.Source = "https://v.example/v", k1, 4
			word, err := verify.JudgeVSA(v, verify.Signer{Key: k1}, []verify.Verifier{by}, verify.VSAOptions{Repository: repo, MaxAge: c.own, At: at})
			var r *verify.Rejection
			if c.code != "" {
				if !errors.As(err, &r) || r.Code != c.code {
					t.Errorf("%+v, %v; want %q", word, err, c.code)
				}
				return
			}
			if err != nil || word.Source != 3 {
				t.Fatalf("%+v, %v", word, err)
			}
			if got := word.Until; c.until == 0 != got.IsZero() || c.until > 0 && !got.Equal(v.TimeVerified.Add(c.until)) {
				t.Errorf("until %s, want %s after %s", got, c.until, v.TimeVerified)
			}
		})
	}
}

// A verifier's word counts for what the policy says, whoever else signs.
func TestVSAVerifiers(t *testing.T) {
	v, err := readVSA(vsaText(t, "verifiedLevels", `["SLSA_BUILD_LEVEL_3","SLSA_SOURCE_LEVEL_UNEVALUATED","SLSA_BUILD_REPRODUCED","WAXSEAL_HERMETIC","SLSA_DEPENDENCY_LEVEL_2","ACME_SCANNED"]`))
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC)
	trusted := []verify.Verifier{
		{ID: "https://v.example/v", Key: k1, Build: 2, Properties: []string{verify.PropertyReproduced}},
		{ID: "https://w.example/v", Key: k2, Build: 3, Source: 4},
		{ID: "https://v.example/v", Key: k2, Build: 3, Window: verify.Window{Until: at.Add(-time.Hour)}},
	}
	want := verify.VSAOptions{URIs: []string{"pkg:oci/a"}, At: at}
	word, err := verify.JudgeVSA(v, verify.Signer{Key: k1}, trusted, want)
	if err != nil || word.Build != 2 || word.Source != 0 || !slices.Equal(word.Properties, []string{verify.PropertyReproduced}) {
		t.Fatalf("%+v, %v", word, err)
	}
	notes := strings.Join(word.Notes, "; ")
	for _, say := range []string{"ends at build L2, it says L3", "source was not evaluated", "not trusted about WAXSEAL_HERMETIC", "SLSA_DEPENDENCY_LEVEL_2 is of a track", "ACME_SCANNED is the verifier's own name"} {
		if !strings.Contains(notes, say) {
			t.Errorf("the notes lack %q: %s", say, notes)
		}
	}
	// k2 is trusted for another verifier, and was for this one until an hour ago.
	late, _ := verify.Trust{}.Suppose(verify.Signer{Key: k2}, at)
	if _, err := verify.JudgeVSA(v, late, trusted, want); err == nil || !strings.Contains(err.Error(), "at a time when") {
		t.Error(err)
	}
	if _, err := verify.JudgeVSA(v, verify.Signer{Key: k2}, trusted[:2], want); err == nil || !strings.Contains(err.Error(), "is not the one trusted for verifier") {
		t.Error(err)
	}
	if _, err := verify.JudgeVSA(v, verify.Signer{}, []verify.Verifier{{ID: "https://v.example/v", Build: 3}}, want); err == nil {
		t.Error("a verifier without a signer is anybody")
	}
}

func FuzzParseVSA(f *testing.F) {
	f.Add(vsaText(f))
	f.Add(vsaText(f, "verifiedLevels", `["SLSA_BUILD_LEVEL_UNEVALUATED","SLSA_BUILD_REPRODUCED","ACME"]`, "dependencyLevels", `{"SLSA_BUILD_LEVEL_1":1}`))
	f.Add(vsaText(f, "verificationResult", `"FAILED"`, "verifiedLevels", `["FAILED"]`))
	f.Add(`{"verifiedLevels":["SLSA_BUILD_LEVEL_1"],"verifiedLevels":["SLSA_BUILD_LEVEL_3"]}`)
	f.Fuzz(func(t *testing.T, predicate string) {
		v, err := readVSA(predicate)
		if err != nil {
			var r *verify.Rejection
			if !errors.As(err, &r) || len(r.Message) > 1000 {
				t.Fatal(err)
			}
			return
		}
		if v.Levels[verify.TrackBuild] > verify.MaxLevel || v.Levels[verify.TrackSource] > verify.MaxSourceLevel || v.VerifierID == "" || v.ResourceURI == "" || v.PolicyURI == "" {
			t.Errorf("%+v", v)
		}
		if !v.Passed && (v.Levels[verify.TrackBuild] > 0 || v.Levels[verify.TrackSource] > 0 || len(v.Properties) > 0) {
			t.Errorf("FAILED, and more: %+v", v)
		}
		// Whatever it says, a key that nobody trusts says nothing.
		if _, err := verify.JudgeVSA(v, verify.Signer{Key: k2}, []verify.Verifier{{ID: v.VerifierID, Key: k1, Build: 3}}, verify.VSAOptions{URIs: []string{v.ResourceURI}}); err == nil {
			t.Error("a stranger's word counts")
		}
	})
}
