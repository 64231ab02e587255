package verify

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
)

// TestEntriesThatAreCostly: what a log keeps is read; what would have the library
// check a stranger's signatures while it reads is not.
func TestEntriesThatAreCostly(t *testing.T) {
	key := func(bits uint) string {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1) // a modulus as large as that
		der, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: 65537})
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	small, large := key(8192), key(8193)
	hashed := func(keys string) string {
		return fmt.Sprintf(`{"apiVersion":"0.0.1","kind":"hashedrekord","spec":{"signature":{"content":"AA==","publicKey":{"content":%q}}}}`, base64.StdEncoding.EncodeToString([]byte(keys)))
	}
	whole := func(keys ...string) string {
		var list []string
		for _, k := range keys {
			list = append(list, fmt.Sprintf(`{"sig":"AA==","publicKey":%q}`, base64.StdEncoding.EncodeToString([]byte(k))))
		}
		return fmt.Sprintf(`{"apiVersion":"0.0.2","kind":"intoto","spec":{"content":{"envelope":{"payload":"AA==","signatures":[%s]}}}}`, strings.Join(list, ","))
	}
	tests := map[string]struct{ body, says string }{
		"hashedrekord":             {hashed(small), ""},
		"a large key":              {hashed(large), "8192 bits"},
		"a large key at the end":   {hashed(small + small + large), "8192 bits"},
		"a large key among spaces": {hashed("\n\n" + large), "8192 bits"},
		"base64 with line breaks":  {strings.Replace(hashed(large), `"content":"LS0t`, `"content":"LS0t\n`, 1), "8192 bits"},
		"dsse":                     {`{"apiVersion":"0.0.1","kind":"dsse","spec":{"envelopeHash":{},"payloadHash":{},"signatures":[{"signature":"AA==","verifier":"AA=="}]}}`, ""},
		"dsse as it is proposed":   {`{"apiVersion":"0.0.1","kind":"dsse","spec":{"proposedContent":{"envelope":"{}","verifiers":["AA=="]}}}`, "proposed"},
		"intoto":                   {`{"apiVersion":"0.0.2","kind":"intoto","spec":{"content":{"envelope":{"payloadType":"a","signatures":[]}}}}`, ""},
		"intoto, all of it":        {whole(small), ""},
		"a large key of intoto":    {whole(large), "8192 bits"},
		"several of intoto":        {whole(small, small), "exactly one"},
		"Rekor v2":                 {`{"apiVersion":"0.0.2","kind":"hashedrekord","spec":{"hashedRekordV002":{"data":{},"signature":{}}}}`, ""},
		"another spelling":         {`{"kind":"dsse","SPEC":{"proposedContent":{}}}`, "spelled"},
		"twice":                    {`{"kind":"dsse","spec":{"proposedContent":{}},"spec":{}}`, "duplicate"},
		"more than one":            {`{"kind":"dsse","spec":{}}{"spec":{"proposedContent":{}}}`, "after the end"},
		"escaped":                  {`{"kind":"dsse","spec":{"\u0070roposedContent":{}}}`, "proposed"},
		"a kind that is escaped":   {strings.Replace(hashed(large), "hashed", `\u0068ashed`, 1), "8192 bits"},
		"too much":                 {hashed(strings.Repeat(small, 200)), "larger"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := lightEntry([]byte(test.body))
			if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v, want %q", err, test.says)
			}
		})
	}
}
