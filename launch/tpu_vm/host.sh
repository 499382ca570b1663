#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs on a TPU VM, from the code that run.sh copied to ~/florence2/code.
#   bash host.sh start [options] -- TRAIN ARGUMENTS   install, mount, train as a service of systemd
#   bash host.sh status                               one line: HOST running|done|stopped|failed N|absent
#   bash host.sh stop                                 save and stop
#
#   --package P         what pip installs: . (the copied checkout), a wheel or sdist in it, git+https://...
#   --constraints FILE  for pip, in the copied checkout
#   --bucket BUCKET     mounted at /mnt/gcs/BUCKET by gcsfuse
#   --nfs SERVER:/PATH  mounted at /mnt/nfs
#   --before COMMAND    run before every start of the service
#   --logs gs://...     where the log is copied to, every five minutes and at the end
#   --retries N         tries in a row after a crash, before giving up (20)
#   --dry-run           print what would run and be written
#
# A service, because systemd starts it again after a reboot and, when a machine is preempted, tells it
# to save before the network goes. Crashes are the business of keep_running.py.
set -euo pipefail
root=$HOME/florence2
code=$root/code unit=/etc/systemd/system/florence2.service is_dry=''

die() {
  printf '%s: host.sh: %s\n' "$(hostname)" "$*" >&2
  exit 2
}
run() { if [ -n "$is_dry" ]; then printf '%s\n' "${*@Q}"; else "$@"; fi; }
write() { # FILE, from standard input
  if [ -n "$is_dry" ]; then
    printf '# %s:\n' "$1" && cat
  elif [[ $1 == /etc/* ]]; then
    sudo tee "$1" >/dev/null
  else
    cat >"$1"
  fi
}

status() {
  local word=absent
  [ ! -f "$root/status" ] || word=$(<"$root/status")
  if systemctl is-active --quiet florence2; then
    word=running
  elif [ "$word" = running ]; then
    word=absent # It was killed with its machine.
  fi
  printf '%s %s\n' "$(hostname)" "$word"
}

# The image's Python may be too old; uv brings one.
make_venv() {
  [ ! -x "$root/venv/bin/python" ] || return 0
  local python
  for python in python3.12 python3.11; do
    if command -v "$python" >/dev/null 2>&1 && run "$python" -m venv "$root/venv"; then return 0; fi
  done
  run python3 -m pip install --quiet --user uv
  run python3 -m uv venv --quiet --clear --seed --python 3.12 "$root/venv"
}

install_package() {
  local pip=("$root/venv/bin/python" -m pip install --quiet) target=$package wanted
  [ -z "$constraints" ] || pip+=(--constraint "$code/$constraints")
  [[ $package == git+* ]] || target=$(realpath -m "$code/$package")
  wanted="florence2-jax[tpu] @ $target"
  [[ $package == git+* ]] || wanted="florence2-jax[tpu] @ file://$target"
  run "${pip[@]}" "$wanted"
  # pip keeps what has the same version, whatever is in it.
  run "${pip[@]}" --no-deps --force-reinstall "$target"
}

install_mounts() {
  if [ -n "$nfs" ] && { [ -n "$is_dry" ] || ! command -v mount.nfs >/dev/null; }; then
    run sudo apt-get update -qq
    run sudo apt-get install -y -qq nfs-common
  fi
  if [ -n "$bucket" ] && { [ -n "$is_dry" ] || ! command -v gcsfuse >/dev/null; }; then
    local key=/usr/share/keyrings/cloud.google.asc source=https://packages.cloud.google.com/apt
    run sudo curl -fsSL -o "$key" "$source/doc/apt-key.gpg"
    write /etc/apt/sources.list.d/gcsfuse.list \
      <<<"deb [signed-by=$key] $source gcsfuse-$(lsb_release -cs 2>/dev/null || echo jammy) main"
    run sudo apt-get update -qq
    run sudo apt-get install -y -qq gcsfuse
  fi
}

# What the service runs: at every start of the machine, so it mounts as well.
job() {
  printf '#!/usr/bin/env bash\nset -eEuo pipefail\n'
  # What fails before the run is told too, or it would look like a machine that was started anew.
  printf 'trap %q ERR\n' "echo failed 1 >$root/status"
  # No fall-back to the processors of the host where its TPU cannot be opened.
  printf 'export JAX_PLATFORMS=tpu,cpu\n'
  if [ -n "$bucket" ]; then
    # shellcheck disable=SC2016 # Expanded where it runs.
    printf 'sudo install -d -o "$(id -u)" %q\n' "/mnt/gcs/$bucket"
    printf 'mountpoint -q %q || gcsfuse --implicit-dirs %q %q\n' \
      "/mnt/gcs/$bucket" "$bucket" "/mnt/gcs/$bucket"
  fi
  if [ -n "$nfs" ]; then
    printf 'sudo mkdir -p /mnt/nfs\n'
    printf 'mountpoint -q /mnt/nfs || sudo mount -t nfs -o hard,vers=3 %q /mnt/nfs\n' "$nfs"
    # The same person may have other numbers on other hosts, and a new share belongs to root.
    printf '[ -w /mnt/nfs ] || sudo chmod 0777 /mnt/nfs\numask 000\n'
  fi
  [ -z "$before" ] || printf '%s\n' "$before"
  printf 'cd %q\n' "$code"
  [ -z "$logs" ] || printf 'while sleep 300; do bash %q; done &\n' "$root/copy_log.sh"
  printf 'exec %q launch/tpu_vm/keep_running.py --retries %q --status %q --' \
    "$root/venv/bin/python" "$retries" "$root/status"
  printf ' %q' "$root/venv/bin/florence2-jax" train "$@"
  printf '\n'
}

service() {
  cat <<END
[Unit]
Description=florence2_jax training
Wants=network-online.target
After=network-online.target

[Service]
User=$(id -un)
ExecStart=/bin/bash $root/job.sh
StandardOutput=append:$root/log.txt
StandardError=append:$root/log.txt
# The first process alone is asked to stop; it tells the run, whose data workers must live on until
# all is saved.
KillMode=mixed
TimeoutStopSec=600
LimitMEMLOCK=infinity
LimitNOFILE=1048576
END
  [ -z "$logs" ] || printf 'ExecStopPost=-/bin/bash %s\n' "$root/copy_log.sh"
  printf '\n[Install]\nWantedBy=multi-user.target\n'
}

start() {
  if [ -z "$is_dry" ] && systemctl is-active --quiet florence2; then
    printf '%s running already: %s\n' "$(hostname)" "$(tail -n 1 "$root/job.sh")"
    return 0
  fi
  make_venv
  install_package
  install_mounts
  job "$@" | write "$root/job.sh"
  if [ -n "$logs" ]; then
    # shellcheck disable=SC2016
    printf 'PATH=$PATH:/snap/bin gcloud storage cp --quiet %q %q\n' "$root/log.txt" "${logs%/}/$(hostname).txt" |
      write "$root/copy_log.sh"
  fi
  service | write "$unit"
  run rm -f "$root/status"
  run sudo systemctl daemon-reload
  run sudo systemctl enable --quiet florence2
  run sudo systemctl start florence2
  [ -n "$is_dry" ] || status
}

verb=${1:-} package=. constraints='' bucket='' nfs='' before='' logs='' retries=20
[ $# -eq 0 ] || shift
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  if [ "$1" = --dry-run ]; then
    is_dry=yes
    shift
    continue
  fi
  [ $# -ge 2 ] || die "$1 needs a value"
  case $1 in
    --package) package=$2 ;;
    --constraints) constraints=$2 ;;
    --bucket) bucket=$2 ;;
    --nfs) nfs=$2 ;;
    --before) before=$2 ;;
    --logs) logs=$2 ;;
    --retries) retries=$2 ;;
    *) die "$1: no such option" ;;
  esac
  shift 2
done
[ $# -eq 0 ] || shift
case $verb in
  start)
    [ $# -gt 0 ] || die "start: give the arguments of train after --"
    start "$@"
    ;;
  status) status ;;
  stop) run sudo systemctl disable --now --quiet florence2 ;; # Nor after a reboot.
  *) die "${verb:-nothing}: give start, status or stop" ;;
esac
