// Command admission asks one waxseal about many images, as an admission
// controller does, and prints the references to run. It believes nothing
// before the lines, the trailer and the exit code say the same.
//
//	admission IMAGE... [-- FLAGS OF waxseal verify...]
//
// Exit codes: 0 all admitted, 3 one is denied, 4 one is not decided.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

const schema = "https://waxseal.dev/schemas/verdict-line/v1.json"

// line is a verdict or, with Done, the trailer.
type line struct {
	Schema, ID, Digest, Decision string
	Done                         *int
	Passed, Denied, Undecided    int
	Complete                     bool
}

func main() {
	images, flags := os.Args[1:], []string{}
	if i := slices.Index(images, "--"); i >= 0 {
		images, flags = images[:i], images[i+1:]
	}
	digests, code := ask(images, flags)
	for i, image := range images {
		if digests[i] != "" {
			name, _, _ := strings.Cut(image, "@")
			fmt.Println(name + "@" + digests[i])
		}
	}
	os.Exit(code)
}

// ask returns the digest of each image that is admitted, and what to say of all
// of them: 0, 3 or 4.
func ask(images, flags []string) (digests []string, code int) {
	none := make([]string, len(images))
	var in bytes.Buffer
	enc := json.NewEncoder(&in)
	for i, image := range images {
		_ = enc.Encode(map[string]string{"id": strconv.Itoa(i), "image": image}) // a buffer takes it
	}
	cmd := exec.Command("waxseal", append(append([]string{"verify", "--stream", "--deadline", "4s"}, flags...), "-")...)
	cmd.Stdin, cmd.Stderr = &in, os.Stderr
	out, _ := cmd.Output() // its exit code is looked at below
	digests = slices.Clone(none)
	answered, seen, end := map[int]bool{}, map[string]int{}, line{}
	for _, raw := range bytes.SplitAfter(out, []byte("\n")) {
		var l line
		switch {
		case len(raw) == 0:
		case end.Done != nil, !bytes.HasSuffix(raw, []byte("\n")), json.Unmarshal(raw, &l) != nil, l.Schema != schema:
			return none, 4 // something after the trailer, or half a line
		case l.Done != nil:
			end = l
		default:
			i, err := strconv.Atoi(l.ID)
			if err != nil || i < 0 || i >= len(images) || answered[i] || l.Decision == "pass" && l.Digest == "" {
				return none, 4 // nobody asked that, or it says nothing
			}
			answered[i] = true
			if seen[l.Decision]++; l.Decision == "pass" {
				digests[i] = l.Digest
			}
		}
	}
	agreed := map[bool]int{true: 3, false: 0}[seen["deny"] > 0]
	if agreed == 0 && seen["pass"] < len(images) {
		agreed = 4
	}
	switch {
	case end.Done == nil, !end.Complete, *end.Done != len(images), end.Passed != seen["pass"], end.Denied != seen["deny"], cmd.ProcessState == nil, cmd.ProcessState.ExitCode() != agreed:
		return none, 4
	}
	return digests, agreed
}
