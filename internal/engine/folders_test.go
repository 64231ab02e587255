package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// patience is how long a test waits for what would stop for good.
const patience = 30 * time.Second

// connected is a client of the engine's, as buildx is one, that takes what
// the service takes.
func connected(t *testing.T, service session.Attachable) session.Caller {
	t.Helper()
	sessions, err := session.NewManager()
	if err != nil {
		t.Fatal(err)
	}
	s, err := session.NewSession(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	receiver := &awaited{FileSendServer: service.(filesync.FileSendServer)}
	s.Allow(receiver)
	var ends sync.WaitGroup
	t.Cleanup(func() {
		s.Close()
		ends.Wait()
		receiver.running.Lock() // a session's end does not wait for what still writes
	})
	dial := func(_ context.Context, _ string, meta map[string][]string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		ends.Go(func() { _ = sessions.HandleConn(t.Context(), ours, meta) })
		return theirs, nil
	}
	ends.Go(func() { _ = s.Run(t.Context(), dial) })
	c, err := sessions.Get(t.Context(), s.ID(), false)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// awaited is a client of whom it is known when it is done.
type awaited struct {
	filesync.FileSendServer
	running sync.RWMutex
}

func (a *awaited) Register(s *grpc.Server) { filesync.RegisterFileSendServer(s, a) }

func (a *awaited) DiffCopy(stream filesync.FileSend_DiffCopyServer) error {
	a.running.RLock()
	defer a.running.RUnlock()
	return a.FileSendServer.DiffCopy(stream)
}

// manyFiles are n files, whose contents open gives.
type manyFiles struct {
	n    int
	open func(name string) (io.ReadCloser, error)
}

func (m manyFiles) Walk(_ context.Context, _ string, fn fs.WalkDirFunc) error {
	for i := range m.n {
		name := fmt.Sprintf("f%06d", i)
		if err := fn(name, &fsutil.DirEntryInfo{Stat: &fstypes.Stat{Path: name, Mode: 0o644}}, nil); err != nil {
			return err
		}
	}
	return nil
}

func (m manyFiles) Open(name string) (io.ReadCloser, error) { return m.open(name) }

// toFolder is what a client says of the folder that it has.
var toFolder = metadata.Pairs("buildkit-attachable-exporter-id", "0")

// ends waits for what is begun, and for no longer than patience.
func ends(t *testing.T, what string, begin func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- begin() }()
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		t.Fatalf("%s did not end", what)
		return nil
	}
}

// A client that has asked for all files before the first is sent gets them: what
// nobody reads of its requests would keep it from acknowledging what it gets.
func TestAFolderOfManyFilesIsSent(t *testing.T) {
	const n, size = 8_000, 4096
	dir := t.TempDir()
	to := connected(t, filesync.NewFSSyncTarget(filesync.WithFSSyncDir(0, dir)))
	content := bytes.Repeat([]byte("x"), size)
	asked := sync.OnceValue(func() error {
		// The client makes a file just before it asks for its content.
		last := filepath.Join(dir, fmt.Sprintf("f%06d", n-1))
		for until := time.Now().Add(patience); ; runtime.Gosched() {
			if _, err := os.Stat(last); err == nil {
				return nil
			}
			if time.Now().After(until) {
				return fmt.Errorf("the client did not make %s", last)
			}
		}
	})
	files := manyFiles{n, func(string) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), asked()
	}}
	if err := ends(t, "sending the folder", func() error { return sendFolder(t.Context(), files, to, toFolder, nil) }); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if got, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("f%06d", i))); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("file %d has %d bytes, error %v", i, len(got), err)
		}
	}
}

// endless is a file that has no end.
type endless struct{ begun func() }

func (e endless) Read(b []byte) (int, error) {
	e.begun()
	return len(b), nil
}

// What is sent ends with the build, however much of it was asked for.
func TestSendingAFolderIsCancelled(t *testing.T) {
	to := connected(t, filesync.NewFSSyncTarget(filesync.WithFSSyncDir(0, t.TempDir())))
	ctx, cancel := context.WithCancel(t.Context())
	var reads sync.Mutex
	left := 4096
	files := manyFiles{2000, func(string) (io.ReadCloser, error) {
		return io.NopCloser(endless{func() {
			reads.Lock()
			defer reads.Unlock()
			if left--; left == 0 {
				cancel()
			}
		}}), nil
	}}
	if err := ends(t, "sending the folder", func() error { return sendFolder(ctx, files, to, toFolder, nil) }); err == nil {
		t.Error("it has ended well")
	}
}

// A file that cannot be read is not sent as an empty one.
func TestAFolderThatCannotBeRead(t *testing.T) {
	broken := errors.New("the disk is broken")
	for name, open := range map[string]func(string) (io.ReadCloser, error){
		"opened": func(string) (io.ReadCloser, error) { return nil, broken },
		"read": func(string) (io.ReadCloser, error) {
			r, w := io.Pipe()
			w.CloseWithError(broken)
			return r, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			to := connected(t, filesync.NewFSSyncTarget(filesync.WithFSSyncDir(0, t.TempDir())))
			err := ends(t, "sending the folder", func() error { return sendFolder(t.Context(), manyFiles{500, open}, to, toFolder, nil) })
			if !errors.Is(err, broken) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

// greedy is a client that asks for one file again and again.
type greedy struct{}

func (greedy) Register(s *grpc.Server) { filesync.RegisterFileSendServer(s, greedy{}) }

func (greedy) DiffCopy(stream filesync.FileSend_DiffCopyServer) error {
	for {
		if err := stream.SendMsg(&fstypes.Packet{Type: fstypes.PACKET_REQ}); err != nil {
			return err
		}
	}
}

// What is kept of a client's requests has an end.
func TestAClientThatAsksForMoreThanThereIs(t *testing.T) {
	to := connected(t, greedy{})
	files := manyFiles{1, func(string) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("")), nil }}
	err := ends(t, "sending the folder", func() error { return sendFolder(t.Context(), files, to, toFolder, nil) })
	if err == nil || !strings.Contains(err.Error(), "more files than it was told of") && !strings.Contains(err.Error(), "invalid file id") {
		t.Errorf("the error is %v", err)
	}
}

// What the client could not write is said.
func TestAFolderThatCannotBeWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	to := connected(t, filesync.NewFSSyncTarget(filesync.WithFSSyncDir(0, filepath.Join(file, "folder"))))
	files := manyFiles{20_000, func(string) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("x")), nil }}
	err := ends(t, "sending the folder", func() error { return sendFolder(t.Context(), files, to, toFolder, nil) })
	if err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("the error is %v", err)
	}
}
