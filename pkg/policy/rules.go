package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/types"

	"github.com/waxseal/waxseal/attestations"
)

// MaxRuleCost bounds a rule in CEL's own units of cost, about one a step: it
// is refused at load when it could need more, as far as that can be told, and
// stopped at it when it runs.
const MaxRuleCost = 20_000_000

// What a rule may be estimated to look at: sizes of lists and of texts.
const (
	manyPackages = 20_000
	manyItems    = 1000
	fewItems     = 10 // of a package
	longText     = 256
)

// expression is one compiled rule.
type expression struct {
	name    string
	text    string
	message string
	needs   []Fact
	program cel.Program
}

// language compiles rules. It is made when the first rule is read: a policy
// without rules does not pay for it.
type language struct{ env *cel.Env }

// The variables of a rule, as it sees them.
type (
	imageVar struct {
		Reference string       `json:"reference"`
		Name      string       `json:"name"`
		Digest    string       `json:"digest"`
		Platform  string       `json:"platform"`
		Config    *ImageConfig `json:"config"`
	}
	sbomVar struct {
		Format   string    `json:"format"`
		Packages []Package `json:"packages"`
	}
	signerVar struct {
		Key    string `json:"key"`
		Name   string `json:"name"`
		Issuer string `json:"issuer"`
		SAN    string `json:"san"`

		// Of the CI run that the certificate was issued to.
		Repository string `json:"repository"`
		Commit     string `json:"commit"`
		Ref        string `json:"ref"`
		Workflow   string `json:"workflow"`
		Runner     string `json:"runner"`
		Event      string `json:"event"`
	}
	inputsVar struct {
		Mode       string       `json:"mode"`
		Verdict    string       `json:"verdict"`
		Hermetic   bool         `json:"hermetic"`
		Lock       string       `json:"lock"`
		AllowHosts []string     `json:"allowHosts"`
		Gaps       []string     `json:"gaps"` // the kinds
		Sources    []sourceVar  `json:"sources"`
		Steps      []inputsStep `json:"steps"`
	}
	sourceVar struct {
		Kind     string `json:"kind"`
		URI      string `json:"uri"`
		Ref      string `json:"ref"`
		Platform string `json:"platform"`
		Digest   string `json:"digest"`
	}
	inputsStep struct {
		Name     string       `json:"name"`
		Stage    string       `json:"stage"`
		Platform string       `json:"platform"`
		Verdict  string       `json:"verdict"`
		Reused   bool         `json:"reused"`
		Requests []requestVar `json:"requests"`
		Refusals []refusalVar `json:"refusals"`
		Names    []string     `json:"names"`
		Gaps     []string     `json:"gaps"`
	}
	requestVar struct {
		Method string `json:"method"`
		URI    string `json:"uri"`
		Status int64  `json:"status"`
		Digest string `json:"digest"`
		Size   int64  `json:"size"`
	}
	refusalVar struct {
		Kind        string `json:"kind"`
		Destination string `json:"destination"`
		Reason      string `json:"reason"`
		Count       int64  `json:"count"`
	}
)

func named[T any](name string) *types.NativeTypeDesc {
	return types.NativeTypeFor[T](types.NativeTypeAlias(name), types.ParseStructTag("json"))
}

func newLanguage() (*language, error) {
	env, err := cel.NewEnv(
		cel.ParserExpressionSizeLimit(4096),
		cel.ParserRecursionLimit(64),
		cel.ASTValidators(cel.ValidateRegexLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateDurationLiterals()),
		cel.Types(
			named[ImageConfig]("waxseal.Config"), named[imageVar]("waxseal.Image"),
			named[Dependency]("waxseal.Dependency"), named[ProvenanceFacts]("waxseal.Provenance"),
			named[Package]("waxseal.Package"), named[sbomVar]("waxseal.SBOM"),
			named[sourceVar]("waxseal.Source"), named[requestVar]("waxseal.Request"), named[refusalVar]("waxseal.Refusal"),
			named[inputsStep]("waxseal.Step"), named[inputsVar]("waxseal.Inputs"),
			named[signerVar]("waxseal.Signer"),
		),
		cel.Variable("image", cel.ObjectType("waxseal.Image")),
		cel.Variable("provenance", cel.ObjectType("waxseal.Provenance")),
		cel.Variable("sbom", cel.ObjectType("waxseal.SBOM")),
		cel.Variable("inputs", cel.ObjectType("waxseal.Inputs")),
		cel.Variable("signer", cel.ObjectType("waxseal.Signer")),
	)
	if err != nil {
		return nil, fmt.Errorf("preparing the language of rules: %w", err)
	}
	return &language{env}, nil
}

// compile checks a rule: its types, that it says yes or no, and that its cost
// is bounded.
func (l *language) compile(name, text string) (*expression, error) {
	ast, issues := l.env.Compile(text)
	if err := issues.Err(); err != nil {
		first := issues.Errors()[0]
		return nil, fmt.Errorf("rule %q at column %d: %s", clip(name), first.Location.Column()+1, clip(oneLine(first.Message)))
	}
	if ast.OutputType() != cel.BoolType {
		return nil, fmt.Errorf("rule %q gives %s; a rule must give true or false", clip(name), ast.OutputType())
	}
	estimate, err := l.env.EstimateCost(ast, sizes{})
	if err != nil {
		return nil, fmt.Errorf("rule %q: estimating its cost: %w", clip(name), err)
	}
	if estimate.Max > MaxRuleCost {
		return nil, fmt.Errorf("rule %q could cost %d, more than the %d that a rule may: it looks at every pair of something long", clip(name), estimate.Max, MaxRuleCost)
	}
	program, err := l.env.Program(ast, cel.CostLimit(MaxRuleCost), cel.InterruptCheckFrequency(1000))
	if err != nil {
		return nil, fmt.Errorf("rule %q: %w", clip(name), err)
	}
	out := &expression{name: name, text: text, program: program}
	for _, ref := range ast.NativeRep().ReferenceMap() {
		for variable, kind := range map[string]Fact{"provenance": FactProvenance, "signer": FactProvenance, "sbom": FactSBOM, "inputs": FactInputs} {
			if ref.Name == variable && !slices.Contains(out.needs, kind) {
				out.needs = append(out.needs, kind)
			}
		}
	}
	if strings.Contains(text, "config") {
		out.needs = append(out.needs, FactConfig)
	}
	slices.Sort(out.needs)
	return out, nil
}

// holds evaluates the rule. An error is neither yes nor no.
func (e *expression) holds(ctx context.Context, vars map[string]any) (bool, error) {
	v, _, err := e.program.ContextEval(ctx, vars)
	if err != nil {
		return false, errors.New(clip(oneLine(err.Error())))
	}
	b, ok := v.Value().(bool)
	if !ok {
		return false, fmt.Errorf("it gave %s", v.Type().TypeName())
	}
	return b, nil
}

// sizes tells the estimate how long things are at most, in practice: what is
// longer meets the limit when the rule runs.
type sizes struct{}

func (sizes) EstimateSize(n cost.AstNode) *cost.SizeEstimate {
	path := n.Path()
	if len(path) == 0 {
		return nil
	}
	last := path[len(path)-1]
	switch n.Type().Kind() {
	case types.ListKind:
		switch last {
		case "packages":
			return &cost.SizeEstimate{Max: manyPackages}
		case "licenses":
			return &cost.SizeEstimate{Max: fewItems}
		}
		return &cost.SizeEstimate{Max: manyItems}
	case types.MapKind:
		return &cost.SizeEstimate{Max: manyItems}
	case types.StringKind, types.BytesKind, types.DynKind:
		return &cost.SizeEstimate{Max: longText}
	}
	return nil
}

func (sizes) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}

// variables are the facts as rules see them. A variable whose evidence is
// missing is not bound: the caller has denied by then.
func (f Facts) variables() map[string]any {
	out := map[string]any{"image": imageVar{Reference: f.Reference, Name: f.Name, Digest: string(f.Digest), Platform: f.Platform, Config: f.Config}}
	if f.Provenance != nil {
		out["provenance"] = *f.Provenance
	}
	if f.Signer != nil {
		run := f.Signer.Run
		out["signer"] = signerVar{
			Key: string(f.Signer.Key), Name: f.Signer.Name, Issuer: f.Signer.Issuer, SAN: f.Signer.SAN,
			Repository: run.Repository, Commit: run.Commit, Ref: run.Ref, Workflow: run.Workflow, Runner: run.Runner, Event: run.Event,
		}
	}
	if f.Inputs != nil {
		out["inputs"] = inputsOf(f.Inputs)
	}
	return out
}

func inputsOf(in *attestations.Inputs) inputsVar {
	out := inputsVar{Mode: in.Mode, Verdict: in.Verdict, Hermetic: in.Hermetic, Lock: in.Lock, AllowHosts: in.AllowHosts, Gaps: gapKinds(in.Gaps)}
	for _, s := range in.Sources {
		out.Sources = append(out.Sources, sourceVar{Kind: s.Kind, URI: s.URI, Ref: s.Ref, Platform: s.Platform, Digest: s.Digest})
	}
	for _, s := range in.Steps {
		step := inputsStep{Name: s.Name, Stage: s.Stage, Platform: s.Platform, Verdict: s.Verdict, Reused: s.Reused, Names: s.Names, Gaps: gapKinds(s.Gaps)}
		for _, r := range s.Requests {
			step.Requests = append(step.Requests, requestVar{Method: r.Method, URI: r.URI, Status: int64(r.Status), Digest: r.Digest, Size: r.Size})
		}
		for _, r := range s.Refusals {
			step.Refusals = append(step.Refusals, refusalVar{Kind: r.Kind, Destination: r.Destination, Reason: r.Reason, Count: int64(r.Count)})
		}
		out.Steps = append(out.Steps, step)
	}
	return out
}

func gapKinds(gaps []attestations.InputGap) []string {
	var out []string
	for _, g := range gaps {
		out = append(out, g.Kind)
	}
	return out
}
