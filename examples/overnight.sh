#!/usr/bin/env bash
# One GPU overnight: every job in a row, and in the morning a page of scores.
#
#   nohup examples/overnight.sh data/iu_xray runs/overnight > overnight.log 2>&1 &
#
# It begins with what the run will need. After a power cut, run it again: each job resumes.
set -euo pipefail

source=${1:?the archive}
runs=${2:?a folder for the results}
config=${CONFIG:-$(dirname "$0")/overnight.yaml}

megpt train --config "$config" --dry-run
megpt prepare --config "$config" source="$source" output="$runs/studies"
megpt fit-prompts --config "$config" studies="$runs/studies" output="$runs/prompts"
megpt train --config "$config" studies="$runs/studies" prompts="$runs/prompts" output="$runs/checkpoint"
megpt generate --config "$config" studies="$runs/studies" checkpoint="$runs/checkpoint" output="$runs/reports" \
  generate.split=test
megpt evaluate --config "$config" predictions="$runs/reports" studies="$runs/studies" checkpoint="$runs/checkpoint" \
  output="$runs/evaluation"
