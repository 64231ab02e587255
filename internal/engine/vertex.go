package engine

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/waxseal/waxseal/attestations"
)

// maxStepName bounds the name of a step.
const maxStepName = 4 << 10

// node is a step of a definition, whoever holds the definition.
type node struct {
	op          *pb.Op
	name        string // as the progress shows it
	description map[string]string
	inputs      []func() (node, bool)
	digest      digest.Digest
}

// vertexNode is the node of a vertex that the solver works at.
func vertexNode(v solver.Vertex) (node, bool) {
	op, ok := v.Sys().(*pb.Op)
	if !ok {
		return node{}, false
	}
	n := node{op: op, name: v.Name(), description: v.Options().Description, digest: v.Digest()}
	for _, in := range v.Inputs() {
		n.inputs = append(n.inputs, func() (node, bool) { return vertexNode(in.Vertex) })
	}
	return n, true
}

// definitionNode is the node of a definition's result.
func definitionNode(def *pb.Definition) (node, bool) {
	if def == nil || len(def.Def) == 0 {
		return node{}, false
	}
	ops := make(map[digest.Digest]*pb.Op, len(def.Def))
	var last *pb.Op
	for _, raw := range def.Def {
		op := &pb.Op{}
		if op.UnmarshalVT(raw) != nil {
			return node{}, false
		}
		last = op
		ops[digest.FromBytes(raw)] = op
	}
	if len(last.Inputs) == 0 {
		return node{}, false
	}
	var at func(d digest.Digest) (node, bool)
	at = func(d digest.Digest) (node, bool) {
		op := ops[d]
		if op == nil {
			return node{}, false
		}
		n := node{op: op, digest: d}
		if m := def.Metadata[string(d)]; m != nil {
			n.description = m.Description
			n.name = m.Description["llb.customname"]
		}
		for _, in := range op.Inputs {
			n.inputs = append(n.inputs, func() (node, bool) { return at(digest.Digest(in.Digest)) })
		}
		return n, true
	}
	return at(digest.Digest(last.Inputs[0].Digest))
}

// isSource reports whether the node is an input from outside.
func (n node) isSource() bool { return n.op.GetSource() != nil }

// step describes the node, which runs something.
func (n node) step(ids map[digest.Digest]string) attestations.InputStep {
	st := attestations.InputStep{ID: n.id(ids)}
	st.Name, st.Stage = instruction(n)
	if p := n.op.Platform; p != nil {
		st.Platform = platforms.Format(platforms.Normalize(ocispecs.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion}))
	}
	return st
}

// id names what the node does to what: a digest over its definition and, the
// same way, over those of its inputs. What differs from one run to the next
// with nothing changed is left out, as BuildKit leaves it out of cache keys.
func (n node) id(ids map[digest.Digest]string) string {
	if id, ok := ids[n.digest]; ok {
		return id
	}
	op := n.op.CloneVT()
	for i, in := range op.Inputs {
		in.Digest = ""
		if i < len(n.inputs) {
			if m, ok := n.inputs[i](); ok {
				in.Digest = m.id(ids)
			}
		}
	}
	if src := op.GetSource(); src != nil {
		for _, attr := range []string{
			pb.AttrOCILayoutSessionID, pb.AttrOCILayoutStoreID,
			pb.AttrLocalSessionID, pb.AttrLocalUniqueID, pb.AttrSharedKeyHint,
		} {
			delete(src.Attrs, attr)
		}
	}
	if e := op.GetExec(); e != nil && e.Meta != nil {
		e.Meta.ProxyEnv = nil
	}
	h := sha256.New()
	// Maps have no order in the wire format.
	if src := op.GetSource(); src != nil {
		for _, k := range slices.Sorted(maps.Keys(src.Attrs)) {
			fmt.Fprintf(h, "%d:%s%d:%s", len(k), k, len(src.Attrs[k]), src.Attrs[k])
		}
		src.Attrs = nil
	}
	if raw, err := op.MarshalVT(); err == nil {
		h.Write(raw)
	}
	id := "sha256:" + hex.EncodeToString(h.Sum(nil))
	ids[n.digest] = id
	return id
}

// instruction returns the instruction of the Dockerfile and its stage. The
// instruction is as it was written: in what the progress shows the values of
// arguments have been put in, and those can be anything.
func instruction(n node) (name, stage string) {
	name = n.name
	if head, rest, ok := strings.Cut(n.name, "] "); ok && strings.HasPrefix(head, "[") {
		f := strings.Fields(head[1:])
		if len(f) > 0 && isCounter(f[len(f)-1]) {
			name = rest
			for _, w := range f[:len(f)-1] {
				// Not the platform, and not the number that BuildKit gives a stage
				// without a name: that changes with the stages before it.
				if !strings.Contains(w, "/") && !isStageNumber(w) {
					stage = w
				}
			}
		}
	}
	if c := n.description["com.docker.dockerfile.v1.command"]; c != "" {
		name = c
	}
	name = strings.Join(strings.Fields(name), " ")
	verb, rest, _ := strings.Cut(name, " ")
	name = strings.TrimSpace(strings.ToUpper(verb) + " " + rest)
	if e := n.op.GetExec(); e != nil && strings.Contains(name, "<<") {
		// The text of a here-document is not in the instruction's first line.
		sum := sha256.Sum256([]byte(strings.Join(e.GetMeta().GetArgs(), "\x00")))
		name += " #" + hex.EncodeToString(sum[:4])
	}
	if len(name) > maxStepName {
		sum := sha256.Sum256([]byte(name))
		name = strings.ToValidUTF8(name[:maxStepName-16], "") + " #" + hex.EncodeToString(sum[:4])
	}
	return name, stage
}

// isCounter reports whether w is like "2/5".
func isCounter(w string) bool {
	a, b, ok := strings.Cut(w, "/")
	if !ok {
		return false
	}
	_, err1 := strconv.Atoi(a)
	_, err2 := strconv.Atoi(b)
	return err1 == nil && err2 == nil
}

func isStageNumber(w string) bool {
	n, ok := strings.CutPrefix(w, "stage-")
	_, err := strconv.Atoi(n)
	return ok && err == nil
}

// execsBelow lists the steps of n and below it, inputs first.
func execsBelow(n node, ids map[digest.Digest]string) []attestations.InputStep {
	var out []attestations.InputStep
	seen := map[digest.Digest]bool{}
	var walk func(n node)
	walk = func(n node) {
		if seen[n.digest] {
			return
		}
		seen[n.digest] = true
		for _, in := range n.inputs {
			if m, ok := in(); ok {
				walk(m)
			}
		}
		if n.op.GetExec() != nil {
			out = append(out, n.step(ids))
		}
	}
	walk(n)
	return out
}
