#!/usr/bin/env bash
# Usage: ./build.sh [TAG]
# Builds the container image TAG (default: petclick) for the platform. In the environment, BASE_IMAGE names another
# base image, PETCLICK_BUILD_OPTIONS holds further options of the engine's build command.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/common.sh"

engine=$(find_engine) || die "a container engine (docker or podman) that answers is needed"
options=(--platform linux/amd64 --tag "${1:-petclick}")
[[ -z ${BASE_IMAGE:-} ]] || options+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
# BuildKit attaches attestations, which the platform does not read, unless told not to; Podman has no such options.
[[ $("$engine" build --help 2>&1) != *--provenance* ]] || options+=(--provenance=false --sbom=false)
read -ra more <<<"${PETCLICK_BUILD_OPTIONS:-}"
"$engine" build "${options[@]}" ${more[@]+"${more[@]}"} "$root"
