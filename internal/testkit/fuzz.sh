#!/usr/bin/env bash
# Runs the fuzz targets of the packages given whose names match, two at once for
# each processor, and says how to run again what one of them found.
#
#   FUZZTIME=1m internal/testkit/fuzz.sh NAMES PACKAGE...
set -euo pipefail

export FUZZTIME=${FUZZTIME:-1m}
names=${1:?a regular expression of names, such as ^Fuzz}
shift
work=$(mktemp -d)
export work
trap 'rm -rf "$work"' EXIT

# A package's targets come before the line that names it.
go test -list "$names" "${@:?packages, such as ./pkg/attest}" >"$work/list" || { cat "$work/list" && exit 1; }
awk '/^Fuzz/ { names[n++] = $1 } $1 == "ok" { for (i = 0; i < n; i++) print $2, names[i]; n = 0 }' "$work/list" >"$work/targets"
[ -s "$work/targets" ] || { echo "fuzz: no targets" >&2 && exit 1; }

# One program for all targets of a package: go test -fuzz would link it for each.
while read -r package; do
	go test -c -fuzz . -o "$work/${package//\//_}" "$package"
done < <(cut -d ' ' -f 1 "$work/targets" | uniq)
kept=$(go env GOCACHE)/fuzz
export kept

fuzz() {
	local package=$1 name=$2 log=$work/$2.$$ input
	elapsed() { printf '%-60s %s\n' "$package $name" "$(grep -E '^fuzz: elapsed' "$log" | tail -n 1)"; }
	# To make an input smaller without end would take the time of finding more:
	# a target that unpacks archives does nothing else then.
	if (
		cd "$(go list -f '{{.Dir}}' "$package")" &&
			"$work/${package//\//_}" -test.run '^$' -test.fuzz "^$name\$" -test.fuzztime "$FUZZTIME" -test.fuzzminimizetime 100x \
				-test.parallel 1 -test.fuzzcachedir "$kept/$package"
	) >"$log" 2>&1; then
		elapsed
		return
	fi
	# Before Go 1.27 the end of the time may come out as an error by itself, with
	# no input that failed: https://go.dev/issue/75804
	if ! grep -q 'Failing input' "$log" && [ "$(grep -A 2 -e '^--- FAIL' "$log" | sed -n '2s/^ *//p;3p' | tr '\n' ' ')" = 'context deadline exceeded FAIL ' ]; then
		elapsed
		return
	fi
	cat "$log"
	input=$(sed -n 's|.*Failing input written to testdata/fuzz/||p' "$log")
	echo "  go test -run '^${input:-$name}\$' $package" >>"$work/found"
}
export -f fuzz
xargs -P "$((2 * $(nproc)))" -L 1 bash -c 'fuzz "$@"' fuzz <"$work/targets"

if [ -s "$work/found" ]; then
	echo "fuzz: $(wc -l <"$work/found") of $(wc -l <"$work/targets") targets failed; again with:" >&2
	cat "$work/found" >&2
	exit 1
fi
echo "fuzz: $(wc -l <"$work/targets") targets, $FUZZTIME each, nothing found"
