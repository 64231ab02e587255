#!/bin/sh
# Builds the services of compose.yaml, pushes and seals them.
#
#   sh run.sh KEY BASE REGISTRY     the key's password is in COSIGN_PASSWORD
set -eu
export BASE="$2" REGISTRY="$3"
key=$(realpath "$1")
cd "$(dirname "$0")"
waxseal run --key "$key" --builder-id https://ci.acme.example/compose --require full --env BASE --env REGISTRY -- docker compose build --push
