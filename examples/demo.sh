#!/usr/bin/env bash
# waxseal's whole job on one image: key, build, verify, promote, verify again,
# one refusal, the same build from its lock, and an image built twice. Prints every command before it runs it. Run it by `make demo`.
# All it makes is in .demo; the engine's cache there makes a second run quick.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

. examples/stage.sh

say "The programs, and a base image from Debian's own packages (the first time this takes minutes)"
run make --no-print-directory build
go build -o bin/kit ./internal/testkit/kit
run bin/kit base debian

clear_stage
export COSIGN_PASSWORD=demo # a real key gets a real password, asked for at the terminal
serve .demo/work/registry registry .demo/work/registry
registry=$(cat .demo/work/registry)
base=oci:.cache/base/debian
image=oci:.demo/work/webapp:v1
promoted=$registry/prod/webapp:v1

say "A signing key, in cosign's format"
run waxseal key generate --output-prefix .demo/work/waxseal

say "Build as with docker build: image, SBOMs, signed provenance and a record of every download in one OCI layout"
build=(waxseal build --build-context base=$base --build-arg VERSION=1.0 --tag webapp:v1 --lock .demo/work/waxseal.lock --key .demo/work/waxseal.key)
run "${build[@]}" --output type=oci,tar=false,dest=.demo/work/webapp examples/webapp

say "The verdict: which SLSA level the evidence carries, and on what it rests"
run waxseal verify --key .demo/work/waxseal.pub --level 1 $image

say "Promote: verify, copy by digest, sign the verdict, tag last"
run waxseal promote --key .demo/work/waxseal.pub --level 1 --sign-key .demo/work/waxseal.key $image $promoted

say "The promoted image carries its evidence along"
run waxseal verify --key .demo/work/waxseal.pub --level 1 $promoted

say "One byte of the evidence changed, digests made good again: only the signature can tell"
run cp -r .demo/work/webapp .demo/work/forged
run bin/kit tamper .demo/work/forged https://slsa.dev/provenance/v1 unhosted-local unhosted-locaL
run_exit 3 waxseal verify --key .demo/work/waxseal.pub --level 1 oci:.demo/work/forged:v1
echo "(exit code 3: denied)"

say "The lock lists what apt-get fetched; held to it, the same build is hermetic"
run waxseal lock show .demo/work/waxseal.lock
run "${build[@]}" --inputs locked --output type=oci,tar=false,dest=.demo/work/locked examples/webapp

say "Built again from the evidence and the stored bytes, without any network: the same image?"
run waxseal rebuild --key .demo/work/waxseal.pub oci:.demo/work/locked:v1

say "Try next"
next 'export PATH=$PWD/bin:$PATH' "the programs of this checkout"
next "waxseal inspect --key .demo/work/waxseal.pub $image" "the evidence as a tree"
next "waxseal sbom $image" "what is in the image"
next "less .demo/work/waxseal.lock" "every input by digest, made to be reviewed"
next "waxseal policy init --key .demo/work/waxseal.pub $image" "a policy to start from"
next "waxseal build --help" "every flag of docker build"
printf '\nThe demo ends its registry now; image, key and evidence stay in .demo/work.\n'
