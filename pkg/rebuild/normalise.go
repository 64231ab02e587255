package rebuild

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"regexp"
	"slices"
	"strings"
)

// A normaliser is a rule by which bytes that mean the same are made the same.
// Its name ends in a version: what a version leaves out never changes.
type normaliser string

// The normalisers.
const (
	compressionV1   normaliser = "compression/v1"
	gzipHeaderV1    normaliser = "gzip-header/v1"
	tarTimesV1      normaliser = "tar-times/v1"
	zipTimesV1      normaliser = "zip-times/v1"
	arHeadersV1     normaliser = "ar-headers/v1"
	pycMtimeV1      normaliser = "pyc-mtime/v1"
	elfBuildIDV1    normaliser = "elf-build-id/v1"
	aptLogsV1       normaliser = "apt-logs/v1"
	ldconfigCacheV1 normaliser = "ldconfig-aux-cache/v1"
	aptCacheV1      normaliser = "apt-cache/v1"
	machineIDV1     normaliser = "machine-id/v1"
	shadowDaysV1    normaliser = "shadow-days/v1"
	fileTimesV1     normaliser = "file-times/v1"
	layerFormV1     normaliser = "layer-form/v1"
	configTimesV1   normaliser = "config-times/v1"
)

// reason says why what the normaliser leaves out is not content.
func (n normaliser) reason() string {
	switch n {
	case compressionV1:
		return "the same content compressed by another program, version or level; unpacked it is the same bytes"
	case gzipHeaderV1:
		return "a gzip header holds the time of compression, the file's name, the level and the kind of system; none of it is content"
	case tarTimesV1:
		return "a tar archive holds the times of its files"
	case zipTimesV1:
		return "a zip archive, and so a jar or wheel, holds the times of its files"
	case arHeadersV1:
		return "an ar archive, and so a static library, holds times and owners of its members, which linkers do not read"
	case pycMtimeV1:
		return "Python's compiled files hold the time of their source, by which Python tells whether they are stale"
	case elfBuildIDV1:
		return "a linker's build id, and the checksum of a file of debug symbols, identify a build and are not run"
	case aptLogsV1:
		return "the logs of apt and dpkg hold the time of the run"
	case ldconfigCacheV1:
		return "ldconfig's aux-cache holds inode numbers and times of the libraries, and is only there to make ldconfig faster"
	case aptCacheV1:
		return "apt's pkgcache.bin and srcpkgcache.bin are made of its package lists, hold their times, and are made anew when they are not there"
	case machineIDV1:
		return "a machine id is a random number that a running system should make for itself"
	case shadowDaysV1:
		return "the third field of /etc/shadow is the day the password was last changed: the day of the build for accounts it made"
	case fileTimesV1:
		return "the times of files in a layer are those of the build"
	case layerFormV1:
		return "the same files in another order, or in another form of tar header, unpack to the same tree"
	case configTimesV1:
		return "the image's configuration holds when it, and each of its layers, was made"
	}
	return ""
}

// leaf is one file without what the normalisers in on leave out. where is its
// path in the image, "" inside an archive, where only what the bytes tell
// counts. data is not changed.
func leaf(where string, data []byte, on func(normaliser) bool) []byte {
	if isPyc(data) && on(pycMtimeV1) {
		data = bytes.Clone(data)
		clear(data[8:12])
	}
	if isELF(data) && on(elfBuildIDV1) {
		data = withoutBuildID(data)
	}
	switch {
	case isPackageLog(where) && on(aptLogsV1):
		data = regexp.MustCompile(logTimes).ReplaceAll(data, []byte("TIME"))
	case where == "var/cache/ldconfig/aux-cache" && on(ldconfigCacheV1):
		data = nil
	case isAptCache(where) && on(aptCacheV1):
		data = nil
	case isMachineID(where) && on(machineIDV1):
		if regexp.MustCompile(`^[0-9a-f]{32}\n?$`).Match(data) {
			data = nil
		}
	case isShadow(where) && on(shadowDaysV1):
		data = withoutDays(data)
	}
	return data
}

// leafNormalisers are those that leaf may use on such a file.
func leafNormalisers(where string, data []byte) []normaliser {
	var out []normaliser
	switch {
	case isPyc(data):
		out = append(out, pycMtimeV1)
	case isELF(data):
		out = append(out, elfBuildIDV1)
	}
	switch {
	case isPackageLog(where):
		out = append(out, aptLogsV1)
	case where == "var/cache/ldconfig/aux-cache":
		out = append(out, ldconfigCacheV1)
	case isAptCache(where):
		out = append(out, aptCacheV1)
	case isMachineID(where):
		out = append(out, machineIDV1)
	case isShadow(where):
		out = append(out, shadowDaysV1)
	}
	return out
}

// logTimes is how apt, dpkg and update-alternatives write times.
const logTimes = `\d{4}-\d\d-\d\d {1,2}\d\d:\d\d:\d\d`

func isPackageLog(where string) bool {
	dir, name, _ := cutLast(where)
	switch dir {
	case "var/log/apt":
		return strings.HasSuffix(name, ".log")
	case "var/log":
		return name == "dpkg.log" || name == "alternatives.log" || name == "bootstrap.log"
	}
	return false
}

func isAptCache(where string) bool {
	return where == "var/cache/apt/pkgcache.bin" || where == "var/cache/apt/srcpkgcache.bin"
}

func isMachineID(where string) bool {
	return where == "etc/machine-id" || where == "var/lib/dbus/machine-id"
}

func isShadow(where string) bool { return where == "etc/shadow" || where == "etc/shadow-" }

func cutLast(p string) (dir, name string, ok bool) {
	i := strings.LastIndexByte(p, '/')
	if i < 0 {
		return "", p, false
	}
	return p[:i], p[i+1:], true
}

// withoutDays blanks the third field of each line of a shadow file.
func withoutDays(data []byte) []byte {
	lines := bytes.Split(data, []byte("\n"))
	for i, l := range lines {
		fields := bytes.Split(l, []byte(":"))
		if len(fields) == 9 && len(bytes.Trim(fields[2], "0123456789")) == 0 {
			fields[2] = nil
			lines[i] = bytes.Join(fields, []byte(":"))
		}
	}
	return bytes.Join(lines, []byte("\n"))
}

// isPyc reports whether data is compiled Python that is checked by the time of
// its source, not by the source's hash.
// https://peps.python.org/pep-0552/
func isPyc(data []byte) bool {
	return len(data) >= 16 && data[2] == '\r' && data[3] == '\n' && binary.LittleEndian.Uint32(data[4:]) == 0 &&
		// Python 3.7 and newer; the number grows by a few with each version.
		binary.LittleEndian.Uint16(data) >= 3390 && binary.LittleEndian.Uint16(data) < 5000
}

func isELF(data []byte) bool { return bytes.HasPrefix(data, []byte("\x7fELF")) }

// span is a piece of a file.
type span struct{ at, size uint64 }

// withoutBuildID zeroes the build id and the checksum of a file of debug
// symbols; what cannot be read stays as it is.
func withoutBuildID(data []byte) []byte {
	spans := buildIDs(data)
	if len(spans) == 0 {
		return data
	}
	data = bytes.Clone(data)
	for _, s := range spans {
		clear(data[s.at : s.at+s.size])
	}
	return data
}

func buildIDs(data []byte) (out []span) {
	f := openELF(data)
	if f == nil {
		return nil
	}
	for _, s := range f.Sections {
		if s.Type == elf.SHT_NOBITS || s.Offset > uint64(len(data)) || s.FileSize > uint64(len(data))-s.Offset {
			continue
		}
		switch {
		case s.Type == elf.SHT_NOTE && s.Name == ".note.gnu.build-id" && s.FileSize > 16:
			// Name size, size, type, "GNU\0", and the id.
			note := data[s.Offset : s.Offset+s.FileSize]
			if f.ByteOrder.Uint32(note) == 4 && bytes.Equal(note[12:16], []byte("GNU\x00")) && uint64(f.ByteOrder.Uint32(note[4:])) == s.FileSize-16 {
				out = append(out, span{s.Offset + 16, s.FileSize - 16})
			}
		case s.Name == ".gnu_debuglink" && s.FileSize >= 8:
			out = append(out, span{s.Offset + s.FileSize - 4, 4})
		}
	}
	return out
}

// openELF is nil for what is no ELF file that can be read. Go's reader is not
// made for hostile files, so its panics end here.
func openELF(data []byte) (f *elf.File) {
	defer func() {
		if recover() != nil {
			f = nil
		}
	}()
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil
	}
	return f
}

// needed is which of candidates cannot be done without: equal holds with all
// of them on. The result is sorted.
func needed(candidates []normaliser, equal func(on func(normaliser) bool) bool) []normaliser {
	keep := slices.Clone(candidates)
	slices.Sort(keep)
	keep = slices.Compact(keep)
	for i := 0; i < len(keep); {
		without := slices.Delete(slices.Clone(keep), i, i+1)
		if equal(onlyThese(without)) {
			keep = without
			continue
		}
		i++
	}
	return keep
}

func onlyThese(list []normaliser) func(normaliser) bool {
	return func(n normaliser) bool { return slices.Contains(list, n) }
}

func all(normaliser) bool { return true }
