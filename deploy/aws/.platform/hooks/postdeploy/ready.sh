#!/usr/bin/env bash
# Is the model loaded and does it answer? Runs on the instance after a deployment: a failure here turns the deployment back,
# before any request gets to the new version. The load balancer's check could not ask this: /ready wants the token.
set -euo pipefail

for _ in $(seq 60); do
  # from standard input: what is an argument, every process on the machine can read
  # what it says is read, too: a redirect and another program's page are answers as well
  if printf 'Authorization: Bearer %s' "$LAB_TOKEN" | curl --silent --fail --max-time 5 --header @- http://127.0.0.1/ready |
    grep --quiet '"status":"ready"'; then
    exit 0
  fi
  sleep 2
done
echo "/ready did not say that it is ready within two minutes" >&2
exit 1
