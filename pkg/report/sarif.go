package report

import (
	"io"
	"net/url"
	"strings"

	"github.com/waxseal/waxseal/pkg/gate"
)

// The parts of SARIF 2.1.0 that a verdict needs.
// https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/sarif-v2.1.0-os.html
const (
	sarifVersion = "2.1.0"
	sarifSchema  = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
)

type sarifLog struct {
	Schema  string     `json:"$schema"`
	Version string     `json:"version"`
	Runs    []sarifRun `json:"runs"`
}

type sarifRun struct {
	Tool        sarifTool         `json:"tool"`
	Invocations []sarifInvocation `json:"invocations"`
	Results     []sarifResult     `json:"results"`
	Properties  map[string]any    `json:"properties"`
}

type sarifTool struct {
	Driver struct {
		Name           string      `json:"name"`
		Version        string      `json:"version"`
		InformationURI string      `json:"informationUri"`
		Rules          []sarifRule `json:"rules"`
	} `json:"driver"`
}

type sarifRule struct {
	ID               string       `json:"id"`
	ShortDescription sarifMessage `json:"shortDescription"`
	HelpURI          string       `json:"helpUri,omitempty"`
}

type sarifMessage struct {
	Text string `json:"text"`
}

// sarifInvocation says whether there was an answer at all.
type sarifInvocation struct {
	ExecutionSuccessful bool   `json:"executionSuccessful"`
	EndTimeUTC          string `json:"endTimeUtc,omitempty"`
}

type sarifResult struct {
	RuleID       string             `json:"ruleId"`
	RuleIndex    int                `json:"ruleIndex"`
	Level        string             `json:"level"`
	Message      sarifMessage       `json:"message"`
	Locations    []sarifLocation    `json:"locations"`
	Suppressions []sarifSuppression `json:"suppressions,omitempty"`
	Properties   map[string]any     `json:"properties,omitempty"`
}

type sarifLocation struct {
	// Viewers that know files only show nothing without a physical location.
	Physical struct {
		Artifact struct {
			URI string `json:"uri"`
		} `json:"artifactLocation"`
	} `json:"physicalLocation"`
	Logical []sarifLogical `json:"logicalLocations"`
}

type sarifLogical struct {
	Name          string `json:"name"`
	QualifiedName string `json:"fullyQualifiedName"`
	Kind          string `json:"kind"`
}

type sarifSuppression struct {
	Kind          string `json:"kind"`
	Status        string `json:"status"`
	Justification string `json:"justification"`
}

// SARIF writes a verdict as a SARIF 2.1.0 log: a result for each reason,
// warning and waived demand, whose rule is the requirement with its clause. A
// pass without warnings has no results. version is the program's own.
func SARIF(w io.Writer, v *gate.Verdict, version string) error {
	run := sarifRun{Results: []sarifResult{}, Properties: map[string]any{
		"image": clean(v.Image), "digest": v.Digest, "decision": v.Decision, "declared": v.Declared, "reached": v.Reached, "properties": v.Properties,
		"policyDigest": v.PolicyDigest, "trustDigest": v.TrustDigest,
	}}
	run.Tool.Driver.Name, run.Tool.Driver.Version, run.Tool.Driver.InformationURI = "waxseal", version, "https://waxseal.dev"
	run.Tool.Driver.Rules = []sarifRule{}
	run.Invocations = []sarifInvocation{{ExecutionSuccessful: v.Decision != gate.Undecided, EndTimeUTC: v.DecidedAt.UTC().Format("2006-01-02T15:04:05Z")}}
	index := map[string]int{}
	add := func(r gate.Reason, level string, waived *gate.Waived) {
		about := ruleOf(v, r)
		i, known := index[about.id]
		if !known {
			i = len(run.Tool.Driver.Rules)
			index[about.id] = i
			run.Tool.Driver.Rules = append(run.Tool.Driver.Rules, sarifRule{ID: about.id, ShortDescription: sarifText(about.title), HelpURI: about.clause})
		}
		res := sarifResult{RuleID: about.id, RuleIndex: i, Level: level, Message: sarifText(said(r)), Locations: []sarifLocation{sarifPlace(v, r)}, Properties: map[string]any{"code": r.Code}}
		if r.Bundle != "" {
			res.Properties["bundle"], res.Properties["pointer"] = r.Bundle, clean(r.Pointer)
		}
		if waived != nil {
			res.Suppressions = []sarifSuppression{{Kind: "external", Status: "accepted", Justification: waivedBy(*waived)}}
		}
		run.Results = append(run.Results, res)
	}
	for _, r := range v.Reasons {
		add(r, "error", nil)
	}
	for _, r := range v.Warnings {
		add(r, "warning", nil)
	}
	for _, w := range v.Waived {
		add(waivedReason(w), "error", &w)
	}
	return JSON(w, sarifLog{Schema: sarifSchema, Version: sarifVersion, Runs: []sarifRun{run}})
}

// said is a reason with the way out, and for a warning with its day.
func said(r gate.Reason) string {
	text := clean(r.Message)
	if r.Platform != "" {
		text = clean(r.Platform) + ": " + text
	}
	if !r.Effective.IsZero() {
		text += " (denied from " + r.Effective.UTC().Format("2006-01-02") + " on)"
	}
	if r.Hint != "" {
		text += "; hint: " + clean(r.Hint)
	}
	return text
}

// sarifText keeps foreign text from becoming a link or a placeholder.
// Sections 3.11.5 and 3.11.6.
func sarifText(s string) sarifMessage {
	return sarifMessage{strings.NewReplacer(`\`, `\\`, "[", `\[`, "]", `\]`, "{", "{{", "}", "}}").Replace(clean(s))}
}

func sarifPlace(v *gate.Verdict, r gate.Reason) sarifLocation {
	var l sarifLocation
	l.Physical.Artifact.URI = (&url.URL{Path: clean(v.Image)}).String()
	l.Logical = []sarifLogical{{Name: clean(v.Image), QualifiedName: at(v, r), Kind: "object"}}
	return l
}
