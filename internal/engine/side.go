package engine

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	dockerfileversion "github.com/moby/buildkit/frontend/dockerfile/version"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// Info is what the engine says about itself at GET /v1/info.
type Info struct {
	Engine      string `json:"engine"`
	BuildKit    string `json:"buildkit"`
	Dockerfile  string `json:"dockerfile,omitempty"`
	Runc        string `json:"runc"`
	Kernel      string `json:"kernel"`
	Snapshotter string `json:"snapshotter"`
	Network     string `json:"network"`
	Syft        string `json:"syft"`
}

// Problem is the body of every answer that is not a success.
type Problem struct {
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
}

// sideService answers on the side channel, from before the engine is ready to
// after it failed to start.
type sideService struct {
	cfg    Config
	sboms  *sboms
	rec    *recorder
	others *clients
	runc   func() string

	ready chan struct{}
	err   error // set before ready is closed
}

func newSideService(cfg Config, s *sboms, rec *recorder, others *clients) *sideService {
	return &sideService{
		cfg: cfg, sboms: s, rec: rec, others: others,
		runc:  sync.OnceValue(runcVersion),
		ready: make(chan struct{}),
	}
}

func (s *sideService) setReady() { close(s.ready) }

// fail answers with err from now on, until the other side lets go.
func (s *sideService) fail(ctx context.Context, err error) error {
	s.err = err
	close(s.ready)
	<-ctx.Done()
	return err
}

// holdBuilds has the builds of other programs wait for the end of the start. What
// they ask before takes its time, too, and is answered.
func (s *sideService) holdBuilds(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if _, ok := req.(*controlapi.SolveRequest); ok {
		if err := wait(ctx, s.ready); err != nil {
			return nil, err
		}
		if s.err != nil {
			return nil, s.err
		}
	}
	return handler(ctx, req)
}

// serve speaks HTTP/2 without TLS, so that one connection carries several
// requests and a cancelled one does not end it.
func (s *sideService) serve(conn net.Conn) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/ready", func(w http.ResponseWriter, r *http.Request) {
		if s.started(w, r) {
			w.WriteHeader(http.StatusNoContent)
		}
	})
	mux.HandleFunc("GET /v1/info", func(w http.ResponseWriter, r *http.Request) {
		if s.started(w, r) {
			answer(w, http.StatusOK, s.info())
		}
	})
	mux.HandleFunc("GET /v1/sbom", s.sbom)
	mux.HandleFunc("GET /v1/inputs", s.inputs)
	mux.HandleFunc("GET /v1/solves", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, s.others.list())
	})
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: mux, Protocols: &p, ReadHeaderTimeout: 10 * time.Second}
	_ = srv.Serve(newOneConn(conn))
}

// started waits for the end of the start and answers when it failed.
func (s *sideService) started(w http.ResponseWriter, r *http.Request) bool {
	if wait(r.Context(), s.ready) != nil {
		return false
	}
	if s.err == nil {
		return true
	}
	refuse(w, http.StatusServiceUnavailable, s.err)
	return false
}

func (s *sideService) sbom(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	doc, err := s.sboms.get(r.Context(), q.Get("ref"), q.Get("platform"), q.Get("format"))
	switch {
	case errors.Is(err, errNoSBOM):
		refuse(w, http.StatusNotFound, err)
	case err != nil:
		refuse(w, http.StatusInternalServerError, err)
	default:
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(doc)
	}
}

func (s *sideService) inputs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	a, err := s.rec.answer(r.Context(), q.Get("ref"), q.Get("platform"))
	switch {
	case errors.Is(err, errNoInputs):
		refuse(w, http.StatusNotFound, err)
	case err != nil:
		refuse(w, http.StatusInternalServerError, err)
	default:
		answer(w, http.StatusOK, a)
	}
}

func refuse(w http.ResponseWriter, status int, err error) {
	p := Problem{Error: err.Error()}
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		p.Hint = h.Hint()
	}
	answer(w, status, p)
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (s *sideService) info() Info {
	return Info{
		Engine:      s.cfg.Version,
		BuildKit:    moduleVersion("github.com/moby/buildkit"),
		Dockerfile:  dockerfileversion.Version(),
		Runc:        s.runc(),
		Kernel:      kernel(),
		Snapshotter: snapshotter,
		Network:     networkName,
		Syft:        moduleVersion("github.com/anchore/syft"),
	}
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
}

func runcVersion() string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "runc", "--version").Output()
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimPrefix(strings.TrimSpace(first), "runc version ")
}
