package build

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"github.com/tonistiigi/go-csvvalue"
)

// The functions below read the values of docker's flags into a Request. Their
// errors name the value; the caller names the flag.

// fields splits "a=b,c=d" with CSV quoting into lower-case keys and values, in
// order.
func fields(s string) ([][2]string, error) {
	parts, err := csvvalue.Fields(s, nil)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", s, err)
	}
	var out [][2]string
	for _, p := range parts {
		k, v, ok := strings.Cut(p, "=")
		if !ok {
			return nil, fmt.Errorf("%q: %q is no KEY=VALUE", s, p)
		}
		out = append(out, [2]string{strings.ToLower(strings.TrimSpace(k)), v})
	}
	return out, nil
}

// ParseArgs reads "NAME=VALUE"; "NAME" alone takes its value from lookup, and
// is left out when there is none.
func ParseArgs(values []string, lookup func(string) (string, bool)) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range values {
		k, v, ok := strings.Cut(s, "=")
		if k == "" {
			return nil, fmt.Errorf("%q has no name", s)
		}
		if !ok {
			if v, ok = lookup(k); !ok {
				continue
			}
		}
		out[k] = v
	}
	return nilIfEmpty(out), nil
}

// ParseLabels reads "NAME=VALUE"; "NAME" alone has an empty value.
func ParseLabels(values []string) (map[string]string, error) {
	return ParseArgs(values, func(string) (string, bool) { return "", true })
}

// ParseNamedContexts reads "NAME=VALUE" and brings the names into the form in
// which a Dockerfile's FROM is looked up.
func ParseNamedContexts(values []string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range values {
		k, v, ok := strings.Cut(s, "=")
		if !ok || v == "" {
			return nil, fmt.Errorf("%q is no NAME=PATH, URL or image", s)
		}
		named, err := reference.ParseNormalizedNamed(k)
		if err != nil {
			return nil, fmt.Errorf("%q: the name %q: %w", s, k, err)
		}
		out[strings.TrimSuffix(reference.FamiliarString(named), ":latest")] = v
	}
	return nilIfEmpty(out), nil
}

// ParsePlatforms reads comma separated platforms; "local" is this machine's.
func ParsePlatforms(values []string) ([]string, error) {
	var out []string
	for _, s := range values {
		for _, one := range strings.Split(s, ",") {
			one = strings.TrimSpace(one)
			if one == "" {
				continue
			}
			p := platforms.DefaultSpec()
			if one != "local" {
				var err error
				if p, err = platforms.Parse(one); err != nil {
					return nil, fmt.Errorf("%q: %w", one, err)
				}
			}
			if name := platforms.FormatAll(platforms.Normalize(p)); !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return out, nil
}

// ParseSecrets reads "id=ID[,src=FILE][,env=NAME][,type=file|env]".
func ParseSecrets(values []string) ([]Secret, error) {
	var out []Secret
	for _, s := range values {
		kv, err := fields(s)
		if err != nil {
			return nil, err
		}
		var x Secret
		kind := ""
		for _, f := range kv {
			switch f[0] {
			case "id":
				x.ID = f[1]
			case "src", "source":
				x.File = f[1]
			case "env":
				x.Env = f[1]
			case "type":
				if f[1] != "file" && f[1] != "env" {
					return nil, fmt.Errorf("%q: type %q is neither file nor env", s, f[1])
				}
				kind = f[1]
			default:
				return nil, fmt.Errorf("%q: unknown key %q", s, f[0])
			}
		}
		if x.ID == "" {
			return nil, fmt.Errorf("%q has no id=", s)
		}
		if kind == "env" && x.Env == "" {
			x.Env, x.File = x.File, ""
		}
		if x.File != "" && x.Env != "" {
			return nil, fmt.Errorf("%q: src= and env= exclude each other", s)
		}
		if slices.ContainsFunc(out, func(o Secret) bool { return o.ID == x.ID }) {
			return nil, fmt.Errorf("%q: the id %q is given twice", s, x.ID)
		}
		out = append(out, x)
	}
	return out, nil
}

// ParseSSH reads "default", "ID" or "ID=SOCKET|KEY[,KEY][,raw=true]".
func ParseSSH(values []string) ([]SSH, error) {
	var out []SSH
	for _, s := range values {
		id, rest, has := strings.Cut(s, "=")
		if id == "" {
			return nil, fmt.Errorf("%q has no id", s)
		}
		x := SSH{ID: id}
		if has {
			for _, p := range strings.Split(rest, ",") {
				if v, ok := strings.CutPrefix(p, "raw="); ok {
					b, err := strconv.ParseBool(v)
					if err != nil {
						return nil, fmt.Errorf("%q: raw=%q is neither true nor false", s, v)
					}
					x.Raw = b
					continue
				}
				x.Paths = append(x.Paths, p)
			}
		}
		if x.Raw && len(x.Paths) != 1 {
			return nil, fmt.Errorf("%q: raw=true takes exactly one socket", s)
		}
		if slices.ContainsFunc(out, func(o SSH) bool { return o.ID == x.ID }) {
			return nil, fmt.Errorf("%q: the id %q is given twice", s, x.ID)
		}
		out = append(out, x)
	}
	return out, nil
}

// ParseAddHosts reads "NAME:IP" or "NAME=IP".
func ParseAddHosts(values []string) ([]string, error) {
	var out []string
	for _, s := range values {
		name, ip, ok := strings.Cut(s, "=")
		if !ok {
			name, ip, ok = strings.Cut(s, ":")
		}
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is no NAME:IP", s)
		}
		if ip == "host-gateway" {
			return nil, fmt.Errorf("%q: host-gateway is an address that only a Docker daemon knows; give the IP itself", s)
		}
		ip = strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]")
		if net.ParseIP(ip) == nil {
			return nil, fmt.Errorf("%q: %q is no IP address", s, ip)
		}
		out = append(out, name+"="+ip)
	}
	return out, nil
}

// ParseUpstreams reads "NAME[:PORT]=ADDRESS[:PORT]".
func ParseUpstreams(values []string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range values {
		name, to, ok := strings.Cut(s, "=")
		if !ok || name == "" || to == "" {
			return nil, fmt.Errorf("%q is no NAME[:PORT]=ADDRESS[:PORT]", s)
		}
		host, port, err := net.SplitHostPort(name)
		if err != nil {
			host, port = name, ""
		}
		if host == "" || strings.ContainsAny(host, "/*:") || !isPort(port) {
			return nil, fmt.Errorf("%q: %q is no NAME[:PORT]", s, name)
		}
		address, port, err := net.SplitHostPort(to)
		if err != nil {
			address, port = strings.TrimSuffix(strings.TrimPrefix(to, "["), "]"), ""
		}
		if net.ParseIP(address) == nil || !isPort(port) {
			return nil, fmt.Errorf("%q: %q is no ADDRESS[:PORT] with an IP address", s, to)
		}
		name = strings.ToLower(name)
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("%q: %q is given twice", s, name)
		}
		out[name] = to
	}
	return nilIfEmpty(out), nil
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return s == "" || err == nil && n > 0
}

// CheckHostPatterns accepts patterns of hosts: "deb.example.org" or
// "*.example.org". What passes here the gateway takes too.
func CheckHostPatterns(patterns []string) error {
	if len(patterns) == 0 {
		return nil
	}
	// A name of a host, and the ends of names that some resolvers take for addresses.
	hostName := regexp.MustCompile(`^([a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?$`)
	numberEnd := regexp.MustCompile(`(^|\.)(0x[0-9a-f]*|[0-9]+)\.?$`)
	for _, p := range patterns {
		name, below := strings.CutPrefix(strings.ToLower(p), "*.")
		addr, err := netip.ParseAddr(name)
		isAddr := err == nil && addr.Zone() == "" && !below
		isName := len(name) <= 253 && hostName.MatchString(name) && !numberEnd.MatchString(name)
		if p != "*" && !isAddr && !isName {
			return fmt.Errorf("%q is no host: give a name, *.DOMAIN or an IP address, without scheme and port", p)
		}
	}
	return nil
}

// ParseSize reads "64m" and the like into bytes.
func ParseSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil {
		return 0, fmt.Errorf("%q is no size, as 64m: %w", s, err)
	}
	if n <= 0 {
		return 0, fmt.Errorf("%q: must be more than 0", s)
	}
	return n, nil
}

// ParseUlimits reads "NAME=SOFT[:HARD]".
func ParseUlimits(values []string) ([]string, error) {
	var out []string
	for _, s := range values {
		u, err := units.ParseUlimit(s)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", s, err)
		}
		out = append(out, u.String())
	}
	return out, nil
}

// CheckNetwork accepts the network modes of a build.
func CheckNetwork(mode string) error {
	switch mode {
	case "", "default", "none", "host":
		return nil
	}
	return fmt.Errorf("%q is not supported: default, none or host", mode)
}

// ParseCacheEntries reads "REF" or "type=T,KEY=VALUE…".
func ParseCacheEntries(values []string, to bool) ([]CacheEntry, error) {
	var out []CacheEntry
	for _, s := range values {
		e := CacheEntry{Attrs: map[string]string{}}
		if !strings.Contains(s, "=") {
			e.Type, e.Attrs["ref"] = "registry", s
		} else {
			kv, err := fields(s)
			if err != nil {
				return nil, err
			}
			for _, f := range kv {
				if f[0] == "type" {
					e.Type = f[1]
				} else {
					e.Attrs[f[0]] = f[1]
				}
			}
		}
		need := ""
		switch e.Type {
		case "registry":
			need = "ref"
		case "local":
			need = "src"
			if to {
				need = "dest"
			}
		case "inline":
			if !to {
				return nil, fmt.Errorf("%q: an inline cache is imported with type=registry", s)
			}
		case "gha", "s3", "azblob":
			return nil, fmt.Errorf("%q: cache type %q needs a token, and the engine is given none; use type=registry or type=local", s, e.Type)
		case "":
			return nil, fmt.Errorf("%q has no type=", s)
		default:
			return nil, fmt.Errorf("%q: cache type %q is not supported: registry, local or inline", s, e.Type)
		}
		if need != "" && e.Attrs[need] == "" {
			return nil, fmt.Errorf("%q: type=%s needs %s=", s, e.Type, need)
		}
		if to && e.Attrs["mode"] == "" && e.Type != "inline" {
			e.Attrs["mode"] = "min"
		}
		out = append(out, e)
	}
	return out, nil
}

var annotationLevel = regexp.MustCompile(`^([a-z-]+)(?:\[([A-Za-z0-9_/.-]+)\])?$`)

// ParseAnnotations reads "[LEVEL[,LEVEL]:]KEY=VALUE", where a level may name a
// platform in brackets.
func ParseAnnotations(values []string) ([]Annotation, error) {
	var out []Annotation
	for _, s := range values {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("%q is no KEY=VALUE", s)
		}
		levels, key, ok := strings.Cut(k, ":")
		if !ok {
			out = append(out, Annotation{Key: k, Value: v})
			continue
		}
		if key == "" {
			return nil, fmt.Errorf("%q has no key", s)
		}
		for _, l := range strings.Split(levels, ",") {
			m := annotationLevel.FindStringSubmatch(l)
			if m == nil {
				return nil, fmt.Errorf("%q: %q is no level: index, manifest, index-descriptor or manifest-descriptor", s, l)
			}
			a := Annotation{Level: m[1], Key: key, Value: v}
			switch a.Level {
			case "index", "manifest", "index-descriptor", "manifest-descriptor":
			default:
				return nil, fmt.Errorf("%q: %q is no level: index, manifest, index-descriptor or manifest-descriptor", s, a.Level)
			}
			if m[2] != "" {
				if strings.HasPrefix(a.Level, "index") {
					return nil, fmt.Errorf("%q: an index has no platform", s)
				}
				p, err := platforms.Parse(m[2])
				if err != nil {
					return nil, fmt.Errorf("%q: %w", s, err)
				}
				a.Platform = platforms.FormatAll(platforms.Normalize(p))
			}
			out = append(out, a)
		}
	}
	return out, nil
}

// layerKeys are the image exporter's options that change the image's bytes.
func layerKeys() []string {
	return []string{"compression", "compression-level", "force-compression", "oci-mediatypes", "rewrite-timestamp", "prefer-nondist-layers"}
}

// ParseOutputs reads "DEST", "-" or "type=KIND,KEY=VALUE…".
func ParseOutputs(values []string) ([]Output, error) {
	var out []Output
	for _, s := range values {
		o, err := parseOutput(s)
		if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, nil
}

func parseOutput(s string) (Output, error) {
	switch {
	case s == "":
		return Output{}, errors.New("\"\" is no destination")
	case s == "-":
		return Output{Kind: OutputTar, Dest: "-", Tar: true}, nil
	case !strings.Contains(s, "="):
		return Output{Kind: OutputLocal, Dest: s}, nil
	}
	kv, err := fields(s)
	if err != nil {
		return Output{}, err
	}
	o := Output{Tar: true}
	set := map[string]string{}
	for _, f := range kv {
		if f[0] == "type" {
			o.Kind = f[1]
			continue
		}
		set[f[0]] = f[1]
	}
	if o.Kind == "" {
		return o, fmt.Errorf("%q has no type=", s)
	}
	if o.Kind == "registry" {
		o.Kind, o.Push = OutputImage, true
	}
	if !slices.Contains([]string{OutputLocal, OutputTar, OutputOCI, OutputDocker, OutputImage}, o.Kind) {
		return o, fmt.Errorf("%q: output type %q is not supported: local, tar, oci, docker, image or registry", s, o.Kind)
	}
	for _, k := range sortedKeys(set) {
		if err := o.set(k, set[k]); err != nil {
			return o, fmt.Errorf("%q: %w", s, err)
		}
	}
	return o, o.complete(s)
}

// set takes one option of an output.
func (o *Output) set(k, v string) error {
	image := o.Kind == OutputImage || o.Kind == OutputOCI || o.Kind == OutputDocker
	flag := func(dst *bool) error {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Errorf("%s=%q is neither true nor false", k, v)
		}
		*dst = b
		return nil
	}
	switch {
	case k == "dest" && o.Kind != OutputImage:
		o.Dest = v
	case k == "tar" && (o.Kind == OutputOCI || o.Kind == OutputDocker):
		return flag(&o.Tar)
	case k == "push" && o.Kind == OutputImage:
		return flag(&o.Push)
	case k == "push-by-digest" && o.Kind == OutputImage:
		return flag(&o.PushByDigest)
	case k == "name" && image:
		for _, n := range strings.Split(v, ",") {
			if err := checkTag(n); err != nil {
				return err
			}
			o.Names = append(o.Names, n)
		}
	case k == "name-canonical" && o.Kind == OutputImage, k == "store" && o.Kind == OutputImage, k == "unpack" && o.Kind == OutputImage && v == "false":
		// The image is always kept under its digest too.
		var b bool
		return flag(&b)
	case slices.Contains(layerKeys(), k) && image:
		if k == "oci-mediatypes" && v != "true" {
			return errors.New("oci-mediatypes=false is not supported: evidence is attached to OCI images")
		}
		if k == "rewrite-timestamp" {
			var b bool
			if err := flag(&b); err != nil {
				return err
			}
			v = strconv.FormatBool(b)
		}
		if o.Layers == nil {
			o.Layers = map[string]string{}
		}
		o.Layers[k] = v
	case strings.HasPrefix(k, "annotation") && image:
		a, err := exporterAnnotation(k, v)
		if err != nil {
			return err
		}
		o.Annotations = append(o.Annotations, a)
	case o.Kind == OutputLocal && (k == "platform-split" || k == "mode" && v == "copy"):
		if o.Attrs == nil {
			o.Attrs = map[string]string{}
		}
		o.Attrs[k] = v
	default:
		return fmt.Errorf("option %q is not supported for type=%s", k, o.Kind)
	}
	return nil
}

// exporterAnnotation reads "annotation[-LEVEL[PLATFORM]].KEY".
func exporterAnnotation(k, v string) (Annotation, error) {
	level, key, ok := strings.Cut(strings.TrimPrefix(k, "annotation"), ".")
	if !ok || key == "" {
		return Annotation{}, fmt.Errorf("option %q is no annotation.KEY", k)
	}
	spec := key + "=" + v
	if level != "" {
		spec = strings.TrimPrefix(level, "-") + ":" + spec
	}
	as, err := ParseAnnotations([]string{spec})
	if err != nil {
		return Annotation{}, err
	}
	return as[0], nil
}

// complete checks what only the whole output can tell.
func (o *Output) complete(s string) error {
	switch o.Kind {
	case OutputLocal:
		if o.Dest == "" || o.Dest == "-" {
			return fmt.Errorf("%q: type=local needs dest=FOLDER", s)
		}
	case OutputTar:
		if o.Dest == "" {
			o.Dest = "-"
		}
	case OutputOCI:
		if !o.Tar && (o.Dest == "" || o.Dest == "-") {
			return fmt.Errorf("%q: type=oci,tar=false needs dest=FOLDER", s)
		}
		if o.Dest == "" {
			o.Dest = "-"
		}
	case OutputDocker:
		if !o.Tar {
			return fmt.Errorf("%q: tar=false is not supported for type=docker; use type=oci,tar=false", s)
		}
	}
	if o.Dest != "" && o.Dest != "-" {
		o.Dest = filepath.Clean(o.Dest)
	}
	return nil
}

func nilIfEmpty(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return m
}
