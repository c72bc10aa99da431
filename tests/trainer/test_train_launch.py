"""The launch files of deploy/train: one rendezvous in all of them, and the ssh loop for real on loopback."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import nodes
import pytest
import tiny_dataset
import yaml

from trainer import checkpoint as checkpoints

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "train"
SCRIPTS = ["node.sh", "ssh.sh", "slurm.sbatch"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_sound_bash_and_may_be_run(name):
    subprocess.run(["bash", "-n", FOLDER / name], check=True)
    if name.endswith(".sh"):
        assert os.access(FOLDER / name, os.X_OK)


def _kubernetes() -> tuple[dict, dict]:
    service, job = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    return service, job


def test_all_of_them_start_torchrun_with_the_same_options():
    _, job = _kubernetes()
    (container,) = job["spec"]["template"]["spec"]["containers"]
    theirs = [argument.partition("=")[0] for argument in container["command"]]
    ours = re.findall(r"--[a-z-]+", (FOLDER / "node.sh").read_text().partition("torch.distributed.run")[2])
    assert [name for name in theirs[: theirs.index("trainer")] if name.startswith("--")] == ours
    assert all("node.sh" in (FOLDER / name).read_text() for name in ("ssh.sh", "slurm.sbatch"))


def test_the_pods_find_each_other_and_outlive_an_eviction():
    service, job = _kubernetes()
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = dict(a.partition("=")[::2] for a in container["command"] if "=" in a)
    assert spec["completionMode"] == "Indexed"
    assert options["--nnodes"] == f"1:{spec['completions']}" == f"1:{spec['parallelism']}"
    first = f"{job['metadata']['name']}-0.{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert options["--rdzv-endpoint"] == first
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    assert spec["podFailurePolicy"]["rules"][0]["onPodConditions"] == [{"type": "DisruptionTarget"}]
    assert pod["terminationGracePeriodSeconds"] > 60
    assert options["--output"].startswith(container["volumeMounts"][0]["mountPath"])


def test_slurm_is_told_to_warn_before_the_end_and_to_queue_the_job_again():
    text = (FOLDER / "slurm.sbatch").read_text()
    options = re.findall(r"^#SBATCH (--[a-z-]+)", text, re.MULTILINE)
    assert {"--requeue", "--no-kill", "--signal", "--open-mode", "--ntasks-per-node"} <= set(options)
    assert "scontrol requeue" in text
    assert text.index("#SBATCH --signal") < text.index("set -euo pipefail")  # after a command none is read


def test_slurm_s_script_saves_and_queues_again_when_its_time_is_up(tmp_path):
    """With stand-ins for srun and scontrol, which write down what they are told."""
    said = tmp_path / "said"
    for name, body in {
        "scontrol": f'if [ "$1" = show ]; then printf "n1\\nn2\\n"; else echo "scontrol $*" >> {said}; fi',
        "srun": f'trap "echo ended >> {said}; exit 1" TERM; echo "srun $* $NODES $ENDPOINT $ID" >> {said}; '
        "for i in $(seq 100); do sleep 0.1; done",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": "77",
        "SLURM_SUBMIT_DIR": "/repository",
    }
    job = subprocess.Popen(["bash", FOLDER / "slurm.sbatch", "--data", "set"], env=environment)
    deadline = time.monotonic() + 30
    while not said.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 0
    lines = said.read_text().splitlines()
    assert lines[0].startswith("srun --kill-on-bad-exit=0")
    assert lines[0].endswith("/repository/deploy/train/node.sh --data set 2 n1:29400 77")
    assert lines[1:] == ["ended", "scontrol requeue 77"]


def test_a_loop_without_machines_says_how_it_is_called():
    done = subprocess.run([FOLDER / "ssh.sh", "--", "--data", "x"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.startswith("usage: ")) == (2, True)


def test_a_machine_that_joins_again_from_a_shared_home_is_not_taken_for_another(tmp_path):
    """Stand-ins for ssh, which gives each machine its name, and for torchrun, which waits to be stopped."""
    said = tmp_path / "said"
    said.touch()
    stubs = {
        "ssh": f'host=$1; shift; PATH="{tmp_path}/$host:$PATH" NAME=$host exec sh -c "$*"',
        "torchrun": f'trap "echo $NAME $$ ended >> {said}; exit 1" TERM; echo $NAME $$ started >> {said}; '
        "while :; do sleep 0.1; done",
        "n1/uname": "echo n1",
        "n2/uname": "echo n2",
    }
    for name, body in stubs.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    settings = {"SSH": str(tmp_path / "ssh"), "PYTHON": str(tmp_path / "torchrun"), "HOME": str(tmp_path)}

    def loop(*hosts: str) -> subprocess.Popen:
        call = [FOLDER / "ssh.sh", *hosts, "--", "--data", "set"]
        return subprocess.Popen(call, env={**os.environ, **settings})

    def until(lines: int) -> list[str]:
        deadline = time.monotonic() + 60
        while len(found := said.read_text().splitlines()) < lines:
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found

    first = loop("n1", "n2")
    before = until(2)
    again = loop("n2")
    (joined,) = set(until(3)) - set(before)
    first.terminate()
    assert first.wait(60) != 0
    assert {line.replace("ended", "started") for line in until(5)[3:]} == set(before)
    (pid_file,) = tmp_path.glob(".quovadis-*-n2-0.pid")
    pid_file.write_text(str(os.getpid()))  # no torchrun's
    again.terminate()
    time.sleep(1)
    assert again.poll() is None
    os.kill(int(joined.split()[1]), signal.SIGTERM)
    assert again.wait(60) != 0


@pytest.mark.slow
def test_the_ssh_loop_trains_on_two_nodes_stops_saved_and_goes_on(tmp_path):
    """A stand-in for ssh runs the command here; both nodes are on loopback."""
    here = tmp_path / "ssh"
    here.write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
    here.chmod(here.stat().st_mode | stat.S_IXUSR)
    data, run, log = tiny_dataset.publish(tmp_path / "set"), tmp_path / "run", tmp_path / "log"
    settings = [
        "--config",
        "quick",
        "--stream",
        "rgb",
        "--steps",
        "12",
        "--batch-size",
        "2",
        "--workers",
        "1",
    ]
    call = ["localhost", "localhost", "--", "--data", data, *settings, "--output", run]
    environment = {
        **os.environ,
        "SSH": str(here),
        "PYTHON": sys.executable,
        "PORT": str(_free_port()),
        "GPUS": "1",
        "RESTARTS": "2",
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }

    def start() -> subprocess.Popen:
        with log.open("a") as stream:
            return subprocess.Popen(
                [FOLDER / "ssh.sh", *map(str, call)], env=environment, stdout=stream, stderr=stream
            )

    loop = start()
    deadline = time.monotonic() + 180
    while len(nodes.records(run)) < 3:
        assert loop.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)
    loop.terminate()
    assert loop.wait(90) != 0
    stopped = len(nodes.records(run))
    assert 3 <= stopped < 12
    assert checkpoints.load(run).steps == stopped
    assert start().wait(240) == 0, log.read_text()[-3000:]
    assert [record["step"] for record in nodes.records(run)] == list(range(1, 13))
    assert checkpoints.load(run).steps == 12


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
