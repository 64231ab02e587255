package build

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// says lets a build hear what a builder would say.
func says(p *legacyProxy, b *legacyBuild, lines ...string) {
	for _, l := range lines {
		p.said(b, []byte(`{"stream":"`+strings.ReplaceAll(l, `"`, `\"`)+`\n"}`))
	}
}

func TestLegacyStepsAreJudged(t *testing.T) {
	fetched := attestations.InputStep{Verdict: attestations.VerdictRecorded, Requests: []attestations.InputRequest{{Ordinal: 1, URI: "http://files.example/"}}}
	quiet := attestations.InputStep{Verdict: attestations.VerdictRecorded}
	run := []string{" ---> Running in 0123456789ab"}
	cached := []string{" ---> Using cache"}
	for name, x := range map[string]struct {
		said []string
		seen []attestations.InputStep // after the first; nil: nobody watched
		want []string                 // name and verdict of each step
		gap  string
	}{
		"watched": {
			slices.Concat([]string{"Step 1/3 : FROM base", " ---> 0123456789ab", "Step 2/3 : RUN a"}, run, []string{"Step 3/3 : CMD b"}, run),
			[]attestations.InputStep{quiet, fetched, quiet}, []string{"RUN a recorded"}, "",
		},
		"cached": {
			slices.Concat([]string{"Step 1/2 : FROM base", " ---> 0123456789ab", "Step 2/2 : RUN a"}, cached),
			[]attestations.InputStep{quiet, quiet}, []string{"RUN a unobserved"}, cachedStep,
		},
		"cached, it says itself": {
			slices.Concat([]string{"Step 1/2 : FROM base", " ---> 0123456789ab", "Step 2/2 : RUN a"}, run, cached),
			[]attestations.InputStep{quiet, fetched}, []string{"RUN a recorded"}, "",
		},
		"nobody watched": {
			slices.Concat([]string{"Step 1/2 : FROM base", " ---> 0123456789ab", "Step 2/2 : RUN a"}, run), nil, []string{"RUN a unobserved"}, unwatchedStep,
		},
		"a file from elsewhere": {
			[]string{"Step 1/3 : FROM base", "Step 2/3 : ADD https://files.example/f /", "Step 3/3 : ADD f /"},
			[]attestations.InputStep{quiet, quiet, quiet}, []string{"ADD https://files.example/f / unobserved"}, fetchedByAdd,
		},
		"a step of the base image": {
			slices.Concat([]string{"Step 1/1 : FROM base", "# Executing 1 build trigger"}, run),
			[]attestations.InputStep{fetched}, []string{"FROM base recorded"}, "",
		},
		"a step that announces the next": {
			slices.Concat([]string{"Step 1/3 : FROM base", "Step 2/3 : RUN a"}, run, []string{"Step 3/3 : RUN b", "Step 3/3 : RUN c"}, run),
			[]attestations.InputStep{quiet, quiet, fetched}, []string{"RUN a unobserved", "RUN b unobserved"}, confusedSteps,
		},
		"a step that announces more than there are": {
			slices.Concat([]string{"Step 1/4 : FROM base", "Step 2/4 : RUN a"}, run, []string{"Step 3/4 : CMD x", "Step 4/4 : CMD x", "Step 5/4 : CMD x"},
				[]string{"Step 3/4 : ADD https://files.example/f /", "Step 4/4 : RUN b"}, cached),
			[]attestations.InputStep{quiet, quiet, quiet, quiet}, []string{"RUN a unobserved"}, confusedSteps,
		},
		"a step that shows another build": {
			slices.Concat([]string{"Step 1/2 : FROM base", "Step 2/2 : RUN a"}, run, []string{"Step 1/7 : FROM other", "Step 3/7 : RUN x", "Step 1/2 : FROM x"}),
			[]attestations.InputStep{quiet, fetched}, []string{"RUN a recorded"}, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, b := &legacyProxy{}, &legacyBuild{id: "b"}
			says(p, b, x.said...)
			var net *legacySeen
			if x.seen != nil {
				net = &legacySeen{Steps: append([]attestations.InputStep{quiet}, x.seen...)}
				if len(net.Steps) != len(b.steps)+1 {
					t.Fatalf("%d steps were announced", len(b.steps))
				}
			}
			var got []string
			gaps := ""
			for _, st := range b.judge(net) {
				got = append(got, st.Name+" "+st.Verdict)
				for _, g := range st.Gaps {
					gaps += g.Detail
				}
			}
			if !slices.Equal(got, x.want) || (x.gap == "") != (gaps == "") || !strings.Contains(gaps, x.gap) {
				t.Errorf("got %q, gaps %q", got, gaps)
			}
		})
	}
}

// TestBaseOfALegacyBuild: a base image is what its FROM names, and not another
// name of the same image with the digest of a third.
func TestBaseOfALegacyBuild(t *testing.T) {
	a, b := "sha256:"+strings.Repeat("a", 64), "sha256:"+strings.Repeat("b", 64)
	img := inspected{ID: "sha256:" + strings.Repeat("c", 64), RepoDigests: []string{"mirror.example/x@" + a, "ubuntu@" + b, "<none>@<none>"}}
	for from, want := range map[string]string{
		"FROM ubuntu": "pkg:docker/ubuntu@latest ubuntu:latest " + b,
		"FROM --platform=linux/amd64 ubuntu:24.04 AS x": "pkg:docker/ubuntu@24.04 ubuntu:24.04 " + b,
		"from docker.io/library/ubuntu@" + b:            "pkg:docker/ubuntu@" + strings.Replace(b, ":", "%3A", 1) + " ubuntu@" + b + " " + b,
		"FROM ${REG}/x:$TAG":                            "pkg:docker/mirror.example/x@7 mirror.example/x:7 " + a,
		"FROM ubuntu@" + a:                              "pkg:docker/unknown  " + img.ID,
		"FROM app-base:1":                               "pkg:docker/unknown  " + img.ID,
		"FROM $LATER":                                   "pkg:docker/unknown  " + img.ID,
		"FROM ${":                                       "pkg:docker/unknown  " + img.ID,
	} {
		build := &legacyBuild{query: url.Values{"buildargs": {`{"TAG":"7","LATER":"ubuntu"}`}}}
		for _, text := range []string{"ARG HOST=mirror TAG=6", `ARG REG="$HOST.example"`, from, "ARG LATER"} {
			build.steps = append(build.steps, legacyStep{text: text})
		}
		base, _ := build.stage(from)
		src := img.source(base)
		if got := src.URI + " " + src.Ref + " " + src.Digest; got != want {
			t.Errorf("%s: %s", from, got)
		}
	}
	if base, name := (&legacyBuild{}).stage("FROM --platform=$BUILDPLATFORM one AS Two"); base != "one" || name != "two" {
		t.Errorf("a stage: %q, %q", base, name)
	}
}

// TestPushOfALegacyBuild: a push is that of the build whose image the registry
// has, whatever name it went by.
func TestPushOfALegacyBuild(t *testing.T) {
	push := func(name, d, image string) seenPush { return seenPush{legacyPush{name, attest.Digest(d)}, image, nil} }
	lost := seenPush{legacyPush{"r.example/app:1", "m1"}, "", errors.New("no answer")}
	for name, x := range map[string]struct {
		image  string
		names  []string
		pushed []seenPush
		want   string // digest and names
		fails  bool
	}{
		"not pushed":                {"one", []string{"app:1"}, nil, "[]", false},
		"pushed":                    {"one", []string{"r.example/app"}, []seenPush{push("r.example/app:latest", "m1", "one")}, "m1[r.example/app]", false},
		"the name is another's now": {"one", []string{"r.example/app:1"}, []seenPush{push("r.example/app:1", "m2", "two")}, "[]", false},
		"tagged later":              {"one", []string{"app:1"}, []seenPush{push("r.example/app:1", "m1", "one"), push("docker.io/team/app:2", "m1", "one")}, "m1[r.example/app:1 team/app:2]", false},
		"one of two names":          {"one", []string{"r.example/a:1", "r.example/b:1"}, []seenPush{push("r.example/b:1", "m1", "one")}, "m1[r.example/b:1]", false},
		"by its manifest":           {"m1", []string{"app:1"}, []seenPush{push("r.example/app:1", "m2", "one"), push("r.example/app:1", "m1", "one")}, "m1[r.example/app:1]", false},
		"nobody can tell":           {"one", []string{"r.example/app:1"}, []seenPush{lost}, "[]", true},
		"of another nobody can":     {"one", []string{"app:1"}, []seenPush{lost}, "[]", false},
	} {
		d, to, err := pushesOf(&legacyBuild{image: x.image}, x.names, x.pushed)
		if got := fmt.Sprint(string(d), to); got != x.want || (err != nil) != x.fails {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
}

func TestExtraHosts(t *testing.T) {
	for _, x := range []struct {
		in  []string
		ok  bool
		has string
	}{
		{nil, true, ""},
		{[]string{"db.example:10.1.1.1", "six.example:::1"}, true, "db.example"},
		{[]string{"six.example:[::1]"}, true, "six.example"},
		{[]string{"me.example:host-gateway"}, false, ""},
		{[]string{"db.example"}, false, ""},
		{[]string{":10.1.1.1"}, false, ""},
		{[]string{"db.example:10.1.1.1", "db.example:10.1.1.2"}, false, ""},
	} {
		got, err := parseExtraHosts(x.in)
		if (err == nil) != x.ok || x.has != "" && got[x.has] == nil {
			t.Errorf("%q: %v, %v", x.in, got, err)
		}
	}
}
