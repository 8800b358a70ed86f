# shellcheck shell=bash
# Sourced by run.sh, test.sh, build.sh, export.sh and .ci/run: the Python environment and the container engine.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
# shellcheck disable=SC2034  # used by the scripts that source this one
python=$venv/bin/python

# Keep freed memory instead of faulting it in again for every layer, which costs a CPU a sixth of its time.
export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

pip() { "$python" -m pip --disable-pip-version-check "$@"; }

has_nvidia() { [[ -e /dev/nvidia0 ]] || nvidia-smi -L >/dev/null 2>&1; }

# On Linux the default torch wheel wants gigabytes of CUDA packages and cannot be imported without them. The CPU
# build is taken from an index that pip knows (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS), else by uv, which knows where
# PyTorch's builds lie and, with an NVIDIA device, picks the one that fits the driver. Elsewhere the default will do.
install_torch() {
  local version backend=cpu
  version=$(sed -n 's/^torch==//p' "$root/requirements.txt")
  if [[ $(uname -s) == Linux ]]; then
    if has_nvidia; then
      backend=auto
    elif pip install --quiet "torch==$version+cpu" 2>/dev/null; then
      return 0
    fi
    if pip install --quiet 'uv>=0.9,<1' && "$venv/bin/uv" pip install --quiet --python "$python" \
      --torch-backend "$backend" "torch==$version" torchvision; then
      return 0
    fi
    [[ $backend == auto ]] || die "no CPU build of torch $version found for $("$python" --version);" \
      "name an index that has one in PIP_EXTRA_INDEX_URL"
  fi
  pip install --quiet "torch==$version"
}

# The extra of pyproject.toml with CuPy for the CUDA that torch was built with; nothing without an NVIDIA device.
cuda_extra() {
  has_nvidia || return 0
  "$python" -c 'import torch; print("cuda" + torch.version.cuda.split(".")[0] if torch.version.cuda else "")'
}

# setup_venv [dev]: makes .venv and installs what is needed, unless that was done for these requirements.
setup_venv() {
  local extras=${1:-} base=${PYTHON:-python3} wanted cuda stamp
  wanted=$(cat "$root/requirements.txt" "$root/pyproject.toml" | cksum)
  if [[ -x $python && $(cat "$venv/ready-${extras:-run}" 2>/dev/null) == "$wanted" ]]; then return 0; fi

  command -v "$base" >/dev/null || die "Python 3.10 or later is needed, but there is no $base (PYTHON names another)"
  "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "Python 3.10 or later is needed, $base is $("$base" --version 2>&1) (PYTHON names another)"
  printf 'Setting up %s, which takes a few minutes the first time ...\n' "$venv" >&2
  "$python" -m pip --version >/dev/null 2>&1 || "$base" -m venv --clear "$venv" >&2 ||
    die "could not make $venv; Debian and Ubuntu have the module venv in the package python3-venv"
  pip install --quiet --upgrade 'pip>=24' >&2
  install_torch >&2
  cuda=$(cuda_extra)
  extras=$extras${cuda:+${extras:+,}$cuda}
  pip install --quiet --editable "$root${extras:+[$extras]}" >&2
  for stamp in run "${1:-run}"; do printf '%s\n' "$wanted" >"$venv/ready-$stamp"; done
}

# read_target [--api exec|invoke] [TAG]: sets api and tag.
read_target() {
  api="exec"
  if [[ ${1:-} == --api ]]; then
    api=${2:-}
    shift $(($# > 1 ? 2 : 1))
  fi
  tag=${1:-petclick}
  [[ $api =~ ^(exec|invoke)$ && $# -lt 2 && $tag != -* ]] || die "usage: ${0##*/} [--api exec|invoke] [TAG]"
}

# The container engine whose daemon answers; fails, printing nothing, when there is none.
find_engine() {
  local engine
  for engine in docker podman; do
    if "$engine" ps >/dev/null 2>&1; then
      printf '%s\n' "$engine"
      return 0
    fi
  done
  return 1
}

# build_image TARGET OPTION…: builds a stage of the Dockerfile, for the platform, with the engine $engine.
build_image() {
  local options=(--platform linux/amd64 --target "$1" "${@:2}") more
  [[ -z ${BASE_IMAGE:-} ]] || options+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
  # BuildKit attaches attestations, which the platform does not read, unless told not to; Podman has no such options.
  [[ $("$engine" build --help 2>&1) != *--provenance* ]] || options+=(--provenance=false --sbom=false)
  read -ra more <<<"${PETCLICK_BUILD_OPTIONS:-}"
  "$engine" build "${options[@]}" ${more[@]+"${more[@]}"} "$root"
}
