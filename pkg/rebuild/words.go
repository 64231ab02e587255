package rebuild

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// description is why two contents differ, and what in them shows it.
type description struct {
	cause, original, rebuilt string
}

func printable(r rune) bool { return unicode.IsPrint(r) }

// archiveCause says in words what a normaliser of an archive covers here.
func archiveCause(n normaliser, a, b []byte) string {
	switch n {
	case gzipHeaderV1:
		if len(a) > 8 && len(b) > 8 && !bytes.Equal(a[4:8], b[4:8]) {
			return "the gzip header holds the time of compression"
		}
		return "the gzip header holds a file's name, the level or the kind of system"
	case tarTimesV1:
		return "the tar archive holds the times of its files"
	case zipTimesV1:
		return "the zip archive holds the times of its files"
	case arHeadersV1:
		return "the ar archive holds times and owners of its members"
	}
	return n.reason()
}

// archiveSample is the time that a gzip header holds.
func archiveSample(n normaliser, data []byte) string {
	if n == gzipHeaderV1 && len(data) > 8 {
		return seconds(data[4:8])
	}
	return ""
}

func seconds(b []byte) string {
	return time.Unix(int64(binary.LittleEndian.Uint32(b)), 0).UTC().Format(time.RFC3339)
}

// leafCause says in words what a normaliser of a file covers.
func leafCause(n normaliser, where string) string {
	switch n {
	case pycMtimeV1:
		return "the pyc file holds the time of its source"
	case elfBuildIDV1:
		return "only the ELF build id (or the checksum of its debug symbols) differs"
	case aptLogsV1:
		return "the package manager's log /" + where + " holds the time of the run"
	case ldconfigCacheV1:
		return "ldconfig's aux-cache holds inode numbers and times"
	case aptCacheV1:
		return "apt's cache holds the times of its package lists"
	case machineIDV1:
		return "a machine id made at random"
	case shadowDaysV1:
		return "the days of the last password changes differ"
	}
	return n.reason()
}

// describe says why two contents differ that no normaliser makes equal.
func describe(where string, a, b []byte) description {
	known := knownCause(where)
	d := describeBytes(a, b)
	if known != "" {
		d.cause = known + "; " + d.cause
	}
	return d
}

// knownCause is what is commonly behind a file that differs, by its path.
func knownCause(where string) string {
	for _, k := range []struct{ pattern, cause string }{
		{"var/log/apt/*", "apt's log holds the time of the run"},
		{"var/log/*", "a log holds the time of the run"},
		{"var/lib/apt/lists/*", "apt's package lists are those that the mirror had that day"},
		{"var/lib/apt/lists/*/*", "apt's package lists are those that the mirror had that day"},
		{"var/cache/debconf/*", "debconf's database depends on the order in which packages were configured"},
		{"var/lib/dpkg/status*", "dpkg's status depends on the packages and the order in which they were installed"},
		{"var/lib/dpkg/diversions*", "dpkg's list depends on the order in which packages were installed"},
		{"var/cache/ldconfig/*", "ldconfig's cache holds inode numbers and times"},
		{"var/cache/man/*", "man's index holds times"},
		{"var/cache/fontconfig/*", "fontconfig's cache holds times"},
		{"etc/ssh/ssh_host_*", "an ssh host key made at random"},
		{"etc/ssl/private/*", "a key made at random"},
		{"etc/ssl/certs/ssl-cert-snakeoil.pem", "a certificate made at random, with the time of the build"},
		{"etc/ssl/certs/java/cacerts", "a Java keystore holds the time of each entry"},
		{"etc/shadow*", "an account's password or its day of change"},
		{"etc/passwd*", "accounts are listed as packages made them"},
		{"etc/group*", "groups are listed as packages made them"},
		{"var/lib/systemd/random-seed", "a random seed"},
		{"root/.npm/_logs/*", "npm's log holds the time of the run"},
		{"root/.npm/_update-notifier-last-checked", "npm noted the time of the run"},
		{"root/.wget-hsts", "wget's list of hosts holds the time of the run"},
		{"tmp/*", "a temporary file was left behind"},
	} {
		if ok, _ := path.Match(k.pattern, where); ok {
			return k.cause
		}
	}
	if ext := path.Ext(where); ext == ".jks" || ext == ".keystore" {
		return "a Java keystore holds the time of each entry"
	}
	return ""
}

func describeBytes(a, b []byte) description {
	switch {
	case len(a) == 0:
		return description{cause: "the original is empty"}
	case len(b) == 0:
		return description{cause: "the rebuilt one is empty"}
	case isELF(a) && isELF(b):
		return describeELF(a, b)
	case isText(a) && isText(b):
		return describeText(a, b)
	case isPyc(a) && isPyc(b):
		return description{cause: "compiled Python code differs: another source, or another order of a set's or dictionary's elements"}
	}
	return describeBinary(a, b)
}

// maxText is how much of a text is compared line by line.
const maxText = 8 << 20

func isText(b []byte) bool {
	return len(b) <= maxText && bytes.IndexByte(b, 0) < 0 && utf8.Valid(b)
}

// describeText says what kind of lines differ.
func describeText(a, b []byte) description {
	x, y := strings.Split(string(a), "\n"), strings.Split(string(b), "\n")
	only := func(list, other []string) []string {
		count := map[string]int{}
		for _, l := range other {
			count[l]++
		}
		var out []string
		for _, l := range list {
			if count[l]--; count[l] < 0 {
				out = append(out, l)
			}
		}
		return out
	}
	gone, come := only(x, y), only(y, x)
	if len(gone)+len(come) == 0 {
		for i := range x {
			if x[i] != y[i] {
				return description{fmt.Sprintf("the same lines in another order, from line %d on", i+1), clip(x[i]), clip(y[i])}
			}
		}
	}
	d := description{cause: fmt.Sprintf("%s in the original, %s in the rebuilt one", lines(len(gone)), lines(len(come)))}
	if len(gone) > 0 {
		d.original = clip(gone[0])
	}
	if len(come) > 0 {
		d.rebuilt = clip(come[0])
	}
	if len(gone) == len(come) {
		if kind := kindOfLines(gone, come); kind != "" {
			d.cause = fmt.Sprintf("%s only in %s", differs(len(gone)), kind)
		} else {
			d.cause = differs(len(gone))
		}
	}
	return d
}

func lines(n int) string {
	if n == 1 {
		return "1 line only"
	}
	return fmt.Sprintf("%d lines only", n)
}

func differs(n int) string {
	if n == 1 {
		return "1 line differs"
	}
	return fmt.Sprintf("%d lines differ", n)
}

// What differs from build to build, as it is written.
const (
	writtenTimes = `(?i)\d{4}[-/]\d\d[-/]\d\d([T ]+\d\d:\d\d(:\d\d)?(\.\d+)?( ?(Z|UTC|[+-]\d\d:?\d\d))?)?|\d\d?:\d\d:\d\d` +
		`|((mon|tue|wed|thu|fri|sat|sun)[a-z]*,? +)?(\d\d? +)?(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*,? +(\d\d?,? +)?(\d{4})?( (utc|gmt)( \d{4})?)?` +
		`|\b(1[0-9]|2[0-9])\d{8}(\d{3}|\.\d+)?\b`
	writtenIDs   = `(?i)[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b[0-9a-f]{16,}\b|[A-Za-z0-9+/]{40,}={0,2}`
	writtenPaths = `/tmp/[^ "':]+|/var/tmp/[^ "':]+|tmp[._-]?[A-Za-z0-9_]{6,}`
	writtenInts  = `\d+`
)

// kindOfLines names what is left out to make both lists of lines the same, ""
// when it is more than that.
func kindOfLines(a, b []string) string {
	var masked []string
	for _, k := range []struct{ name, pattern string }{
		{"times", writtenTimes}, {"random or hashed ids", writtenIDs}, {"names of temporary files", writtenPaths}, {"numbers", writtenInts},
	} {
		re := regexp.MustCompile(k.pattern)
		mask := func(list []string) ([]string, bool) {
			out, changed := make([]string, len(list)), false
			for i, l := range list {
				out[i] = re.ReplaceAllString(l, "\x00")
				changed = changed || out[i] != l
			}
			return out, changed
		}
		var one, two bool
		a, one = mask(a)
		b, two = mask(b)
		if one || two {
			masked = append(masked, k.name)
		}
		if slices.Equal(a, b) {
			return strings.Join(masked, ", ")
		}
	}
	return ""
}

// describeELF names the sections that differ.
func describeELF(a, b []byte) description {
	x, y := elfSections(a), elfSections(b)
	if x == nil || y == nil {
		return describeBinary(a, b)
	}
	var names []string
	for name, sum := range x {
		if other, ok := y[name]; !ok || other != sum {
			names = append(names, name)
		}
	}
	for name := range y {
		if _, ok := x[name]; !ok {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return description{cause: "the ELF files have the same sections, and differ outside of them"}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	what := "the ELF sections " + listed(slices.Clone(names)) + " differ"
	if len(names) == 1 {
		what = "the ELF section " + clip(names[0]) + " differs"
	}
	switch {
	case slices.Contains(names, ".text"):
		what += ": other code"
	case !slices.ContainsFunc(names, func(n string) bool {
		return !strings.HasPrefix(n, ".debug") && !strings.HasPrefix(n, ".note") && n != ".comment" && n != ".gnu_debuglink"
	}):
		what += ": notes and debug information, not code"
	case slices.Contains(names, ".go.buildinfo"):
		what += ": Go noted another version or flags"
	}
	return description{cause: what}
}

// elfSections is the digest of each section's bytes.
func elfSections(data []byte) map[string][sha256.Size]byte {
	f := openELF(data)
	if f == nil {
		return nil
	}
	out := map[string][sha256.Size]byte{}
	for i, s := range f.Sections {
		if s.Type == elf.SHT_NOBITS || s.Type == elf.SHT_NULL || s.Offset > uint64(len(data)) || s.FileSize > uint64(len(data))-s.Offset {
			continue
		}
		name := s.Name
		if _, twice := out[name]; twice || name == "" {
			name = fmt.Sprintf("%s (number %d)", name, i)
		}
		out[name] = sha256.Sum256(data[s.Offset : s.Offset+s.FileSize])
	}
	return out
}

// describeBinary says how much differs, and whether it looks like a time.
func describeBinary(a, b []byte) description {
	if len(a) != len(b) {
		return description{
			cause:    fmt.Sprintf("binary data of other sizes, the same up to byte %d", commonPrefix(a, b)),
			original: fmt.Sprintf("%d bytes", len(a)), rebuilt: fmt.Sprintf("%d bytes", len(b)),
		}
	}
	first := commonPrefix(a, b)
	n, last := 0, first
	for i := first; i < len(a); i++ {
		if a[i] != b[i] {
			n, last = n+1, i
		}
	}
	d := description{cause: fmt.Sprintf("%d of %d bytes differ, from byte %d on", n, len(a), first)}
	if x, y, ok := timesAt(a, b, first, last); ok {
		d.cause += ", and look like a time"
		d.original, d.rebuilt = x, y
	}
	return d
}

func commonPrefix(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// timesAt reads the bytes around a short difference as a time in seconds.
func timesAt(a, b []byte, first, last int) (x, y string, ok bool) {
	if last-first >= 4 {
		return "", "", false
	}
	for at := max(0, last-3); at <= first && at+4 <= len(a); at++ {
		for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			s, t := int64(order.Uint32(a[at:])), int64(order.Uint32(b[at:]))
			const y2010, y2100 = 1262304000, 4102444800
			// Two builds of one image are less than ten years apart.
			if s > y2010 && s < y2100 && t > y2010 && t < y2100 && max(s-t, t-s) < 10*365*86400 {
				return time.Unix(s, 0).UTC().Format(time.RFC3339), time.Unix(t, 0).UTC().Format(time.RFC3339), true
			}
		}
	}
	return "", "", false
}
