package main

import (
	"strings"
	"testing"
)

func TestSummarize(t *testing.T) {
	const (
		pass = `{"Action":"run","Package":"x/a","Test":"TestOne"}
{"Action":"output","Package":"x/a","Test":"TestOne","Output":"fine\n"}
{"Action":"pass","Package":"x/a","Test":"TestOne"}
{"Action":"pass","Package":"x/a","Elapsed":1}
`
		skip = `{"Action":"run","Package":"github.com/waxseal/waxseal/pkg/b","Test":"TestTwo"}
{"Action":"output","Package":"github.com/waxseal/waxseal/pkg/b","Test":"TestTwo","Output":"    b_test.go:7: no cosign here\n"}
{"Action":"output","Package":"github.com/waxseal/waxseal/pkg/b","Test":"TestTwo","Output":"--- SKIP: TestTwo (0.00s)\n"}
{"Action":"skip","Package":"github.com/waxseal/waxseal/pkg/b","Test":"TestTwo"}
{"Action":"pass","Package":"github.com/waxseal/waxseal/pkg/b","Elapsed":1}
`
		fail = `{"Action":"run","Package":"x/c","Test":"TestThree"}
{"Action":"run","Package":"x/c","Test":"TestThree/sub"}
{"Action":"output","Package":"x/c","Test":"TestThree/sub","Output":"c_test.go:9: broken\n"}
{"Action":"fail","Package":"x/c","Test":"TestThree/sub"}
{"Action":"fail","Package":"x/c","Test":"TestThree"}
{"Action":"fail","Package":"x/c","Elapsed":1}
`
		unbuilt = `{"ImportPath":"x/d","Action":"build-output","Output":"d.go:1: undefined: y\n"}
{"ImportPath":"x/d","Action":"build-fail"}
{"Action":"fail","Package":"x/d","Elapsed":0}
`
	)
	for _, c := range []struct {
		name, in   string
		strict, ok bool
		says       []string
	}{
		{"all pass", pass, true, true, []string{"1 passed, 0 failed, 0 skipped"}},
		{"a skip, with its reason", pass + skip, false, true, []string{"pkg/b TestTwo: no cosign here", "1 passed, 0 failed, 1 skipped"}},
		{"a skip on CI", pass + skip, true, false, []string{"1 passed, 0 failed, 1 skipped"}},
		{"data that is not in the repository, on CI", pass + strings.ReplaceAll(skip, "no cosign here", "no fixtures of a suite"), true, true, []string{"pkg/b TestTwo: no fixtures of a suite", "1 passed, 0 failed, 1 skipped"}},
		{"a failure below another counts once", pass + fail, false, false, []string{"c_test.go:9: broken", "1 passed, 1 failed, 0 skipped"}},
		{"a package that does not build", pass + unbuilt, false, false, []string{"d.go:1: undefined: y", "1 passed, 0 failed, 0 skipped"}},
		{"words of the go command", "go: no such module\n", false, false, []string{"go: no such module", "0 passed"}},
		{"nothing", "", false, false, []string{"0 passed, 0 failed, 0 skipped"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			err := summarize(strings.NewReader(c.in), &out, c.strict)
			if (err == nil) != c.ok {
				t.Errorf("error %v", err)
			}
			for _, want := range c.says {
				if !strings.Contains(out.String(), want) {
					t.Errorf("does not say %q:\n%s", want, out.String())
				}
			}
		})
	}
}
