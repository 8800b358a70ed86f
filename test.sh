#!/usr/bin/env bash
# Usage: ./test.sh
# Passes the tests, then runs the demo case as the platform does, by both APIs: in containers where an engine answers
# and has or gets the base image (test/container.py), else by the bare entry point; compares with test/expected.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/common.sh"
cd -- "$root"
setup_venv dev

"$python" -m pytest --cov

base=${BASE_IMAGE:-$(sed -n 's/^ARG BASE_IMAGE=//p' Dockerfile)}
if engine=$(find_engine) && { "$engine" image inspect "$base" >/dev/null 2>&1 || "$engine" pull "$base"; }; then
  printf 'Local validation in containers\n'
  ./build.sh --api exec petclick:test
  ./build.sh --api invoke petclick:test-invoke
  "$python" test/container.py "$engine" petclick:test petclick:test-invoke "$base"
else
  printf 'Local validation by the bare entry point: no container engine with the base image here\n'
  output=$(mktemp -d)
  trap 'rm -rf -- "$output"' EXIT
  # The expected mask was made in fp32; half precision on other machines would move its outline a little.
  PETCLICK_PRECISION=fp32 "$python" inference.py --input test/input --output "$output"
  "$python" test/compare_masks.py test/expected "$output"
fi
