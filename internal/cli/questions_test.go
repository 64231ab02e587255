package cli

import (
	"context"
	"strings"
	"testing"
)

func TestReadQuestions(t *testing.T) {
	in := "registry.example/a:1\r\n\n  {\"id\":\"1\",\"image\":\"registry.example/b\"}  \n" + strings.Repeat("y", 2*maxQuestion) + "\nregistry.example/c"
	var got []question
	err := readQuestions(context.Background(), strings.NewReader(in), true, func(q question) bool {
		got = append(got, q)
		return true
	})
	if err != nil || len(got) != 4 {
		t.Fatalf("%v, %+v", err, got)
	}
	if got[0].image != "registry.example/a:1" || got[1].id != "1" || got[1].image != "registry.example/b" || got[2].err == nil || got[3].image != "registry.example/c" {
		t.Errorf("%+v", got)
	}
	// Who has enough is asked no more.
	n := 0
	if err := readQuestions(context.Background(), strings.NewReader(in), true, func(question) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
}

// FuzzQuestion: whatever a line holds, it is either an image to judge or an
// error to answer with, and its id is the one that stands in it.
func FuzzQuestion(f *testing.F) {
	for _, seed := range []string{
		"registry.example/a:1", `{"id":"1","image":"registry.example/a"}`, `{"id":"1","image":"a","namespace":"n","labels":{"a":"b","A":"c"},"use":"volume"}`,
		`{"id":"1","id":"2","image":"a"}`, `{"Id":"1","image":"a"}`, `{"id":1,"image":"a"}`, `{"image":{"id":"x"},"id":"1"`, `{"id":"1","image":"a"}{}`,
		`{"id":"1","image":"a","use":"x"}`, `{"id":"` + strings.Repeat("i", 300) + `","image":"a"}`, `{`, `{"":`, "{\"id\":\"\xff\",\"image\":\"a\"}", `{"a":` + strings.Repeat("[", 500),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		line = []byte(strings.TrimSpace(string(line)))
		if len(line) == 0 {
			return
		}
		for _, plain := range []bool{true, false} {
			q := parseQuestion(line, false, plain)
			if (q.err == nil) != (q.image != "" && q.err == nil) || len(q.id) > maxQuestionID {
				t.Errorf("%q: %+v", line, q)
			}
			if q.err == nil && line[0] != '{' && !plain {
				t.Errorf("%q is taken for a request", line)
			}
			if q.err == nil && line[0] == '{' && questionID(line) != q.id {
				t.Errorf("%q has the id %q, and %q where it cannot be read", line, q.id, questionID(line))
			}
		}
		// Half of it is answered too.
		if q := parseQuestion(line[:len(line)/2+1], true, true); q.err == nil {
			t.Errorf("half of %q is taken", line)
		}
	})
}
