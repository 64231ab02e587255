#!/bin/sh
# Lets the environment "release" of acme/app sign with one key, and nobody else.
set -eu
vault auth enable jwt
vault write auth/jwt/config oidc_discovery_url=https://token.actions.githubusercontent.com bound_issuer=https://token.actions.githubusercontent.com
vault policy write waxseal-release policy.hcl
vault write auth/jwt/role/waxseal-release @role.json
