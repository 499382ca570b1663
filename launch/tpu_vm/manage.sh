#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Looks at a slice that run.sh started, stops its run, or deletes it.
#   bash launch/tpu_vm/manage.sh status NAME --zone ZONE    what it is, and what each host says
#   bash launch/tpu_vm/manage.sh log    NAME --zone ZONE    the log of host 0 as it grows (--worker K)
#   bash launch/tpu_vm/manage.sh stop   NAME --zone ZONE    hosts save and stop; the slice stays
#   bash launch/tpu_vm/manage.sh delete NAME --zone ZONE    the slice and its disks; asks first
#
#   --project P   --slices N   --direct   --iap   as they were given to run.sh
#   --worker K    whose log (0);  --yes   delete without asking;  --dry-run   print the commands
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=launch/tpu_vm/lib.sh
. launch/tpu_vm/lib.sh

help() { sed -n '3,${/^#/!q;s/^# \{0,1\}//p}' launch/tpu_vm/manage.sh; }
[ $# -gt 0 ] || { help && exit 2; }
case $1 in -h | --help) help && exit 0 ;; esac
verb=$1 name=${2:-} zone='' project='' slices=1 is_direct='' is_iap='' is_dry='' is_sure='' worker=0
[[ $verb =~ ^(status|log|stop|delete)$ ]] || die "$verb: give status, log, stop or delete, then NAME"
[[ $name != -* && -n $name ]] || die "$verb what? Give the NAME that run.sh was given"
shift 2
while [ $# -gt 0 ]; do
  case $1 in
    --direct) is_direct=yes ;;
    --iap) is_iap=yes ;;
    --dry-run) is_dry=yes ;;
    --yes) is_sure=yes ;;
    --zone | --project | --slices | --worker)
      [ $# -ge 2 ] && [[ $2 != --* ]] || die "$1 needs a value"
      case $1 in
        --zone) zone=$2 ;;
        --project) project=$2 ;;
        --slices) slices=$2 ;;
        --worker) worker=$2 ;;
      esac
      shift
      ;;
    *) die "$1: no such option; see --help" ;;
  esac
  shift
done
check_place
whole_number --worker "$worker" 0
need_gcloud

case $verb in
  status)
    describe
    everywhere ssh 'bash florence2/code/launch/tpu_vm/host.sh status'
    ;;
  log) on_node ssh "$(first_node)" "$worker" 'tail -n 50 -F florence2/log.txt' ;;
  stop) everywhere ssh 'bash florence2/code/launch/tpu_vm/host.sh stop' ;;
  delete) if [ -n "$is_sure" ]; then delete --quiet; else delete; fi ;;
esac
