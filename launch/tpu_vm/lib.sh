# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by run.sh and manage.sh: what a slice is, and every gcloud command about one.
#
# The callers set: name zone project slices is_direct is_iap is_dry (empty or yes).
# shellcheck disable=SC2154

[ "${BASH_VERSINFO[0]}${BASH_VERSINFO[1]}" -ge 44 ] || {
  printf 'bash 4.4 or newer is needed, this is %s (on macOS: brew install bash)\n' "$BASH_VERSION" >&2
  exit 2
}

say() { printf '%s\n' "$*" >&2; }
die() {
  say "${0##*/}: $*"
  exit 2
}

# The words of a command as a shell reads them back.
quoted() {
  local word out=()
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word=${word@Q}
    out+=("$word")
  done
  printf '%s' "${out[*]}"
}

# Runs a command, or with --dry-run prints it.
run() {
  if [ -n "$is_dry" ]; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

# With --dry-run, what happens between two commands.
remark() { [ -z "$is_dry" ] || printf '# %s\n' "$*"; }

need_gcloud() {
  [ -n "$is_dry" ] || command -v gcloud >/dev/null 2>&1 ||
    die "gcloud is not installed: https://cloud.google.com/sdk/docs/install (--dry-run needs none)"
}

whole_number() { # FLAG VALUE LEAST
  [[ $2 =~ ^[0-9]{1,6}$ ]] && [ "$2" -ge "$3" ] || die "$1 $2: give a whole number from $3 on"
}

check_place() {
  [[ $name =~ ^[a-z]([-a-z0-9]{0,37}[a-z0-9])?$ ]] ||
    die "name '$name': lower-case letters, digits and -, at most 39, a letter first"
  [ -n "$zone" ] || die "--zone is missing, for instance --zone us-west4-a"
  [[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || die "--zone $zone: not a zone such as us-west4-a"
  whole_number --slices "$slices" 1
  [ -z "$is_direct" ] || [ "$slices" -eq 1 ] ||
    die "--direct makes one slice; leave it out, several slices are queued together"
}

# Machines of one slice, by the name that TPU VMs give it: v4-N and v5p-N count two cores a chip.
hosts_of() {
  local kind=${1%-*} size=${1##*-}
  [[ $1 =~ ^[a-z0-9]+-[0-9]{1,5}$ && $size != 0* ]] || return 1
  case $kind in
    v5litepod | v6e)
      case $size in
        1 | 4 | 8) echo 1 ;; # Eight chips are one machine here.
        16 | 32 | 64 | 128 | 256) echo $((size / 4)) ;;
        *) return 1 ;;
      esac
      ;;
    v4 | v5p)
      case $size in
        8 | 16 | 32 | 64) ;;
        *)
          [ $((size % 128)) -eq 0 ] || return 1
          [ "$size" -le "$([ "$kind" = v4 ] && echo 8192 || echo 12288)" ] || return 1
          ;;
      esac
      echo $((size / 8))
      ;;
    *) return 1 ;;
  esac
}

runtime_of() {
  case ${1%-*} in
    v4) echo tpu-ubuntu2204-base ;;
    v5litepod) echo v2-alpha-tpuv5-lite ;;
    v5p) echo v2-alpha-tpuv5 ;;
    v6e) echo v2-alpha-tpuv6e ;;
  esac
}

nodes() {
  local index
  if [ "$slices" -eq 1 ]; then
    echo "$name"
  else
    for ((index = 0; index < slices; index++)); do echo "$name-$index"; done
  fi
}

where() {
  printf '%s\n' "--zone=$zone"
  [ -z "$project" ] || printf '%s\n' "--project=$project"
}

# What the name stands for: the node itself (--direct), or the queued resource that holds it.
tpus() { # VERB [FLAG ...]
  local kind=queued-resources place
  [ -z "$is_direct" ] || kind=tpu-vm
  mapfile -t place < <(where)
  run gcloud compute tpus "$kind" "$1" "$name" "${place[@]}" "${@:2}"
}

describe() {
  local field=state.state
  [ -z "$is_direct" ] || field=state
  tpus describe "--format=value($field)"
}

# ready, wait WORD, gone (preempted), failed WORD, absent, or unknown MESSAGE (gcloud did not answer).
state() {
  local said
  if ! said=$(describe 2>&1); then
    if [[ $said == *NOT_FOUND* ]]; then echo absent; else echo "unknown $said"; fi
    return
  fi
  case ${said##*$'\n'} in
    ACTIVE | READY) echo ready ;;
    SUSPENDED | PREEMPTED | TERMINATED) echo gone ;;
    FAILED | STOPPED) echo "failed ${said##*$'\n'}" ;;
    *) echo "wait ${said##*$'\n'}" ;;
  esac
}

create() { # TYPE RUNTIME [FLAG ...]
  if [ -n "$is_direct" ]; then
    tpus create "--accelerator-type=$1" "--version=$2" "${@:3}"
  elif [ "$slices" -eq 1 ]; then
    tpus create "--node-id=$name" "--accelerator-type=$1" "--runtime-version=$2" "${@:3}"
  else
    tpus create "--node-count=$slices" "--node-prefix=$name" "--accelerator-type=$1" \
      "--runtime-version=$2" "${@:3}"
  fi
}

delete() { # [--quiet]
  if [ -n "$is_direct" ]; then tpus delete "$@"; else tpus delete --force "$@"; fi
}

# The release track of commands over SSH, and how they reach machines without public addresses.
on_node() { # ssh|scp NODE WORKER [ARGUMENT ...]
  local track=() tunnel=() place words=()
  [ -z "$is_iap" ] || track=(alpha) tunnel=(--tunnel-through-iap)
  mapfile -t place < <(where)
  if [ "$1" = scp ]; then words=("$4" "$2:$5"); else words=("$2" "--command=$4"); fi
  run gcloud "${track[@]}" compute tpus tpu-vm "$1" "${words[@]}" "--worker=$3" "${place[@]}" \
    "${tunnel[@]}"
}

# The same on every machine of every slice, slices side by side.
everywhere() { # ssh COMMAND | scp SOURCE DESTINATION
  local node pids=() pid status=0
  for node in $(nodes); do
    if [ -n "$is_dry" ]; then
      on_node "$1" "$node" all "${@:2}"
    else
      on_node "$1" "$node" all "${@:2}" &
      pids+=($!)
    fi
  done
  for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
  return "$status"
}

first_node() { nodes | head -n 1; }
