#!/bin/sh
# Asks waxseal about one image and prints the reference to run. It admits only
# when the exit code and a complete answer say the same: a crash of the runtime
# has an exit code too, and a broken pipe can cut an answer short.
#
#   admit.sh IMAGE [FLAGS OF waxseal verify]...
#
# Exit codes: 0 admitted, 3 denied, 4 not decided (ask again).
set -u
image=$1
shift
answer=$(waxseal verify --output json --deadline 4s "$@" -- "$image")
code=$?

# Each field of the answer has a line of its own, and no text in it can look
# like one: line ends and quotes within a string are escaped.
field() { printf '%s\n' "$answer" | sed -n "s/^  \"$1\": \"\\([^\"]*\\)\",\\{0,1\\}\$/\\1/p"; }
said=none
if [ "$(printf '%s\n' "$answer" | sed -n '$p')" = "}" ] && [ "$(field schema)" = "https://waxseal.dev/schemas/verdict/v1.json" ]; then
	said=$(field decision)
fi
case "$code $said $(field digest)" in
"0 pass sha256:"*)
	echo "${image%%@*}@$(field digest)"
	;;
"3 deny "*)
	echo "$image is denied" >&2
	exit 3
	;;
*)
	echo "$image is not decided (exit code $code, answer $said)" >&2
	exit 4
	;;
esac
