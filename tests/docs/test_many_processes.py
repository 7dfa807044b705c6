"""The launch scripts and manifests of the pages about many machines: they parse, and run on two "machines"."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import ROOT
from support.runs import recipe

from dlmrl_kit.cli.several import SECONDS_TO_STOP
from dlmrl_kit.training.checkpoint import checkpoints


def template(manifest: dict[str, Any]) -> dict[str, Any]:
    """The pod of a job, or of the workers of a PyTorchJob."""
    spec = manifest["spec"]
    found = spec["pytorchReplicaSpecs"]["Worker"] if manifest["kind"] == "PyTorchJob" else spec
    return dict(found["template"]["spec"])


def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return list(template(manifest)["containers"])


PAGE = (ROOT / "docs" / "many-processes.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RAY_PAGE = (ROOT / "docs" / "rollouts-elsewhere.md").read_text()
MANIFESTS = [[*yaml.safe_load_all(text)] for language, text in BLOCK.findall(PAGE) if language == "yaml"]
"""Those of an indexed job with its service, of a PyTorchJob, and of a job on one machine."""
SHELL = [text for language, text in BLOCK.findall(PAGE + RAY_PAGE) if language in ("bash", "sh")]
SHELL += [container["command"][2] for manifests in MANIFESTS for container in containers(manifests[-1])]
(SLURM,) = [text for text in SHELL if text.startswith("#!/bin/bash\n#SBATCH") and "requeue" in text]


@pytest.mark.parametrize("script", SHELL, ids=range(len(SHELL)))
def test_scripts_are_shell(script: str) -> None:
    assert not subprocess.run(["bash", "-n"], input=script, text=True, check=True, capture_output=True).stderr


def last_command(script: str) -> list[str]:
    """The words of the command that a script ends with, where a run begins."""
    joined = script.replace("\\\n", " ").replace('"${goal[@]}"', "RECIPE --out /shared/runs/one")
    return shlex.split(joined.strip().splitlines()[-1])


def launched(container: dict[str, Any]) -> Any:
    """What ``torchrun`` reads in the command of a container."""
    from torch.distributed.run import get_args_parser

    assert container["command"][:2] == ["bash", "-c"]
    assert "--resume /shared/runs/one" in container["command"][2]
    words = last_command(container["command"][2])
    assert words[:2] == ["exec", "torchrun"]  # not a child of the shell, which would keep SIGTERM to itself
    given = get_args_parser().parse_args(words[2:])
    assert given.module
    assert [given.training_script, *given.training_script_args][:2] == ["dlmrl_kit", "train"]
    assert given.nproc_per_node == str(container["resources"]["limits"]["nvidia.com/gpu"])
    return given


def check_pod(pod: dict[str, Any]) -> dict[str, Any]:
    """Volumes are those that are mounted, and there is time for a checkpoint; the container."""
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    limit = {entry["name"]: entry["value"] for entry in container.get("env", [])}.get(
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SECONDS_TO_STOP
    )
    assert int(limit) < pod["terminationGracePeriodSeconds"]
    return dict(container)


def test_an_indexed_job() -> None:
    service, job = MANIFESTS[0]
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    spec, pod, name = job["spec"], template(job), service["metadata"]["name"]
    given = launched(check_pod(pod))
    assert pod["subdomain"] == name
    assert pod["restartPolicy"] == "Never"  # which a podFailurePolicy asks for
    assert spec["completionMode"] == "Indexed"
    assert str(spec["completions"]) == str(spec["parallelism"]) == given.nnodes
    assert (given.rdzv_backend, given.max_restarts) == ("c10d", 0)
    assert given.rdzv_endpoint.startswith(f"{job['metadata']['name']}-0.{name}:")


def test_a_pytorchjob(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variables that the operator derives from ``elasticPolicy``, ``torchrun`` knows all it needs."""
    (job,) = MANIFESTS[1]
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    spec, worker = job["spec"], job["spec"]["pytorchReplicaSpecs"]["Worker"]
    policy, container = spec["elasticPolicy"], check_pod(template(job))
    assert container["name"] == "pytorch"  # by which the operator finds it
    assert worker["restartPolicy"] == "OnFailure"
    variables = {
        "PET_RDZV_ENDPOINT": f"{job['metadata']['name']}-worker-0:23456",
        "PET_RDZV_BACKEND": policy["rdzvBackend"],
        "PET_RDZV_ID": policy["rdzvId"],
        "PET_NNODES": str(worker["replicas"]),
        "PET_MAX_RESTARTS": str(policy["maxRestarts"]),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    given = launched(container)
    assert [given.rdzv_endpoint, given.rdzv_backend, given.rdzv_id] == [*variables.values()][:3]
    assert (given.nnodes, given.max_restarts) == ("4", 0)


def test_a_job_on_one_machine() -> None:
    """Codes are those of the command line: 75 goes on, 2 is an error that comes again."""
    from dlmrl_kit.cli.common import EXIT_STOPPED

    (job,) = MANIFESTS[2]
    pod = template(job)
    container = check_pod(pod)
    assert pod["restartPolicy"] == "Never"
    words = last_command(container["command"][2])
    assert words[:5] == ["exec", "python", "-m", "dlmrl_kit", "train"]
    assert words[-2:] == ["--gpus", str(container["resources"]["limits"]["nvidia.com/gpu"])]
    rules = {rule["action"]: rule["onExitCodes"]["values"] for rule in job["spec"]["podFailurePolicy"]["rules"][1:]}
    assert rules == {"Ignore": [EXIT_STOPPED], "FailJob": [2]}


def test_ray_knows_the_options_of_every_command() -> None:
    cli = pytest.importorskip("ray.scripts.scripts").cli
    commands = [line.strip() for text in SHELL for line in text.replace("\\\n", " ").splitlines() if "ray st" in line]
    assert len(commands) >= 5
    for line in commands:
        name, *words = shlex.split(line.partition("ray ")[2].partition("#")[0].removesuffix("&"))
        cli.get_command(None, name).make_context(name, words, resilient_parsing=False)


SRUN = """#!/bin/bash
"$@" & one=$!
"$@" & two=$!
trap 'kill -TERM $one $two' TERM
wait $one; wait $one; first=$?
wait $two; exit $((first > $? ? first : $?))
"""
"""Runs a command on two machines, which are both this one, and passes SIGTERM on."""

SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$HOME/asked"; fi
"""


@pytest.mark.thorough
def test_the_script_for_slurm_stops_and_goes_on(tmp_path: Path) -> None:
    """With ``srun`` and ``scontrol`` of our own: SIGTERM after the first checkpoint, then the job that queued again."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    sets = ["Trainer.updates = 40", "Trainer.eval_every = 0", "Trainer.checkpoint_every = 1", "Trainer.eval_size = 2"]
    (tmp_path / "tiny.gin").write_text(recipe(sets=sets).text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "job.sh"
    script.write_text(SLURM.replace("RECIPE", str(tmp_path / "tiny.gin")).replace("29500", str(port)))
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        # The programs of this environment too: it need not be activated where the tests run.
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "here",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    folder = tmp_path / "runs" / "7"

    def submitted() -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    job = submitted()
    until = time.monotonic() + 120
    while not list(folder.glob("checkpoints/update-*")) and job.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    told = job.communicate(timeout=120)[0]
    assert job.returncode == 75, told
    assert "stopped by SIGTERM" in told
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert not (folder / "result.json").exists()
    again = submitted()
    told = again.communicate(timeout=240)[0]
    assert again.returncode == 0, told
    assert (folder / "result.json").is_file()


@pytest.mark.slow
def test_pods_stop_and_are_made_again(tmp_path: Path) -> None:
    """Two pods of the indexed job; one gets SIGTERM after the first checkpoint, and pods that fail are made again."""
    sets = ["Trainer.updates = 40", "Trainer.eval_every = 0", "Trainer.checkpoint_every = 1", "Trainer.eval_size = 2"]
    (tmp_path / "tiny.gin").write_text(recipe(sets=sets).text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = containers(MANIFESTS[0][-1])[0]["command"][2].replace("RECIPE", str(tmp_path / "tiny.gin"))
    script = script.replace("/shared", str(tmp_path)).replace("dlmrl-0.dlmrl:29500", f"127.0.0.1:{port}")
    script = script.replace("--nnodes=4 --nproc-per-node=8", "--nnodes=2 --nproc-per-node=1")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    folder, told = tmp_path / "runs" / "one", (tmp_path / "told").open("w")

    def pod() -> subprocess.Popen[bytes]:
        return subprocess.Popen(["bash", "-c", script], env=environment, stdout=told, stderr=subprocess.STDOUT)

    pods, failed, until = [pod(), pod()], 0, time.monotonic() + 400
    while not checkpoints(folder) and time.monotonic() < until:
        time.sleep(0.05)
    pods[1].send_signal(signal.SIGTERM)
    while (codes := [one.poll() for one in pods]) != [0, 0] and time.monotonic() < until:
        for i, code in enumerate(codes):
            if code:
                failed += 1
                pods[i] = pod()
        time.sleep(0.2)
    for one in pods:
        one.kill()
    told.close()
    text = (tmp_path / "told").read_text()
    assert codes == [0, 0], text
    assert 2 <= failed < 8, text
    assert "stopped by SIGTERM" in text
    assert "resumed after update" in text
    assert (folder / "result.json").is_file()
