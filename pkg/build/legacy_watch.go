package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moby/buildkit/identity"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// unopened is why the traffic of docker's steps is not opened where it is TLS:
// nothing can be put into such a step that is not in the image then.
const unopened = "docker's legacy builder gives its steps no certificate of ours"

// Where the process that holds a build's network finds what it needs, and how
// long it may take.
const (
	holderProgram = "/waxseal-sandbox"
	holderSocket  = "/waxseal.sock"
	holderTimeout = 20 * time.Second
	forgetTimeout = 20 * time.Second
)

// holderLabel marks what waxseal makes in a daemon for one run.
const holderLabel = "dev.waxseal.run"

// daemonNotes is the file of a run's folder that says what is left of it in
// which daemon: the socket, the label, and the containers in whose networks
// steps ran, a line each.
const daemonNotes = "docker"

// maxDaemonNotes bounds it.
const maxDaemonNotes = 1 << 20

// holderFolder begins the name of the folder of a gateway's socket.
const holderFolder = "waxseal-net-"

// legacyGateway has the steps of docker's legacy builder run where our gateway
// is the only way out: for each build it starts a container without a network,
// in whose namespace another process of ours opens the gateway, and the builder
// starts the steps.
type legacyGateway struct {
	daemon *dockerDaemon
	dir    string // the run's own
	holder string // the socket of those that hold networks
	plan   InputsPlan

	begin func() error // starts that process and makes the image, once

	label, image, program string
	libraries             []string // that the program needs
	cmd                   *exec.Cmd
	talk                  net.Conn

	saying sync.Mutex // over out: nobody who listens waits for it
	out    *json.Encoder

	mu     sync.Mutex
	builds map[string]*legacyNetwork
	over   error // why that process says nothing more
}

// legacyNetwork is the namespace of one build.
type legacyNetwork struct {
	container string
	env       map[string]string // that names the gateway; set before ready is closed
	ready     chan struct{}     // closed when the gateway listens
	done      chan struct{}     // closed when it is over
	seen      *legacySeen       // set before done is closed; nil where err says why
	err       error
}

// legacySeen is what the gateway saw of a build: a record for what came before
// its first step, and one for each step that was announced.
type legacySeen struct {
	Steps   []attestations.InputStep  `json:"steps"`
	Gateway attestations.InputGateway `json:"gateway"`
}

type legacyOrder struct {
	Build  string            `json:"build"`
	Closed bool              `json:"closed,omitempty"`
	Hosts  map[string]net.IP `json:"hosts,omitempty"`
	Step   *string           `json:"step,omitempty"`
	End    bool              `json:"end,omitempty"`
}

type legacyMessage struct {
	Build     string      `json:"build"`
	Ready     bool        `json:"ready"`
	Error     string      `json:"error"`
	Seen      *legacySeen `json:"seen"`
	Libraries []string    `json:"libraries"`

	Env map[string]string `json:"env"` // see legacyNetwork
}

// newLegacyGateway prepares a gateway; nothing is started before the first
// build. dir is the folder of the run.
func newLegacyGateway(daemon *dockerDaemon, dir string, plan InputsPlan) *legacyGateway {
	g := &legacyGateway{daemon: daemon, dir: dir, plan: plan, label: identity.NewID(), builds: map[string]*legacyNetwork{}}
	g.plan.Clients, g.plan.Unopened = nil, unopened
	g.begin = sync.OnceValue(g.start)
	return g
}

// start starts the gateway's process and makes an image with nothing in it.
func (g *legacyGateway) start() (err error) {
	switch {
	case !g.daemon.local():
		return errors.New("the daemon is reached over TCP and not by a socket, so that nobody can tell whether its steps are of this machine")
	case os.Geteuid() != 0:
		return errors.New("waxseal does not run as root")
	}
	var ok bool
	if g.program, ok = program(sandboxName); !ok {
		return fmt.Errorf("%s is neither beside waxseal nor on PATH", sandboxName)
	}
	if err := g.place(); err != nil {
		return fmt.Errorf("making a folder that the daemon sees: %w", err)
	}
	holders, err := net.ListenUnix("unix", &net.UnixAddr{Name: g.holder, Net: "unix"})
	if err != nil {
		return fmt.Errorf("opening a socket for the steps' networks: %w", err)
	}
	defer holders.Close()
	holders.SetUnlinkOnClose(false)
	// Root of a daemon's user namespace is somebody else here; the folder is
	// root's alone.
	if err := os.Chmod(g.holder, 0o666); err != nil {
		return err
	}
	socket, err := holders.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	talk, theirs, err := socketPair("channel to the gateway")
	if err != nil {
		return err
	}
	defer theirs.Close()
	defer closeOnError(&err, talk)
	if err := os.WriteFile(filepath.Join(g.dir, daemonNotes), []byte(g.daemon.address+"\n"+g.label+"\n"), 0o600); err != nil {
		return fmt.Errorf("noting the daemon: %w", err)
	}
	said := &tail{}
	cmd := exec.Command(g.program, "legacy")
	cmd.Env, cmd.Dir = append(engineEnv(os.Environ()), "GOGC=400"), "/"
	cmd.Stdout, cmd.Stderr = said, said
	cmd.ExtraFiles = []*os.File{theirs, socket} // 3, 4
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is the command's
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", sandboxName, err)
	}
	g.cmd, g.talk, g.out = cmd, talk, json.NewEncoder(talk)
	if err := g.say(g.plan); err != nil {
		return err
	}
	in := json.NewDecoder(io.LimitReader(talk, maxLegacyBuilds*maxConfined))
	var first legacyMessage
	if err := in.Decode(&first); err != nil {
		return fmt.Errorf("starting %s: it died: %s", sandboxName, clipLine(said.text()))
	}
	if !first.Ready {
		return errors.New(first.Error)
	}
	g.libraries = first.Libraries
	go g.listen(in)
	ctx, cancel := context.WithTimeout(context.Background(), holderTimeout)
	defer cancel()
	g.image, err = g.makeImage(ctx)
	return err
}

// makeImage makes an image of no files: what its containers run is mounted.
func (g *legacyGateway) makeImage(ctx context.Context) (string, error) {
	q := url.Values{"fromSrc": {"-"}, "changes": {fmt.Sprintf("LABEL %s=%s", holderLabel, g.label)}}
	raw, err := g.daemon.do(ctx, http.MethodPost, "/images/create?"+q.Encode(), "application/x-tar", make([]byte, 1024))
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(raw) {
		var m struct{ Status string }
		if json.Unmarshal(line, &m) != nil {
			continue
		}
		if d, err := attest.ParseDigest(strings.TrimSpace(m.Status)); err == nil {
			return string(d), nil
		}
	}
	return "", errors.New("making an empty image: the daemon named none")
}

func (g *legacyGateway) say(v any) error {
	g.saying.Lock()
	defer g.saying.Unlock()
	if err := g.out.Encode(v); err != nil {
		return fmt.Errorf("telling the gateway: %w", err)
	}
	return nil
}

// listen takes in what the gateway's process says, to its end.
func (g *legacyGateway) listen(in *json.Decoder) {
	for {
		var m legacyMessage
		err := in.Decode(&m)
		g.mu.Lock()
		if err != nil {
			g.over = errors.New("the gateway died")
			for id, n := range g.builds {
				n.err = g.over
				close(n.done)
				delete(g.builds, id)
			}
			g.mu.Unlock()
			return
		}
		n := g.builds[m.Build]
		switch {
		case n == nil:
		case m.Ready:
			n.env = m.Env
			close(n.ready)
		default:
			if n.seen = m.Seen; n.seen == nil {
				n.err = errors.New(m.Error)
			}
			close(n.done)
			delete(g.builds, m.Build)
		}
		g.mu.Unlock()
	}
}

// open makes the network of a build; closed has nothing leave it. The caller
// ends it.
func (g *legacyGateway) open(ctx context.Context, id string, hosts map[string]net.IP, closed bool) (*legacyNetwork, error) {
	if err := g.begin(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, holderTimeout)
	defer cancel()
	n := &legacyNetwork{ready: make(chan struct{}), done: make(chan struct{})}
	g.mu.Lock()
	over := g.over
	if over == nil {
		g.builds[id] = n
	}
	g.mu.Unlock()
	if over != nil {
		return nil, over
	}
	err := g.say(legacyOrder{Build: id, Hosts: hosts, Closed: closed})
	if err == nil {
		n.container, err = g.hold(ctx, id, hosts)
	}
	if err == nil {
		select {
		case <-n.ready:
			return n, nil
		case <-n.done:
			err = n.err
		case <-ctx.Done():
			err = errors.New("the container that holds the network did not report")
		}
	}
	_ = g.say(legacyOrder{Build: id, End: true})
	return nil, err
}

// try makes a network and lets it go.
func (g *legacyGateway) try(ctx context.Context) error {
	const id = "trial"
	n, err := g.open(ctx, id, nil, true)
	if err != nil {
		return err
	}
	g.end(id)
	_, err = n.wait(ctx)
	return err
}

// wait returns what was seen, once the build that has the network is over.
func (n *legacyNetwork) wait(ctx context.Context) (*legacySeen, error) {
	select {
	case <-n.done:
		return n.seen, n.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// place makes the folder of the socket among the temporary files: a daemon can
// have a /run of its own. The folder of the run leads to it.
func (g *legacyGateway) place() error {
	base := os.TempDir()
	if len(base)+len("/waxseal-net-0123456789/n") > maxSocket {
		base = "/tmp"
	}
	dir, err := os.MkdirTemp(base, holderFolder)
	if err != nil {
		return err
	}
	g.holder = filepath.Join(dir, "n")
	if err := os.Symlink(dir, filepath.Join(g.dir, "n")); err != nil {
		return errors.Join(err, os.Remove(dir))
	}
	return nil
}

// hold starts the container that holds a network.
func (g *legacyGateway) hold(ctx context.Context, id string, hosts map[string]net.IP) (string, error) {
	type mount struct {
		Type, Source, Target string
		ReadOnly             bool
	}
	var extra []string
	for _, name := range sortedKeys(hosts) {
		extra = append(extra, name+":"+hosts[name].String())
	}
	mounts := []mount{{"bind", g.program, holderProgram, true}, {"bind", g.holder, holderSocket, false}}
	for _, name := range g.libraries {
		mounts = append(mounts, mount{"bind", name, name, true})
	}
	config := map[string]any{
		"Image": g.image, "Entrypoint": []string{holderProgram}, "Cmd": []string{"hold", id},
		"Labels": map[string]string{holderLabel: g.label},
		"HostConfig": map[string]any{
			"NetworkMode": "none", "Dns": []string{"127.0.0.1"}, "ExtraHosts": extra,
			"AutoRemove": true, "ReadonlyRootfs": true, "CapDrop": []string{"ALL"},
			"SecurityOpt": []string{"no-new-privileges", "label=disable"},
			"LogConfig":   map[string]string{"Type": "none"},
			"Mounts":      mounts,
		},
	}
	var made struct{ ID string }
	if err := g.daemon.post(ctx, "/containers/create", config, &made); err != nil {
		return "", err
	}
	if !isHex(made.ID) {
		return "", errors.New("starting a container: the daemon named none")
	}
	if err := g.note(made.ID); err != nil {
		return "", err
	}
	_, err := g.daemon.do(ctx, http.MethodPost, "/containers/"+made.ID+"/start", "", nil)
	return made.ID, err
}

// note writes down a container that a killed run leaves to the next.
func (g *legacyGateway) note(id string) error {
	f, err := os.OpenFile(filepath.Join(g.dir, daemonNotes), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return fmt.Errorf("noting a container: %w", err)
	}
	_, err = f.WriteString(id + "\n")
	return errors.Join(err, f.Close())
}

// step says that the next step of a build begins, and end that all are over.
func (g *legacyGateway) step(id, name string) { _ = g.say(legacyOrder{Build: id, Step: &name}) }
func (g *legacyGateway) end(id string)        { _ = g.say(legacyOrder{Build: id, End: true}) }

// proxied reports whether the gateway itself asks a proxy.
func (g *legacyGateway) proxied() bool {
	return slices.ContainsFunc(engineEnv(os.Environ()), func(kv string) bool {
		name, value, _ := strings.Cut(kv, "=")
		return namesProxy(map[string]*string{name: &value})
	})
}

// close ends the gateway's process and removes what is in the daemon.
func (g *legacyGateway) close() {
	if g.cmd == nil {
		return // begin was never called, or had nothing to undo
	}
	g.talk.Close()
	timer := time.AfterFunc(closeGrace, func() { _ = g.cmd.Process.Kill() })
	_ = g.cmd.Wait()
	timer.Stop()
	forgetDaemon(g.dir, false)
}

// forgetDaemon removes from a daemon what a run made there, as far as it is
// reached. Of a run that was killed the steps go, too, which nobody waits for.
func forgetDaemon(dir string, killed bool) {
	name := filepath.Join(dir, daemonNotes)
	raw, err := readSmall(name, maxDaemonNotes)
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	if err != nil || len(lines) < 2 {
		return
	}
	d := newDockerDaemon("unix", lines[0], nil)
	defer d.close()
	ctx, cancel := context.WithTimeout(context.Background(), forgetTimeout)
	defer cancel()
	remove := func(id string) {
		_, _ = d.do(ctx, http.MethodDelete, "/containers/"+id+"?force=1&v=1", "", nil)
		_, _ = d.do(ctx, http.MethodPost, "/containers/"+id+"/wait?condition=removed", "", nil)
	}
	var all []struct {
		ID         string `json:"Id"` //nolint:tagliatelle // Docker's own
		Labels     map[string]string
		HostConfig struct{ NetworkMode string }
	}
	if d.get(ctx, "/containers/json?all=1", &all) != nil {
		return
	}
	for _, c := range all {
		holder, step := strings.CutPrefix(c.HostConfig.NetworkMode, "container:")
		if c.Labels[holderLabel] == lines[1] || killed && step && slices.Contains(lines[2:], holder) {
			remove(c.ID)
		}
	}
	filter, err := json.Marshal(map[string][]string{"label": {holderLabel + "=" + lines[1]}})
	if err != nil {
		return
	}
	var images []struct {
		ID string `json:"Id"` //nolint:tagliatelle // Docker's own
	}
	if d.get(ctx, "/images/json?"+url.Values{"filters": {string(filter)}, "all": {"1"}}.Encode(), &images) != nil {
		return
	}
	for _, i := range images {
		if _, err := d.do(ctx, http.MethodDelete, "/images/"+i.ID+"?force=1", "", nil); err != nil && !unknownToDaemon(err) {
			return
		}
	}
	_ = os.Remove(name) // nothing is left that it names
}
