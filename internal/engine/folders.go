package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/exporter/local"
	"github.com/moby/buildkit/exporter/util/epoch"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/util/staticfs"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc/metadata"
)

// sessionGrace is how long a client's session may take to be there.
const sessionGrace = 5 * time.Second

// maxBegun is how many requests for files the sender of a folder is given before
// it has answered some: fewer than it takes without waiting, since in that wait it
// hears nothing of the end of a build.
const maxBegun = 64

// folderExporter puts a result's files into a folder of the client's, as
// BuildKit's exporter does, which can stop for good (moby/buildkit issue 2950).
//
// The files are announced, one by one, and the client asks for each and is sent
// it, all on one stream of HTTP/2. In the client golang.org/x/net serves that
// stream, and there the acknowledgement of what came in waits in one queue with
// what goes out. BuildKit reads no further requests than it can answer. Where
// the client is 64 KiB of requests ahead, which some 6,500 files are, the next
// request has to wait and the acknowledgements with it; the megabyte that may be
// sent without one is then used up before BuildKit has read so many requests that
// the client may go on. Both wait. Here requests are read as they come, and kept.
type folderExporter struct {
	exporter.Exporter
	sessions *session.Manager
}

func (e *folderExporter) Resolve(ctx context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	i, err := e.Exporter.Resolve(ctx, id, attrs)
	if err != nil {
		return nil, err
	}
	f := &folderInstance{ExporterInstance: i, sessions: e.sessions}
	if f.mode, err = client.ParseLocalExporterMode(attrs["mode"]); err != nil {
		return nil, err
	}
	_, err = f.opts.Load(attrs)
	return f, err
}

type folderInstance struct {
	exporter.ExporterInstance
	sessions *session.Manager
	opts     local.CreateFSOpts
	mode     client.LocalExporterMode
}

func (i *folderInstance) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (map[string]string, exporter.FinalizeFunc, exporter.DescriptorReference, error) {
	waiting, cancel := context.WithTimeout(ctx, sessionGrace)
	to, err := i.sessions.Get(waiting, info.SessionID, false)
	cancel()
	if err != nil {
		return nil, nil, nil, err
	}
	files, release, err := i.files(ctx, src, info.SessionID)
	if err != nil {
		return nil, nil, nil, err
	}
	defer release()
	progress, end := local.NewProgressHandler(ctx, "copying files")
	defer end()
	about := metadata.Pairs("buildkit-attachable-exporter-id", strconv.Itoa(i.ID()))
	if i.mode == client.LocalExporterModeDelete {
		about.Set("buildkit-exporter-multi-platform", "1") // the client asks for it: this is all there is
	}
	return nil, nil, nil, sendFolder(ctx, files, to, about, progress)
}

// files are those of a result: of each platform in a folder of its own, or of
// all in one. Call release once they are read.
func (i *folderInstance) files(ctx context.Context, src *exporter.Source, sid string) (_ fsutil.FS, _ func(), err error) {
	var cleanups []func() error
	release := func() {
		for _, c := range slices.Backward(cleanups) {
			_ = c()
		}
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	several := len(src.Refs) > 0
	if _, ok := src.Metadata[exptypes.ExporterPlatformsKey]; several && !ok {
		return nil, nil, errors.New("exporting the files: the result does not say what platforms it has")
	}
	platforms, err := exptypes.ParsePlatforms(src.Metadata)
	if err != nil {
		return nil, nil, err
	}
	if !several && len(platforms.Platforms) > 1 {
		return nil, nil, errors.New("exporting the files: the result of several platforms is one")
	}
	now := time.Now().Truncate(time.Second)
	split := i.opts.UsePlatformSplit(several)
	var folders []fsutil.Dir
	var all fsutil.FS
	shared := &sharedFolder{owners: map[string]owner{}}
	for _, p := range platforms.Platforms {
		ref, ok := src.FindRef(p.ID)
		if !ok {
			return nil, nil, fmt.Errorf("exporting the files: the result has none for %s", p.ID)
		}
		opts := i.opts
		if opts.Epoch == nil {
			opts.Epoch = &epoch.Epoch{}
			if opts.Epoch.Value, err = epoch.ParseSource(src, nil); err == nil && opts.Epoch.Value == nil {
				opts.Epoch.Value, err = epoch.ParseSource(src, &p)
			}
			if err != nil {
				return nil, nil, err
			}
		}
		files, cleanup, err := local.CreateFS(ctx, sid, p.ID, ref, src.Attestations[p.ID], now, several, opts)
		if err != nil {
			return nil, nil, err
		}
		if cleanup != nil {
			cleanups = append(cleanups, cleanup)
		}
		switch {
		case split:
			st := &fstypes.Stat{Mode: uint32(os.ModeDir | 0o755), Path: local.PlatformIDToPath(p.ID)}
			if opts.Epoch.Value != nil {
				st.ModTime = opts.Epoch.Value.UnixNano()
			}
			folders = append(folders, fsutil.Dir{FS: files, Stat: st})
			continue
		case len(platforms.Platforms) > 1:
			if err := shared.add(ctx, files, p.ID); err != nil {
				return nil, nil, err
			}
			all = shared
		default:
			all = files
		}
	}
	if split {
		all, err = fsutil.SubDirFS(folders)
	}
	return all, release, err
}

// sharedFolder are the files of several platforms in one folder.
type sharedFolder struct {
	fsutil.FS // of all, to be walked: where one has no such file, BuildKit's does not always open the other's
	owners    map[string]owner
}

type owner struct {
	platform string
	files    fsutil.FS
}

// add refuses a file that another platform has.
func (f *sharedFolder) add(ctx context.Context, files fsutil.FS, platform string) error {
	if f.FS == nil {
		f.FS = files
	} else {
		f.FS = staticfs.NewMergeFS(f.FS, files)
	}
	return files.Walk(ctx, "", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if other, ok := f.owners[name]; ok {
			return fmt.Errorf("cannot overwrite %s from %s with %s when split option is disabled", name, other.platform, platform)
		}
		f.owners[name] = owner{platform, files}
		return nil
	})
}

func (f *sharedFolder) Open(name string) (io.ReadCloser, error) {
	o, ok := f.owners[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return o.files.Open(name)
}

// sendFolder sends files to a client, which lays them into the folder that it
// means by about, and returns when they lie there.
func sendFolder(ctx context.Context, files fsutil.FS, to session.Caller, about metadata.MD, progress func(int, bool)) error {
	if method := session.MethodURL(filesync.FileSend_ServiceDesc.ServiceName, "diffcopy"); !to.Supports(method) {
		return fmt.Errorf("sending the files: the client does not take any: it has no %s", method)
	}
	ctx, cancel := context.WithCancel(to.Context(ctx))
	defer cancel()
	outgoing, _ := metadata.FromOutgoingContext(ctx)
	stream, err := filesync.NewFileSendClient(to.Conn()).DiffCopy(metadata.NewOutgoingContext(ctx, metadata.Join(outgoing, about)))
	if err != nil {
		return fmt.Errorf("sending the files: %w", err)
	}
	s := &folderStream{FileSend_DiffCopyClient: stream, changed: make(chan struct{}, 1), ended: make(chan struct{})}
	go s.read()
	if err := fsutil.Send(ctx, s, &toldFS{files, s.fail}, progress); err != nil {
		return fmt.Errorf("sending the files: %w", s.cause(err))
	}
	return nil
}

// folderStream is the stream on which a folder is sent. Requests for files are
// read as they come and handed on as they can be answered.
type folderStream struct {
	filesync.FileSend_DiffCopyClient

	mu      sync.Mutex
	files   int             // announced, and not asked for
	asked   []uint32        // asked for, and not handed on
	begun   int             // handed on, and not answered
	last    *fstypes.Packet // what came after the requests: all is there, or why not
	err     error           // why nothing comes any more
	changed chan struct{}   // has room for one
	ended   chan struct{}   // closed where nothing is read any more
}

// read is all that reads from the client.
func (s *folderStream) read() {
	defer close(s.ended)
	for {
		var p fstypes.Packet
		if err := s.FileSend_DiffCopyClient.RecvMsg(&p); err != nil {
			s.fail(err)
			return
		}
		if s.came(&p) {
			return
		}
	}
}

// came takes in what the client sent, and reports whether it was the last.
func (s *folderStream) came(p *fstypes.Packet) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.wake()
	switch p.Type {
	case fstypes.PACKET_REQ:
		if s.files == 0 {
			s.err = errors.New("the client asked for more files than it was told of")
			return true
		}
		s.files--
		s.asked = append(s.asked, p.ID)
	case fstypes.PACKET_FIN, fstypes.PACKET_ERR:
		s.last = p
	}
	return s.last != nil
}

// fail ends the sending, unless it has ended.
func (s *folderStream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	s.wake()
}

// cause is why sending failed: that the stream has ended is all that gRPC says to
// who writes to it.
func (s *folderStream) cause(err error) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	<-s.ended
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.last != nil && s.last.Type == fstypes.PACKET_ERR:
		return fmt.Errorf("error from receiver: %s", s.last.Data)
	case s.err != nil:
		return s.err
	}
	return err
}

func (s *folderStream) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// RecvMsg is called by the sender alone, for one message at a time.
func (s *folderStream) RecvMsg(m any) error {
	p, ok := m.(*fstypes.Packet)
	if !ok {
		return fmt.Errorf("receiving a %T: files are asked for by packets", m)
	}
	for {
		if got, err := s.next(p); got || err != nil {
			return err
		}
		<-s.changed // at the latest when the stream ends, which ends reading
	}
}

func (s *folderStream) next(p *fstypes.Packet) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.last != nil:
		p.Type, p.Data = s.last.Type, s.last.Data
	case s.err != nil:
		return false, s.err
	case len(s.asked) > 0 && s.begun < maxBegun:
		p.Type, p.ID = fstypes.PACKET_REQ, s.asked[0]
		s.asked = s.asked[1:]
		s.begun++
	default:
		return false, nil
	}
	return true, nil
}

// SendMsg counts what is announced, before the client hears of it, and what is
// sent: an empty piece of data is the end of a file.
func (s *folderStream) SendMsg(m any) error {
	p, _ := m.(*fstypes.Packet)
	if p != nil && p.Type == fstypes.PACKET_STAT && p.Stat != nil {
		s.mu.Lock()
		s.files++
		s.mu.Unlock()
	}
	if err := s.FileSend_DiffCopyClient.SendMsg(m); err != nil {
		if !errors.Is(err, io.EOF) { // why it has ended is what reading says
			s.fail(err)
		}
		return err
	}
	if p != nil && p.Type == fstypes.PACKET_DATA && len(p.Data) == 0 {
		s.mu.Lock()
		s.begun--
		s.wake()
		s.mu.Unlock()
	}
	return nil
}

// toldFS are files whose reader is told of what cannot be read: fsutil sends an
// empty file where one cannot be opened, and waits for the client where reading
// fails.
type toldFS struct {
	fsutil.FS
	fail func(error)
}

func (f *toldFS) Open(name string) (io.ReadCloser, error) {
	r, err := f.FS.Open(name)
	if err != nil {
		f.fail(fmt.Errorf("reading %q: %w", name, err))
		return nil, err
	}
	return &toldFile{r, f.fail}, nil
}

type toldFile struct {
	io.ReadCloser
	fail func(error)
}

func (f *toldFile) Read(b []byte) (int, error) {
	n, err := f.ReadCloser.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		f.fail(err)
	}
	return n, err
}
