# Signs with one key of the transit engine, and reads its public half.
path "transit/sign/release/*" {
  capabilities = ["update"]
}

path "transit/keys/release" {
  capabilities = ["read"]
}
