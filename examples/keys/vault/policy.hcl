# Signs with one key of the transit engine, and reads its public half.
path "transit/sign/release/*" {
  capabilities = ["update"]
}

# The same of an Ed25519 key, which is asked for without a hash.
path "transit/sign/release" {
  capabilities = ["update"]
}

path "transit/keys/release" {
  capabilities = ["read"]
}
