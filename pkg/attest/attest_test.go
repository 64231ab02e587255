package attest_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/pkg/attest"
)

const hex64 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"

func statement(subject string) string {
	return `{"_type":"https://in-toto.io/Statement/v1","subject":` + subject + `,"predicateType":"https://example.com/p","predicate":{"a":1}}`
}

func good() string { return statement(`[{"name":"img","digest":{"sha256":"` + hex64 + `"}}]`) }

func TestUnmarshalStrict(t *testing.T) {
	type inner struct {
		ID string `json:"id"`
	}
	type doc struct {
		Name  string            `json:"name"`
		Inner []inner           `json:"inner"`
		Env   map[string]string `json:"env"`
		Ptr   *inner            `json:"ptr"`
		Map   map[string]inner  `json:"map"`
		Raw   json.RawMessage   `json:"raw"`
	}
	many := func(last string) string {
		var b strings.Builder
		for i := range 100 {
			fmt.Fprintf(&b, `"k%d":0,`, i)
		}
		return "{" + b.String() + `"` + last + `":1}`
	}
	for name, c := range map[string]struct {
		in   string
		want string // "" is accepted
	}{
		"plain":                    {in: `{"name":"a","inner":[{"id":"x"}],"other":{"Name":1}}`},
		"every kind of value":      {in: ` {"other":[1,-2.5e+3,true,false,null,"é😀\u00e9\ud83d\ude00\n",{},[]]} `},
		"map keys are data":        {in: `{"env":{"http_proxy":"a","HTTP_PROXY":"b"}}`},
		"raw values are opaque":    {in: `{"raw":{"id":1,"ID":2}}`},
		"many keys":                {in: many("last")},
		"duplicate":                {in: `{"name":"a","name":"b"}`, want: `"/name": duplicate`},
		"duplicate by escape":      {in: `{"name":"a","n\u0061me":"b"}`, want: `"/name": duplicate`},
		"duplicate in unknown":     {in: `{"x":{"y":[{"z":1,"z":1}]}}`, want: `"/x/y/0/z": duplicate`},
		"duplicate among many":     {in: many("k50"), want: `"/k50": duplicate`},
		"case variant beside":      {in: `{"name":"a","Name":"b"}`, want: `"/Name": the key is spelled "name"`},
		"case variant alone":       {in: `{"NAME":"b"}`, want: `"/NAME": the key is spelled "name"`},
		"case variant by folding":  {in: `{"inner":[{"ıd":1}]}`},
		"case variant of a map":    {in: `{"ENV":{}}`, want: `spelled "env"`},
		"case variant inside":      {in: `{"inner":[{"id":"x"},{"Id":"y"}]}`, want: `"/inner/1/Id": the key is spelled "id"`},
		"case variant by pointer":  {in: `{"ptr":{"ID":"y"}}`, want: `"/ptr/ID": the key is spelled "id"`},
		"case variant in a map":    {in: `{"map":{"k":{"ID":"y"}}}`, want: `"/map/k/ID": the key is spelled "id"`},
		"an array for a struct":    {in: `[1]`, want: "found array where an object is expected"},
		"trailing value":           {in: `{} {}`, want: "after the end"},
		"trailing bracket":         {in: `{}]`, want: "after the end"},
		"empty":                    {in: ``, want: "ends early"},
		"cut":                      {in: `{"name":`, want: "ends early"},
		"cut string":               {in: `{"name":"`, want: `"/name": the document ends early`},
		"cut key":                  {in: `{"na`, want: "ends early"},
		"no colon":                 {in: `{"name" 1}`, want: "expecting ':'"},
		"trailing comma":           {in: `{"name":"a",}`, want: "invalid character ','"},
		"array comma":              {in: `{"inner":[{},]}`, want: `"/inner": invalid character`},
		"bad number":               {in: `{"x":01}`, want: "expecting ','"},
		"lone minus":               {in: `{"x":-}`, want: `"/x": invalid character '}' in number`},
		"NaN":                      {in: `{"x":NaN}`, want: `"/x": invalid character`},
		"control character":        {in: "{\"x\":\"\n\"}", want: "control character"},
		"bad escape":               {in: `{"x":"\x"}`, want: `"/x": invalid escape`},
		"invalid UTF-8":            {in: "{\"x\":\"\xff\"}", want: "invalid UTF-8 at byte 6"},
		"half a pair":              {in: `{"x":"\ud83d"}`, want: "surrogate"},
		"two high halves":          {in: `{"x":"\ud83d\ud83d"}`, want: "surrogate"},
		"low half first":           {in: `{"x":"\udc00"}`, want: "surrogate"},
		"byte order mark":          {in: "\xef\xbb\xbf{}", want: "invalid character"},
		"as deep as allowed":       {in: strings.Repeat(`{"a":[`, 64) + "1" + strings.Repeat("]}", 64)},
		"one too deep":             {in: strings.Repeat(`{"a":[`, 64) + `{"b":1}` + strings.Repeat("]}", 64), want: "deeper than 128"},
		"too deep":                 {in: strings.Repeat("[", 200) + strings.Repeat("]", 200), want: "deeper than 128"},
		"too deep, unclosed":       {in: strings.Repeat(`{"a":`, 1<<20), want: "deeper than 128"},
		"wrong type":               {in: `{"name":1}`, want: `"/name": found number where string`},
		"pointer escapes":          {in: `{"a/b~":{"x":1,"x":2}}`, want: `"/a~1b~0/x"`},
		"long pointers are cut":    {in: strings.Repeat(`{"`+strings.Repeat("k", 50)+`":`, 20) + "!", want: "…"},
		"unterminated after value": {in: `{"a":1`, want: "ends early"},
	} {
		t.Run(name, func(t *testing.T) {
			var d doc
			err := attest.UnmarshalStrict([]byte(c.in), &d)
			check(t, err, c.want)
			if c.want == "" {
				if err := attest.UnmarshalStrict([]byte(c.in), nil); err != nil {
					t.Errorf("check only: %v", err)
				}
			}
		})
	}
	if err := attest.UnmarshalStrict([]byte(`{}`), doc{}); err == nil {
		t.Error("a value that is no pointer was accepted")
	}
}

func TestParseStatement(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"v1":                   {in: good()},
		"v0.1":                 {in: strings.Replace(good(), "Statement/v1", "Statement/v0.1", 1)},
		"no predicate":         {in: strings.Replace(good(), `,"predicate":{"a":1}`, "", 1)},
		"unknown field":        {in: strings.Replace(good(), `{"_type"`, `{"later":1,"_type"`, 1)},
		"other subject fields": {in: statement(`[{"uri":"x","annotations":{"A":1,"a":1},"digest":{"gitCommit":"abc"}}]`)},
		"type missing":         {in: `{"subject":[]}`, want: `"/_type" is missing`},
		"type of tomorrow":     {in: strings.Replace(good(), "Statement/v1", "Statement/v2", 1), want: `"/_type" is`},
		"type with slash":      {in: strings.Replace(good(), `Statement/v1"`, `Statement/v1/"`, 1), want: `"/_type" is`},
		"predicate type":       {in: strings.Replace(good(), "https://example.com/p", "", 1), want: `"/predicateType" is missing`},
		"no subject":           {in: statement(`[]`), want: "names nothing"},
		"null subject":         {in: statement(`null`), want: "names nothing"},
		"subject not a list":   {in: statement(`{}`), want: `at "/subject"`},
		"subject no digest":    {in: statement(`[{"name":"a"}]`), want: `"/subject/0/digest" is missing`},
		"upper-case digest":    {in: statement(`[{"digest":{"sha256":"` + strings.ToUpper(hex64) + `"}}]`), want: "lower-case"},
		"short digest":         {in: statement(`[{"digest":{"sha256":"abc"}}]`), want: "64 lower-case"},
		"prefixed digest":      {in: statement(`[{"digest":{"sha256":"sha256:` + hex64 + `"}}]`), want: "64 lower-case"},
		"too many subjects":    {in: statement(`[` + strings.Repeat(`{"digest":{"a":"b"}},`, 20_000) + `{"digest":{"a":"b"}}]`), want: "more than the 16384"},
		"predicate a string":   {in: strings.Replace(good(), `{"a":1}`, `"x"`, 1), want: "not an object"},
		"predicate null":       {in: strings.Replace(good(), `{"a":1}`, `null`, 1), want: "not an object"},
		"Subject beside":       {in: strings.Replace(good(), `"subject":`, `"Subject":[],"subject":`, 1), want: `"/Subject": the key is spelled`},
		"Digest beside":        {in: statement(`[{"Digest":{},"digest":{"sha256":"` + hex64 + `"}}]`), want: `"/subject/0/Digest"`},
		"two subjects fields":  {in: strings.Replace(good(), `"subject":`, `"subject":[],"subject":`, 1), want: "duplicate"},
		"duplicate in depth":   {in: strings.Replace(good(), `{"a":1}`, `{"a":{"b":1,"b":2}}`, 1), want: `"/predicate/a/b": duplicate`},
		"two documents":        {in: good() + good(), want: "after the end"},
		"list":                 {in: `[]`, want: "not a JSON object"},
		"empty object":         {in: `{}`, want: "not a JSON object"},
		"too large":            {in: strings.Repeat(" ", attest.MaxStatement+1), want: "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			st, err := attest.ParseStatement([]byte(c.in))
			check(t, err, c.want)
			if err == nil && string(st.Raw()) != c.in {
				t.Error("raw bytes changed")
			}
		})
	}
}

// What there is too many of costs no more than finding that out.
func TestManyAreRefusedBeforeTheyAreDecoded(t *testing.T) {
	many := func(s string) string { return strings.Repeat(s+",", (4<<20)/(len(s)+1)) + s }
	bundle := func(material string) string {
		return `{"mediaType":"` + attest.BundleMediaType + `","verificationMaterial":{` + material + `},"dsseEnvelope":{"payload":"","payloadType":"","signatures":[]}}`
	}
	members := func(format string) string {
		var b strings.Builder
		for n := range 300_000 {
			fmt.Fprintf(&b, format+",", n)
		}
		return strings.TrimSuffix(b.String(), ",")
	}
	for name, c := range map[string]struct{ in, want string }{
		"log entries":           {bundle(`"tlogEntries":[` + many(`{}`) + `]`), `"/verificationMaterial/tlogEntries`},
		"log entries, proto":    {strings.Replace(bundle(`"tlog_entries":[`+many(`{}`)+`]`), "verificationMaterial", "verification_material", 1), "more than the 1024 allowed"},
		"hashes of a proof":     {bundle(`"tlogEntries":[{"inclusionProof":{"hashes":[` + many(`""`) + `]}}]`), "more than the 64 allowed"},
		"time stamps":           {bundle(`"timestampVerificationData":{"rfc3161Timestamps":[` + many(`{}`) + `]}`), "more than the 1024 allowed"},
		"certificates":          {bundle(`"x509CertificateChain":{"certificates":[` + many(`{}`) + `]}`), "more than the 1024 allowed"},
		"signatures":            {strings.Replace(bundle(`"publicKey":{}`), `"signatures":[`, `"signatures":[`+many(`{}`), 1), "more than the 16 allowed"},
		"signatures, bare":      {`{"payload":"","payloadType":"","signatures":[` + many(`{}`) + `]}`, "more than the 16 allowed"},
		"members of a bundle":   {`{"mediaType":"",` + members(`"%d":1`) + `}`, "more than the 1024 members"},
		"subjects":              {statement(`[` + many(`{}`) + `]`), "more than the 16384 allowed"},
		"digests of a subject":  {statement(`[{"digest":{` + members(`"%d":""`) + `}}]`), "more than the 64 members"},
		"members of a document": {strings.Replace(good(), `{`, `{`+members(`"%d":1`)+`,`, 1), "more than the 1024 members"},
	} {
		t.Run(name, func(t *testing.T) {
			raw := []byte(c.in)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			var err error
			if bytes.Contains(raw, []byte(`"_type"`)) {
				_, err = attest.ParseStatement(raw)
			} else {
				_, err = attest.ParseBundle(raw)
			}
			runtime.ReadMemStats(&after)
			check(t, err, c.want)
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
				t.Errorf("%d bytes were allocated for %d", n, len(raw))
			}
		})
	}
}

func TestBinds(t *testing.T) {
	d := attest.Digest("sha256:" + hex64)
	other := strings.Repeat("0", 64)
	for name, c := range map[string]struct {
		subject string
		want    bool
	}{
		"only":                {`[{"digest":{"sha256":"` + hex64 + `"}}]`, true},
		"second":              {`[{"digest":{"sha256":"` + other + `"}},{"digest":{"sha256":"` + hex64 + `"}}]`, true},
		"another":             {`[{"digest":{"sha256":"` + other + `"}}]`, false},
		"under a wrong name":  {`[{"digest":{"gitCommit":"` + hex64 + `"}}]`, false},
		"under SHA256":        {`[{"digest":{"SHA256":"` + hex64 + `"}}]`, false},
		"sha512 only":         {`[{"digest":{"sha512":"` + hex64 + hex64 + `"}}]`, false},
		"name looks like one": {`[{"name":"sha256:` + hex64 + `","digest":{"sha256":"` + other + `"}}]`, false},
	} {
		t.Run(name, func(t *testing.T) {
			st, err := attest.ParseStatement([]byte(statement(c.subject)))
			if err != nil {
				t.Fatal(err)
			}
			if got := st.Binds(d); got != c.want {
				t.Errorf("Binds = %v, want %v", got, c.want)
			}
			if st.Binds("") || st.Binds("sha256:") || st.Binds("sha512:"+d[7:]) && !c.want {
				t.Error("binds a digest that is none")
			}
		})
	}
}

func TestCommits(t *testing.T) {
	id, other := strings.Repeat("ab", 20), strings.Repeat("cd", 20)
	for name, c := range map[string]struct {
		digest string
		want   bool
	}{
		"gitCommit":           {`{"gitCommit":"` + id + `"}`, true},
		"sha1":                {`{"sha1":"` + id + `"}`, true},
		"both":                {`{"sha1":"` + id + `","gitCommit":"` + id + `"}`, true},
		"both, and two":       {`{"sha1":"` + other + `","gitCommit":"` + id + `"}`, false},
		"another":             {`{"gitCommit":"` + other + `"}`, false},
		"its first digits":    {`{"gitCommit":"` + id[:12] + `"}`, false},
		"upper case":          {`{"gitCommit":"` + strings.ToUpper(id) + `"}`, false},
		"under a wrong name":  {`{"gitTree":"` + id + `"}`, false},
		"spelled differently": {`{"gitcommit":"` + id + `"}`, false},
	} {
		st, err := attest.ParseStatement([]byte(statement(`[{"digest":{"sha256":"` + hex64 + `"}},{"digest":` + c.digest + `,"annotations":{"a":1}}]`)))
		if err != nil {
			t.Fatal(name, err)
		}
		got := st.Commits(id)
		if (len(got) == 1) != c.want || len(got) == 1 && string(got[0].Annotations) != `{"a":1}` {
			t.Errorf("%s: %+v", name, got)
		}
		if len(st.Commits("")) != 0 || len(st.Commits(id[:12])) != 0 {
			t.Errorf("%s: it names a commit that is none", name)
		}
	}
	if !attest.IsCommit(hex64) || attest.IsCommit(hex64[:50]) {
		t.Error("the commit of a repository with SHA-256")
	}
}

func TestNewStatement(t *testing.T) {
	subjects := []attest.Subject{{Name: "img", Digest: map[string]string{"sha256": hex64}}}
	st, err := attest.NewStatement("https://example.com/p", subjects, map[string]any{"url": "a?b&c=<d>"})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"img","digest":{"sha256":"` + hex64 + `"}}],"predicateType":"https://example.com/p","predicate":{"url":"a?b&c=<d>"}}`
	if string(st.Raw()) != want {
		t.Errorf("got  %s\nwant %s", st.Raw(), want)
	}
	raw, err := attest.NewStatement("https://example.com/p", subjects, json.RawMessage(`{ "n": 1.50, "big": 12345678901234567890 }`))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(raw.Raw(), []byte(`{"n":1.50,"big":12345678901234567890}`)) {
		t.Errorf("numbers changed: %s", raw.Raw())
	}
	for name, err := range map[string]error{
		"no subject":       second(attest.NewStatement("p", nil, struct{}{})),
		"no type":          second(attest.NewStatement("", subjects, struct{}{})),
		"predicate a list": second(attest.NewStatement("p", subjects, []int{1})),
		"duplicate keys":   second(attest.NewStatement("p", subjects, json.RawMessage(`{"a":1,"a":2}`))),
		"not JSON":         second(attest.NewStatement("p", subjects, make(chan int))),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func second(_ *attest.Statement, err error) error { return err }

func TestParseDigest(t *testing.T) {
	for in, ok := range map[string]bool{
		"sha256:" + hex64:                  true,
		hex64:                              false,
		"sha512:" + hex64 + hex64:          false,
		"sha256:" + strings.ToUpper(hex64): false,
		"SHA256:" + hex64:                  false,
		"sha256:" + hex64 + "0":            false,
		"":                                 false,
	} {
		d, err := attest.ParseDigest(in)
		if (err == nil) != ok {
			t.Errorf("ParseDigest(%q): %v", in, err)
		}
		if ok && d.Hex() != hex64 {
			t.Errorf("Hex = %q", d.Hex())
		}
	}
	if got := attest.DigestOf([]byte("hello")); got != "sha256:"+hex64 {
		t.Errorf("DigestOf = %s", got)
	}
}

func envelope(payload string) string {
	return `{"payloadType":"application/vnd.in-toto+json","payload":"` + base64.StdEncoding.EncodeToString([]byte(payload)) + `","signatures":[{"keyid":"","sig":"c2ln"}]}`
}

func sigstoreBundle(env string) string {
	return `{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"h"}},"dsseEnvelope":` + env + `}`
}

func TestParseBundle(t *testing.T) {
	b := sigstoreBundle(envelope(good()))
	for name, c := range map[string]struct{ in, want string }{
		"bundle":                {in: b},
		"DSSE":                  {in: envelope(good())},
		"bundle v0.1":           {in: strings.Replace(b, "bundle.v0.3+json", "bundle+json;version=0.1", 1)},
		"DSSE, URL alphabet":    {in: strings.Replace(envelope(good()), `"c2ln"`, `"-_-_"`, 1)},
		"wrong payload type":    {in: strings.Replace(b, "in-toto+json", "in-toto.json", 1), want: "payload type"},
		"payload type case":     {in: strings.Replace(b, "application/vnd.in-toto", "application/vnd.In-Toto", 1), want: "payload type"},
		"no signature":          {in: strings.Replace(b, `{"keyid":"","sig":"c2ln"}`, ``, 1), want: "no signature"},
		"empty signature":       {in: strings.Replace(b, `c2ln`, ``, 1), want: "signature 0 is empty"},
		"many signatures":       {in: strings.Replace(b, `{"keyid":"","sig":"c2ln"}`, strings.Repeat(`{"sig":"c2ln"},`, 20)+`{"sig":"c2ln"}`, 1), want: "more than the 16 allowed"},
		"many DSSE signatures":  {in: strings.Replace(envelope(good()), `{"keyid":"","sig":"c2ln"}`, strings.Repeat(`{"sig":"c2ln"},`, 20)+`{"sig":"c2ln"}`, 1), want: "more than the 16 allowed"},
		"bundle v0.4":           {in: strings.Replace(b, "v0.3", "v0.4", 1), want: "media type"},
		"no key":                {in: strings.Replace(b, `"publicKey":{"hint":"h"}`, ``, 1), want: "neither a public key"},
		"unknown bundle field":  {in: strings.Replace(b, `{"mediaType"`, `{"x":1,"mediaType"`, 1), want: "Sigstore bundle"},
		"duplicate":             {in: strings.Replace(b, `{"mediaType"`, `{"mediaType":"x","mediaType"`, 1), want: "duplicate"},
		"case variant":          {in: strings.Replace(b, `"dsseEnvelope"`, `"DsseEnvelope":{},"dsseEnvelope"`, 1), want: "spelled"},
		"DSSE case variant":     {in: strings.Replace(envelope(good()), `"payload"`, `"Payload":"","payload"`, 1), want: "spelled"},
		"case variant below":    {in: strings.Replace(b, `"publicKey"`, `"PublicKey"`, 1), want: "unknown field"},
		"two spellings":         {in: strings.Replace(b, `"dsseEnvelope"`, `"dsse_envelope":{},"dsseEnvelope"`, 1), want: "Sigstore bundle"},
		"two contents":          {in: strings.Replace(b, `"dsseEnvelope"`, `"messageSignature":{},"dsseEnvelope"`, 1), want: "Sigstore bundle"},
		"trailing":              {in: b + "{}", want: "after the end"},
		"both forms":            {in: strings.Replace(b, `{"mediaType"`, `{"payload":"","mediaType"`, 1), want: "both"},
		"message signature":     {in: `{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"h"}},"messageSignature":{"signature":"c2ln"}}`, want: "plain bytes"},
		"no content":            {in: `{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"h"}}}`, want: "no DSSE envelope"},
		"a bare statement":      {in: good(), want: "neither a Sigstore bundle"},
		"payload not base64":    {in: strings.Replace(envelope(good()), `"payload":"`, `"payload":"*`, 1), want: `"/payload": not base64`},
		"payload in lines":      {in: strings.Replace(envelope(good()), `"payload":"`, `"payload":"\n`, 1), want: "line break"},
		"two JSON in payload":   {in: sigstoreBundle(envelope(good() + good())), want: "after the end"},
		"BOM in payload":        {in: sigstoreBundle(envelope("\xef\xbb\xbf" + good())), want: "invalid character"},
		"payload no statement":  {in: sigstoreBundle(envelope(`{"critical":{}}`)), want: `"/_type" is missing`},
		"payload missing":       {in: `{"payload":"","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"c2ln"}]}`, want: "ends early"},
		"too large":             {in: strings.Repeat(" ", attest.MaxBundle+1), want: "more than"},
		"not JSON":              {in: "-----BEGIN", want: "in number"},
		"JSON lines":            {in: b + "\n" + b, want: "after the end"},
		"signature not base64":  {in: strings.Replace(envelope(good()), `"c2ln"`, `"c2l"`, 1), want: `"/signatures/0/sig": not base64`},
		"envelope is a list":    {in: sigstoreBundle(`[]`), want: "Sigstore bundle"},
		"snake and camel twice": {in: strings.Replace(b, `{"mediaType"`, `{"media_type":"x","mediaType"`, 1), want: "Sigstore bundle"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := attest.ParseBundle([]byte(c.in))
			check(t, err, c.want)
			if err != nil {
				return
			}
			if string(got.Raw()) != c.in || got.Digest() != attest.DigestOf([]byte(c.in)) {
				t.Error("raw bytes changed")
			}
			if !got.Statement().Binds("sha256:" + hex64) {
				t.Error("the statement was lost")
			}
		})
	}
}

func TestBundleForms(t *testing.T) {
	signed, err := attest.ParseBundle([]byte(sigstoreBundle(envelope(good()))))
	if err != nil {
		t.Fatal(err)
	}
	if signed.Bare() || signed.KeyHint() != "h" {
		t.Errorf("Bare %v, KeyHint %q", signed.Bare(), signed.KeyHint())
	}
	raw, err := signed.DSSE()
	if err != nil {
		t.Fatal(err)
	}
	bare, err := attest.ParseBundle(raw)
	if err != nil {
		t.Fatal(err)
	}
	if !bare.Bare() || bare.KeyHint() != "" || string(bare.Statement().Raw()) != good() {
		t.Errorf("Bare %v, KeyHint %q, statement %s", bare.Bare(), bare.KeyHint(), bare.Statement().Raw())
	}
	if again, err := bare.DSSE(); err != nil || !bytes.Equal(again, raw) {
		t.Errorf("DSSE of a bare envelope changed it: %v", err)
	}
}

func check(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("refused: %v", err)
	case want != "" && err == nil:
		t.Errorf("accepted, want an error with %q", want)
	case want != "" && !strings.Contains(err.Error(), want):
		t.Errorf("error %q, want it to hold %q", err, want)
	}
}

func FuzzUnmarshalStrict(f *testing.F) {
	for _, s := range []string{good(), envelope(good()), `{"a":1,"A":2}`, `[[[]]]`, `"\ud83d\ude00"`, `-0.1e+9`, "{\"x\":\"\xff\"}", `{"a":`, `1E700`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		err := attest.UnmarshalStrict(data, nil)
		// What is accepted here is JSON to everybody.
		if err == nil && !json.Valid(data) {
			t.Fatalf("accepted %q, which is no JSON", data)
		}
		if err == nil {
			// A number may be good JSON and still more than a float64 holds.
			var v any
			if err := attest.UnmarshalStrict(data, &v); err != nil && !strings.Contains(err.Error(), "where float64 is expected") {
				t.Fatalf("accepted by the check, refused by the decoder: %v", err)
			}
		}
	})
}

func FuzzParseStatement(f *testing.F) {
	f.Add([]byte(good()))
	f.Add([]byte(statement(`[]`)))
	f.Add([]byte(statement(`[{"Digest":{}}]`)))
	f.Fuzz(func(t *testing.T, data []byte) {
		st, err := attest.ParseStatement(data)
		if err != nil {
			return
		}
		if !bytes.Equal(st.Raw(), data) || len(st.Subject) == 0 || st.PredicateType == "" {
			t.Fatalf("accepted %q as %+v", data, st)
		}
	})
}

// An envelope by itself is as good as one in a bundle, and no better.
func FuzzParseDSSE(f *testing.F) {
	f.Add([]byte(good()), "application/vnd.in-toto+json", []byte("sig"), "")
	f.Add([]byte("{}"), "text/plain", []byte(nil), "hint")
	f.Add([]byte("\xff"), "\xff", []byte("\x00"), "a\nb")
	f.Fuzz(func(t *testing.T, payload []byte, payloadType string, sig []byte, hint string) {
		raw, err := json.Marshal(map[string]any{"payload": payload, "payloadType": payloadType, "signatures": []any{map[string]any{"sig": sig, "keyid": hint}}})
		if err != nil {
			t.Fatal(err)
		}
		b, err := attest.ParseBundle(raw)
		if err != nil {
			return
		}
		e := b.Proto().GetDsseEnvelope()
		if !b.Bare() || !bytes.Equal(e.GetPayload(), payload) || len(e.GetSignatures()) != 1 || !bytes.Equal(e.GetSignatures()[0].GetSig(), sig) {
			t.Fatalf("%q was read as %v", raw, e)
		}
		if _, err := attest.ParseBundle([]byte(sigstoreBundle(string(raw)))); err != nil {
			t.Fatalf("accepted alone, and not in a bundle: %v", err)
		}
	})
}

func FuzzParseBundle(f *testing.F) {
	f.Add([]byte(sigstoreBundle(envelope(good()))))
	f.Add([]byte(envelope(good())))
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := attest.ParseBundle(data)
		if err != nil {
			return
		}
		if b.Statement() == nil || !bytes.Equal(b.Raw(), data) {
			t.Fatalf("accepted %q without a statement", data)
		}
		raw, err := b.DSSE()
		if err != nil {
			t.Fatalf("its envelope cannot be written: %v", err)
		}
		if again, err := attest.ParseBundle(raw); err != nil || !bytes.Equal(again.Statement().Raw(), b.Statement().Raw()) {
			t.Fatalf("its envelope is not accepted: %v", err)
		}
	})
}

func TestStaple(t *testing.T) {
	b, err := attest.ParseBundle([]byte(sigstoreBundle(envelope(good()))))
	if err != nil {
		t.Fatal(err)
	}
	with := b.Staple([]byte{1}, []byte{2})
	if len(with.Stapled()) != 2 || b.Stapled() != nil || with.Digest() != b.Digest() || with.Statement() != b.Statement() {
		t.Errorf("stapled: %v, before: %v", with.Stapled(), b.Stapled())
	}
}

func TestSplitOCSP(t *testing.T) {
	one, two := []byte{0x30, 1, 5}, []byte{0x30, 0}
	if got, err := attest.SplitOCSP(slices.Concat(one, two)); err != nil || len(got) != 2 || !bytes.Equal(got[0], one) || !bytes.Equal(got[1], two) {
		t.Errorf("%x, %v", got, err)
	}
	large := append([]byte{0x30, 0x83, 1, 0, 1}, make([]byte, 0x10001)...)
	for name, raw := range map[string][]byte{
		"nothing": nil, "JSON": []byte("{}"), "no sequence": {5, 0}, "cut short": {0x30, 2, 5}, "something after it": append(slices.Clone(one), 0),
		"large": large, "many": bytes.Repeat(two, attest.MaxStapled+1),
	} {
		if got, err := attest.SplitOCSP(raw); err == nil {
			t.Errorf("%s: %x", name, got)
		}
	}
}

// FuzzParseOCSPFile: a file of OCSP responses comes apart into what it was.
func FuzzParseOCSPFile(f *testing.F) {
	f.Add([]byte{0x30, 1, 5, 0x30, 0})
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := attest.SplitOCSP(raw)
		if err == nil && (!bytes.Equal(bytes.Join(got, nil), raw) || len(got) == 0 || len(got) > attest.MaxStapled) {
			t.Errorf("%x: %x", raw, got)
		}
	})
}
