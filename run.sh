#!/usr/bin/env bash
# Usage: ./run.sh [INPUT [OUTPUT]]
# Segments the case in the folder INPUT (default: the demo case, test/input), laid out as the challenge has it,
# and writes the mask and overlay.png into OUTPUT (default: test/output). Makes .venv on the first use.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/common.sh"

if (($# > 2)) || [[ ${1:-} == -* ]]; then
  sed -n 's/^# //; 2,4p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
input=${1:-$root/test/input}
output=${2:-$root/test/output}
setup_venv
exec "$python" "$root/inference.py" --input "$input" --output "$output" \
  --overlay "$output/overlay.png" --bad-clicks error
