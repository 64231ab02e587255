#!/usr/bin/env bash
# Builds the programs that waxseal is tested against, each at a pinned version,
# outside of go.mod, and prints the path of every one asked for.
#
#   internal/testkit/peers.sh cosign crane registry slsa-verifier buildkitd buildctl
#   internal/testkit/peers.sh fulcio timestamp-server rekor-server-posix actionlint
#   internal/testkit/peers.sh buildx compose ko kaniko apko local-kms
#   internal/testkit/peers.sh rekor-server trillian_log_server trillian_log_signer
#   internal/testkit/peers.sh docker29
#
# The last is a folder: Docker's daemon and client, with containerd and its shim.
# They are kept in $WAXSEAL_PEERS, or .cache/peers of the checkout, by version,
# and are built one at a time: a second caller waits and then finds them there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${WAXSEAL_PEERS:-$root/.cache/peers}
mkdir -p "$cache"

# Sets module, version and package of a peer; of one with several programs also
# pins, another module that they come from, and what go build is told besides.
peer() {
	pins='' stamp='' flags=()
	case $1 in
	cosign) module=github.com/sigstore/cosign/v2 version=v2.6.5 package=$module/cmd/cosign ;;
	crane) module=github.com/google/go-containerregistry version=v0.22.1 package=$module/cmd/crane ;;
	registry) module=github.com/distribution/distribution/v3 version=v3.1.2 package=$module/cmd/registry ;;
	slsa-verifier) module=github.com/slsa-framework/slsa-verifier/v2 version=v2.7.1 package=$module/cli/slsa-verifier ;;
	fulcio) module=github.com/sigstore/fulcio version=v1.8.8 package=$module ;;
	timestamp-server) module=github.com/sigstore/timestamp-authority/v2 version=v2.1.0 package=$module/cmd/timestamp-server ;;
	rekor-server-posix) module=github.com/sigstore/rekor-tiles/v2 version=v2.3.0 package=$module/cmd/rekor-server/posix ;;
	rekor-server) module=github.com/sigstore/rekor version=v1.5.3 package=$module/cmd/rekor-server ;;
	trillian_log_server | trillian_log_signer) module=github.com/google/trillian version=v1.7.2 package=$module/cmd/$1 ;;
	actionlint) module=github.com/rhysd/actionlint version=v1.7.7 package=$module/cmd/actionlint ;;
	buildkitd | buildctl) module=github.com/moby/buildkit version=v0.33.0 package=$module/cmd/$1 ;;
	buildx) module=github.com/docker/buildx version=v0.37.0 package=$module/cmd/buildx ;;
	compose) module=github.com/docker/compose/v5 version=v5.5.0 package=$module/cmd ;;
	local-kms) module=github.com/nsmithuk/local-kms version=v0.0.0-20260228092603-2a5e92d09ab6 package=$module ;;
	ko) module=github.com/google/ko version=v0.19.1 package=$module ;;
	kaniko) module=github.com/chainguard-dev/kaniko version=v1.25.5 package=$module/cmd/executor ;;
	apko) module=chainguard.dev/apko version=v0.30.34 package=$module ;;
	docker29)
		module=github.com/moby/moby/v2 version=v2.0.0-beta.24 pins=github.com/docker/cli@v29.8.0+incompatible
		package="$module/cmd/dockerd github.com/docker/cli/cmd/docker"
		package+=" github.com/containerd/containerd/v2/cmd/containerd github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
		# The client's module has no go.mod to say which Go it is written in. What
		# containerd has for Kubernetes is left out.
		flags=(-gcflags github.com/docker/cli/...=-lang=go1.26 -tags no_cri)
		stamp="-X $module/dockerversion.Version=29.8.0 -X github.com/docker/cli/cli/version.Version=29.8.0"
		;;
	*) echo "peers: unknown program $1 (cosign, crane, registry, slsa-verifier, fulcio, timestamp-server, rekor-server-posix, rekor-server, trillian_log_server, trillian_log_signer, actionlint, buildkitd, buildctl, buildx, compose, ko, kaniko, apko, local-kms, docker29)" >&2 && exit 64 ;;
	esac
}

# Builds $package into $2, a folder where it is several, in a throw-away module:
# go install refuses a module that has replace directives, and a module of its own
# pins what go.sum pinned.
build() {
	local name=$1 out=$2 work
	work=$(mktemp -d "$cache/.$name.XXXXXX")
	trap 'rm -rf "$work"' RETURN
	(
		cd "$work"
		export GOFLAGS=-mod=mod GOWORK=off CGO_ENABLED=0
		go mod init waxseal.test/peer
		go mod download -json "$module@$version" >module.json
		# The versions that the peer's own authors chose, replacements included.
		sed -e "s|^module .*|module waxseal.test/peer|" "$(sed -n 's/.*"GoMod": "\(.*\)".*/\1/p' module.json)" >go.mod
		go mod edit -require="$module@$version"
		if [ -n "$pins" ]; then
			mkdir "$name"
			go mod edit -require="$pins"
			go mod download -json "$pins" >pins.json
			sed -n '/^require (/,/^)/p' "$(sed -n 's/.*"Dir": "\(.*\)".*/\1/p' pins.json)/vendor.mod" >>go.mod
		fi
		# shellcheck disable=SC2086 # several packages
		go build -trimpath "${flags[@]}" -ldflags "-s -w -X $module/version.Version=$version -X $module/version.version=$version $stamp" -o "$work/$name" $package &&
			mv "$work/$name" "$out"
	) >"$cache/$name.log" 2>&1 || { tail -n 20 "$cache/$name.log" >&2 && return 1; }
}

for name in "$@"; do
	peer "$name"
	out=$cache/$name-$version
	if [ ! -x "$out" ]; then
		(
			flock 9
			[ -x "$out" ] || build "$name" "$out"
		) 9>"$cache/.lock"
	fi
	ln -sfn "$name-$version" "$cache/$name"
	echo "$cache/$name"
done
