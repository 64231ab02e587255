package policy

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

//go:embed case.schema.json
var caseSchema []byte

// CaseSchema returns the JSON Schema of a test of a policy.
func CaseSchema() []byte { return slices.Clone(caseSchema) }

// CaseKind is the kind of a file with a test of a policy.
const CaseKind = "PolicyTest"

// Case is a test of a policy: facts, and the decision that they should lead
// to. Package gate tries it.
type Case struct {
	Path     string
	Name     string
	Policy   *Policy
	Image    string // the name, without tag and digest
	Platform string
	At       time.Time // zero: now
	Config   json.RawMessage
	Evidence []CaseEvidence
	Expect   Expectation
}

// CaseEvidence is one statement, taken as signed by Signer.
type CaseEvidence struct {
	Type      string // predicate type
	Signer    verify.Signer
	Predicate json.RawMessage
	Commit    string   // the git commit that it is about; "": the image
	Refs      []string // the branches and tags that it says the commit is on
}

// Expectation is what a case should lead to. Each text must be in one reason,
// warning or waived demand, as "CODE: MESSAGE", and there may be no more than
// those.
type Expectation struct {
	Decision   string   // "pass", "deny" or "undecided"
	Level      *int     // the Build level reached
	Source     *int     // the Source level reached
	Properties []string // verified: these and no others; nil: any
	Reasons    []string
	Warnings   []string
	Waived     []string
}

// IsCase reports whether a file looks like a test of a policy, and not like a
// policy or something else.
func IsCase(raw []byte) bool {
	var head struct {
		Kind string `yaml:"kind"`
	}
	return len(raw) <= attest.MaxPolicy && shallow(raw) == nil && yaml.Unmarshal(raw, &head) == nil && head.Kind == CaseKind
}

// LoadCase reads the case file at path, and what it names, relative to it.
func LoadCase(path string) (*Case, error) { return LoadCaseWith(path, LoadOptions{}) }

// LoadCaseWith is LoadCase for a case that may name keys which are in no file.
func LoadCaseWith(path string, opts LoadOptions) (*Case, error) {
	raw, err := readFile(path, attest.MaxPolicy)
	if err != nil {
		return nil, fmt.Errorf("reading case %q: %w", path, err)
	}
	c, err := parseCase(raw, path, opts)
	if err != nil {
		var at *lineError
		if errors.As(err, &at) {
			return nil, fmt.Errorf("reading case %s:%d: %w", path, at.line, err)
		}
		return nil, fmt.Errorf("reading case %q: %w", path, err)
	}
	return c, nil
}

func parseCase(raw []byte, path string, opts LoadOptions) (*Case, error) {
	if err := shallow(raw); err != nil {
		return nil, err
	}
	dec := yaml.NewDecoder(strings.NewReader(string(raw)))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one YAML document in the file")
	}
	nodes := 0
	if err := plain(&doc, 0, &nodes); err != nil {
		return nil, err
	}
	d := caseDecoder{decoder: decoder{opts: fileOptions(path, opts)}, path: path, load: opts}
	d.out.Path = path
	d.file(doc.Content[0])
	if d.err != nil {
		return nil, d.err
	}
	return &d.out, nil
}

type caseDecoder struct {
	decoder
	path string
	load LoadOptions
	out  Case
}

func (d *caseDecoder) beside(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(d.path), name)
}

func (d *caseDecoder) file(n *yaml.Node) {
	c := &d.out
	d.object(n, "the case", []string{"apiVersion", "kind", "policy", "image", "facts", "expect"}, map[string]func(*yaml.Node){
		"apiVersion": func(n *yaml.Node) {
			if v := d.text(n, "apiVersion"); v != APIVersion {
				d.fail(n, "apiVersion is %q, this version reads %q", clip(v), APIVersion)
			}
		},
		"kind": func(n *yaml.Node) {
			if v := d.text(n, "kind"); v != CaseKind {
				d.fail(n, "kind is %q, not %q", clip(v), CaseKind)
			}
		},
		"name": func(n *yaml.Node) { c.Name = d.line(n, "name") },
		"policy": func(n *yaml.Node) {
			name := d.text(n, "policy")
			if d.err != nil {
				return
			}
			p, err := LoadWith(d.beside(name), d.load)
			if err != nil {
				d.fail(n, "%w", err)
			}
			c.Policy = p
		},
		"image":    func(n *yaml.Node) { c.Image = d.text(n, "image") },
		"platform": func(n *yaml.Node) { c.Platform = d.text(n, "platform") },
		"at":       func(n *yaml.Node) { c.At = d.moment(n, "at") },
		"facts": func(n *yaml.Node) {
			d.object(n, "facts", nil, map[string]func(*yaml.Node){
				"config": func(n *yaml.Node) { c.Config = d.json(n) },
				"evidence": func(n *yaml.Node) {
					d.list(n, "facts.evidence", 100, d.evidence)
				},
			})
		},
		"expect": d.expect,
	})
}

func (d *caseDecoder) evidence(n *yaml.Node) {
	var e CaseEvidence
	bodies := 0
	d.object(n, "the evidence", []string{"type", "signer"}, map[string]func(*yaml.Node){
		"type": func(n *yaml.Node) { e.Type = caseType(d.text(n, "type")) },
		"signer": func(n *yaml.Node) {
			if n.Kind == yaml.MappingNode && len(n.Content) == 2 && n.Content[0].Value == "kms" {
				key := d.kms(n.Content[1])
				e.Signer = verify.Signer{Key: key.ID(), Name: n.Content[1].Value}
				return
			}
			if n.Kind == yaml.MappingNode {
				d.object(n, "the signer", []string{"san"}, map[string]func(*yaml.Node){
					"issuer": func(n *yaml.Node) { e.Signer.Issuer = d.text(n, "signer.issuer") },
					"san":    func(n *yaml.Node) { e.Signer.SAN = d.text(n, "signer.san") },
					"run":    func(n *yaml.Node) { e.Signer.Run = d.run(n) },
				})
				return
			}
			name := d.text(n, "signer")
			if d.err != nil {
				return
			}
			raw, err := d.opts.ReadKey(name)
			if err != nil {
				d.fail(n, "reading the signer's key: %w", err)
				return
			}
			key, err := verify.ParseKey(name, raw)
			if err != nil {
				d.fail(n, "%w", err)
				return
			}
			e.Signer = verify.Signer{Key: key.ID(), Name: name}
		},
		"predicate": func(n *yaml.Node) { e.Predicate = d.json(n); bodies++ },
		"commit": func(n *yaml.Node) {
			e.Commit = d.text(n, "commit")
			if d.err == nil && !attest.IsCommit(e.Commit) {
				d.fail(n, "commit %q is not the whole id of a git commit", clip(e.Commit))
			}
		},
		"refs": func(n *yaml.Node) {
			d.list(n, "refs", 100, func(n *yaml.Node) { e.Refs = append(e.Refs, d.text(n, "an entry of refs")) })
		},
		"file": func(n *yaml.Node) {
			bodies++
			raw, err := readFile(d.beside(d.text(n, "file")), attest.MaxSBOM)
			if err != nil {
				d.fail(n, "reading a predicate: %w", err)
			}
			e.Predicate = raw
		},
	})
	if d.err == nil && bodies != 1 {
		d.fail(n, `the evidence must have one of "predicate" and "file"`)
	}
	d.out.Evidence = append(d.out.Evidence, e)
}

// run is the CI run that a certificate was issued to.
func (d *caseDecoder) run(n *yaml.Node) verify.Run {
	var r verify.Run
	fields := map[string]func(*yaml.Node){}
	for name, to := range map[string]*string{
		"repository": &r.Repository, "commit": &r.Commit, "ref": &r.Ref, "workflow": &r.Workflow, "runner": &r.Runner, "event": &r.Event,
	} {
		fields[name] = func(n *yaml.Node) { *to = d.text(n, "signer.run."+name) }
	}
	d.object(n, "the signer's run", nil, fields)
	return r
}

// caseType is a predicate type by its short name, or itself.
func caseType(s string) string {
	switch Fact(s) {
	case FactProvenance:
		return attestations.ProvenanceV1
	case FactScan:
		return attestations.CosignVuln
	case FactVEX:
		return attestations.OpenVEX
	case FactInputs:
		return attestations.InputsV1
	case "rebuild":
		return attestations.RebuildV1
	case "vsa":
		return attestations.VSAV1
	case "review":
		return attestations.ReviewV1
	case "source-provenance":
		return attestations.SourceProvenanceV1
	case FormatSPDX:
		return attestations.SPDX
	case FormatCycloneDX:
		return attestations.CycloneDX
	}
	return s
}

func (d *caseDecoder) expect(n *yaml.Node) {
	x := &d.out.Expect
	texts := func(to *[]string, what string) func(*yaml.Node) {
		return func(n *yaml.Node) {
			d.list(n, what, 100, func(n *yaml.Node) { *to = append(*to, d.text(n, what)) })
		}
	}
	d.object(n, "expect", []string{"decision"}, map[string]func(*yaml.Node){
		"decision": func(n *yaml.Node) {
			x.Decision = d.text(n, "expect.decision")
			if d.err == nil && !slices.Contains([]string{"pass", "deny", "undecided"}, x.Decision) {
				d.fail(n, "expect.decision %q: it is pass, deny or undecided", clip(x.Decision))
			}
		},
		"level": func(n *yaml.Node) {
			level := func(to **int, what string, most int) func(*yaml.Node) {
				return func(n *yaml.Node) {
					l := d.number(n, what, 0, most)
					*to = &l
				}
			}
			if n.Kind != yaml.MappingNode {
				level(&x.Level, "expect.level", verify.MaxLevel)(n)
				return
			}
			d.object(n, "expect.level", nil, map[string]func(*yaml.Node){
				"build":  level(&x.Level, "expect.level.build", verify.MaxLevel),
				"source": level(&x.Source, "expect.level.source", verify.MaxSourceLevel),
			})
		},
		"properties": func(n *yaml.Node) {
			if x.Properties = []string{}; n.Kind != yaml.SequenceNode || len(n.Content) > 0 {
				x.Properties = d.properties(n, "expect.properties")
			}
		},
		"reasons":  texts(&x.Reasons, "expect.reasons"),
		"warnings": texts(&x.Warnings, "expect.warnings"),
		"waived":   texts(&x.Waived, "expect.waived"),
	})
}

// json is a YAML value as JSON, by the types that YAML's core schema gives it.
// A date stays the text it is.
func (d *caseDecoder) json(n *yaml.Node) json.RawMessage {
	raw, err := json.Marshal(d.value(n))
	if err != nil {
		d.fail(n, "%w", err)
	}
	return raw
}

func (d *caseDecoder) value(n *yaml.Node) any {
	switch n.Kind {
	case yaml.MappingNode:
		out := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			out[n.Content[i].Value] = d.value(n.Content[i+1])
		}
		return out
	case yaml.SequenceNode:
		out := []any{}
		for _, c := range n.Content {
			out = append(out, d.value(c))
		}
		return out
	}
	switch n.Tag {
	case "!!null":
		return nil
	case "!!bool":
		return strings.EqualFold(n.Value, "true")
	case "!!int":
		if v, err := strconv.ParseInt(n.Value, 0, 64); err == nil {
			return v
		}
	case "!!float":
		if v, err := strconv.ParseFloat(n.Value, 64); err == nil && !math.IsNaN(v) && !math.IsInf(v, 0) {
			return v
		}
	}
	return n.Value
}
