# What the demos share; they source it from the checkout's folder. It keeps two
# demos of one checkout apart and makes .demo/work, the demo's own, anew: only
# the engine's cache and the store beside it survive from an earlier run.
mkdir -p .demo
exec 8>.demo/lock
flock --nonblock 8 || { echo "demo: another demo is running in this checkout" >&2 && exit 1; }

bold= plain=
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' plain=$'\e[0m'; fi
say() { printf '\n%s# %s%s\n' "$bold" "$*" "$plain"; }
# Prints a command as one would type it, then runs it.
run() {
	printf '%s$' "$bold"
	printf ' %q' "$@" | sed 's/\\//g'
	printf '%s\n' "$plain"
	"$@"
}
# The same for a command that has to end with the given exit code.
run_exit() {
	local want=$1 got=0
	shift
	run "$@" || got=$?
	[ "$got" = "$want" ] || { echo "demo: exit code $got, want $want" >&2 && exit 1; }
}
next() { printf '  %-72s # %s\n' "$1" "$2"; }

clear_stage() {
	rm -rf .demo/work && mkdir -p .demo/work
	export PATH="$PWD/bin:$PATH" WAXSEAL_CACHE="$PWD/.demo/cache" WAXSEAL_HOME="$PWD/.demo/work/home"
	export WAXSEAL_STORE="$PWD/.demo/store" # the bytes of what the cache has
	# The servers live as long as this shell holds their standard input open:
	# however the demo ends, they end too.
	mkfifo .demo/work/open
	trap 'exec 9>&-; wait' EXIT
}
# Starts a server of bin/kit that says in a file that it is ready.
serve() {
	local ready=$1
	shift
	bin/kit "$@" <.demo/work/open 8>&- 9>&- &
	[ -e /proc/$$/fd/9 ] || exec 9>.demo/work/open
	until [ -s "$ready" ]; do sleep 0.05; kill -0 $! 2>/dev/null || exit 1; done
}
