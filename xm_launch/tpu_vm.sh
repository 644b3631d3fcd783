#!/usr/bin/env bash
# Runs the suite on a TPU VM slice, on all its hosts, without XManager.
#
#   xm_launch/tpu_vm.sh NAME ZONE ACCELERATOR RUNTIME -- ARGS OF selective_t5x.main
#
#   xm_launch/tpu_vm.sh sel us-central2-b v4-128 tpu-ubuntu2204-base -- \
#     --run_mode=train --gin_file=gin/experiments/c4_lm.gin \
#     --gin.MODEL_DIR="'gs://bucket/selective'"
#
# Creates the slice if it does not exist, copies the committed checkout, installs
# it, and runs. It does not delete the slice, which costs money until you do:
#   gcloud compute tpus tpu-vm delete NAME --zone=ZONE
# DRY_RUN=1 prints the commands and runs none.
set -euo pipefail

if [[ $# -lt 6 || $5 != -- ]]; then
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1 zone=$2 accelerator=$3 runtime=$4
shift 5
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

run() {
  if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpu() {
  local verb=$1
  shift
  run gcloud compute tpus tpu-vm "$verb" "$@" --zone="$zone"
}

# One line for the hosts' shell, with every word quoted.
remote() {
  tpu ssh "$name" --worker=all --command="$1"
}

if [[ -n ${DRY_RUN:-} ]] ||
  ! gcloud compute tpus tpu-vm describe "$name" --zone="$zone" >/dev/null 2>&1
then
  tpu create "$name" --accelerator-type="$accelerator" --version="$runtime"
fi

folder=$(mktemp -d) # private to this user
trap 'rm -rf "$folder"' EXIT
git -C "$root" archive --format=tar.gz --output="$folder/suite.tar.gz" HEAD
tpu scp "$folder/suite.tar.gz" "$name:suite.tar.gz" --worker=all
remote 'mkdir -p suite && tar -xzf suite.tar.gz -C suite'
remote 'cd suite && make install && .venv/bin/pip install --quiet --constraint constraints.txt --editable ".[aot]"'
command=$(printf ' %q' "$@")
remote "cd suite && exec .venv/bin/python -m selective_t5x.main$command"
