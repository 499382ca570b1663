# SPDX-License-Identifier: Apache-2.0
"""Slices of TPU VMs: what is asked of gcloud, in which order, and what is refused before that."""

import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launching import ROOT, environment, program

from florence2_jax.planning.chips import CHIPS

PLACE = ["pod", "--zone", "us-west4-a"]
TRAIN = ["--", "--config", "configs/pretrain.py:base", "--workdir", "/mnt/nfs/base"]
SMALL = [*PLACE, "--type", "v4-8", "--nfs", "10.0.0.2:/runs"]


def commands(text: str) -> list[list[str]]:
    """The commands that a dry run printed, word by word."""
    return [shlex.split(line) for line in text.splitlines() if not line.startswith("#")]


# --- Dry runs. ---


def test_a_dry_run_prints_the_commands_in_their_order_and_calls_nothing(script, tools):
    run = script("tpu_vm/run.sh", *PLACE, "--type", "v5litepod-256", "--nfs", "10.0.0.2:/runs",
                 "--project", "p", "--reserved", "--dry-run", *TRAIN)  # fmt: skip
    assert run.returncode == 0, run.stderr
    create, *rest = [words for words in commands(run.stdout) if words[0] == "gcloud"]
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "pod"]
    assert set(create[6:]) == {
        "--zone=us-west4-a", "--project=p", "--node-id=pod", "--accelerator-type=v5litepod-256",
        "--runtime-version=v2-alpha-tpuv5-lite", "--reserved",
    }  # fmt: skip
    assert [words[4] for words in rest] == ["describe", "scp", "ssh", "ssh", "describe", "ssh"]
    assert all("--zone=us-west4-a" in words and "--project=p" in words for words in rest)
    assert rest[2][6].endswith(f" {shlex.join(TRAIN)}")
    assert "64 hosts" in run.stdout
    assert (tools / "calls").read_text() == ""


def test_several_slices_are_queued_together_and_each_is_installed(script):
    run = script("tpu_vm/run.sh", *SMALL, "--slices", "3", "--spot", "--requeue", "4", "--dry-run",
                 *TRAIN)  # fmt: skip
    create, *rest = [words for words in commands(run.stdout) if words[0] == "gcloud"]
    assert {"--node-count=3", "--node-prefix=pod", "--spot"} <= set(create)
    for verb in ("scp", "ssh"):
        asked = [words for words in rest if words[4] == verb and "--worker=all" in words]
        nodes = {word.partition(":")[0] for words in asked for word in words if "pod-" in word}
        assert nodes == {"pod-0", "pod-1", "pod-2"}
    assert rest[-1][4:6] == ["delete", "pod"] and {"--force", "--quiet"} <= set(rest[-1])


def test_one_slice_can_be_made_at_once(script):
    run = script("tpu_vm/run.sh", *SMALL, "--direct", "--iap", "--create-flag=--network=net",
                 "--runtime", "v9", "--dry-run", *TRAIN)  # fmt: skip
    create, describe, *rest = [words for words in commands(run.stdout) if words[0] == "gcloud"]
    assert create[3:6] == ["tpu-vm", "create", "pod"]
    assert {"--version=v9", "--accelerator-type=v4-8", "--network=net"} <= set(create)
    assert describe[3:6] == ["tpu-vm", "describe", "pod"]
    over_ssh = [words for words in rest if "ssh" in words or "scp" in words]
    assert over_ssh and all("--tunnel-through-iap" in words for words in over_ssh)
    assert all(words[1] == "alpha" for words in over_ssh)


def test_what_is_printed_can_be_pasted(script):
    odd = ["--config.x=a b", "--config.y=it's", "--config.z=$HOME"]
    run = script("tpu_vm/run.sh", *SMALL, "--dry-run", *TRAIN, *odd)
    start = next(words for words in commands(run.stdout) if "host.sh start" in " ".join(words))
    inner = shlex.split(start[6].removeprefix("--command="))  # As the shell of the host splits it.
    assert inner[-3:] == odd


def test_nothing_is_deleted_unless_it_is_asked_for(script):
    run = script("tpu_vm/run.sh", *SMALL, "--spot", "--dry-run", *TRAIN)
    assert run.returncode == 0 and "delete" not in run.stdout
    run = script("tpu_vm/run.sh", *SMALL, "--delete-when-done", "--dry-run", *TRAIN)
    assert commands(run.stdout)[-1][4:6] == ["delete", "pod"]


@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (["status"], "host.sh status"),
        (["log", "--worker", "3"], "log.txt"),
        (["stop"], "host.sh stop"),
    ],
)
def test_manage_reaches_the_hosts_of_every_slice(script, arguments, last):
    verb, *flags = arguments
    run = script("tpu_vm/manage.sh", verb, *PLACE, "--slices", "2", *flags, "--dry-run")
    asked = [words for words in commands(run.stdout) if "ssh" in words]
    assert all(words[6].endswith(last) for words in asked)
    if verb == "log":
        assert len(asked) == 1 and "--worker=3" in asked[0]
    else:
        assert [words[5] for words in asked] == ["pod-0", "pod-1"]


def test_delete_lets_gcloud_ask_unless_told(script):
    asking = script("tpu_vm/manage.sh", "delete", *PLACE, "--dry-run").stdout
    sure = script("tpu_vm/manage.sh", "delete", *PLACE, "--yes", "--dry-run").stdout
    assert "--quiet" not in asking and "--quiet" in sure
    assert all("queued-resources delete pod " in text for text in (asking, sure))


# --- What is refused. ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Pod", *SMALL[1:], *TRAIN], "name 'Pod'"),
        (["--zone", "us-west4-a"], "the NAME of the slice comes first"),
        (["pod", "--type", "v4-8", *TRAIN], "--zone is missing"),
        (["pod", "--zone", "us-west4", "--type", "v4-8", *TRAIN], "--zone us-west4: not a zone"),
        ([*PLACE, *TRAIN], "--type is missing"),
        ([*PLACE, "--type", "v5litepod-48", *TRAIN], "--type v5litepod-48: no such slice"),
        ([*PLACE, "--type", "v4-96", *TRAIN], "--type v4-96: no such slice"),
        ([*PLACE, "--type", "tpu7x-16", *TRAIN], "TPU7x: launch/gke"),
        ([*SMALL, "--slices", "two", *TRAIN], "--slices two: give a whole number"),
        ([*SMALL, "--slices", "2", "--direct", *TRAIN], "--direct makes one slice"),
        ([*SMALL, "--spot", "--reserved", *TRAIN], "exclude each other"),
        ([*SMALL, "--requeue", "3", *TRAIN], "--requeue is for --spot"),
        ([*SMALL, "--spot", "--requeue", "3", "--no-watch", *TRAIN], "leave out --no-watch"),
        ([*SMALL, "--retries", *TRAIN], "--retries needs a value"),
        ([*SMALL, "--fast", *TRAIN], "--fast: no such option"),
        ([*SMALL, "--package", "gone.whl", *TRAIN], "--package gone.whl"),
        ([*SMALL, "--constraints", "gone.txt", *TRAIN], "--constraints gone.txt: no such file"),
        ([*SMALL, "--bucket", "a/b", *TRAIN], "--bucket a/b: give the bucket's name"),
        ([*PLACE, "--type", "v4-8", "--nfs", "server", *TRAIN], "--nfs server: give SERVER:/PATH"),
        ([*SMALL, "--logs", "/tmp/logs", *TRAIN], "--logs /tmp/logs: give gs://"),
        (SMALL, "give the arguments of train after --"),
        ([*SMALL, "--", "--workdir", "/mnt/nfs/x"], "train needs --config"),
        ([*SMALL, "--", "--config", "configs/gone.py"], "--config configs/gone.py: no such file"),
        ([*SMALL, *TRAIN[:3]], "train needs --workdir"),
        ([*SMALL, *TRAIN[:4], "gs://b/x"], "--workdir gs://b/x: train writes to mounted"),
        ([*SMALL, *TRAIN[:4], "runs/x"], "--workdir runs/x: give a full path"),
        ([*SMALL, *TRAIN[:4], "/mnt/gcs/b/x"], "--workdir /mnt/gcs/b/x: give --bucket"),
        ([*PLACE, "--type", "v4-8", *TRAIN], "--workdir /mnt/nfs/base: give --nfs"),
        ([*PLACE, "--type", "v4-16", *TRAIN[:4], "/data/x"], "2 hosts must see one directory"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_in_one_line_before_anything_is_made(script, tools, arguments, message):
    run = script("tpu_vm/run.sh", *arguments)
    assert run.returncode == 2
    assert message in run.stderr and run.stderr.count("\n") == 1
    assert run.stdout == "" and (tools / "calls").read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["destroy", "pod"], "destroy: give status, log, stop or delete"),
        (["delete", "--zone", "us-west4-a"], "delete what? Give the NAME"),
        (["delete", "pod"], "--zone is missing"),
        (["log", *PLACE, "--worker", "last"], "--worker last: give a whole number"),
    ],
)
def test_manage_names_a_mistake(script, tools, arguments, message):
    run = script("tpu_vm/manage.sh", *arguments)
    assert run.returncode == 2 and message in run.stderr and run.stderr.count("\n") == 1
    assert (tools / "calls").read_text() == ""


def test_without_gcloud_one_line_says_so(tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("bash", "dirname", "git", "sed", "mktemp"):
        (folder / name).symlink_to(shutil.which(name) or "/nowhere")
    env = environment(folder) | {"PATH": str(folder)}
    script = ROOT / "launch" / "tpu_vm" / "run.sh"
    run = subprocess.run(
        ["bash", script, *SMALL, *TRAIN], env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "gcloud is not installed" in run.stderr and run.stderr.count("\n") == 1


def test_sizes_are_those_of_the_planner():
    cases = {}
    for kind, cores in (("v4", 2), ("v5p", 2), ("v5litepod", 1), ("v6e", 1)):
        chip = CHIPS[kind.replace("litepod", "e")]
        sizes = {math.prod(shape) * cores for shape in chip.shapes} | ({4} if cores == 1 else set())
        for size in (*range(1, 300), *range(300, chip.max_chips * cores + 200, 64)):
            hosts = max(1, size // (chip.chips_per_host * cores)) if size in sizes else None
            # On TPU VMs eight chips of these are one machine; on GKE two.
            cases[f"{kind}-{size}"] = 1 if cores == 1 and size == 8 else hosts
    program_text = '. launch/tpu_vm/lib.sh; while read -r t; do echo "$t $(hosts_of "$t")"; done'
    run = subprocess.run(
        ["bash", "-c", program_text], cwd=ROOT, input="\n".join(cases) + "\n", text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    told = {line.split()[0]: line.partition(" ")[2] for line in run.stdout.splitlines()}
    assert told == {name: str(hosts or "") for name, hosts in cases.items()}


# --- Whole runs, with a gcloud that answers from a list. ---


@pytest.fixture
def started(script, tools):
    """Runs run.sh while the slice goes through states, and its run through words."""

    def start(states: str, words: str, *flags: str):
        (tools / "states").write_text("\n".join(states.split()) + "\n")
        (tools / "words").write_text("\n".join(words.split(",")) + "\n")
        run = script("tpu_vm/run.sh", *SMALL, "--poll", "1", *flags, *TRAIN)
        calls = [line.split() for line in (tools / "calls").read_text().splitlines()]
        verbs = [call[3] for call in calls if call[3] not in ("describe", "ssh")]
        return run, verbs

    return start


def test_a_slice_is_made_waited_for_and_watched_to_the_end(started):
    states = "NOT_FOUND WAITING_FOR_RESOURCES PROVISIONING ACTIVE"
    run, verbs = started(states, "running,running,done")
    assert run.returncode == 0 and verbs == ["create", "scp"]
    assert "WAITING_FOR_RESOURCES" in run.stderr and "done. The slice is still there" in run.stderr
    assert "manage.sh delete pod --zone us-west4-a" in run.stderr


def test_a_slice_that_is_there_is_not_made_again(started):
    run, verbs = started("ACTIVE", "running,done", "--delete-when-done")
    assert run.returncode == 0 and verbs == ["scp", "delete"]


def test_a_spot_slice_is_queued_again_after_a_preemption(started):
    states = "NOT_FOUND ACTIVE ACTIVE SUSPENDING SUSPENDED NOT_FOUND ACTIVE ACTIVE"
    run, verbs = started(states, "running,running,running,done", "--spot", "--requeue", "2")
    assert run.returncode == 0, run.stderr
    assert verbs == ["create", "scp", "delete", "create", "scp"]
    assert "preempted; deleting it and queueing it again (1 more times)" in run.stderr


def test_without_requeue_a_preemption_ends_the_watching_and_deletes_nothing(started):
    run, verbs = started("ACTIVE ACTIVE SUSPENDED", "running", "--spot")
    assert run.returncode == 75 and verbs == ["scp"]
    assert "was preempted. Delete it" in run.stderr


def test_a_network_that_is_down_makes_and_deletes_nothing(started):
    run, verbs = started("OFFLINE", "running", "--spot", "--requeue", "2")
    assert run.returncode == 1 and verbs == []
    assert "problem refreshing" in run.stderr
    run, verbs = started(
        "ACTIVE OFFLINE OFFLINE ACTIVE", "running,done", "--spot", "--requeue", "2"
    )
    assert run.returncode == 0 and verbs == ["scp"]


def test_a_run_that_failed_gives_its_status_and_leaves_the_slice(started):
    run, verbs = started("ACTIVE", "running,failed 2", "--delete-when-done")
    assert run.returncode == 2 and verbs == ["scp"]
    assert "ended with status 2" in run.stderr and "manage.sh log pod" in run.stderr


def test_a_slice_that_somebody_deleted_is_not_made_again(started):
    run, verbs = started("ACTIVE ACTIVE NOT_FOUND", "running", "--spot", "--requeue", "2")
    assert run.returncode == 1 and verbs == ["scp"] and "no longer there" in run.stderr


def test_a_request_that_somebody_deleted_is_not_made_again(started):
    run, verbs = started("NOT_FOUND WAITING_FOR_RESOURCES NOT_FOUND", "running")
    assert run.returncode == 1 and verbs == ["create"]
    assert "deleted while it was waited for" in run.stderr


def test_a_slice_that_cannot_be_used_is_not_waited_for(started):
    run, verbs = started("NOT_FOUND PROVISIONING FAILED", "running", "--spot", "--requeue", "2")
    assert run.returncode == 1 and verbs == ["create"]
    assert "pod: FAILED; it cannot be used. Delete it: bash launch" in run.stderr


def test_a_host_that_lost_its_run_gets_it_again(started):
    run, verbs = started("ACTIVE", "running,absent,running,done")
    assert run.returncode == 0 and verbs == ["scp", "scp"]


def test_hosts_that_do_not_answer_are_tried_again_and_then_given_up(started):
    run, verbs = started("ACTIVE", "absent")
    assert run.returncode == 1 and verbs == ["scp"] * 6
    assert "0 of 1 hosts answer" in run.stderr and "not every host could be started" in run.stderr


# --- The host's side. ---

# Services without systemd: `start` runs the job, `is-active` asks for its process.
SYSTEMCTL = """#!/usr/bin/env bash
unit=$HOME/florence2.service
case "$*" in
  is-active*) kill -0 "$(cat "$HOME/pid")" 2>/dev/null ;;
  start*)
    job=$(sed -n 's/^ExecStart=//p' "$unit")
    log=$(sed -n 's/^StandardOutput=append://p' "$unit")
    setsid $job >>"$log" 2>&1 &
    echo $! >"$HOME/pid"
    ;;
esac
"""
SUDO = """#!/usr/bin/env bash
if [ "$1" = tee ]; then exec tee "$HOME/${2##*/}"; fi
exec "$@"
"""


def test_from_the_checkout_to_a_run_on_a_host(script, tools, tmp_path):
    host = tmp_path / "host"
    venv = host / "florence2" / "venv" / "bin"
    venv.mkdir(parents=True)
    program(tools / "systemctl", SYSTEMCTL)
    program(tools / "sudo", SUDO)
    python = '#!/bin/sh\n[ "$1" != -m ] || { echo "$*" >>"$HOME/pip" && exit; }\n'
    python += 's=$1 && shift && exec PYTHON "$s" --pause-s 0 "$@"\n'
    program(venv / "python", python.replace("PYTHON", sys.executable))
    # The first two tries end as a lost host and as a crash do, the third is a whole run.
    text = '#!/bin/sh\nprintf "%s\\n" "$@" >>"$HOME/runs"; echo . >>"$HOME/tries"\n'
    text += 'case $(wc -l <"$HOME/tries") in 1) exit 75 ;; 2) exit 134 ;; esac\n'
    program(venv / "florence2-jax", text)
    (tools / "states").write_text("ACTIVE\n")
    flags = [*SMALL[:5], "--poll", "1", "--before", 'echo ready >"$HOME/before"']
    train = [*TRAIN[:4], "/data/run", "--config.x=a b"]
    run = script("tpu_vm/run.sh", *flags, *train, HOST=str(host))
    assert run.returncode == 0, run.stderr
    code = host / "florence2" / "code"
    assert (code / "florence2_jax" / "cli" / "train.py").is_file()
    first_pip, second_pip = (host / "pip").read_text().splitlines()
    assert f"florence2-jax[tpu] @ file://{code}" in first_pip
    assert second_pip.endswith(f"--no-deps --force-reinstall {code}")
    assert (host / "runs").read_text().splitlines() == ["train", *train[1:]] * 3
    assert (host / "before").read_text() == "ready\n"
    assert "status 134; try 3 of 21" in (host / "florence2" / "log.txt").read_text()


def test_a_preparation_that_fails_is_no_host_that_was_lost(tmp_path):
    job = host_dry_run("--before", "false").partition("job.sh:\n")[2].partition("\n# /")[0]
    (tmp_path / "florence2").mkdir()
    run = subprocess.run(
        ["bash", "-c", job.replace(str(Path.home()), str(tmp_path))], check=False, env=os.environ
    )
    assert run.returncode == 1
    assert (tmp_path / "florence2" / "status").read_text() == "failed 1\n"


def host_dry_run(*flags: str) -> str:
    command = ["bash", "launch/tpu_vm/host.sh", "start", "--dry-run", *flags, *TRAIN]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_host_mounts_before_every_start_and_copies_its_log():
    text = host_dry_run("--bucket", "fld", "--nfs", "10.0.0.2:/runs", "--logs", "gs://fld/logs/pod")
    job = text.partition("job.sh:\n")[2]
    order = ["gcsfuse --implicit-dirs fld /mnt/gcs/fld", "mount -t nfs", "keep_running.py"]
    assert [job.index(part) for part in order] == sorted(job.index(part) for part in order)
    assert "export JAX_PLATFORMS=tpu,cpu" in job
    assert "apt-get' 'install' '-y' '-qq' 'gcsfuse'" in text
    assert "gs://fld/logs/pod/" in text and "ExecStopPost=" in text


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
def test_systemd_understands_the_service(tmp_path):
    text = host_dry_run("--logs", "gs://fld/logs")
    unit = "[Unit]" + text.partition("[Unit]")[2].partition("multi-user.target")[0]
    unit = unit.replace(str(Path.home() / "florence2"), str(tmp_path)) + "multi-user.target\n"
    (tmp_path / "florence2.service").write_text(unit)
    command = ["systemd-analyze", "verify", str(tmp_path / "florence2.service")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "florence2.service" not in run.stderr, run.stderr
