#!/bin/sh
# Lets the environment "release" of acme/app sign with one key, and nobody else.
set -eu
aws iam create-open-id-connect-provider --url https://token.actions.githubusercontent.com --client-id-list sts.amazonaws.com
aws iam create-role --role-name waxseal-release --assume-role-policy-document file://trust.json --max-session-duration 3600
aws iam put-role-policy --role-name waxseal-release --policy-name sign --policy-document file://policy.json
