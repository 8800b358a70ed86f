#!/usr/bin/env bash
# Usage: ./build.sh [--api exec|invoke] [TAG]
# Builds the container image TAG (default: petclick) for the platform, which runs one job with it (exec, the default)
# or sends jobs to its server (invoke; docs/container.md). In the environment, BASE_IMAGE names another base image,
# PETCLICK_BUILD_OPTIONS holds further options of the engine's build command.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/common.sh"

read_target "$@"
engine=$(find_engine) || die "a container engine (docker or podman) that answers is needed"
build_image "$api" --tag "$tag"
