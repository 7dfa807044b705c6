"""Runs the benchmarks that a CPU can do, each in a process of its own with one thread, and writes one page of all.

    python benchmarks/run_all.py                                # by estimate half an hour of processor time
    python benchmarks/run_all.py --quick                        # small sizes, some minutes: does everything run?
    python benchmarks/run_all.py --only rollout-512 --only update-512 --against HEAD~3 --rounds 3

What fails is said on the page and at the end, and the others go on. ``--against`` runs the scripts of this checkout
with the package of an earlier commit, too, by turns: once here, once there. Writes ``results.md``, ``results.json`` and
``results.csv``, and keeps what each benchmark wrote in a folder of its name.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from results_page import HERE, Benchmark, Run, write_results

from dlmrl_kit.core.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SHORT = ("--repeats", "1")
TINY = ("--hidden", "64", "--batch", "2", *SHORT)

BENCHMARKS: Mapping[str, Benchmark] = {
    "cycle": Benchmark(
        "A whole cycle by phase, seconds and then ratios: kit, plain, floors; bare: without greedy completions",
        ("cycle.py", "--repeats", "5"),
        ("cycle.py", "--vocab", "512", "--length", "8", "--selected", "2", *TINY),
    ),
    "cycle-kit": Benchmark(
        "The same without plain, to be put beside an earlier commit",
        ("cycle.py", "--no-plain", "--repeats", "5"),
        ("cycle.py", "--vocab", "512", "--length", "8", "--selected", "2", "--no-plain", *TINY),
    ),
    "rollout-512": Benchmark(
        "A rollout at vocabulary 512: kit, floor, plain, approximate caches",
        ("rollout.py", "--vocab", "512", "--caches", "--repeats", "5"),
        ("rollout.py", "--vocab", "512", "--caches", "--length", "16", *TINY),
    ),
    "rollout-32000": Benchmark(
        "A rollout at vocabulary 32,000",
        ("rollout.py", "--vocab", "32000", "--repeats", "3"),
        ("rollout.py", "--vocab", "32000", "--length", "8", *TINY),
    ),
    "rollout-126464": Benchmark(
        "A rollout at vocabulary 126,464, 8 tokens per step",
        ("rollout.py", "--vocab", "126464", "--per-step", "8", "--repeats", "3"),
        ("rollout.py", "--vocab", "126464", "--length", "4", "--no-plain", *TINY),
    ),
    "update-512": Benchmark(
        "An update at vocabulary 512",
        ("update.py", "--vocab", "512", "--repeats", "5"),
        ("update.py", "--vocab", "512", "--selected", "2", *TINY),
    ),
    "update-32000": Benchmark(
        "An update at vocabulary 32,000",
        ("update.py", "--vocab", "32000", "--repeats", "3"),
        ("update.py", "--vocab", "32000", "--selected", "2", "--no-plain", *TINY),
    ),
    "tight": Benchmark(
        "A rollout beside a hand-written transformer",
        ("tight.py", "--vocab", "32000", "--repeats", "3"),
        ("tight.py", "--vocab", "512", *TINY),
    ),
    "vocabulary": Benchmark(
        "A rollout with one pass over the vocabulary beside whole logits",
        ("vocabulary.py", "--vocab", "32000", "--length", "32", "--per-step", "4", "--repeats", "3"),
        ("vocabulary.py", "--vocab", "4096", "--length", "16", "--repeats", "1"),
    ),
    "exact": Benchmark(
        "An update with the exact log-probability beside one with that of the tokens",
        ("exact.py", "--repeats", "3"),
        ("exact.py", "--vocab", "512", *SHORT),
    ),
    "memory": Benchmark(
        "Peak memory over the model's own",
        ("memory.py", "--vocab", "32000", "--steps-growth"),
        ("memory.py", "--vocab", "512"),
    ),
    "recompute": Benchmark(
        "An update by the number of blocks that recompute activations: time and peak memory",
        ("recompute.py", "--layers", "4", "--micro-tokens", "3072", "--repeats", "3"),
        ("recompute.py", "--layers", "2", *TINY),
    ),
    "growth": Benchmark(
        "How time and memory grow: log-log slopes, 1 is linear",
        ("growth.py", "--repeats", "3"),
        ("growth.py", "--axis", "selected", "--no-memory", *SHORT),
    ),
    "long": Benchmark(
        "Completions of 512 to 8,192 tokens",
        ("long.py",),
        ("long.py", "--length", "128", "--length", "256"),
    ),
    "sharing": Benchmark(
        "Padding in updates and blocks that states share, counted; the time of an update",
        ("sharing.py", "--repeats", "3"),
        ("sharing.py", "--repeats", "0"),
    ),
    "outside": Benchmark(
        "Where an update's time goes besides matrix products",
        ("outside.py",),
        ("outside.py", "--vocab", "512"),
    ),
    "instructions": Benchmark("The work of each phase, counted", ("instructions.py",), ("instructions.py",)),
    "forwards": Benchmark("What goes through the body in a rollout, counted", ("forwards.py",), None),
    "scaling": Benchmark("Scaling over 1, 2 and 4 processes, counted", ("scaling.py",), None),
    "rewards": Benchmark(
        "Rewards in a thread, and rewards waited for; wall time",
        ("rewards.py", "--wait", "0", "--wait", "0.02", "--repeats", "3"),
        ("rewards.py", "--wait", "0", *SHORT),
    ),
    "sandbox": Benchmark(
        "Programs a second that the sandbox judges; wall time",
        ("sandbox.py", "--programs", "200"),
        ("sandbox.py", "--programs", "20"),
    ),
    "overheads": Benchmark(
        "First update, evaluation, checkpoints, audits, start of a comparison",
        ("overheads.py",),
        ("overheads.py", "--only", "help"),
    ),
    "ablation": Benchmark(
        "A run of an ablation: forks and fresh processes",
        ("ablation.py", "--seeds", "2"),
        ("ablation.py", "--seeds", "1"),
    ),
    "collectors": Benchmark(
        "Rollouts in actors of Ray; wall time",
        ("collectors.py", "--updates", "3"),
        ("collectors.py", "--updates", "2"),
    ),
    "cache_bias": Benchmark(
        "Bias and variance that cached rollouts bring, by correction",
        ("cache_bias.py", "--problems", "20"),
        ("cache_bias.py", "--problems", "2"),
    ),
    "cache_bias-intervals": Benchmark(
        "Bias and variance of refreshes within a block, by correction",
        ("cache_bias.py", "--intervals", "--problems", "20"),
        ("cache_bias.py", "--intervals", "--problems", "2"),
    ),
    "cached_learning": Benchmark(
        "Tokens through the model with a cache, and what is learned",
        ("cached_learning.py", "--seeds", "1", "--updates", "10"),
        ("cached_learning.py", "--seeds", "1", "--updates", "1", "--examples", "8"),
    ),
    "paper": Benchmark("An 8B model on paper", ("paper.py", "--gpus", "8"), ("paper.py", "--gpus", "8")),
    "cluster": Benchmark("Large models on many GPUs, on paper", ("cluster.py",), None),
}
"""What runs, in this order; None: left out by ``--quick``, as there is no smaller size."""

NOT_HERE = {"gpu.py": "needs a GPU", "run_all.py": "is this one"}
"""Scripts that are not in the table, and why."""


@dataclass(frozen=True)
class Package:
    """A package to measure: its commit's name on the page, and the folder that it is imported from."""

    name: str
    root: Path

    def environment(self) -> dict[str, str]:
        """Returns the environment in which this package is imported, with one thread."""
        paths = [str(self.root), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}

    def check(self) -> None:
        """Raises ``UserError`` where python would import another package than this one."""
        code = "import dlmrl_kit; print(dlmrl_kit.__path__[0])"
        with tempfile.TemporaryDirectory() as elsewhere:
            found = subprocess.run(
                [sys.executable, "-c", code], env=self.environment(), cwd=elsewhere, capture_output=True, text=True
            )
        if found.returncode or Path(found.stdout.strip()).resolve().parent != self.root.resolve():
            said = found.stdout.strip() or found.stderr.strip()
            raise UserError(f"{self.name}: python does not import the package in {self.root}, but says: {said}")


def git(*arguments: str) -> str:
    """Runs git in the checkout; returns what it printed.

    Raises:
        UserError: git failed.
    """
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"git {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def earlier(revision: str) -> Iterator[Package]:
    """Within the context, the package of a commit lies in a temporary git worktree."""
    commit = git("rev-parse", "--short", "--verify", f"{revision}^{{commit}}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "checkout")
        git("worktree", "add", "--detach", str(root), commit)
        try:
            yield Package(commit, root)
        finally:
            git("worktree", "remove", "--force", str(root))


def run(arguments: tuple[str, ...], package: Package, out: Path, limit: float) -> Run:
    """Runs a benchmark's script once, in a process of its own.

    Args:
        arguments: the script's name and its options.
        package: that it measures.
        out: folder that it works in, made if need be; the scripts write to ``benchmark-results`` in it.
        limit: seconds after which it is ended, with the processes that it started.
    """
    script, *options = arguments
    out.mkdir(parents=True, exist_ok=True)
    stored = out / "benchmark-results" / f"{Path(script).stem}.json"
    stored.unlink(missing_ok=True)  # of an earlier call
    command = [sys.executable, str(ROOT / "benchmarks" / script), *options]
    before, started = cpu_seconds(), time.perf_counter()
    process = subprocess.Popen(
        command,
        env=package.environment(),
        cwd=out,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    ended = ""
    try:
        printed, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        ended = f"ended after {limit:.0f} s, the limit"
        printed, errors = _end(process)
    except BaseException:
        _end(process)
        raise
    rows = json.loads(stored.read_text())["rows"] if stored.exists() else None
    failed = ended or (f"exit code {process.returncode}\n{errors.strip()[-1500:]}" if process.returncode else "")
    return Run(package.name, printed, rows, failed, time.perf_counter() - started, cpu_seconds() - before)


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Ends a script and the processes that it started; returns what it had printed."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # a session of its own: nothing else is in the group
    return process.communicate()


def cpu_seconds() -> float:
    """CPU seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def chosen(only: list[str] | None, quick: bool) -> dict[str, tuple[str, ...]]:
    """Returns script and options of what is to run, by name.

    Raises:
        UserError: a name is unknown, or has no quick version.
    """
    unknown = [name for name in only or () if name not in BENCHMARKS]
    if unknown:
        raise UserError(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    found = {name: BENCHMARKS[name].quick if quick else BENCHMARKS[name].full for name in only or BENCHMARKS}
    without = [name for name in only or () if found[name] is None]
    if without:
        raise UserError(f"{', '.join(without)}: has no quick version; leave out --quick")
    return {name: arguments for name, arguments in found.items() if arguments is not None}


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: whether all of them run; their times say nothing"
    )
    parser.add_argument("--against", metavar="REV", help="an earlier commit, measured beside this checkout")
    parser.add_argument("--rounds", type=int, default=1, help="how often each runs; the page has medians")
    parser.add_argument("--limit", type=float, default=3600, metavar="SECONDS", help="of one process")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    given = parser.parse_args()
    try:
        failed = run_all(given)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"written: {given.out / 'results.md'}, results.json and results.csv")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; {given.out / 'results.md'} says why")


def run_all(given: argparse.Namespace) -> list[str]:
    """Does what the options ask; returns the names of the benchmarks that failed.

    Raises:
        UserError: the options make no sense, or the earlier commit cannot be had.
    """
    if given.rounds < 1:
        raise UserError(f"--rounds must be at least 1, not {given.rounds}")
    tasks = chosen(given.only, given.quick)
    commit = git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else "")
    results: dict[str, list[Run]] = {}
    with contextlib.ExitStack() as stack:
        packages = [Package(HERE, ROOT)]
        if given.against is not None:
            packages.append(stack.enter_context(earlier(given.against)))
        for package in packages:
            package.check()
        for name, arguments in tasks.items():
            results[name] = []
            for number in range(given.rounds):
                for package in packages:
                    out = given.out / name if len(packages) * given.rounds == 1 else None
                    folder = out or given.out / name / f"{package.name}-{number + 1}"
                    result = run(arguments, package, folder, given.limit)
                    results[name].append(result)
                    print(f"{name:16} {package.name:12} {result.cpu:7.1f} CPU s  {result.state}", flush=True)
            # After each, so that nothing is lost where the rest does not come to its end.
            write_results(given.out, commit, BENCHMARKS, tasks, results)
    return [name for name, runs in results.items() if any(one.failed for one in runs)]


if __name__ == "__main__":
    main()
