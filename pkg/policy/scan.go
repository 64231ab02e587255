package policy

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Scan is an attested result of a vulnerability scanner.
type Scan struct {
	Scanner  string // its URI, as the attestation names it
	Format   string // "trivy", "grype", "snyk" or "sarif"
	Finished time.Time
	Findings []Vulnerability
	Bundle   attest.Digest
	Unread   string // why what it found cannot be read, empty when it can
}

// Vulnerability is one finding: an advisory in a package.
type Vulnerability struct {
	ID       string
	Aliases  []string
	Package  string
	Version  string
	PURL     string
	FixedIn  string
	Fix      Fix
	Severity Severity
	// Known is when the advisory was published, or where a scanner does not
	// say that, when the first fix was; zero when neither is told.
	Known time.Time
}

// others are the names of what it is about, beside its own.
func (v Vulnerability) others() []string {
	return slices.DeleteFunc(slices.Clone(v.Aliases), func(id string) bool { return id == v.ID })
}

// alias is another name of the very same: of an advisory on several none is.
func (v Vulnerability) alias() string {
	if others := v.others(); len(others) == 1 {
		return others[0]
	}
	return ""
}

// Fix says whether there is a version without the vulnerability.
type Fix int

// A scanner that does not say leaves FixUnknown, which counts as available.
const (
	FixUnknown Fix = iota
	FixAvailable
	FixNone
)

// Severity of a vulnerability.
type Severity string

// The severities, worst first. Unknown is counted as critical where a policy
// does not say otherwise.
const (
	Critical        Severity = "critical"
	High            Severity = "high"
	Medium          Severity = "medium"
	Low             Severity = "low"
	Negligible      Severity = "negligible"
	SeverityUnknown Severity = "unknown"
)

func severities() []Severity {
	return []Severity{Critical, High, Medium, Low, Negligible, SeverityUnknown}
}

func severityOf(word string) Severity {
	s := Severity(strings.ToLower(word))
	switch {
	case s == "moderate":
		return Medium
	case s == "important":
		return High
	case s == "none":
		return Negligible
	case slices.Contains(severities(), s):
		return s
	}
	return SeverityUnknown
}

// ReadScan reads cosign's vulnerability predicate with the result of Trivy,
// Grype or Snyk in their own JSON, or of any scanner in SARIF 2.1.0.
// https://github.com/sigstore/cosign/blob/v2.6.5/specs/COSIGN_VULN_ATTESTATION_SPEC.md
//
// One whose result cannot be read is returned beside the error, with its scanner
// and time, and Unread set: another may be newer.
func ReadScan(predicate json.RawMessage) (*Scan, error) {
	s, err := readScan(predicate)
	if err != nil {
		err = fmt.Errorf("reading a vulnerability scan: %w", err)
		if s != nil {
			s.Unread = err.Error()
		}
		return s, err
	}
	return s, nil
}

func readScan(predicate json.RawMessage) (*Scan, error) {
	if len(predicate) > attest.MaxScan {
		return nil, fmt.Errorf("%d bytes, more than the %d allowed", len(predicate), attest.MaxScan)
	}
	var in struct {
		Scanner *struct {
			URI    string          `json:"uri"`
			Result json.RawMessage `json:"result"`
		} `json:"scanner"`
		Metadata struct {
			Finished time.Time `json:"scanFinishedOn"`
		} `json:"metadata"`
	}
	if err := attest.UnmarshalStrict(predicate, &in); err != nil {
		return nil, err
	}
	if in.Scanner == nil || len(in.Scanner.Result) == 0 || string(in.Scanner.Result) == "null" {
		return nil, errors.New(`"/predicate/scanner/result" is missing`)
	}
	out := &Scan{Scanner: in.Scanner.URI, Finished: in.Metadata.Finished}
	var err error
	if out.Format, out.Findings, err = readResult(in.Scanner.Result); err == nil && len(out.Findings) > attest.MaxFindings {
		err = tooMany("findings", attest.MaxFindings)
	}
	if err != nil {
		out.Findings = nil
		return out, err
	}
	out.Scanner = cmp.Or(out.Scanner, out.Format)
	return out, nil
}

// readResult tells the form by what each always writes, and reads it.
func readResult(raw json.RawMessage) (format string, found []Vulnerability, err error) {
	if bytes.HasPrefix(bytes.TrimSpace(raw), []byte("[")) {
		// Snyk writes a list for an image with several projects.
		found, err = readSnykList(raw)
		return "snyk", found, err
	}
	var head struct {
		SchemaVersion int             `json:"SchemaVersion"`
		ArtifactName  *string         `json:"ArtifactName"`
		Matches       json.RawMessage `json:"matches"`
		Descriptor    json.RawMessage `json:"descriptor"`
		OK            *bool           `json:"ok"`
		Findings      json.RawMessage `json:"vulnerabilities"`
		Version       string          `json:"version"`
		Runs          json.RawMessage `json:"runs"`
	}
	if err := attest.UnmarshalStrict(raw, &head); err != nil {
		return "", nil, fmt.Errorf(`"/predicate/scanner/result": %w`, err)
	}
	switch {
	case head.SchemaVersion == 2 && head.ArtifactName != nil:
		found, err = readTrivy(raw)
		return "trivy", found, err
	case isList(head.Matches) && head.Descriptor != nil:
		found, err = readGrype(raw)
		return "grype", found, err
	case isList(head.Runs) && head.Version == "2.1.0":
		found, err = readSARIF(raw)
		return "sarif", found, err
	case isList(head.Findings) && head.OK != nil:
		found, err = readSnyk(raw, 0)
		return "snyk", found, err
	}
	return "", nil, errors.New(`"/predicate/scanner/result" is in no form that is known: JSON of Trivy (SchemaVersion 2), Grype or Snyk, or SARIF 2.1.0`)
}

func isList(raw json.RawMessage) bool { return len(raw) > 0 && raw[0] == '[' }

func readTrivy(raw json.RawMessage) ([]Vulnerability, error) {
	var in struct {
		Results []struct {
			Vulnerabilities []struct {
				ID         string `json:"VulnerabilityID"`
				Package    string `json:"PkgName"`
				Identifier struct {
					PURL string `json:"PURL"`
				} `json:"PkgIdentifier"`
				Installed string    `json:"InstalledVersion"`
				Fixed     string    `json:"FixedVersion"`
				Severity  string    `json:"Severity"`
				Published time.Time `json:"PublishedDate"`
			} `json:"Vulnerabilities"`
		} `json:"Results"`
	}
	if err := attest.UnmarshalStrict(raw, &in); err != nil {
		return nil, err
	}
	var out []Vulnerability
	for _, r := range in.Results {
		for _, v := range r.Vulnerabilities {
			out = append(out, Vulnerability{ID: v.ID, Package: v.Package, Version: v.Installed, PURL: v.Identifier.PURL,
				FixedIn: v.Fixed, Fix: fix(v.Fixed != ""), Severity: severityOf(v.Severity), Known: v.Published})
		}
	}
	return identified(out)
}

func fix(available bool) Fix {
	if available {
		return FixAvailable
	}
	return FixNone
}

// identified refuses findings without an id: nobody could waive them, and the form
// is not what it was taken for.
func identified(found []Vulnerability) ([]Vulnerability, error) {
	for i, v := range found {
		if v.ID == "" {
			return nil, fmt.Errorf("finding %d has no id", i+1)
		}
	}
	return found, nil
}

func readGrype(raw json.RawMessage) ([]Vulnerability, error) {
	var in struct {
		Matches []struct {
			Vulnerability struct {
				ID       string `json:"id"`
				Severity string `json:"severity"`
				Fix      struct {
					Versions  []string `json:"versions"`
					State     string   `json:"state"`
					Available []struct {
						Date string `json:"date"`
					} `json:"available"`
				} `json:"fix"`
			} `json:"vulnerability"`
			Related []struct {
				ID string `json:"id"`
			} `json:"relatedVulnerabilities"`
			Artifact struct {
				Name    string `json:"name"`
				Version string `json:"version"`
				PURL    string `json:"purl"`
			} `json:"artifact"`
		} `json:"matches"`
	}
	if err := attest.UnmarshalStrict(raw, &in); err != nil {
		return nil, err
	}
	var out []Vulnerability
	for _, m := range in.Matches {
		v := Vulnerability{ID: m.Vulnerability.ID, Package: m.Artifact.Name, Version: m.Artifact.Version, PURL: m.Artifact.PURL,
			FixedIn: strings.Join(m.Vulnerability.Fix.Versions, ", "), Severity: severityOf(m.Vulnerability.Severity)}
		switch m.Vulnerability.Fix.State {
		case "fixed":
			v.Fix = FixAvailable
		case "not-fixed", "wont-fix":
			v.Fix = FixNone
		}
		for _, r := range m.Related {
			if r.ID != v.ID {
				v.Aliases = append(v.Aliases, r.ID)
			}
		}
		for _, a := range m.Vulnerability.Fix.Available {
			if t, ok := date(a.Date); ok && (v.Known.IsZero() || t.Before(v.Known)) {
				v.Known = t
			}
		}
		out = append(out, v)
	}
	return identified(out)
}

func date(s string) (time.Time, bool) {
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

func readSnykList(raw json.RawMessage) ([]Vulnerability, error) {
	var in []json.RawMessage
	if err := attest.UnmarshalStrict(raw, &in); err != nil {
		return nil, err
	}
	if len(in) == 0 {
		return nil, errors.New("an empty list of results says nothing")
	}
	var out []Vulnerability
	for _, r := range in {
		found, err := readSnyk(r, 0)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

func readSnyk(raw json.RawMessage, depth int) ([]Vulnerability, error) {
	var in struct {
		OK              *bool           `json:"ok"`
		Error           json.RawMessage `json:"error"`
		Vulnerabilities []struct {
			ID          string   `json:"id"`
			Severity    string   `json:"severity"`
			Critical    string   `json:"severityWithCritical"`
			Package     string   `json:"packageName"`
			Version     string   `json:"version"`
			Nearest     string   `json:"nearestFixedInVersion"`
			FixedIn     []string `json:"fixedIn"`
			Published   string   `json:"publicationTime"`
			Disclosed   string   `json:"disclosureTime"`
			Identifiers struct {
				CVE []string `json:"CVE"`
			} `json:"identifiers"`
		} `json:"vulnerabilities"`
		Applications []json.RawMessage `json:"applications"`
	}
	if err := attest.UnmarshalStrict(raw, &in); err != nil {
		return nil, err
	}
	if in.OK == nil || depth > 1 {
		return nil, errors.New(`a result of Snyk has no "ok"`)
	}
	// What it writes for a project that it could not look at.
	if in.Vulnerabilities == nil || len(in.Error) > 0 && string(in.Error) != "null" {
		return nil, errors.New("a result of Snyk without vulnerabilities, or with an error, says nothing")
	}
	seen := map[string]bool{}
	var out []Vulnerability
	for _, v := range in.Vulnerabilities {
		// Snyk lists a finding once for each path that leads to the package.
		key := v.ID + " " + v.Package + " " + v.Version
		if seen[key] {
			continue
		}
		seen[key] = true
		next := Vulnerability{ID: v.ID, Aliases: v.Identifiers.CVE, Package: v.Package, Version: v.Version,
			FixedIn: cmp.Or(v.Nearest, strings.Join(v.FixedIn, ", ")), Severity: severityOf(v.Severity)}
		if severityOf(v.Critical) == Critical {
			next.Severity = Critical
		}
		next.Fix = fix(next.FixedIn != "")
		for _, s := range []string{v.Published, v.Disclosed} {
			if t, ok := date(s); ok && (next.Known.IsZero() || t.Before(next.Known)) {
				next.Known = t
			}
		}
		out = append(out, next)
	}
	for _, a := range in.Applications {
		found, err := readSnyk(a, depth+1)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return identified(out)
}

// trivy reads what Trivy says of one result, in lines: its rule is shared by all
// packages, and has the severity that it has in the last of them.
func (v *Vulnerability) trivy(text string) {
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch {
		case !ok:
		case key == "Package":
			v.Package = value
		case key == "Installed Version":
			v.Version = value
		case key == "Severity":
			v.Severity = severityOf(value)
		case key == "Fixed Version":
			v.FixedIn, v.Fix = value, fix(value != "")
		}
	}
}

// grypeRule is how Grype names a rule: by the vulnerability and the package.
var grypeRule = regexp.MustCompile(`^(CVE-[0-9]+-[0-9]+|GHSA(?:-[0-9a-z]{4}){3})-(.+)$`)

func readSARIF(raw json.RawMessage) ([]Vulnerability, error) {
	type rule struct {
		ID         string `json:"id"`
		Properties struct {
			Score json.RawMessage `json:"security-severity"`
			PURLs json.RawMessage `json:"purls"`
		} `json:"properties"`
	}
	var in struct {
		Runs []struct {
			Tool struct {
				Driver struct {
					Name  string `json:"name"`
					Rules []rule `json:"rules"`
				} `json:"driver"`
			} `json:"tool"`
			Invocations []struct {
				Successful *bool `json:"executionSuccessful"`
			} `json:"invocations"`
			Results []struct {
				RuleID string `json:"ruleId"`
				Rule   struct {
					ID string `json:"id"`
				} `json:"rule"`
				RuleIndex *int   `json:"ruleIndex"`
				Kind      string `json:"kind"`
				Message   struct {
					Text string `json:"text"`
				} `json:"message"`
				Locations []struct {
					Physical struct {
						Artifact struct {
							URI string `json:"uri"`
						} `json:"artifactLocation"`
					} `json:"physicalLocation"`
				} `json:"locations"`
			} `json:"results"`
		} `json:"runs"`
	}
	if err := attest.UnmarshalStrict(raw, &in); err != nil {
		return nil, err
	}
	if len(in.Runs) == 0 {
		return nil, errors.New("SARIF without a run says nothing")
	}
	var out []Vulnerability
	for _, run := range in.Runs {
		// No results at all is what a tool writes that could not look.
		if run.Results == nil {
			return nil, errors.New("a SARIF run without results says nothing")
		}
		for _, i := range run.Invocations {
			if i.Successful != nil && !*i.Successful {
				return nil, errors.New("a SARIF run says of itself that it did not succeed")
			}
		}
		rules := map[string]rule{}
		for _, r := range run.Tool.Driver.Rules {
			rules[r.ID] = r
		}
		for _, r := range run.Results {
			id := cmp.Or(r.RuleID, r.Rule.ID)
			if i := r.RuleIndex; id == "" && i != nil && *i >= 0 && *i < len(run.Tool.Driver.Rules) {
				id = run.Tool.Driver.Rules[*i].ID
			}
			if slices.Contains([]string{"pass", "notApplicable", "informational"}, r.Kind) {
				continue
			}
			v := Vulnerability{ID: id, Severity: score(rules[id].Properties.Score)}
			if len(r.Locations) > 0 {
				v.Package = r.Locations[0].Physical.Artifact.URI
			}
			if run.Tool.Driver.Name == "Trivy" {
				v.trivy(r.Message.Text)
			}
			if m := grypeRule.FindStringSubmatch(id); m != nil && run.Tool.Driver.Name == "grype" {
				v.ID, v.Package = m[1], m[2]
				var purls []string
				if err := json.Unmarshal(rules[id].Properties.PURLs, &purls); err == nil && len(purls) == 1 {
					v.PURL = purls[0]
				}
			}
			out = append(out, v)
		}
	}
	return identified(out)
}

// score maps a CVSS score to its word. None at all (0.0) is what Trivy and Grype
// write where they do not know.
// https://www.first.org/cvss/v3.1/specification-document (5. Qualitative Severity Rating Scale)
func score(raw json.RawMessage) Severity {
	f, err := strconv.ParseFloat(strings.Trim(string(raw), `"`), 64)
	switch {
	case err != nil || f != f || f <= 0 || f > 10:
		return SeverityUnknown
	case f >= 9:
		return Critical
	case f >= 7:
		return High
	case f >= 4:
		return Medium
	}
	return Low
}

// VEX is an OpenVEX document.
type VEX struct {
	Bundle     attest.Digest
	id         string
	version    int // of the document; 0: none that can be read
	time       time.Time
	statements []vexStatement
}

type vexStatement struct {
	ids       []string
	products  []vexProduct
	status    string
	justified bool
	time      time.Time
}

type vexProduct struct {
	names []string // @id, identifiers and hashes
	parts []string // package URLs of subcomponents
}

// ReadVEX reads an OpenVEX document, strictly.
// https://github.com/openvex/spec/blob/v0.2.0/OPENVEX-SPEC.md
func ReadVEX(predicate json.RawMessage) (*VEX, error) {
	v, err := readVEX(predicate)
	if err != nil {
		return nil, fmt.Errorf("reading an OpenVEX document: %w", err)
	}
	return v, nil
}

func readVEX(predicate json.RawMessage) (*VEX, error) {
	if len(predicate) > attest.MaxVEX {
		return nil, fmt.Errorf("%d bytes, more than the %d allowed", len(predicate), attest.MaxVEX)
	}
	var in struct {
		Context    string          `json:"@context"`
		ID         string          `json:"@id"`
		Version    json.RawMessage `json:"version"`
		Timestamp  time.Time       `json:"timestamp"`
		Updated    time.Time       `json:"last_updated"`
		Statements []struct {
			Vulnerability json.RawMessage   `json:"vulnerability"`
			Timestamp     time.Time         `json:"timestamp"`
			Updated       time.Time         `json:"last_updated"`
			Products      []json.RawMessage `json:"products"`
			Status        string            `json:"status"`
			Justification string            `json:"justification"`
			Impact        string            `json:"impact_statement"`
		} `json:"statements"`
	}
	if err := attest.UnmarshalStrict(predicate, &in); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(in.Context, "https://openvex.dev/ns") {
		return nil, fmt.Errorf(`"/predicate/@context" is %q, not OpenVEX`, clip(in.Context))
	}
	if len(in.Statements) > attest.MaxFindings {
		return nil, tooMany("statements", attest.MaxFindings)
	}
	out := &VEX{id: in.ID, time: newest(in.Updated, in.Timestamp)}
	if n, err := strconv.Atoi(strings.Trim(string(in.Version), `"`)); err == nil { // a text before v0.2.0
		out.version = n
	}
	for i, s := range in.Statements {
		next := vexStatement{status: s.Status, justified: s.Justification != "" || s.Impact != "", time: newest(s.Updated, s.Timestamp)}
		if next.time.IsZero() {
			next.time = out.time
		}
		if !slices.Contains([]string{"not_affected", "affected", "fixed", "under_investigation"}, s.Status) {
			return nil, fmt.Errorf(`"/predicate/statements/%d/status" is %q`, i, clip(s.Status))
		}
		var err error
		if next.ids, err = vexIDs(s.Vulnerability); err != nil {
			return nil, fmt.Errorf(`"/predicate/statements/%d/vulnerability": %w`, i, err)
		}
		for j, raw := range s.Products {
			p, err := vexProductOf(raw)
			if err != nil {
				return nil, fmt.Errorf(`"/predicate/statements/%d/products/%d": %w`, i, j, err)
			}
			next.products = append(next.products, p)
		}
		out.statements = append(out.statements, next)
	}
	return out, nil
}

func newest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func vexIDs(raw json.RawMessage) ([]string, error) {
	var name string
	if json.Unmarshal(raw, &name) == nil && name != "" {
		return []string{name}, nil
	}
	var in struct {
		ID      string   `json:"@id"`
		Name    string   `json:"name"`
		Aliases []string `json:"aliases"`
	}
	if err := attest.UnmarshalStrict(raw, &in); err != nil {
		return nil, err
	}
	if in.Name == "" {
		return nil, errors.New("it has no name")
	}
	return append(in.Aliases, in.Name), nil
}

func vexProductOf(raw json.RawMessage) (vexProduct, error) {
	type thing struct {
		ID          string            `json:"@id"`
		Identifiers map[string]string `json:"identifiers"`
		Hashes      map[string]string `json:"hashes"`
	}
	names := func(t thing) []string {
		var out []string
		if t.ID != "" {
			out = append(out, t.ID)
		}
		if p := t.Identifiers["purl"]; p != "" {
			out = append(out, p)
		}
		if h := t.Hashes["sha-256"]; h != "" {
			out = append(out, "sha256:"+strings.ToLower(h))
		}
		return out
	}
	var plain string
	if json.Unmarshal(raw, &plain) == nil && plain != "" {
		return vexProduct{names: []string{plain}}, nil
	}
	var itself thing
	var in struct {
		Parts []json.RawMessage `json:"subcomponents"`
	}
	for _, v := range []any{&itself, &in} {
		if err := attest.UnmarshalStrict(raw, v); err != nil {
			return vexProduct{}, err
		}
	}
	out := vexProduct{names: names(itself)}
	for _, p := range in.Parts {
		var text string
		if json.Unmarshal(p, &text) == nil {
			out.parts = append(out.parts, text)
			continue
		}
		var t thing
		if err := attest.UnmarshalStrict(p, &t); err != nil {
			return vexProduct{}, err
		}
		out.parts = append(out.parts, names(t)...)
	}
	if len(in.Parts) > 0 && len(out.parts) == 0 {
		return vexProduct{}, errors.New("its subcomponents have no name")
	}
	return out, nil
}

// about reports whether a statement on the vulnerability speaks of this finding
// in the image. One without products is about the subject of its attestation.
func (s vexStatement) about(v Vulnerability, image subject) bool {
	if len(s.products) == 0 {
		return true
	}
	return slices.ContainsFunc(s.products, func(p vexProduct) bool { return p.covers(v, image) })
}

func (p vexProduct) covers(v Vulnerability, image subject) bool {
	for _, n := range p.names {
		switch {
		case image.is(unescape(n)):
			if len(p.parts) == 0 || slices.ContainsFunc(p.parts, func(part string) bool { return samePackage(part, v.PURL) }) {
				return true
			}
		case len(p.parts) == 0 && samePackage(n, v.PURL):
			return true
		}
	}
	return false
}

// subject is the image that a document speaks of.
type subject struct {
	digest attest.Digest
	name   string // "host/repository"
}

// is reports whether a product is the image: by its digest, or where it states
// none by its name, as a package URL or a reference.
func (s subject) is(product string) bool {
	if _, digest, ok := strings.Cut(product, "sha256:"); ok {
		digest, _, _ = strings.Cut(digest, "?")
		return digest == s.digest.Hex()
	}
	if of, ok := strings.CutPrefix(product, "pkg:oci/"); ok {
		of, query, _ := strings.Cut(of, "?")
		q, err := url.ParseQuery(query)
		at := q.Get("repository_url")
		return err == nil && strings.EqualFold(of, path.Base(s.name)) && (at == "" || canonical(at) == canonical(s.name))
	}
	if i := strings.LastIndexByte(product, ':'); i > strings.LastIndexByte(product, '/') {
		product = product[:i]
	}
	return product != "" && canonical(product) == canonical(s.name)
}

// samePackage compares package URLs. One without a version stands for each; what
// it says of the architecture, the distribution or a part must be so.
func samePackage(stated, found string) bool {
	a, ok := parsePURL(stated)
	b, found2 := parsePURL(found)
	if !ok || !found2 || a.name != b.name || a.version != "" && a.version != b.version {
		return false
	}
	stated, part, _ := strings.Cut(stated, "#")
	found, partFound, _ := strings.Cut(found, "#")
	_, asked, _ := strings.Cut(stated, "?")
	_, is, _ := strings.Cut(found, "?")
	want, err := url.ParseQuery(asked)
	got, err2 := url.ParseQuery(is)
	if err != nil || err2 != nil || part != "" && part != partFound {
		return false
	}
	for key := range want {
		if want.Get(key) != got.Get(key) {
			return false
		}
	}
	return true
}

// excuse returns the documents whose latest word on the finding is that the
// image is not affected. An advisory of several vulnerabilities is excused when
// each of them is, by a word on it or on the advisory itself.
func (x vexIndex) excuse(v Vulnerability, image subject, at time.Time) ([]attest.Digest, bool) {
	others := v.others()
	if len(others) == 0 {
		others = []string{v.ID}
	}
	var by []attest.Digest
	for _, id := range others {
		bundle, excused := x.latest(v, []string{v.ID, id}, image, at)
		if !excused {
			return nil, false
		}
		by = append(by, bundle)
	}
	return by, true
}

// latest returns the document with the last word on any of the names of a
// finding, and whether that excuses. At the same moment the worse word holds.
func (x vexIndex) latest(v Vulnerability, names []string, image subject, at time.Time) (attest.Digest, bool) {
	var last time.Time
	var by attest.Digest
	spoken, excused := false, false
	for _, id := range names {
		for _, s := range x[id] {
			if later(s.time, at) || !s.about(v, image) {
				continue
			}
			good := s.status == "not_affected" && s.justified
			switch {
			case !spoken || s.time.After(last):
				spoken, last, excused, by = true, s.time, good, s.bundle
			case s.time.Equal(last) && !good:
				excused = false
			}
		}
	}
	return by, excused
}

// vexIndex finds statements by the vulnerability that they speak of.
type vexIndex map[string][]indexed

type indexed struct {
	vexStatement
	bundle attest.Digest
}

// indexVEX leaves out what excuses in a document that a later version of it has
// taken the place of.
func indexVEX(all []VEX, at time.Time) vexIndex {
	last := map[string]int{}
	for _, doc := range all {
		if !later(doc.time, at) {
			last[doc.id] = max(last[doc.id], doc.version)
		}
	}
	out := vexIndex{}
	for _, doc := range all {
		old := doc.id != "" && doc.version < last[doc.id]
		for _, s := range doc.statements {
			if old && s.status == "not_affected" {
				continue
			}
			for _, id := range s.ids {
				out[id] = append(out[id], indexed{s, doc.Bundle})
			}
		}
	}
	return out
}
