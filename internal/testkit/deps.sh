#!/usr/bin/env bash
# Installs the Debian packages that are named and not there. Says what it does;
# without root it says what to do.
#
#   internal/testkit/deps.sh runc mmdebstrap ...
set -euo pipefail

missing=()
for package in "$@"; do
	case $(dpkg-query --show --showformat='${db:Status-Abbrev}' "$package" 2>/dev/null) in
	ii*) ;;
	*) missing+=("$package") ;;
	esac
done
# Somebody may have put a program there by other means.
for i in "${!missing[@]}"; do
	program=${missing[$i]}
	[ "$program" != docker.io ] || program=dockerd
	if command -v "$program" >/dev/null; then unset "missing[$i]"; fi
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "missing: ${missing[*]}; as root: apt-get install ${missing[*]}" >&2
	exit 1
fi
echo "installing ${missing[*]} with apt-get" >&2
export DEBIAN_FRONTEND=noninteractive
# Nothing that is installed is taken away for it.
install=(apt-get install --quiet=2 --no-install-recommends --no-remove --yes "${missing[@]}")
# The package lists of a fresh machine are empty or old.
"${install[@]}" >/dev/null 2>&1 || { apt-get update --quiet=2 && "${install[@]}" >/dev/null; }
