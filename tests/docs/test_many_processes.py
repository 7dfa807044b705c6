"""The launch scripts of the page about many processes: they parse, and the one for Slurm runs, on two "machines"."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support.paths import ROOT
from support.runs import recipe

PAGE = (ROOT / "docs" / "many-processes.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = [text for language, text in BLOCK.findall(PAGE) if language in ("bash", "sh")]
(SLURM,) = [text for text in SHELL if text.startswith("#!/bin/bash\n#SBATCH")]


@pytest.mark.parametrize("script", SHELL, ids=range(len(SHELL)))
def test_scripts_are_shell(script: str) -> None:
    assert not subprocess.run(["bash", "-n"], input=script, text=True, check=True, capture_output=True).stderr


def test_torchrun_knows_the_options_of_every_command() -> None:
    from torch.distributed.run import get_args_parser

    (manifest,) = [text for language, text in BLOCK.findall(PAGE) if language == "yaml"]
    service, job = yaml.safe_load_all(manifest)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    name = service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == name
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    words = container["command"]
    assert words[0] == "torchrun"
    given = get_args_parser().parse_args(words[1:])
    assert (given.nnodes, given.rdzv_backend) == (str(job["spec"]["completions"]), "c10d")
    assert given.nproc_per_node == str(container["resources"]["limits"]["nvidia.com/gpu"])
    assert given.rdzv_endpoint.startswith(f"{job['metadata']['name']}-0.{name}:")
    assert given.module
    assert [given.training_script, *given.training_script_args][:2] == ["dlmrl_kit", "train"]
    limit = int({entry["name"]: entry["value"] for entry in container["env"]}["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert limit < pod["terminationGracePeriodSeconds"]


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
