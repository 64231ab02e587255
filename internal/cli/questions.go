package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/store"
)

const (
	maxQuestion   = 64 << 10 // bytes of one request
	maxQuestionID = 256      // bytes of its id
)

// readQuestions reads a request a line: JSON, or where plain allows it a
// reference alone. A line that is neither is a question with an error, so that
// it is answered as well. What is read of a line is bounded.
func readQuestions(ctx context.Context, in io.Reader, plain bool, yield func(question) bool) error {
	r := bufio.NewReaderSize(in, maxQuestion)
	for ctx.Err() == nil {
		line, long, err := readLine(r)
		if text := bytes.TrimSpace(line); len(text) > 0 && !yield(parseQuestion(text, long, plain)) {
			return nil
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("reading requests: %w", err)
		}
	}
	return nil
}

// readLine returns a line up to its limit, and whether there was more of it.
func readLine(r *bufio.Reader) (line []byte, long bool, err error) {
	chunk, err := r.ReadSlice('\n')
	line = bytes.Clone(chunk)
	for errors.Is(err, bufio.ErrBufferFull) {
		long = true
		_, err = r.ReadSlice('\n')
	}
	return line, long, err
}

func parseQuestion(line []byte, long, plain bool) question {
	switch {
	case line[0] != '{' && !plain:
		return question{err: errors.New(`a request is a JSON object in one line: {"id":"1","image":"HOST/REPO@DIGEST"}`)}
	case long:
		return question{id: questionID(line), err: fmt.Errorf("the request is longer than the %d bytes allowed", maxQuestion)}
	case line[0] != '{':
		return question{image: string(line)}
	}
	var in struct {
		ID        string            `json:"id"`
		Image     string            `json:"image"`
		Namespace string            `json:"namespace"`
		Labels    map[string]string `json:"labels"`
		Use       string            `json:"use"`
	}
	err := attest.UnmarshalStrict(line, &in)
	if err == nil {
		// A field that means something to the caller and nothing to us would
		// be a condition that nobody checks.
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.DisallowUnknownFields()
		err = dec.Decode(&in)
	}
	switch {
	case err != nil:
		return question{id: questionID(line), err: fmt.Errorf("reading the request: %w", err)}
	case len(in.ID) > maxQuestionID:
		return question{image: in.Image, err: fmt.Errorf("the id is longer than the %d bytes allowed", maxQuestionID)}
	case in.Image == "":
		return question{id: in.ID, err: errors.New("the request names no image")}
	case in.Use != "" && !slices.Contains(gate.Uses(), in.Use):
		return question{id: in.ID, image: in.Image, err: fmt.Errorf("use %q: it is one of %s", in.Use, strings.Join(gate.Uses(), ", "))}
	}
	return question{id: in.ID, image: in.Image, work: gate.Workload{Namespace: in.Namespace, Labels: in.Labels, Use: in.Use}}
}

// remote refuses an image that is not in a registry. Who names images to a
// co-process, the author of a pod, is not to name files of this machine.
func remote(q question) question {
	if q.err != nil {
		return q
	}
	if ref, err := store.Parse(q.image); err == nil && ref.Kind != store.Registry {
		q.err = errors.New("it is not an image of a registry, and a stream judges no other")
	}
	return q
}

// questionID finds the id at the top of a request that cannot be read whole, so
// that its answer finds home. Of two it takes neither.
func questionID(line []byte) string {
	dec := json.NewDecoder(bytes.NewReader(line))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return ""
	}
	id, found := "", false
	for {
		key, err := dec.Token()
		if err != nil || key == json.Delim('}') {
			break
		}
		var value json.RawMessage
		if dec.Decode(&value) != nil {
			break
		}
		if key != "id" {
			continue
		}
		if found || json.Unmarshal(value, &id) != nil {
			return ""
		}
		found = true
	}
	if len(id) > maxQuestionID {
		return ""
	}
	return id
}
