# SPDX-License-Identifier: Apache-2.0
"""JobSets and XPK workloads: what is submitted, and what is refused before."""

import importlib.util
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from launching import ROOT, program

from florence2_jax.planning.chips import CHIPS, Topology
from florence2_jax.training.config import HostsConfig

_spec = importlib.util.spec_from_file_location("gke_run", ROOT / "launch" / "gke" / "run.py")
assert _spec and _spec.loader
gke = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(gke)

BASE = ["base", "--topology", "v5e:16x16", "--image", "image:1"]
TRAIN = ["--", "--config", "configs/pretrain.py:base", "--workdir", "/mnt/nfs/base"]
ALL = [topology for chip in CHIPS.values() for topology in (Topology(chip, s) for s in chip.shapes)]


@pytest.fixture
def dry(capsys):
    """The JobSet of a dry run, as Kubernetes would read it."""

    def render(*flags: str) -> dict[str, Any]:
        assert gke.main([*BASE, "--claim", "runs", "--dry-run", *flags, *TRAIN]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    return render


def parts(job_set: dict[str, Any]) -> tuple[dict, dict, dict]:
    """The replicated job, its job and its pod."""
    (replicated,) = job_set["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    return replicated, job, job["template"]["spec"]


@pytest.mark.parametrize("generation", CHIPS)
def test_pods_hold_the_chips_of_every_slice_of_the_table(generation):
    for topology in (Topology(CHIPS[generation], s, 3) for s in CHIPS[generation].shapes):
        args = gke.parser().parse_args([*BASE, "--claim", "runs"])
        replicated, job, pod = parts(gke.job_set(args, topology, TRAIN[1:]))
        (container,) = pod["containers"]
        chips = container["resources"]["limits"]["google.com/tpu"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert job["parallelism"] == job["completions"] == topology.num_hosts // 3
        assert replicated["replicas"] * job["parallelism"] * chips == topology.num_chips
        assert (
            pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
            == topology.name[len(generation) + 1 :]
        )


@pytest.mark.parametrize(
    ("topology", "label"),
    [
        ("v4:2x2x4", "tpu-v4-podslice"),
        ("v5e:4x8", "tpu-v5-lite-podslice"),
        ("v5p:4x4x4", "tpu-v5p-slice"),
        ("v6e:16x16", "tpu-v6e-slice"),
        ("tpu7x:4x4x4", "tpu7x"),
    ],
)
def test_nodes_are_chosen_by_the_label_of_their_generation(dry, topology, label):
    pod = parts(dry("--topology", topology))[2]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == label


def test_every_generation_has_a_label():
    assert gke.ACCELERATORS.keys() == CHIPS.keys()


def test_all_pods_start_again_except_after_a_mistake_of_the_user(dry):
    job_set = dry()
    job, pod = parts(job_set)[1:]
    policy = job_set["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 100 and job["backoffLimit"] == 0
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "In"
    assert rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    (give_up,) = policy["rules"]
    assert give_up["action"] == "FailJobSet"
    assert give_up["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert pod["restartPolicy"] == "Never"  # What a podFailurePolicy asks for.
    assert pod["terminationGracePeriodSeconds"] == 600
    assert dry("--restarts", "7", "--grace-s", "900")["spec"]["failurePolicy"]["maxRestarts"] == 7


def test_pods_find_each_other(dry):
    job_set = dry()
    assert job_set["spec"]["network"] == {"enableDNSHostnames": True, "subdomain": "base"}
    assert parts(job_set)[1]["completionMode"] == "Indexed"
    ports = [port["containerPort"] for port in parts(job_set)[2]["containers"][0]["ports"]]
    assert 8482 in ports  # JAX's coordinator, where no other port is asked for.
    assert not HostsConfig().coordinator  # JAX finds it by itself.


def test_slices_are_replicas_on_the_network_of_the_hosts(dry):
    one, four = dry(), dry("--slices", "4")
    assert parts(one)[0]["replicas"] == 1 and parts(four)[0]["replicas"] == 4
    assert "hostNetwork" not in parts(one)[2] and parts(four)[2]["hostNetwork"] is True
    assert parts(four)[2]["dnsPolicy"] == "ClusterFirstWithHostNet"
    key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    assert four["metadata"]["annotations"][key] == "cloud.google.com/gke-nodepool"


def test_storage_is_mounted_where_train_writes(dry):
    job_set = dry("--bucket", "fld", "--service-account", "trainer")
    job, pod = parts(job_set)[1:]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {"shm": "/dev/shm", "bucket": "/mnt/gcs/fld", "claim": "/mnt/nfs"}
    assert mounts.keys() == volumes.keys()
    assert volumes["claim"]["persistentVolumeClaim"]["claimName"] == "runs"
    assert volumes["bucket"]["csi"]["volumeAttributes"]["bucketName"] == "fld"
    assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert pod["serviceAccountName"] == "trainer"


def test_spot_reservation_queue_and_environment(dry):
    job_set = dry("--spot", "--queue", "research", "--env", "A=b=c", "--env", "JAX_PLATFORMS=tpu")
    pod = parts(job_set)[2]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert job_set["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "research"}
    env = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
    assert env == {"JAX_PLATFORMS": "tpu", "A": "b=c"}
    pod = parts(dry("--reservation", "ours"))[2]
    assert pod["nodeSelector"]["cloud.google.com/reservation-name"] == "ours"


def test_train_gets_its_arguments_as_they_are(dry):
    assert parts(dry())[2]["containers"][0]["args"] == ["train", *TRAIN[1:]]


def test_xpk_gets_the_same_run(capsys):
    flags = ["--topology", "v5e:16x16", "--slices", "4", "--xpk", "cluster", "--zone", "us-west4-a"]
    flags += ["--project", "p", "--xpk-flag=--storage=runs", "--dry-run"]
    assert gke.main([*BASE, *flags, *TRAIN]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[:3] == ["xpk", "workload", "create"]
    assert {
        *("--cluster=cluster", "--workload=base", "--tpu-type=v5litepod-16x16", "--num-slices=4"),
        *("--docker-image=image:1", "--zone=us-west4-a", "--project=p", "--storage=runs"),
        *("--max-restarts=100", "--termination-grace-period-seconds=600"),
    } <= set(words)
    assert words[-1] == f"--command=exec florence2-jax train {shlex.join(TRAIN[1:])}"
    (codes,) = [word.partition("=")[2] for word in words if "--restart-on-exit-codes" in word]
    restarted = {42, *range(127, 256)}  # XPK's own.
    for part in codes.split(","):
        first, _, last = part.partition("-")
        restarted |= set(range(int(first), int(last or first) + 1))
    assert restarted == set(range(1, 256)) - {2}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology", "v5e:16x17"], "--topology v5e:16x17: there is no such slice"),
        (["--topology", "v3:4x4"], "Generations are v4, v5e, v5p, v6e, tpu7x"),
        (["--slices", "0"], "--slices: 0 must be at least 1"),
        (["--restarts", "-1"], "--restarts: -1 must be at least 0"),
        (["--grace-s", "5"], "--grace-s: 5 must be at least 30"),
        (["--env", "A"], "--env A: give KEY=VALUE"),
        (["--bucket", "gs://fld"], "--bucket gs://fld: give the bucket's name"),
        (["--spot", "--reservation", "r"], "exclude each other"),
        (["--zone", "us-west4-a"], "they are for --xpk"),
        (["--xpk", "cluster"], "--zone: XPK needs the zone"),
        (["--xpk", "cluster", "--zone", "us-west4-a"], "--claim: XPK has its own way"),
    ],
)
def test_a_mistake_is_named_in_one_line(capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        gke.main([*BASE, "--claim", "runs", "--dry-run", *flags, *TRAIN])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == ""
    assert message in said.err and said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*BASE, "--claim", "runs", *TRAIN], "--context: say which cluster"),
        ([*BASE, "--dry-run", *TRAIN], "--workdir /mnt/nfs/base would go with its pod"),
        ([*BASE, "--bucket", "b", "--dry-run", *TRAIN], "would go with its pod"),
        ([*BASE, "--claim", "runs", "--dry-run"], "give the arguments of train"),
        ([*BASE, "--claim", "runs", "--dry-run", *TRAIN[:3]], "give the arguments of train"),
        (["Base", *BASE[1:], "--claim", "runs", "--dry-run", *TRAIN], "name 'Base'"),
    ],
)
def test_what_cannot_run_is_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        gke.main(arguments)
    said = capsys.readouterr()
    assert stopped.value.code == 2 and message in said.err and said.err.count("\n") == 1


def test_what_a_dry_run_prints_is_what_kubectl_is_given(tools, monkeypatch, capsys, dry):
    expected = dry("--slices", "2")
    program(tools / "kubectl", '#!/bin/sh\necho "$*" >"$(dirname "$0")/calls"; cat >"$0.yaml"\n')
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    arguments = [*BASE, "--claim", "runs", "--slices", "2", "--context", "ours", *TRAIN]
    assert gke.main(arguments) == 0
    assert (tools / "calls").read_text() == "--context ours apply -f -\n"
    assert yaml.safe_load(Path(f"{tools}/kubectl.yaml").read_text()) == expected


def test_without_kubectl_one_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit):
        gke.main([*BASE, "--claim", "runs", "--context", "ours", *TRAIN])
    assert "kubectl is not installed" in capsys.readouterr().err
