#!/usr/bin/env bash
# The demo without a key: a certificate from Fulcio for whoever the CI platform
# says the job is, time stamps and a log, all of them real servers on loopback.
# Prints every command before it runs it. Run it by `make demo-keyless`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. examples/stage.sh

say "The programs, a base image, and Sigstore's servers (the first time this takes minutes)"
run make --no-print-directory build
go build -o bin/kit ./internal/testkit/kit
run bin/kit base debian
bash internal/testkit/peers.sh fulcio timestamp-server rekor-server-posix >/dev/null

clear_stage
sigstore=.demo/work/sigstore
serve .demo/work/registry registry .demo/work/registry
serve $sigstore/issuer instance $sigstore
registry=$(cat .demo/work/registry) issuer=$(cat $sigstore/issuer)
image=$registry/dev/webapp:v1
promoted=$registry/prod/webapp:v1
keyless=(--keyless --signing-config $sigstore/signing_config.json --trusted-root $sigstore/trusted_root.json)
signed_by() { trust=(--trusted-root $sigstore/trusted_root.json --certificate-identity "$1" --certificate-oidc-issuer "$issuer"); }
signed_by ci@acme.example
build=(waxseal build "${keyless[@]}" --build-context base=oci:.cache/base/debian --build-arg VERSION=1.0 --tag $image --lock .demo/work/waxseal.lock --push)

say "What this Sigstore is: who issues certificates, who stamps and who logs"
run waxseal trust show --trusted-root $sigstore/trusted_root.json

say "No key is anywhere; where nobody says who signs, nothing is built either"
run_exit 1 "${build[@]}" examples/webapp

say "The platform says who this job is, as GitHub Actions does under \"permissions: id-token: write\""
run export ACTIONS_ID_TOKEN_REQUEST_URL="$issuer/platform?email=ci@acme.example" ACTIONS_ID_TOKEN_REQUEST_TOKEN=job

say "Build: one certificate for all that is signed, each statement time-stamped and logged, and verified before it is attached"
run "${build[@]}" examples/webapp

say "The verdict: by whom it must be signed is all that a verifier needs to know"
run waxseal verify "${trust[@]}" --level 1 $image

say "Promote: the signed verdict is keyless, too"
run waxseal promote "${trust[@]}" --level 1 --keyless --signing-config $sigstore/signing_config.json $image $promoted
run waxseal verify "${trust[@]}" --level 1 $promoted

say "Expected of somebody else, it is denied"
signed_by mallory@acme.example
run_exit 3 waxseal verify "${trust[@]}" --level 1 $promoted
echo "(exit code 3: denied)"

printf '\nThe demo ends its servers now; the trusted root and the logs stay in %s.\n' $sigstore
