#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the image, and pushes it where --push is given.
#   bash launch/docker/build.sh tpu|cuda13|cuda12|cpu [--tag IMAGE] [--python 3.12] [--push] [--dry-run]
#
#   --tag IMAGE   by default florence2-jax:KIND; for GKE: REGION-docker.pkg.dev/PROJECT/REPO/NAME:TAG
#   --push        to the registry in IMAGE
#   --dry-run     print the commands
#
# Then: docker run --gpus all --shm-size 16g -v /data:/data IMAGE train --config configs/scenes.py ...
# (--shm-size: data workers hand images over in shared memory, of which Docker gives 64 MB by default)
set -euo pipefail
cd "$(dirname "$0")/../.."

die() {
  printf 'build.sh: %s\n' "$*" >&2
  exit 2
}
run() {
  if [ -n "$is_dry" ]; then printf '%s\n' "$*"; else "$@"; fi
}
help() { sed -n '3,${/^#/!q;s/^# \{0,1\}//p}' launch/docker/build.sh; }

[ $# -gt 0 ] || { help && exit 2; }
case $1 in -h | --help) help && exit 0 ;; esac
kind=$1 tag='' python=3.12 is_pushed='' is_dry=''
shift
while [ $# -gt 0 ]; do
  case $1 in
    --push) is_pushed=yes ;;
    --dry-run) is_dry=yes ;;
    --tag | --python)
      [ $# -ge 2 ] && [[ $2 != --* ]] || die "$1 needs a value"
      if [ "$1" = --tag ]; then tag=$2; else python=$2; fi
      shift
      ;;
    *) die "$1: no such option; see --help" ;;
  esac
  shift
done
case $kind in
  tpu | cuda12 | cuda13) extra=$kind ;;
  cpu) extra='' ;;
  *) die "$kind: give tpu, cuda13, cuda12 or cpu" ;;
esac
[[ $python =~ ^3\.(1[1-9]|[2-9][0-9])$ ]] || die "--python $python: 3.11 or newer"
tag=${tag:-florence2-jax:$kind}
[[ $tag =~ ^[a-z0-9][a-z0-9._:/-]*(:[A-Za-z0-9_][A-Za-z0-9._-]*)?$ ]] || die "--tag $tag: not the name of an image"
[ -z "$is_pushed" ] || [[ $tag == */* ]] || die "--push: give --tag REGISTRY/.../NAME:TAG"
[ -n "$is_dry" ] || command -v docker >/dev/null 2>&1 ||
  die "docker is not installed: https://docs.docker.com/engine/install (--dry-run needs none)"

# Docker 23 or newer: BuildKit, which reads Dockerfile.dockerignore, is its default.
run docker build --file launch/docker/Dockerfile --platform linux/amd64 --build-arg "PYTHON=$python" \
  --build-arg "JAX_EXTRA=$extra" --tag "$tag" .
[ -z "$is_pushed" ] || run docker push "$tag"
