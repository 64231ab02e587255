package sandbox

import (
	"encoding/binary"
	"strings"
	"testing"
)

// What kaniko starts has the image's environment and no more.
func TestStepsWithAnEnvironmentOfTheirOwnHaveOurs(t *testing.T) {
	const script = `
is() { test "$2" = "$3" || echo "$1: $2, not $3"; }
is given "$SSL_CERT_FILE" /dev/waxseal/ca.pem
is dropped "$(env -i A=1 PATH="$PATH" SSL_CERT_FILE=/image.pem sh -c 'echo "$# $0 $1 $A $SSL_CERT_FILE $https_proxy $(env | grep -c ^SSL_CERT_FILE=)"' zero one)" \
	'1 zero one 1 /dev/waxseal/ca.pem http://127.0.0.1:3128 1'
# By what it starts, too, which nobody traces any more.
is later "$(env -i /bin/sh -c '/bin/sh -c "echo \$SSL_CERT_FILE"; :')" /dev/waxseal/ca.pem
is traced "$(env -i /usr/bin/grep TracerPid: /proc/self/status | tr -d '\t')" TracerPid:0
# What somebody has dropped of ours himself stays so.
is unset "$(env -u SSL_CERT_FILE sh -c 'echo "-$SSL_CERT_FILE-"')" --
# A program without a loader.
is static "$(env -i "$SELF" variable SSL_CERT_FILE)" /dev/waxseal/ca.pem
long=$(head -c 100000 /dev/zero | tr '\0' x)
is long "$(env -i /bin/sh -c 'echo "${#1} $SSL_CERT_FILE"' sh "$long")" '100000 /dev/waxseal/ca.pem'
is many "$(env -i /bin/sh -c 'echo "$# $SSL_CERT_FILE"' $(seq 20000))" '19999 '
# Signals and exit codes are its own.
env -i /bin/sh -c 'exit 7'; is exit $? 7
env -i /bin/sh -c 'kill -PIPE $$'; is killed $? 141
env -i /bin/sh -c 'kill -STOP $$; exit 4' & sleep=$!
until grep -q '^State:.T (stopped)' /proc/$sleep/status; do :; done
kill -CONT $sleep; wait $sleep; is stopped $? 4
trap 'echo USR1' USR1; kill -USR1 $$
exit 5`
	done, _, out := confine(t, newDir(t), "", script, Plan{Unpacks: true})
	if out != "USR1\n" || done.Exit != 5 {
		t.Errorf("%d: %s", done.Exit, out)
	}
}

// What is no stack of a program is none.
func TestAStackThatIsNone(t *testing.T) {
	words := func(list ...uint64) (out []byte) {
		for _, w := range list {
			out = binary.NativeEndian.AppendUint64(out, w)
		}
		return out
	}
	const sp = 1 << 20
	for name, stack := range map[string][]byte{
		"nothing":                nil,
		"half a number":          {1, 0, 0},
		"too many arguments":     words(1<<40, 0, 0),
		"no end of variables":    words(0, 0, sp),
		"a variable elsewhere":   words(0, 0, 7, 0, 0, 0),
		"one past the end":       words(0, 0, sp+48, 0, 0, 0),
		"one without an end":     append(words(0, 0, sp+48, 0, 0, 0), "A=1"...),
		"no end of what follows": words(0, 0, 0, 1, 2),
	} {
		if top, err := lentStack(stack, sp); err == nil {
			t.Errorf("%s: %d bytes", name, len(top))
		}
	}
	if top, err := lentStack(words(0, 0, 0, 0, 0), sp); err != nil || len(top)%16 != 0 || !strings.Contains(string(top), "SSL_CERT_FILE=") {
		t.Errorf("%q, %v", top, err)
	}
}

func FuzzLentStack(f *testing.F) {
	f.Add([]byte(strings.Repeat("\x00", 40)), uint64(1<<20))
	f.Fuzz(func(t *testing.T, stack []byte, sp uint64) {
		if top, err := lentStack(stack, sp); err == nil && len(top)%16 != 0 {
			t.Errorf("%d bytes", len(top))
		}
	})
}
