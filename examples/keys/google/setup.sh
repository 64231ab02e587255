#!/bin/sh
# Lets the environment "release" of acme/app sign with one key, and nobody else.
set -eu
gcloud iam workload-identity-pools create github --location global
gcloud iam workload-identity-pools providers create-oidc github --location global --workload-identity-pool github \
	--issuer-uri https://token.actions.githubusercontent.com --attribute-mapping google.subject=assertion.sub \
	--attribute-condition 'assertion.sub == "repo:acme/app:environment:release"'
gcloud iam roles create waxsealSigner --project acme --file role.yaml
gcloud kms keys add-iam-policy-binding release --keyring release --location europe-west3 --role projects/acme/roles/waxsealSigner \
	--member principal://iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/github/subject/repo:acme/app:environment:release
