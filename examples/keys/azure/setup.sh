#!/bin/sh
# Lets the environment "release" of acme/app sign with one key, and nobody else.
set -eu
scope=/subscriptions/00000000-1111-2222-3333-444444444444/resourceGroups/release/providers/Microsoft.KeyVault/vaults/acme-release/keys/release
app=$(az ad app create --display-name waxseal-release --query appId --output tsv)
az ad sp create --id "$app"
az ad app federated-credential create --id "$app" --parameters federation.json
az role definition create --role-definition role.json
az role assignment create --assignee "$app" --role "Waxseal signer" --scope "$scope"
