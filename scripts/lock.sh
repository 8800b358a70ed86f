#!/usr/bin/env bash
# Usage: scripts/lock.sh [--upgrade]
# Writes requirements.lock: the Python packages that the image adds to its base, each with the hashes of its files,
# for requirements.txt and the extra cuda12 of pyproject.toml. What is locked already stays, unless --upgrade is given.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
cd -- "$root"

setup_venv
pip install --quiet 'uv>=0.9.8,<1'
"$venv/bin/uv" pip compile pyproject.toml --extra cuda12 --excludes scripts/not-in-image.txt --universal \
  --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command 'scripts/lock.sh' \
  --output-file requirements.lock --quiet "$@"
