package verify_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/pkg/verify"
)

// The table is what people and programs read: complete, and in order.
func TestRequirements(t *testing.T) {
	form := regexp.MustCompile(`^((build|source)\.l[1-4]|property)\.[a-z-]+$`)
	clause := map[verify.Track]string{
		verify.TrackBuild: "https://slsa.dev/spec/v1.2/", verify.TrackSource: "https://slsa.dev/spec/v1.2/source-requirements#", verify.TrackProperty: "https://",
	}
	count := map[verify.Track]int{}
	seen := map[string]bool{}
	level := 0
	for _, q := range verify.Requirements() {
		if count[q.Track]++; count[q.Track] == 1 {
			level = 0
		}
		if !form.MatchString(q.ID) || seen[q.ID] || q.Level < level || !strings.HasPrefix(q.Clause, clause[q.Track]) {
			t.Errorf("%+v", q)
		}
		seen[q.ID], level = true, q.Level
		if (q.Property != "") != (q.Track == verify.TrackProperty) || (q.Level == 0) != (q.Property != "") {
			t.Errorf("%s: level %d, property %q", q.ID, q.Level, q.Property)
		}
		for what, text := range map[string]string{"title": q.Title, "asks": q.Asks, "evidence": q.Evidence, "met": q.Met, "not met": q.NotMet, "unknown": q.Unknown, "way": q.Way} {
			if text == "" || len(text) > 400 || what == "title" && len(text) > 28 || what == "way" && len(text) > 80 {
				t.Errorf("%s: %s is %q", q.ID, what, text)
			}
		}
	}
	if count[verify.TrackBuild] != 9 || count[verify.TrackSource] != 14 || count[verify.TrackProperty] != 4 {
		t.Errorf("%v", count)
	}
	// The names of our own may not look like the specification's.
	for _, name := range verify.Properties() {
		if own := strings.HasPrefix(name, "WAXSEAL_"); own == strings.HasPrefix(name, "SLSA_") {
			t.Errorf("property %q", name)
		}
	}
	if got := verify.Ladder().String(); got != "Build L3, SLSA_SOURCE_TWO_PARTY_REVIEWED, WAXSEAL_INPUTS_COMPLETE, WAXSEAL_HERMETIC" {
		t.Errorf("the ladder is %s", got)
	}
}

func TestParseDemand(t *testing.T) {
	for in, want := range map[string]string{
		"2": "Build L2", "build=3": "Build L3", "source=4": "Build L0, Source L4", "build=3,source=2": "Build L3, Source L2",
		"source=1,build=1": "Build L1, Source L1", "4": verify.Ladder().String(),
	} {
		d, err := verify.ParseDemand(in)
		if err != nil || d.String() != want || d.Check() != nil {
			t.Errorf("%q: %s, %v, want %s", in, d, err, want)
		}
	}
	for in, want := range map[string]string{
		"": "give N", "0": "from 1 to 3", "5": "from 1 to 3", "-1": "from 1 to 3", "x": "give N", "build": "from 1 to 3", "build=": "from 1 to 3", "build=4": "ladder of SLSA v0.1",
		"source=5": "from 1 to 4", "source=0": "from 1 to 4", "build=1,build=2": "stands twice", "build=1,": "give N", "2,source=1": "give N", "4,source=1": "give N",
		"property=1": "give N", "build=1=2": "from 1 to 3", " 2": "give N", "Build=2": "give N",
	} {
		if d, err := verify.ParseDemand(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %s, %v, want %q", in, d, err, want)
		}
	}
}

func TestDemand(t *testing.T) {
	a := verify.Demand{Levels: verify.Levels{Build: 1, Source: 3}, Properties: []string{verify.PropertyHermetic}}
	b := verify.Demand{Levels: verify.Levels{Build: 2, Source: 1}, Properties: []string{verify.PropertyHermetic, verify.PropertyReproduced}}
	both := a.And(b)
	if both.Levels != (verify.Levels{Build: 2, Source: 3}) || !slices.Equal(both.Properties, []string{verify.PropertyReproduced, verify.PropertyHermetic}) {
		t.Errorf("%s", both)
	}
	for _, c := range []struct {
		reached    verify.Levels
		properties []string
		want       bool
	}{
		{verify.Levels{Build: 2, Source: 3}, both.Properties, true},
		{verify.Levels{Build: 3, Source: 4}, verify.Properties(), true},
		{verify.Levels{Build: 1, Source: 3}, both.Properties, false},
		{verify.Levels{Build: 2, Source: 2}, both.Properties, false},
		{verify.Levels{Build: 3, Source: 4}, both.Properties[:1], false},
		{verify.Levels{Build: 3, Source: 4}, nil, false},
	} {
		if got := both.Fulfilled(c.reached, c.properties); got != c.want {
			t.Errorf("%+v with %v: %t", c.reached, c.properties, got)
		}
	}
	for _, bad := range []verify.Demand{{}, {Levels: verify.Levels{Build: 4}}, {Levels: verify.Levels{Build: -1, Source: 1}}, {Levels: verify.Levels{Source: 5}}, {Properties: []string{"SLSA_FAST"}}} {
		if bad.Check() == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

func TestFind(t *testing.T) {
	for in, want := range map[string]string{"build.l3.isolated": "build.l3.isolated", "WAXSEAL_HERMETIC": "property.hermetic"} {
		if q, err := verify.Find(in); err != nil || q.ID != want {
			t.Errorf("%q: %s, %v", in, q.ID, err)
		}
	}
	for in, want := range map[string]string{
		"isolated": "build.l3.isolated", "Build.L3.Isolated": "build.l3.isolated", "build.l2.isolated": "build.l3.isolated", "hermetic": "property.hermetic",
		"provenance-exists": "build.l1.provenance-exists", "source.l2.continuty": "source.l2.continuity", "waxseal_hermetic": "property.hermetic",
	} {
		if _, err := verify.Find(in); err == nil || !strings.Contains(err.Error(), `did you mean "`+want+`"`) {
			t.Errorf("%q: %v", in, err)
		}
	}
	for _, in := range []string{"", "x", "everything", strings.Repeat("build.l3.isolated", 1000), "\x1b[2J"} {
		if _, err := verify.Find(in); err == nil || strings.Contains(err.Error(), "did you mean") || strings.Contains(err.Error(), "\x1b") || len(err.Error()) > 300 {
			t.Errorf("%.40q: %v", in, err)
		}
	}
}

func FuzzParseDemand(f *testing.F) {
	for _, seed := range []string{"2", "4", "build=3,source=2", "source=", "build=1,build=2", ",,", "build=99999999999999999999"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := verify.ParseDemand(s); err == nil && (d.Check() != nil || d.Build > verify.MaxLevel || d.Source > verify.MaxSourceLevel) {
			t.Errorf("%q gives %s", s, d)
		}
	})
}
