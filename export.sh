#!/usr/bin/env bash
# Usage: ./export.sh [--api exec|invoke] [TAG]
# Writes what is uploaded to the platform into dist/: model.tar.gz, the content of resources/ as it is unpacked at
# /opt/ml/model, and TAG.tar.gz, the image TAG (default: petclick), built first for the API. Beside them lies
# sbom.json, which lists the image's Python packages as CycloneDX.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/common.sh"

read_target "$@"
image=$root/dist/${tag//[\/:]/_}.tar.gz
model=$root/dist/model.tar.gz
engine=$(find_engine) || die "a container engine (docker or podman) that answers is needed"
mkdir -p "$root/dist"
trap 'rm -f -- "$image.part" "$model.part"' EXIT

tar -czf "$model.part" -C "$root/resources" .
mv -- "$model.part" "$model"
"$root/build.sh" --api "$api" "$tag"
build_image bill --output "type=local,dest=$root/dist"
"$engine" save "$tag" | gzip >"$image.part"
mv -- "$image.part" "$image"
ls -l "$image" "$model" "$root/dist/sbom.json"
