package trust

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/waxseal/waxseal/pkg/attest"
)

// courier brings the files of a repository to the library: what is kept from
// there, else over HTTP. It sends no credentials, and remembers what it brought.
type courier struct {
	ctx     context.Context
	http    *http.Client // nil: nobody is asked
	kept    map[string][]byte
	brought map[string][]byte
}

func newCourier(ctx context.Context, transport http.RoundTripper) *courier {
	if transport == nil {
		transport = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			ForceAttemptHTTP2:     true,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: 20 * time.Second,
		}
	}
	return &courier{ctx: ctx, brought: map[string][]byte{}, http: &http.Client{
		Transport: transport,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) > 3 || !allowed(req.URL) {
				return errors.New("the repository sends elsewhere")
			}
			return nil
		},
	}}
}

// DownloadFile is go-tuf's fetcher.Fetcher.
func (c *courier) DownloadFile(address string, limit int64, _ time.Duration) ([]byte, error) {
	limit = min(limit, attest.MaxTUF) // a signed length is not ours
	name := path.Base(address)
	if raw, ok := c.kept[name]; ok && int64(len(raw)) <= limit {
		return raw, nil
	}
	if c.http == nil {
		return nil, &metadata.ErrDownloadHTTP{StatusCode: http.StatusNotFound, URL: address}
	}
	req, err := http.NewRequestWithContext(c.ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "waxseal")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, &metadata.ErrDownloadHTTP{StatusCode: resp.StatusCode, URL: address}
	}
	// One byte more than may be, so that what is larger is seen to be.
	raw, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", address, err)
	}
	if int64(len(raw)) > limit {
		return nil, &metadata.ErrDownloadLengthMismatch{Msg: fmt.Sprintf("%s is larger than the %d bytes it may have", address, limit)}
	}
	c.brought[name] = raw
	return raw, nil
}

// allowed holds for addresses that nobody on the way can read or change.
func allowed(u *url.URL) bool {
	if u.Scheme == "https" {
		return true
	}
	host := u.Hostname()
	ip := net.ParseIP(host)
	return u.Scheme == "http" && (host == "localhost" || ip != nil && ip.IsLoopback())
}
