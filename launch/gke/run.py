# SPDX-License-Identifier: Apache-2.0
"""Trains on the TPUs of a GKE cluster: as a JobSet, or through XPK.

    python launch/gke/run.py NAME --topology v5e:16x16 --slices 2 --image IMAGE --context CONTEXT \\
        --bucket BUCKET --claim PVC -- --config configs/pretrain.py:base --workdir /mnt/nfs/base

A JobSet has a Job per slice and a pod per host. Whatever makes one pod fail starts all of them
again, up to --restarts times, and they go on after the newest checkpoint; status 2 of `train`,
which says that the command cannot work as it is, ends the JobSet instead.
"""

import argparse
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from florence2_jax.planning.chips import Topology
from florence2_jax.typing import UserError

# Generation -> the label of its nodes in GKE, its name in XPK.
ACCELERATORS = {
    "v4": ("tpu-v4-podslice", "v4"),
    "v5e": ("tpu-v5-lite-podslice", "v5litepod"),
    "v5p": ("tpu-v5p-slice", "v5p"),
    "v6e": ("tpu-v6e-slice", "v6e"),
    "tpu7x": ("tpu7x", "tpu7x"),
}
USER_ERROR = 2  # `train`: mend what is said; starting again does not help.
PORTS = {"tpu": 8471, "coordinator": 8482, "slices": 8080}
GCS, NFS = "/mnt/gcs", "/mnt/nfs"  # As on TPU VMs.

_GROUP = "cloud.google.com"
_EXAMPLE = """examples:
  python launch/gke/run.py base --topology v5e:16x16 --image IMAGE --bucket fld --claim runs \\
      --dry-run -- --config configs/pretrain.py:base --workdir /mnt/nfs/base
  python launch/gke/run.py base --topology v6e:16x16 --slices 4 --image IMAGE \\
      --xpk CLUSTER --zone us-east5-b --xpk-flag=--storage=runs \\
      -- --config configs/pretrain.py:base --workdir /mnt/nfs/base
"""


def parser() -> argparse.ArgumentParser:
    """The command's flags; what comes after `--` is for `train`."""
    command = argparse.ArgumentParser(
        prog="launch/gke/run.py",
        usage="%(prog)s NAME --topology T --image IMAGE [options] -- TRAIN ARGUMENTS",
        description=(__doc__ or "").partition("\n")[0],
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("name", metavar="NAME", help="of the JobSet")
    command.add_argument("--topology", required=True, metavar="T", help="v5e:16x16, v5p:8x8x8")
    command.add_argument("--slices", type=int, default=1, metavar="N", help="of that shape (1)")
    command.add_argument("--image", required=True, help="see launch/docker/build.sh")
    command.add_argument(
        "--restarts", type=int, default=100, metavar="N", help="of all pods together (100)"
    )
    command.add_argument(
        "--grace-s", type=int, default=600, metavar="S", help="to save after SIGTERM (600)"
    )
    command.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    command.add_argument("--dry-run", action="store_true", help="print, do nothing")

    jobset = command.add_argument_group("JobSet")
    jobset.add_argument("--context", help="of kubectl: which cluster")
    jobset.add_argument("--namespace", default="default")
    jobset.add_argument("--spot", action="store_true", help="on nodes of Spot VMs")
    jobset.add_argument("--reservation", metavar="NAME", help="on nodes of this reservation")
    jobset.add_argument("--queue", metavar="NAME", help="a LocalQueue of Kueue")
    jobset.add_argument("--bucket", help=f"mounted at {GCS}/BUCKET by Cloud Storage FUSE")
    jobset.add_argument("--claim", metavar="PVC", help=f"a shared volume, mounted at {NFS}")
    jobset.add_argument(
        "--service-account", metavar="KSA", help="Kubernetes account that may use the bucket"
    )

    xpk = command.add_argument_group("XPK, instead")
    xpk.add_argument("--xpk", metavar="CLUSTER", help="submit by `xpk workload create`")
    xpk.add_argument("--zone")
    xpk.add_argument("--project")
    xpk.add_argument("--xpk-flag", action="append", default=[], metavar="FLAG")
    return command


def main(argv: list[str]) -> int:
    """Checks everything, then prints or submits. Returns the exit status."""
    command = parser()
    cut = argv.index("--") if "--" in argv else len(argv)
    args = command.parse_args(argv[:cut])
    train = argv[cut + 1 :]
    try:
        topology = Topology.parse(args.topology, args.slices)
        _check(args, topology, train)
        if args.xpk:
            return _submit(xpk_command(args, topology, train), args.dry_run)
        text = yaml.safe_dump(job_set(args, topology, train), sort_keys=False, width=1000)
        if args.dry_run:
            sys.stdout.write(text)
            return 0
        return _submit(["kubectl", "--context", args.context, "apply", "-f", "-"], text=text)
    except UserError as error:
        command.exit(2, f"{command.prog}: {error}\n")


def _check(args: argparse.Namespace, topology: Topology, train: Sequence[str]) -> None:
    """Raises UserError for what cannot be submitted."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", args.name):
        raise UserError(
            f"name {args.name!r}: lower-case letters, digits and -, at most 40, a letter first"
        )
    for flag, value, least in (("--restarts", args.restarts, 0), ("--grace-s", args.grace_s, 30)):
        if value < least:
            raise UserError(f"{flag}: {value} must be at least {least}")
    if args.spot and args.reservation:
        raise UserError("--spot and --reservation exclude each other")
    if bad := [text for text in args.env if not re.fullmatch(r"[A-Za-z_]\w*=.*", text, re.S)]:
        raise UserError(f"--env {bad[0]}: give KEY=VALUE")
    if args.bucket and "/" in args.bucket:
        raise UserError(f"--bucket {args.bucket}: give the bucket's name alone")
    if args.xpk:
        _check_xpk(args)
    elif args.zone or args.project or args.xpk_flag:
        raise UserError("--zone, --project, --xpk-flag: they are for --xpk CLUSTER")
    elif not (args.context or args.dry_run):
        raise UserError("--context: say which cluster; see: kubectl config get-contexts")
    _check_train(args, topology, train)


def _check_xpk(args: argparse.Namespace) -> None:
    if not args.zone:
        raise UserError("--zone: XPK needs the zone of its cluster")
    for flag in ("context", "spot", "reservation", "queue", "bucket", "claim", "service_account"):
        if getattr(args, flag):
            raise UserError(
                f"--{flag.replace('_', '-')}: XPK has its own way, set when its cluster or storage "
                "was made; storage is attached by --xpk-flag=--storage=NAME"
            )


def _check_train(args: argparse.Namespace, topology: Topology, train: Sequence[str]) -> None:
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    known.add_argument("--config")
    known.add_argument("--workdir")
    given, _ = known.parse_known_args(list(train))
    if not (given.config and given.workdir):
        raise UserError("give the arguments of train: -- --config FILE --workdir DIR")
    mounts = [f"{GCS}/{args.bucket}/"] * bool(args.bucket) + [f"{NFS}/"] * bool(args.claim)
    if not args.xpk and not given.workdir.startswith(tuple(mounts)):
        raise UserError(
            f"--workdir {given.workdir} would go with its pod: give {NFS}/... with --claim, or "
            f"{GCS}/BUCKET/... with --bucket; all {topology.num_hosts} pods must see it"
        )


def job_set(args: argparse.Namespace, topology: Topology, train: Sequence[str]) -> dict[str, Any]:
    """The JobSet, as Kubernetes reads it."""
    hosts = topology.num_hosts // topology.num_slices
    metadata: dict[str, Any] = {"name": args.name, "namespace": args.namespace}
    if args.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": args.queue}
    if hosts > 1:  # A slice is a node pool: never two Jobs in one, never one Job in two.
        key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        metadata["annotations"] = {key: f"{_GROUP}/gke-nodepool"}
    on_exit = {"containerName": "train", "operator": "In", "values": [USER_ERROR]}
    job = {
        "completionMode": "Indexed",
        "parallelism": hosts,
        "completions": hosts,
        "backoffLimit": 0,  # A pod alone cannot come back into a run: the JobSet starts all.
        # An empty list, because some versions of the JobSet schema require it.
        "podFailurePolicy": {
            "rules": [{"action": "FailJob", "onExitCodes": on_exit, "onPodConditions": []}]
        },
        "template": _pod(args, topology, train),
    }
    give_up = {"name": "usererror", "action": "FailJobSet"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": args.name},
            "failurePolicy": {
                "maxRestarts": args.restarts,
                "rules": [give_up | {"onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": topology.num_slices, "template": {"spec": job}}
            ],
        },
    }


def _pod(args: argparse.Namespace, topology: Topology, train: Sequence[str]) -> dict[str, Any]:
    chips = min(math.prod(topology.shape), topology.chip.chips_per_host)
    # TPU_WORKER_ID, TPU_WORKER_HOSTNAMES and, for several slices, MEGASCALE_* come from GKE.
    # JAX_PLATFORMS: no fall-back to the processors where the TPU cannot be opened.
    env = {"JAX_PLATFORMS": "tpu,cpu"} | dict(text.split("=", 1) for text in args.env)
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    # Data workers hand images over in shared memory, of which a pod has 64 MB by default.
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    if args.bucket:
        mounts.append({"name": "bucket", "mountPath": f"{GCS}/{args.bucket}"})
        attributes = {"bucketName": args.bucket, "mountOptions": "implicit-dirs"}
        if topology.num_slices > 1:  # On the network of the host: with the pod's own account.
            attributes["hostNetworkPodKSA"] = "true"
        csi = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
        volumes.append({"name": "bucket", "csi": csi})
    if args.claim:
        mounts.append({"name": "claim", "mountPath": NFS})
        volumes.append({"name": "claim", "persistentVolumeClaim": {"claimName": args.claim}})
    container = {
        "name": "train",
        "image": args.image,
        "args": ["train", *train],
        "env": [{"name": key, "value": value} for key, value in env.items()],
        "ports": [{"name": name, "containerPort": port} for name, port in PORTS.items()],
        # The device files of the TPU belong to root; whether less is enough was not tried.
        "securityContext": {"privileged": True, "runAsUser": 0},
        "resources": {
            "requests": {"google.com/tpu": chips},
            "limits": {"google.com/tpu": chips},
        },
        "volumeMounts": mounts,
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": args.grace_s,
        "nodeSelector": _nodes(args, topology),
        "tolerations": [{"key": "google.com/tpu", "operator": "Exists"}],
        "containers": [container],
        "volumes": volumes,
    }
    if args.spot:
        spec["tolerations"].append({"key": f"{_GROUP}/gke-spot", "operator": "Exists"})
    if args.service_account:
        spec["serviceAccountName"] = args.service_account
    if topology.num_slices > 1:  # Slices talk through the network of the hosts.
        spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    pod: dict[str, Any] = {"spec": spec}
    if args.bucket:
        pod["metadata"] = {"annotations": {"gke-gcsfuse/volumes": "true"}}
    return pod


def _nodes(args: argparse.Namespace, topology: Topology) -> dict[str, str]:
    labels = {
        f"{_GROUP}/gke-tpu-accelerator": ACCELERATORS[topology.chip.name][0],
        f"{_GROUP}/gke-tpu-topology": "x".join(map(str, topology.shape)),
    }
    if args.spot:
        labels[f"{_GROUP}/gke-spot"] = "true"
    if args.reservation:
        labels[f"{_GROUP}/reservation-name"] = args.reservation
    return labels


def xpk_command(args: argparse.Namespace, topology: Topology, train: Sequence[str]) -> list[str]:
    """`xpk workload create ...`; its wrapper passes SIGTERM to the process it starts."""
    kind = f"{ACCELERATORS[topology.chip.name][1]}-{'x'.join(map(str, topology.shape))}"
    env = ["JAX_PLATFORMS=tpu,cpu", *args.env]
    return [
        *("xpk", "workload", "create", f"--cluster={args.xpk}", f"--workload={args.name}"),
        *(f"--tpu-type={kind}", f"--num-slices={topology.num_slices}"),
        *(f"--docker-image={args.image}", f"--zone={args.zone}"),
        *([f"--project={args.project}"] if args.project else []),
        f"--max-restarts={args.restarts}",
        # XPK restarts 42 and 127-255 by itself; with these, all but 0 and 2.
        f"--restart-on-exit-codes=1,{USER_ERROR + 1}-126",
        f"--termination-grace-period-seconds={args.grace_s}",
        *(f"--env={text}" for text in env),
        *args.xpk_flag,
        f"--command=exec florence2-jax train {shlex.join(train)}",
    ]


def _submit(command: list[str], is_dry: bool = False, text: str | None = None) -> int:
    if is_dry:
        sys.stdout.write(shlex.join(command) + "\n")
        return 0
    if shutil.which(command[0]) is None:
        raise UserError(f"{command[0]} is not installed; --dry-run shows what it would be given")
    return subprocess.run(command, input=text, text=True, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
