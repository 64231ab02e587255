#!/bin/sh
# Builds dist/words and seals it; as root, whom --trace takes to know the
# compiler and its headers, too.
#
#   sh run.sh KEY     the key's password is in COSIGN_PASSWORD
set -eu
key=$(realpath "$1")
cd "$(dirname "$0")"
waxseal run --key "$key" --builder-id https://ci.acme.example/words --require full --trace --artifact dist/words --out evidence -- make
