#!/usr/bin/env bash
# All jobs on a running Ray cluster, one after the other, from any machine that reaches its head.
#
#   export RAY_API_SERVER_ADDRESS=http://HEAD:8265 RAY_AUTH_MODE=token     # the token: docs/cluster.md
#   examples/submit.sh /shared/archive /shared/megpt 8
#
# Run it again after any failure: each job resumes, and finished ones say that there is nothing to do.
set -euo pipefail
cd "$(dirname "$0")/.."

archive=${1:?the archive, as every node sees it}
shared=${2:?a folder on storage that every node mounts}
workers=${3:-1}
config=${CONFIG:-configs/mimic_cxr_delta.yaml}

submit() {
  ray job submit --working-dir . -- python -m ray_jobs "$@"
}

submit prepare --config "$config" source="$archive" output="$shared/studies"
submit fit-prompts --config "$config" studies="$shared/studies" output="$shared/prompts"
submit train --config "$config" studies="$shared/studies" prompts="$shared/prompts" output="$shared/checkpoint" \
  cluster.num_workers="$workers" cluster.wait_s=1800
submit generate --config "$config" studies="$shared/studies" checkpoint="$shared/checkpoint" output="$shared/reports" \
  generate.split=test cluster.num_workers="$workers" cluster.wait_s=1800
submit evaluate --config "$config" predictions="$shared/reports" studies="$shared/studies" \
  checkpoint="$shared/checkpoint" output="$shared/evaluation"
