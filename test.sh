#!/usr/bin/env bash
# Usage: ./test.sh
# Passes the tests, then runs the demo case as the platform does, in the container where an engine answers and has or
# gets the base image, else by the bare entry point, and compares what was written with test/expected.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/common.sh"
cd -- "$root"
setup_venv dev

"$python" -m pytest --cov

# The expected mask was made in fp32; half precision on other machines would move its outline a little.
export PETCLICK_PRECISION=fp32
output=$(mktemp -d)
trap 'rm -rf -- "$output"' EXIT
base=${BASE_IMAGE:-$(sed -n 's/^ARG BASE_IMAGE=//p' Dockerfile)}
if engine=$(find_engine) && { "$engine" image inspect "$base" >/dev/null 2>&1 || "$engine" pull "$base"; }; then
  ./build.sh petclick:test
  printf 'Local validation in a container (%s)\n' "$("$engine" --version)"
  user=$(id -u)
  ((user)) || user=4711 # the platform's user is not root
  chmod 777 "$output"
  "$engine" run --rm --platform linux/amd64 --network none --read-only --tmpfs /tmp --shm-size 64m \
    --cap-drop ALL --security-opt no-new-privileges --user "$user:$user" \
    --env PETCLICK_PRECISION --volume "$root/test/input:/input:ro" --volume "$output:/output" petclick:test
else
  printf 'Local validation by the bare entry point: no container engine with the base image here\n'
  "$python" inference.py --input test/input --output "$output"
fi
"$python" test/compare_masks.py test/expected "$output"
