package cli

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/report"
)

const journalSchema = "https://waxseal.dev/schemas/audit-journal/v1.json"

// maxJournal bounds the images of one journal, which are kept in memory by their
// digests.
const maxJournal = 4 << 20

// maxAnswerAge is how long an answer stands for asking again: less than the day
// between two nights' audits.
const maxAnswerAge = 12 * time.Hour

// journal remembers which images of an audit, or of a list, were answered, a line
// of JSON each behind one that names the audit. A line is on the disk before the
// next image is noted, so that a kill loses at most half a line, which is dropped.
// The last line of an audit that left nothing open says so, and the next one begins
// anew.
// The zero journal remembers nothing.
type journal struct {
	file    *os.File
	seen    map[[16]byte]struct{}
	earlier report.Tally
}

type journalHead struct {
	Schema string        `json:"schema"`
	Audit  attest.Digest `json:"audit"`
}

// journalLine is an answer, or the end.
type journalLine struct {
	ID        string        `json:"id,omitempty"` // of a request
	Image     string        `json:"image,omitempty"`
	Decision  gate.Decision `json:"decision,omitempty"`
	DecidedAt time.Time     `json:"decidedAt,omitzero"`
	Complete  bool          `json:"complete,omitempty"`
}

// openJournal opens the journal of an audit, or makes it. That of another audit
// is refused, and so is one that somebody else has open. Of what is too old by
// now nothing is remembered.
func openJournal(path string, audit attest.Digest, now time.Time) (*journal, error) {
	fail := func(code int, err error) (*journal, error) {
		return nil, exitError{code, fmt.Errorf("reading journal %q: %w", path, err)}
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return fail(ExitUsage, errors.Unwrap(err))
	}
	j := &journal{file: f, seen: map[[16]byte]struct{}{}}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return fail(ExitUsage, errors.New("not a regular file"))
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return fail(ExitUsage, errors.New("another audit is writing it"))
	}
	if err := j.read(audit, now); err != nil {
		f.Close()
		return fail(ExitUsage, err)
	}
	return j, nil
}

func (j *journal) read(audit attest.Digest, now time.Time) error {
	in := bufio.NewReaderSize(j.file, 64<<10)
	whole := int64(0) // bytes of whole lines
	complete := false
	for n := 0; ; n++ {
		raw, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			break // and what stands behind the last line's end is half a line
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n+1, err)
		}
		whole += int64(len(raw))
		if n == 0 {
			var head journalHead
			if err := attest.UnmarshalStrict(bytes.TrimSpace(raw), &head); err != nil || head.Schema != journalSchema {
				return errors.New("it is not the journal of an audit")
			}
			if head.Audit != audit {
				return errors.New("it is of another audit: the place, the policy, the trust or what was asked is not the same; give another file")
			}
			continue
		}
		var l journalLine
		if err := attest.UnmarshalStrict(bytes.TrimSpace(raw), &l); err != nil {
			return fmt.Errorf("line %d: %w", n+1, err)
		}
		if n > maxJournal {
			return fmt.Errorf("more than the %d images allowed", maxJournal)
		}
		complete = complete || l.Complete
		if age := now.Sub(l.DecidedAt); age < 0 || age > maxAnswerAge {
			continue
		}
		if j.remember(l.ID, l.Image) {
			j.earlier.Count(l.Decision)
		}
	}
	if complete {
		whole, j.seen, j.earlier = 0, map[[16]byte]struct{}{}, report.Tally{}
	}
	// What a kill cut short goes, so that the next line starts a line.
	if err := j.file.Truncate(whole); err != nil {
		return err
	}
	if _, err := j.file.Seek(whole, io.SeekStart); err != nil {
		return err
	}
	if whole == 0 {
		return j.append(journalHead{Schema: journalSchema, Audit: audit})
	}
	return nil
}

func journalKey(id, image string) [16]byte {
	sum := sha256.Sum256([]byte(id + "\x00" + image))
	return [16]byte(sum[:16])
}

// remember reports whether the image is new.
func (j *journal) remember(id, image string) bool {
	key := journalKey(id, image)
	_, known := j.seen[key]
	j.seen[key] = struct{}{}
	return !known
}

func (j *journal) has(q question) bool {
	_, known := j.seen[journalKey(q.id, q.image)]
	return known
}

// note keeps an answer that stands: what is undecided is asked again.
func (j *journal) note(l report.Line) error {
	if j.file == nil || l.Decision != gate.Pass && l.Decision != gate.Deny {
		return nil
	}
	return j.append(journalLine{ID: l.ID, Image: l.Image, Decision: l.Decision, DecidedAt: l.DecidedAt})
}

// end notes that an audit left nothing open.
func (j *journal) end(t report.Trailer) error {
	if j.file == nil || !t.Complete || t.Undecided > 0 {
		return nil
	}
	return j.append(journalLine{Complete: true})
}

func (j *journal) append(line any) error {
	raw, err := json.Marshal(line)
	if err != nil {
		return err
	}
	if _, err := j.file.Write(append(raw, '\n')); err != nil {
		return fmt.Errorf("writing journal: %w", err)
	}
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("writing journal: %w", err)
	}
	return nil
}

func (j *journal) close() {
	if j.file != nil {
		j.file.Close() // every line has been synced
	}
}
