#!/bin/sh
# Has the PKI engine of Vault certify release.key. Any other CA takes the request
# (release.csr) as well.
set -eu
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out release.key
chmod 600 release.key
openssl req -new -key release.key -config request.cnf -out release.csr
vault write pki/roles/release @role.json
vault write -format=json pki/sign/release csr=@release.csr uri_sans=https://ci.acme.example/release ttl=720h > answer.json
jq -r .data.certificate answer.json > release.pem
jq -r '.data.ca_chain[]' answer.json > chain.pem
