#!/usr/bin/env bash
# Runs every fuzz target below the packages given, one after the other, and says
# how to run again what one of them found.
#
#   FUZZTIME=1m internal/testkit/fuzz.sh [PACKAGE...]      default: ./...
set -euo pipefail

fuzztime=${FUZZTIME:-1m}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# A package's targets come before the line that names it.
targets=() names=()
while read -r first second _; do
	case $first in
	Fuzz*) names+=("$first") ;;
	ok)
		for name in "${names[@]}"; do targets+=("$second $name"); done
		names=()
		;;
	esac
done < <(go test -list '^Fuzz' "${@:-./...}" | tee "$log")
if grep -E '^(FAIL|---)' "$log"; then exit 1; fi
[ ${#targets[@]} -gt 0 ] || { echo "fuzz: no targets" >&2 && exit 1; }

found=()
for target in "${targets[@]}"; do
	read -r package name <<<"$target"
	# To make an input smaller without end would take the time of finding more:
	# a target that unpacks archives does nothing else then.
	if go test -run '^$' -fuzz "^$name\$" -fuzztime "$fuzztime" -fuzzminimizetime 100x "$package" >"$log" 2>&1; then
		printf '%-60s %s\n' "$package $name" "$(grep -E '^fuzz: elapsed' "$log" | tail -n 1)"
		continue
	fi
	cat "$log"
	input=$(sed -n 's|.*Failing input written to testdata/fuzz/||p' "$log")
	found+=("go test -run '^${input:-$name}\$' $package")
done
if [ ${#found[@]} -gt 0 ]; then
	echo "fuzz: ${#found[@]} of ${#targets[@]} targets failed; again with:" >&2
	printf '  %s\n' "${found[@]}" >&2
	exit 1
fi
echo "fuzz: ${#targets[@]} targets, $fuzztime each, nothing found"
