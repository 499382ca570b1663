#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains on Cloud TPU VMs: makes a slice, or several, installs the checkout on every host, trains there,
# and watches. Run it again, and it goes on with whatever is there: waiting, training, or what is saved.
# Files are named from the checkout.
#   bash launch/tpu_vm/run.sh NAME --zone ZONE --type TYPE [options] -- --config FILE --workdir DIR ...
#
#   NAME                   of the slice; several slices are NAME-0, NAME-1, ...
#   --type TYPE            v5litepod-256, v6e-256, v4-512, v5p-512 (v4 and v5p count two cores a chip)
#   --slices N             of that type, queued together (1)
#   --spot | --reserved    instead of on demand
#   --requeue N            spot: after a preemption delete NAME, queue it again and go on, N times (0)
#   --direct               create at once, or fail, instead of waiting in the queue; one slice
#   --project P            Google Cloud project, by default that of gcloud
#   --runtime VERSION      software of the machines, by default that of the type
#   --create-flag FLAG     one more flag of gcloud's create, such as --create-flag=--network=NET
#   --iap                  reach the machines through Identity-Aware Proxy
#
#   --bucket BUCKET        mounted on every host at /mnt/gcs/BUCKET
#   --nfs SERVER:/PATH     mounted on every host at /mnt/nfs
#   --before COMMAND       run on every host before it trains, for any other preparation
#   --package P            . (this checkout), FILE.whl, FILE.tar.gz, or git+https://...@REVISION
#   --constraints FILE     of pip: the same versions on every host, on every day
#   --logs gs://...        where hosts copy their logs; they are in ~/florence2/log.txt anyway
#   --retries N            tries in a row after a crash, per host, before giving up (20)
#
#   --no-watch             return when every host trains; --requeue needs watching
#   --delete-when-done     delete NAME when the run has ended with status 0
#   --poll S               seconds between looks (60)
#   --dry-run              print the commands; nothing is made, gcloud is not needed
#
# Status: 0 done; 2 a mistake in the command or the run; 75 preempted, run it again; that of the run.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=launch/tpu_vm/lib.sh
. launch/tpu_vm/lib.sh

help() { sed -n '3,${/^#/!q;s/^# \{0,1\}//p}' launch/tpu_vm/run.sh; }
[ $# -gt 0 ] || { help && exit 2; }

name='' zone='' project='' slices=1 is_direct='' is_iap='' is_dry=''
type='' runtime='' tier='' requeue=0 create_flags=()
bucket='' nfs='' before='' package=. constraints='' logs='' retries=20
is_watched=yes is_deleted_when_done='' poll_s=60

case $1 in
  -h | --help) help && exit 0 ;;
  -*) die "the NAME of the slice comes first; see --help" ;;
esac
name=$1
shift
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    --spot | --reserved)
      [ -z "$tier" ] || die "--spot and --reserved exclude each other"
      tier=$1
      ;;
    --direct) is_direct=yes ;;
    --iap) is_iap=yes ;;
    --no-watch) is_watched='' ;;
    --delete-when-done) is_deleted_when_done=yes ;;
    --dry-run) is_dry=yes ;;
    --create-flag=*) create_flags+=("${1#*=}") ;;
    --type | --slices | --zone | --project | --runtime | --requeue | --bucket | --nfs | --before | \
      --package | --constraints | --logs | --retries | --poll)
      [ $# -ge 2 ] && [[ $2 != --* ]] || die "$1 needs a value"
      case $1 in
        --type) type=$2 ;;
        --slices) slices=$2 ;;
        --zone) zone=$2 ;;
        --project) project=$2 ;;
        --runtime) runtime=$2 ;;
        --requeue) requeue=$2 ;;
        --bucket) bucket=${2#gs://} ;;
        --nfs) nfs=$2 ;;
        --before) before=$2 ;;
        --package) package=$2 ;;
        --constraints) constraints=$2 ;;
        --logs) logs=$2 ;;
        --retries) retries=$2 ;;
        --poll) poll_s=$2 ;;
      esac
      shift
      ;;
    *) die "$1: no such option; see --help (arguments of train come after --)" ;;
  esac
  shift
done
[ $# -gt 0 ] || die "give the arguments of train after --: -- --config FILE --workdir DIR"
shift
train=("$@")

# --- Everything is checked before anything is made. ---

value_of() { # FLAG: its value in the arguments of train
  local index
  for index in "${!train[@]}"; do
    case ${train[index]} in
      "$1") printf '%s' "${train[index + 1]:-}" ;;
      "$1="*) printf '%s' "${train[index]#*=}" ;;
    esac
  done
}

check_place
[ -n "$type" ] || die "--type is missing, for instance --type v5litepod-256"
hosts_per_slice=$(hosts_of "$type") ||
  die "--type $type: no such slice; there are v5litepod-N and v6e-N (N chips: 1, 4, 8, 16, ... 256)," \
    "v4-N and v5p-N (N cores, two a chip: 8, 16, 32, 64, then multiples of 128); TPU7x: launch/gke"
num_hosts=$((hosts_per_slice * slices))
runtime=${runtime:-$(runtime_of "$type")}
whole_number --requeue "$requeue" 0
whole_number --retries "$retries" 0
whole_number --poll "$poll_s" 1
[ "$requeue" -eq 0 ] || [ "$tier" = --spot ] || die "--requeue is for --spot"
[ "$requeue" -eq 0 ] || [ -n "$is_watched" ] || die "--requeue needs watching: leave out --no-watch"
[ -z "$is_deleted_when_done" ] || [ -n "$is_watched" ] ||
  die "--delete-when-done needs watching: leave out --no-watch"
[ -z "$bucket" ] || [[ $bucket =~ ^[a-z0-9][-a-z0-9._]{1,220}[a-z0-9]$ ]] ||
  die "--bucket $bucket: give the bucket's name alone"
[ -z "$nfs" ] || [[ $nfs =~ ^[^:/]+:/.+$ ]] || die "--nfs $nfs: give SERVER:/PATH"
[ -z "$logs" ] || [[ $logs == gs://* ]] || die "--logs $logs: give gs://BUCKET/FOLDER"

[ "$package" = . ] || [[ $package == git+https://* ]] || [[ -f $package && $package =~ \.(whl|tar\.gz)$ ]] ||
  die "--package $package: neither ., an existing .whl or .tar.gz, nor git+https://...@REVISION"
[ -z "$constraints" ] || [ -f "$constraints" ] || die "--constraints $constraints: no such file"
git rev-parse --is-inside-work-tree >/dev/null 2>&1 ||
  die "$PWD is no git checkout: hosts get the files that git knows or does not ignore"

config=$(value_of --config) workdir=$(value_of --workdir)
[ -n "$config" ] || die "train needs --config FILE[:VARIANT] after --"
[[ $config != /* && -f ${config%%:*} ]] ||
  die "--config $config: no such file in the checkout ($PWD), which is what the hosts get"
[ -n "$workdir" ] || die "train needs --workdir DIR after --"
[[ $workdir != gs://* ]] ||
  die "--workdir $workdir: train writes to mounted directories; give --bucket BUCKET and" \
    "--workdir /mnt/gcs/BUCKET/..."
[[ $workdir == /* ]] || die "--workdir $workdir: give a full path, as the hosts see it"
[[ $workdir != /mnt/gcs/* || $workdir == "/mnt/gcs/$bucket/"* ]] ||
  die "--workdir $workdir: give --bucket, the bucket that is mounted there"
[[ $workdir != /mnt/nfs* || -n $nfs ]] || die "--workdir $workdir: give --nfs, the share mounted there"
[ "$num_hosts" -eq 1 ] || [[ $workdir == /mnt/gcs/* || $workdir == /mnt/nfs* ]] || [ -n "$before" ] ||
  die "--workdir $workdir is on each host's own disk, and $num_hosts hosts must see one directory:" \
    "use /mnt/gcs/BUCKET/... (--bucket), /mnt/nfs/... (--nfs), or mount one by --before"
need_gcloud

# --- What hosts do. ---

host_flags=(--retries "$retries")
[ -z "$bucket" ] || host_flags+=(--bucket "$bucket")
[ -z "$nfs" ] || host_flags+=(--nfs "$nfs")
[ -z "$before" ] || host_flags+=(--before "$before")
[ -z "$logs" ] || host_flags+=(--logs "$logs/$name")
[ -z "$constraints" ] || host_flags+=(--constraints "${constraints##*/}")
case $package in
  . | git+*) host_flags+=(--package "$package") ;;
  *) host_flags+=(--package "${package##*/}") ;;
esac
host_script=florence2/code/launch/tpu_vm/host.sh
unpack='rm -rf florence2/code && mkdir -p florence2/code && tar -xzf florence2.tar.gz -C florence2/code'
start="systemctl is-active --quiet florence2 || { $unpack; } && bash $host_script start"
start+=" $(quoted "${host_flags[@]}" -- "${train[@]}")"
answer=' (running|done|stopped|absent|failed [0-9]+)$'

pack() {
  local extras=() file
  for file in "$constraints" "$package"; do
    [ ! -f "$file" ] || extras+=(-C "$(cd "$(dirname "$file")" && pwd)" "${file##*/}")
  done
  local line
  line="git ls-files -z --cached --others --exclude-standard"
  line+=" | tar -czf $(quoted "$bundle") --null -T - $(quoted "${extras[@]}")"
  if [ -n "$is_dry" ]; then
    printf '%s\n' "${line% }"
  else
    bash -o pipefail -c "$line" || die "the checkout could not be packed, see above"
  fi
}

start_everywhere() {
  local attempt answers
  for attempt in 1 2 3 4 5 6; do
    [ "$attempt" -eq 1 ] || { say "trying again in 30 s" && sleep 30; }
    everywhere scp "$bundle" florence2.tar.gz || continue
    everywhere ssh "$start" || continue
    if [ -n "$is_dry" ]; then
      remark "each of the $num_hosts hosts must answer, or it is tried again"
      everywhere ssh "bash $host_script status"
      return 0
    fi
    answers=$(everywhere ssh "bash $host_script status" | grep -E "$answer" | grep -cv ' absent$') || true
    [ "${answers:-0}" -lt "$num_hosts" ] || return 0
    say "${answers:-0} of $num_hosts hosts answer"
  done
  say "not every host could be started; look: $(manage status). The slice is left as it is, and costs."
  exit 1
}

manage() { # VERB: the command of manage.sh for this slice
  local flags=(--zone "$zone")
  [ -z "$project" ] || flags+=(--project "$project")
  [ "$slices" -eq 1 ] || flags+=(--slices "$slices")
  [ -z "$is_direct" ] || flags+=(--direct)
  [ -z "$is_iap" ] || flags+=(--iap)
  quoted bash launch/tpu_vm/manage.sh "$1" "$name" "${flags[@]}"
}

# --- The slice. ---

# Until the slice is ready. Returns 75 if it is there, but preempted.
bring_up() {
  local now last='' is_asked=''
  if [ -n "$is_dry" ]; then
    remark "unless $name is there already: $slices x $type, $num_hosts hosts in all"
    create "$type" "$runtime" ${tier:+"$tier"} "${create_flags[@]}"
    remark "every $poll_s s, until it says $([ -n "$is_direct" ] && echo READY || echo ACTIVE)"
    describe
    return 0
  fi
  while :; do
    now=$(state)
    case $now in
      ready) return 0 ;;
      gone) return 75 ;;
      absent)
        [ -z "$is_asked" ] || {
          say "$name was deleted while it was waited for"
          exit 1
        }
        is_asked=yes
        say "asking for $slices x $type in $zone, $num_hosts hosts in all"
        create "$type" "$runtime" ${tier:+"$tier"} "${create_flags[@]}" || exit 1
        ;;
      failed*)
        say "$name: ${now#* }; it cannot be used. Delete it: $(manage delete)"
        exit 1
        ;;
      unknown*)
        [ "$now" != "$last" ] || exit 1
        say "${now#* }"
        ;;
      *) [ "$now" = "$last" ] || say "$name: ${now#* }" ;;
    esac
    last=$now
    sleep "$poll_s"
  done
}

# Until the run ends, sets $outcome: done, stopped, failed N, preempted, deleted, lost.
watch() {
  local now
  if [ -n "$is_dry" ]; then
    remark "every $poll_s s, until host 0 says done, failed N or stopped, or the slice is preempted"
    describe
    on_node ssh "$(first_node)" 0 "bash $host_script status"
    outcome='done'
    return
  fi
  while :; do
    now=$(state)
    case $now in
      ready)
        outcome=$(on_node ssh "$(first_node)" 0 "bash $host_script status" 2>/dev/null |
          grep -oE "$answer" | tail -n 1) || outcome='' # Not reached: it is asked again.
        outcome=${outcome# }
        case $outcome in
          'done' | stopped | failed*) return ;;
          absent)
            outcome=lost
            return
            ;;
        esac
        ;;
      gone)
        outcome=preempted
        return
        ;;
      absent | failed*)
        outcome=deleted
        return
        ;;
    esac
    sleep "$poll_s"
  done
}

if [ -n "$is_dry" ]; then
  bundle=/tmp/florence2.tar.gz
else
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  trap 'say "no longer watched; the slice is left as it is, and costs: $(manage delete)"; exit 130' INT
  bundle=$scratch/florence2.tar.gz
fi
remark "the files of this checkout"
pack
outcome=''
while :; do
  if bring_up; then
    remark "on every host: install, mount, train as a service"
    start_everywhere
    [ -n "$is_watched" ] || {
      [ -n "$is_dry" ] || say "every host trains; watch: $(manage log)"
      exit 0
    }
    [ -n "$is_dry" ] || say "every host trains; its log: $(manage log)"
    watch
  else
    outcome=preempted
  fi
  if [ -n "$is_dry" ] && [ "$requeue" -gt 0 ]; then
    remark "after a preemption, at most $requeue times, and then from the top:"
    delete --quiet
  fi
  case $outcome in
    'done')
      if [ -n "$is_deleted_when_done" ]; then
        remark "when the run is done"
        delete --quiet
      elif [ -z "$is_dry" ]; then
        say "done. The slice is still there, and costs: $(manage delete)"
      fi
      exit 0
      ;;
    stopped)
      say "stopped; what is saved goes on with the same command. The slice costs: $(manage delete)"
      exit 75
      ;;
    failed*)
      say "the run ended with status ${outcome#* }: $(manage log). The slice costs: $(manage delete)"
      exit "${outcome#* }"
      ;;
    lost) say "host 0 does not train, it was started anew; starting all of them" ;;
    deleted)
      say "$name is no longer there, or cannot be used; what is saved goes on with the same command"
      exit 1
      ;;
    preempted)
      [ "$requeue" -gt 0 ] || {
        say "$name was preempted. Delete it, $(manage delete), and run the same command again, or" \
          "leave both to --requeue N"
        exit 75
      }
      requeue=$((requeue - 1))
      say "$name was preempted; deleting it and queueing it again ($requeue more times)"
      delete --quiet
      ;;
  esac
done
