package sign

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/sigstore/rekor/pkg/generated/client/entries"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/tle"
)

// answering is a log with one answer to everything.
type answering string

func (a answering) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusCreated, Body: io.NopCloser(strings.NewReader(string(a))), Request: req}, nil
}

// What a log answers is refused, or is fit for what sigstore-go does with it.
func FuzzParseLogEntry(f *testing.F) {
	const hash = "c0d23d6ad406973f9559f3ba2d1ca01f84147d8ffc5b8445c224f98b9591801d"
	f.Add(`{"x":{"body":"e30=","integratedTime":1,"logID":"` + hash + `","logIndex":0,"verification":{"inclusionProof":{"checkpoint":"c","hashes":["` + hash + `"],"logIndex":0,"rootHash":"` + hash + `","treeSize":1},"signedEntryTimestamp":"AA=="}}}`)
	f.Add(`{"x":{"body":{},"integratedTime":1,"logID":"` + hash + `","logIndex":0}}`)
	f.Add(`{"x":{"body":{},"integratedTime":1,"logID":"` + hash + `","logIndex":0,"verification":{}}}`)
	f.Add(`{"x":null,"y":{}}`)
	f.Add(`null`)
	f.Fuzz(func(t *testing.T, body string) {
		log := &logWriter{ctx: context.Background(), address: "https://rekor.example", http: &http.Client{Transport: answering(body)}}
		made, err := log.CreateLogEntry(entries.NewCreateLogEntryParams().WithProposedEntry(&models.DSSE{}))
		if err != nil {
			return
		}
		entry, ok := made.Payload[made.ETag]
		if !ok {
			t.Fatalf("no entry out of %q", body)
		}
		_, _ = tle.GenerateTransparencyLogEntry(entry) // it must not panic
	})
}
