package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/verify"
)

// maxProblems bounds what one piece of evidence can make us say.
const maxProblems = 20

// maxShown bounds a value that a hint shows whole.
const maxShown = 1000

// unexpected returns the external parameters that are set and that no entry
// allows, each with its pointer.
// https://slsa.dev/spec/v1.2/verifying-artifacts#step-2-check-expectations:
// unrecognised external parameters SHOULD cause verification to fail.
//
// What an entry says of a parameter holds before what its builder's entry does,
// and that before what is checked elsewhere.
func (e image) unexpected(p *verify.Provenance, echoes []string, builder map[string]allowed) []verify.Problem {
	w := walk{kind: p.BuildType.Value, allow: known(p.BuildType.Value, e.repository != "")}
	if w.allow == nil {
		w.allow = map[string]allowed{}
	}
	for _, name := range echoes {
		w.allow[name] = allowed{any: true}
	}
	maps.Copy(w.allow, builder)
	maps.Copy(w.allow, e.parameters)
	for _, name := range slices.Sorted(maps.Keys(p.External)) {
		w.value(name, p.ExternalPointer+"/"+escape(name), p.External[name])
	}
	return w.problems
}

type walk struct {
	kind     string // the build type
	allow    map[string]allowed
	problems []verify.Problem
}

// value judges one parameter. name is its path with "/" between the keys, the
// spelling that a policy uses.
func (w *walk) value(name, pointer string, raw json.RawMessage) {
	if len(w.problems) >= maxProblems {
		return
	}
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		w.refuse(name, pointer, "cannot be read")
		return
	}
	w.decoded(name, pointer, spelled(w.kind, name, v))
}

// spelled is the value of a parameter as a policy names it. The words of a command
// are one line, for in another order they are another command, and of variables
// only those count that not every command has.
func spelled(buildType, name string, v any) any {
	list, ok := v.([]any)
	if !ok || buildType != attestations.CommandType || name != "command" && name != "variables" {
		return v
	}
	var words []string
	for _, item := range list {
		word, ok := item.(string)
		if !ok {
			return text(v) // as nobody spells it
		}
		words = append(words, word)
	}
	if name == "command" {
		return attestations.CommandLine(words)
	}
	return slices.DeleteFunc(list, func(item any) bool { return attestations.UsualVariable(item.(string)) })
}

func (w *walk) decoded(name, pointer string, v any) {
	if len(w.problems) >= maxProblems || empty(v) {
		return
	}
	a, listed := w.allow[name]
	if a.any {
		return
	}
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			child := pointer + "/" + escape(k)
			switch {
			case listed && a.has(k):
			case listed && a.hasPair(k, v[k]):
			case listed:
				w.refuse(name+"/"+k, child, "is not among those the policy allows")
			default:
				w.decoded(name+"/"+k, child, v[k])
			}
		}
	case []any:
		for i, item := range v {
			s, named := itemName(item)
			if !listed || !named || !a.has(s) {
				w.notAllowed(name, fmt.Sprintf("%s/%d", pointer, i), item, s)
			}
		}
	default:
		if !listed || !a.has(text(v)) {
			w.notAllowed(name, pointer, v, text(v))
		}
	}
}

func (w *walk) refuse(name, pointer, why string) {
	if len(w.problems) < maxProblems {
		w.problems = append(w.problems, verify.Problem{Code: CodeParameter, Pointer: pointer,
			Message: fmt.Sprintf("build parameter %q %s", clip(name), why)})
	}
}

// notAllowed refuses a value. Of a command it says how it would be allowed:
// nobody guesses how a command is written.
func (w *walk) notAllowed(name, pointer string, v any, s string) {
	at := len(w.problems)
	w.refuse(name, pointer, "is set to "+show(v)+", which the policy does not allow")
	if w.kind == attestations.CommandType && len(w.problems) > at && len(s) <= maxShown {
		w.problems[at].Hint = fmt.Sprintf("if it is meant, add to the image's entry: parameters: {%s: [%s]}", quote(name), quote(s))
	}
}

func (a allowed) has(s string) bool { return slices.Contains(a.values, s) }

// hasPair is "NAME=VALUE": the name with that value and no other.
func (a allowed) hasPair(name string, v any) bool {
	switch v.(type) {
	case string, float64, bool:
		return a.has(name + "=" + text(v))
	}
	return false
}

// empty reports a value that sets nothing.
func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case bool:
		return !v
	case string:
		return v == ""
	case map[string]any:
		return len(v) == 0
	case []any:
		return len(v) == 0
	}
	return false
}

// itemName is how a policy names an item of a list: the text itself, or the
// id or name of an object, as BuildKit writes secrets.
func itemName(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case float64, bool:
		return text(v), true
	case map[string]any:
		for _, k := range []string{"id", "name"} {
			if s, ok := v[k].(string); ok && s != "" {
				return s, true
			}
		}
	}
	return "", false
}

func text(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(b)
}

func show(v any) string { return fmt.Sprintf("%q", clip(text(v))) }

// escape is RFC 6901's escaping of one key.
func escape(key string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
}

// clip keeps foreign text in a message to a readable length. Messages quote
// it with %q, so control characters do not reach a terminal.
func clip(s string) string {
	if len(s) > 120 {
		return strings.ToValidUTF8(s[:120], "") + "…"
	}
	return s
}
