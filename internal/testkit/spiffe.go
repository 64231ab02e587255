package testkit

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"
)

// workloads is a SPIFFE agent's workload API, whose tokens are an Instance's.
type workloads struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	instance *Instance
	id       string // of whoever asks; empty: of nobody
}

// FetchJWTSVID is the one call that it knows.
func (w *workloads) FetchJWTSVID(ctx context.Context, req *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	sent, _ := metadata.FromIncomingContext(ctx)
	switch {
	case !slices.Equal(sent.Get("workload.spiffe.io"), []string{"true"}):
		return nil, grpcstatus.Error(codes.InvalidArgument, "security header missing from request")
	case len(req.Audience) == 0:
		return nil, grpcstatus.Error(codes.InvalidArgument, "audience must be specified")
	case w.id == "":
		return nil, grpcstatus.Error(codes.PermissionDenied, "no identity issued")
	}
	token, err := w.instance.Token("", map[string]any{"iss": w.instance.Issuer + "/spire", "sub": w.id, "aud": req.Audience})
	if err != nil {
		return nil, err
	}
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: w.id, Svid: token}}}, nil
}

// cmdWorkload starts the workload API of a SPIFFE agent that knows whoever asks
// by ID, of an instance's trust domain acme.example.
func cmdWorkload(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, (len(args) == 2 || len(args) == 3) && !neg, "workload VAR INSTANCE [ID]")
	i := ts.Value(instancesKey{}).(map[string]*Instance)[args[1]]
	if i == nil {
		ts.Fatalf("no instance %s", args[1])
	}
	// A socket's path must be short.
	dir, err := os.MkdirTemp("", "spiffe-")
	ts.Check(err)
	ts.Defer(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", socket)
	ts.Check(err)
	server := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(server, &workloads{instance: i, id: append(args, "")[2]})
	go server.Serve(ln)
	ts.Defer(server.Stop)
	ts.Setenv(args[0], "unix://"+socket)
}
