// Package corpus reads the cases of testdata/corpus and puts them to a
// verifier: waxseal, in this process or as a program, or anybody's program that
// speaks the protocol of testdata/corpus/README.md. Call List, then Ask each
// case of a Verifier and Compare the answer. The cases are minted by this
// package's tests: go test ./internal/testkit/corpus -run TestMint -update.
package corpus

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// CaseSchema names the form of a case.json; testdata/corpus/case.schema.json is
// its JSON Schema.
const CaseSchema = "https://waxseal.dev/schemas/corpus-case/v1.json"

// Case is one folder of the corpus. All paths in it are relative to the folder.
type Case struct {
	Schema string `json:"schema"`
	Title  string `json:"title"` // what is there, and so what must come of it
	// StandsFor are the vulnerabilities, issues and clauses that it tests.
	StandsFor []string `json:"standsFor,omitempty"`
	Question  Question `json:"question"`
	Trust     Trust    `json:"trust"`
	Expect    Expect   `json:"expect"`

	Name string `json:"-"` // CLASS/NAME
	Dir  string `json:"-"`
}

// Class is the first part of the name.
func (c *Case) Class() string { return filepath.Dir(c.Name) }

// Question is what is asked.
type Question struct {
	Image     string    `json:"image"`               // an OCI image layout
	Reference string    `json:"reference,omitempty"` // :TAG or @DIGEST within it; none: its only image
	Digest    string    `json:"digest"`              // what that is: the manifest or index to judge
	MediaType string    `json:"mediaType,omitempty"`
	At        time.Time `json:"at"` // judge as of this moment
	// Evidence are files beside what the layout itself holds.
	Evidence []string `json:"evidence,omitempty"`
	// Level and Properties are what is asked for; what the policy file declares
	// is among it.
	Level      Levels   `json:"level"`
	Properties []string `json:"properties,omitempty"`
	// Repository is the source repository that is expected.
	Repository string `json:"repository,omitempty"`
	// Ref is the branch or tag that is expected, as a pattern.
	Ref string `json:"ref,omitempty"`
	// Signatures is how many different signers one provenance must have; 0: one.
	Signatures int `json:"signatures,omitempty"`
	// Summary is what verification summaries must be like, and what they may
	// stand in for.
	Summary *Summary `json:"summary,omitempty"`
	// Flags are further arguments of `waxseal verify`.
	Flags []string `json:"flags,omitempty"`
	// Environment is set for the verifier, and must make no difference.
	Environment map[string]string `json:"environment,omitempty"`
	// Registry says that the layout is to be asked for through a registry.
	Registry *Registry `json:"registry,omitempty"`
}

// Levels is a level for each SLSA track; 0 asks for none.
type Levels struct {
	Build  int `json:"build"`
	Source int `json:"source,omitempty"`
}

// Registry is a registry that serves the layout, and how it goes wrong.
type Registry struct {
	NoReferrers bool    `json:"noReferrers,omitempty"` // it has no referrers API
	PageSize    int     `json:"pageSize,omitempty"`    // referrers on one page; 0: all
	Faults      []Fault `json:"faults,omitempty"`
}

// Fault is what a registry does instead of answering, always.
type Fault struct {
	Request string `json:"request"` // regular expression of "METHOD /path"
	Kind    string `json:"kind"`    // an HTTP status, cut, corrupt, or referrers=N
}

// Trust is what is believed, in neutral words, and as waxseal takes it: from
// Policy where there is one.
type Trust struct {
	Policy     string         `json:"policy,omitempty"` // waxseal's form of all the rest
	Keys       []Key          `json:"keys,omitempty"`
	Identities []Identity     `json:"identities,omitempty"`
	Roots      []string       `json:"roots,omitempty"` // Sigstore trusted roots
	CARoots    string         `json:"caRoots,omitempty"`
	CABetween  string         `json:"caIntermediates,omitempty"`
	CRLs       []string       `json:"caCRLs,omitempty"`        // certificate revocation lists, DER
	OCSP       []string       `json:"ocspResponses,omitempty"` // OCSP responses, DER
	Revocation bool           `json:"revocationRequired,omitempty"`
	Builders   []Builder      `json:"builders,omitempty"`
	Verifiers  []VSAVerifier  `json:"verifiers,omitempty"`
	Sources    []SourceSystem `json:"sources,omitempty"`
	Reviewers  []Reviewer     `json:"reviewers,omitempty"`
}

// Key is a public key that may sign, and when.
type Key struct {
	File string `json:"file"`
	Life
}

// Life is when a signer's signatures count. What is not proved to be older than
// Revoked counts no more, whatever date it has.
type Life struct {
	From    time.Time `json:"from,omitzero"`
	Until   time.Time `json:"until,omitzero"`
	Revoked time.Time `json:"revoked,omitzero"`
}

// Identity is whom a certificate may be issued to. One of SAN, Pattern and
// Regexp is given; in a pattern * stands for anything but / and @, ** for
// anything.
type Identity struct {
	Issuer  string `json:"issuer,omitempty"`
	SAN     string `json:"san,omitempty"`
	Pattern string `json:"pattern,omitempty"`
	Regexp  string `json:"regexp,omitempty"`
	Life
}

// Builder is a builder.id, who may sign for it, and the highest Build level.
type Builder struct {
	ID       string    `json:"id"`
	Key      string    `json:"key,omitempty"` // a file of Keys, or
	Identity *Identity `json:"identity,omitempty"`
	MaxLevel int       `json:"maxLevel"`
	// Name is who signs: signers of one name are one.
	Name string `json:"name,omitempty"`
}

// VSAVerifier is whose verification summaries count, and for how much.
type VSAVerifier struct {
	ID         string   `json:"id"`
	Key        string   `json:"key"` // a file
	Levels     Levels   `json:"levels"`
	Properties []string `json:"properties,omitempty"`
}

// Summary is what a verification summary of the image must be like.
type Summary struct {
	ResourceURI  string `json:"resourceUri"`
	PolicyURI    string `json:"policyUri,omitempty"`
	PolicyDigest string `json:"policyDigest,omitempty"`
	MaxAge       int    `json:"maxAge,omitempty"` // days; 0: any age
	// Names must all stand in verifiedLevels.
	Names    []string `json:"names,omitempty"`
	Required bool     `json:"required,omitempty"` // there must be one
	// Delegates is what it may stand in for: build, source, properties.
	Delegates []string `json:"delegates,omitempty"`
}

// SourceSystem is whose source provenance counts for which repositories.
type SourceSystem struct {
	Repository string `json:"repository"` // a pattern
	Key        string `json:"key"`
	MaxLevel   int    `json:"maxLevel"`
	// Properties are those that it is believed about below Source L4 as well.
	Properties []string `json:"properties,omitempty"`
}

// Reviewer is a person whose reviews count, and what else they are called as
// the author of a commit.
type Reviewer struct {
	Name    string   `json:"name"`
	Key     string   `json:"key"`
	Aliases []string `json:"aliases,omitempty"`
}

// The decisions.
const (
	Pass      = "pass"
	Deny      = "deny"
	Undecided = "undecided" // the question could not be answered
	Usage     = "usage"     // what is to be trusted, or asked, is itself refused
)

// Expect is the answer.
type Expect struct {
	Decision string `json:"decision"`
	Reached  Levels `json:"reached"`
	// Properties are the verified properties that hold.
	Properties []string   `json:"properties,omitempty"`
	Reasons    []Reason   `json:"reasons,omitempty"`  // all that stands against it
	Warnings   []Reason   `json:"warnings,omitempty"` // what will, from a later day on
	Waived     []Reason   `json:"waived,omitempty"`   // what would, but for a waiver
	Evidence   []Evidence `json:"evidence,omitempty"` // every piece, and what becomes of it
	// Says is a part of the message, where no code says which refusal it is.
	Says string `json:"says,omitempty"`
}

// Reason is one thing that stands against the image.
type Reason struct {
	Code        string `json:"code,omitempty"` // none of what is waived
	Requirement string `json:"requirement,omitempty"`
	Rule        string `json:"rule,omitempty"`
	Platform    string `json:"platform,omitempty"` // none: the image itself
}

// Evidence is what becomes of one piece.
type Evidence struct {
	// Digest is the sha256 of the piece, without white space around it: of a
	// file, of a line of a .jsonl, of a layer. None for what is a part of a
	// document, which Where names.
	Digest   string `json:"digest,omitempty"`
	Where    string `json:"where,omitempty"`    // the file it is in, where it is in one
	Platform string `json:"platform,omitempty"` // whose it is; none: the image's own
	Code     string `json:"code"`               // "accepted", or why not
}

// Accepted is the code of evidence that counts.
const Accepted = "accepted"

// List reads every case below dir, the folder of the corpus, in order.
func List(dir string) ([]*Case, error) {
	var out []*Case
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() != "case.json" {
			return err
		}
		c, err := Load(filepath.Dir(path))
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, c.Dir)
		c.Name = filepath.ToSlash(name)
		out = append(out, c)
		return err
	})
	return out, err
}

// Load reads one case.
func Load(dir string) (*Case, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "case.json"))
	if err != nil {
		return nil, err
	}
	c := &Case{Dir: dir, Name: filepath.Join(filepath.Base(filepath.Dir(dir)), filepath.Base(dir))}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(c); err != nil {
		return nil, fmt.Errorf("reading case %q: %w", dir, err)
	}
	if c.Schema != CaseSchema {
		return nil, fmt.Errorf("reading case %q: schema %q, want %q", dir, c.Schema, CaseSchema)
	}
	return c, nil
}

// Answer is what a verifier says, and the one line of the protocol. Only the
// decision must be there: what is nil was not said, and is not compared.
type Answer struct {
	Decision   string     `json:"decision"`
	Reached    *Levels    `json:"reached,omitempty"`
	Digest     string     `json:"digest,omitempty"` // of what was judged
	Properties []string   `json:"properties,omitempty"`
	Reasons    []Reason   `json:"reasons,omitempty"`
	Warnings   []Reason   `json:"warnings,omitempty"`
	Waived     []Reason   `json:"waived,omitempty"`
	Evidence   []Evidence `json:"evidence,omitempty"`
	Says       string     `json:"says,omitempty"`
}

// Compare says what differs between the answer and what the case expects;
// nothing: all is as expected.
func (c *Case) Compare(a *Answer) []string {
	var out []string
	differ := func(what string, got, want any) {
		out = append(out, fmt.Sprintf("%s: %v, want %v", what, got, want))
	}
	e := c.Expect
	if a.Decision != e.Decision {
		differ("decision", a.Decision, e.Decision)
	}
	if a.Reached != nil && *a.Reached != e.Reached {
		differ("reached", *a.Reached, e.Reached)
	}
	if a.Digest != "" && e.Decision != Usage && e.Decision != Undecided && a.Digest != c.Question.Digest {
		differ("digest", a.Digest, c.Question.Digest)
	}
	if a.Properties != nil && !slices.Equal(sorted(a.Properties), sorted(e.Properties)) {
		differ("properties", a.Properties, e.Properties)
	}
	for _, list := range []struct {
		what      string
		got, want []Reason
	}{{"reasons", a.Reasons, e.Reasons}, {"warnings", a.Warnings, e.Warnings}, {"waived", a.Waived, e.Waived}} {
		if list.got != nil && !slices.Equal(sortedReasons(list.got), sortedReasons(list.want)) {
			differ(list.what, list.got, list.want)
		}
	}
	if a.Evidence != nil {
		out = append(out, compareEvidence(a.Evidence, e.Evidence)...)
	}
	if a.Says != "" && !bytes.Contains([]byte(a.Says), []byte(e.Says)) {
		differ("says", a.Says, e.Says)
	}
	return out
}

func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }

func sortedReasons(list []Reason) []string {
	var out []string
	for _, r := range list {
		out = append(out, fmt.Sprintf("%q", r))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// compareEvidence wants each piece with its code, and no others. A piece that
// is expected without a digest is known by where it is.
func compareEvidence(got, want []Evidence) []string {
	placed := map[string]bool{}
	for _, e := range want {
		placed[e.Where] = placed[e.Where] || e.Digest == ""
	}
	line := func(e Evidence) string {
		name := e.Digest
		if name == "" || placed[e.Where] {
			name = e.Where
		}
		return fmt.Sprintf("%s %s %s", e.Platform, name, e.Code)
	}
	var out []string
	have, wanted := map[string]bool{}, map[string]bool{}
	for _, e := range got {
		have[line(e)] = true
	}
	for _, e := range want {
		wanted[line(e)] = true
		if !have[line(e)] {
			out = append(out, fmt.Sprintf("evidence: want %q at %q", line(e), e.Where))
		}
	}
	for _, e := range got {
		if !wanted[line(e)] {
			out = append(out, fmt.Sprintf("evidence: got %q at %q", line(e), e.Where))
		}
	}
	return out
}
