package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// confinePlan is what the keeper is told of a command.
type confinePlan struct {
	Inputs     InputsPlan `json:"inputs"`
	Name       string     `json:"name"` // of the step in the record
	Args       []string   `json:"args"`
	Env        []string   `json:"env"`
	Dir        string     `json:"dir"`
	User       int        `json:"user"`
	Group      int        `json:"group"`
	Hide       []string   `json:"hide,omitempty"`
	Expose     []string   `json:"expose,omitempty"`
	Secrets    [][]byte   `json:"secrets,omitempty"`
	Trace      bool       `json:"trace,omitempty"`
	Unrecorded []string   `json:"unrecorded,omitempty"`
	Container  bool       `json:"container,omitempty"`
	Unpacks    bool       `json:"unpacks,omitempty"`
}

type confineMessage struct {
	Ready     *confineReady `json:"ready"`
	Stopped   bool          `json:"stopped"`
	Done      *confineDone  `json:"done"`
	Error     string        `json:"error"`
	Hint      string        `json:"hint"`
	NoSandbox bool          `json:"noSandbox"`
}

// confineReady is how well a command will be watched: what of its files is not
// traced, and what the sandbox leaves open.
type confineReady struct {
	Blind []string `json:"blind"`
	Open  []string `json:"open"`
}

// confineStart is the answer to that.
type confineStart struct {
	Go    bool       `json:"go"`
	Known []fileNode `json:"known,omitempty"` // what the working folder has, where the command is traced
}

// confineDone is what came of it.
type confineDone struct {
	Exit       int           `json:"exit"`
	NotStarted string        `json:"notStarted"`
	Inputs     *EngineInputs `json:"inputs"`
	Violations []string      `json:"violations"`
	Trace      *fileTrace    `json:"trace"`
}

// fileTrace is which files outside of its working folder a command opened.
type fileTrace struct {
	Files  []tracedFile `json:"files"`
	Lost   int          `json:"lost"`
	Unread int          `json:"unread"`
	Full   bool         `json:"full"`
	Untold bool         `json:"untold"`
}

type tracedFile struct {
	Path    string `json:"path"`
	Mode    uint32 `json:"mode"`
	Size    int64  `json:"size"`
	SHA256  string `json:"sha256"`
	Written bool   `json:"written"`
}

// noSandbox is a machine, or a user, that no sandbox can be had of.
type noSandbox struct{ EngineError }

const sandboxName = "waxseal-sandbox"

// maxConfined bounds all that the keeper says of one command.
const maxConfined = attest.MaxStatement + 64<<20

// confined is one command in a sandbox. Its keeper, another process, takes
// the place of the command towards the terminal and signals, and hands its
// streams on.
type confined struct {
	process Process // the command as it would be run without
	plan    confinePlan
	// start is told how well the command will be watched, before it runs, and says
	// which files the working folder has; an error is why it must not run.
	start func(confineReady) (known []fileNode, err error)

	mu  sync.Mutex
	out *json.Encoder // to the keeper
}

func (c *confined) say(v any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Encode(v)
}

// run returns what came of the command. A *noSandbox means that nothing was
// run; so does whatever start has returned.
func (c *confined) run(ctx context.Context) (*confineDone, error) {
	keeperProgram, ok := program(sandboxName)
	if !ok {
		return nil, &EngineError{
			Text: fmt.Sprintf("finding the sandbox: %s is neither beside waxseal nor on PATH", sandboxName),
			Way:  "install all programs into one folder (make install)",
		}
	}
	ours, theirs, err := socketPair("channel to the sandbox")
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	keeper := c.process
	keeper.Args = []string{keeperProgram, "keep"}
	keeper.Env = append(engineEnv(os.Environ()), "GOGC=400")
	keeper.Dir = "/"
	keeper.Files = []*os.File{theirs}
	keeper.Attr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	c.plan.User, c.plan.Group, c.plan.Container = os.Geteuid(), os.Getegid(), inContainer()
	c.plan.Unpacks = KanikoFolder(os.Getenv) != ""
	if c.plan.User != 0 {
		keeper.Attr.Cloneflags |= unix.CLONE_NEWUSER
		keeper.Attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: c.plan.User, Size: 1}}
		keeper.Attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: c.plan.Group, Size: 1}}
	}
	stops := make(chan struct{}, 1)
	keeper.Stops = stops
	c.out = json.NewEncoder(ours)
	// Before the command runs the keeper reads nothing but whether it may.
	var running atomic.Bool
	keeper.Deliver = func(s syscall.Signal) {
		if !running.Load() {
			if ctx.Err() == nil { // else start refuses
				ours.Close()
			}
			return
		}
		_ = c.say(int(s))
	}
	said := make(chan answerOf[confineDone], 1)
	go func() { said <- c.talk(ours, stops, &running) }()
	_, err = keeper.Run(ctx)
	theirs.Close()
	if err != nil {
		ours.Close()
		var start *StartError
		if errors.As(err, &start) && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EACCES)) {
			err = &noSandbox{EngineError{Text: noNamespaces(err), Way: "run waxseal as root, or where user namespaces are allowed (sysctl user.max_user_namespaces; on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0; in a container: a privileged one)"}}
		}
		return nil, err
	}
	got := <-said
	if got.err != nil {
		return nil, got.err
	}
	return got.value, nil
}

// inContainer reports whether there are processes on this machine that cannot be
// seen from here: ours is not its first pid namespace.
func inContainer() bool {
	const firstNamespace = 0xeffffffc // include/linux/proc_ns.h
	var st unix.Stat_t
	return unix.Stat("/proc/self/ns/pid", &st) != nil || st.Ino != firstNamespace
}

// KanikoFolder is kaniko's own folder in a container of kaniko's, and "" anywhere
// else. It is in every one: the rest of the root, but for what is mounted, kaniko
// makes an image of.
func KanikoFolder(env func(string) string) string {
	dir := env("KANIKO_DIR")
	if !filepath.IsAbs(dir) {
		dir = "/kaniko"
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() || !inContainer() {
		return ""
	}
	return dir
}

// noNamespaces says why there are none.
func noNamespaces(err error) string {
	var errno syscall.Errno
	switch {
	case errors.Is(err, unix.ENOSPC):
		return "making namespaces: user.max_user_namespaces allows no more"
	case errors.As(err, &errno):
		return "making namespaces: " + errno.Error()
	}
	return fmt.Sprintf("making namespaces: %v", lastCause(err))
}

type answerOf[T any] struct {
	value *T
	err   error
}

// talk leads the conversation with the keeper to its end.
func (c *confined) talk(conn net.Conn, stops chan<- struct{}, running *atomic.Bool) answerOf[confineDone] {
	fail := func(err error) answerOf[confineDone] { return answerOf[confineDone]{err: err} }
	if err := c.say(c.plan); err != nil {
		return fail(fmt.Errorf("confining the command: %w", err))
	}
	in := json.NewDecoder(io.LimitReader(conn, maxConfined))
	for {
		var m confineMessage
		err := in.Decode(&m)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return fail(errors.New("confining the command: the keeper died"))
		case err != nil:
			return fail(fmt.Errorf("confining the command: %w", err))
		case m.Error != "" && m.NoSandbox:
			return fail(&noSandbox{EngineError{Text: m.Error, Way: m.Hint}})
		case m.Error != "":
			return fail(&EngineError{Text: m.Error, Way: m.Hint})
		case m.Ready != nil:
			known, refused := c.start(*m.Ready)
			if err := c.say(confineStart{refused == nil, known}); err != nil && refused == nil {
				return fail(fmt.Errorf("confining the command: %w", err))
			}
			running.Store(true)
			if refused != nil {
				return fail(refused)
			}
		case m.Stopped:
			select {
			case stops <- struct{}{}:
			default: // it is being seen to
			}
		case m.Done != nil:
			return answerOf[confineDone]{value: m.Done}
		}
	}
}

// manifest lists traced files as a working folder's are.
func (t *fileTrace) manifest() []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	for _, f := range t.Files {
		// A line of two texts and three numbers can be written.
		_ = enc.Encode(struct {
			attestations.ContextFile
			Written bool `json:"written,omitempty"`
		}{attestations.ContextFile{Path: f.Path, Mode: fmt.Sprintf("%07o", f.Mode), Size: f.Size, SHA256: f.SHA256}, f.Written})
	}
	return b.Bytes()
}
