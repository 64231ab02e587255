package sign

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/waxseal/waxseal/pkg/attest"
)

// spiffe asks the workload API of the SPIFFE agent on this machine for a
// JWT-SVID (https://spiffe.io/docs/latest/spiffe-specs/spiffe_workload_api,
// 6.2.1). Its generated client is all of go-spiffe that is taken: Fulcio, not
// this process, verifies the token.
func (o TokenOptions) spiffe() (TokenSource, error) {
	t := TokenSource{from: "the SPIFFE workload API", way: "see whether this workload is registered with the SPIFFE server, and whether Fulcio knows its trust domain"}
	socket := o.Env("SPIFFE_ENDPOINT_SOCKET")
	if socket == "" {
		return TokenSource{}, nil
	}
	target, err := spiffeTarget(socket)
	if err != nil {
		return t, noToken(fmt.Errorf("SPIFFE_ENDPOINT_SOCKET: %w", err), "set it to unix:///PATH or tcp://IP:PORT, as the agent says")
	}
	t.get = func(ctx context.Context) (string, error) {
		// On this machine: the agent knows who asks by the connection itself.
		conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(attest.MaxKey)))
		if err != nil {
			return "", err
		}
		defer conn.Close()
		return fetchSVID(ctx, workload.NewSpiffeWorkloadAPIClient(conn), o.Audience)
	}
	return t, nil
}

// spiffeTarget is a SPIFFE endpoint address as gRPC takes it (SPIFFE Workload
// Endpoint, section 4: a Unix socket, or TCP at an IP address).
func spiffeTarget(socket string) (string, error) {
	u, err := url.Parse(socket)
	switch {
	case err != nil:
		return "", fmt.Errorf("%q is no address", clip(socket))
	case u.Scheme == "unix" && u.Opaque == "" && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		return "unix://" + u.Path, nil
	case u.Scheme == "tcp" && u.Port() != "" && u.Path == "":
		// The token would be read on its way to another machine.
		if ip := net.ParseIP(u.Hostname()); ip != nil && ip.IsLoopback() {
			return "passthrough:///" + u.Host, nil
		}
		return "", fmt.Errorf("%q: only this machine is asked", clip(socket))
	}
	return "", fmt.Errorf("%q is no address of a workload API", clip(socket))
}

func fetchSVID(ctx context.Context, api workload.SpiffeWorkloadAPIClient, audience string) (string, error) {
	// Section 6.1: what does not send it is refused.
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	wait := firstWait
	for n := 1; ; n++ {
		once, cancel := context.WithTimeout(ctx, tryTime)
		resp, err := api.FetchJWTSVID(once, &workload.JWTSVIDRequest{Audience: []string{audience}})
		cancel()
		switch code := status.Code(err); {
		case err == nil && len(resp.GetSvids()) == 0:
			return "", errors.New("it answered without a token")
		case err == nil:
			return resp.GetSvids()[0].GetSvid(), nil
		case ctx.Err() != nil:
			return "", ctx.Err()
		case code == codes.PermissionDenied:
			return "", fmt.Errorf("it has no identity for this workload: %s", clip(status.Convert(err).Message()))
		case code != codes.Unavailable && code != codes.DeadlineExceeded:
			return "", fmt.Errorf("it refused (%s): %s", code, clip(status.Convert(err).Message()))
		case n == tries:
			return "", &answer{who: "the SPIFFE workload API", tried: n, message: clip(status.Convert(err).Message())}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return "", ctx.Err()
		case <-timer.C:
		}
		wait *= 2
	}
}
