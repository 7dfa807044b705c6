"""What the benchmarks share: random policies, interleaved timing, peak memory of a fresh process, tables and plots."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from dlmrl_kit.policies.transformers_policy import TransformersPolicy
from dlmrl_kit.samplers.low_confidence import LowConfidence


@dataclass(frozen=True)
class Size:
    """A problem: the sizes of the reference's measurements are the defaults. ``mlp`` None: 8/3 of ``hidden``.

    A micro-batch has at most ``micro_rows`` samples (None: all) and ``micro_tokens`` tokens. Prompts have ``prompt``
    tokens on average, the longest ``spread`` times as many as the shortest.
    """

    vocab: int = 32_000
    hidden: int = 256
    layers: int = 4
    prompt: int = 64
    length: int = 64
    block: int = 32
    per_step: int = 2
    batch: int = 6
    selected: int = 8
    micro_tokens: int = 768
    lora: int = 16
    temperature: float = 0.9
    mlp: int | None = None
    head: int = 64
    device: str = "cpu"
    dtype: str = "float32"
    spread: float = 1.0
    micro_rows: int | None = None

    def generator(self, seed: int) -> torch.Generator:
        """Makes a random generator on the device."""
        return torch.Generator(device=self.device).manual_seed(seed)

    @property
    def steps(self) -> int:
        """T, the number of denoising steps."""
        return len(masked_block_counts(self))


def parser_of(doc: str | None, *names: str, repeats: int) -> argparse.ArgumentParser:
    """Makes a parser of several ``--vocab``, some fields of ``Size`` with its defaults, ``--repeats`` and ``--out``."""
    parser = parser_without_options(doc)
    parser.add_argument("--vocab", type=int, action="append")
    for name in names:
        default = getattr(Size, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    return parser


def parser_without_options(doc: str | None) -> argparse.ArgumentParser:
    """Makes the parser of a script that takes no options, so that ``--help`` does not run it."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


class TokenIds:
    """What a policy asks of a tokenizer, for a random model: mask 0, padding 1, no end of text."""

    mask_token_id, pad_token_id, unk_token_id, eos_token_id = 0, 1, None, None
    chat_template = None

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Tokenises nothing: no text has tokens."""
        return {"input_ids": []}

    def __len__(self) -> int:
        return self.vocab


def make_policy(size: Size, seed: int = 0) -> TransformersPolicy:
    """Makes a random bidirectional Llama with a LoRA adapter; logits of standard deviation 2, so that entropies differ.

    It is made on its device, in its precision: an 8B model needs no second copy.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(seed)
    config = LlamaConfig(  # type: ignore[call-arg]
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.mlp or size.hidden * 8 // 3,
        num_hidden_layers=size.layers,
        num_attention_heads=max(1, size.hidden // size.head),
        num_key_value_heads=max(1, size.hidden // size.head),
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        is_causal=False,
        use_cache=False,
    )
    with torch.device(size.device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, size.dtype))
    with torch.no_grad():
        model.lm_head.weight.normal_(std=2 * size.hidden**-0.5)
    policy = TransformersPolicy(model, TokenIds(size.vocab))  # type: ignore[arg-type]
    if size.lora:
        from peft import LoraConfig

        policy.add_adapter(LoraConfig(r=size.lora, lora_alpha=2 * size.lora, target_modules="all-linear"))
        with torch.no_grad():
            for name, parameter in policy.trainable():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
    return policy


def compiled(
    size: Size, mode: str, make: Callable[[TransformersPolicy], Callable[[], object]]
) -> tuple[Callable[[], object], float]:
    """Returns what ``make`` makes of a policy with compiled blocks, and the wall seconds of its first run.

    That run compiles.

    Args:
        size: of the policy.
        mode: of ``torch.compile``, as ``Trainer.compile``.
        make: the work, from a policy.
    """
    policy = make_policy(size)
    policy.compile_blocks(mode)
    started = time.perf_counter()
    work = make(policy)
    work()
    return work, time.perf_counter() - started


def make_prompts(size: Size, seed: int = 0) -> TensorDict:
    """Draws random prompts in two groups, with lengths in a random order and padded at the left where they differ."""
    generator = torch.Generator().manual_seed(seed)
    longest = round(2 * size.prompt * size.spread / (1 + size.spread))
    ids = torch.randint(2, size.vocab, (size.batch, longest), generator=generator)
    length = torch.linspace(longest / size.spread, longest, size.batch).round()
    order = torch.randperm(size.batch, generator=generator)
    mask = torch.arange(longest) >= longest - length[order, None]
    group = torch.arange(size.batch) * 2 // max(size.batch, 1)
    fields = {"prompt_ids": ids.masked_fill(~mask, TokenIds.pad_token_id), "prompt_mask": mask, "group": group}
    seeds = {"example": group.clone(), "seed": torch.arange(size.batch)}
    return TensorDict({**fields, **seeds}, [size.batch]).to(size.device)


def make_sampler(size: Size) -> LowConfidence:
    """Makes low-confidence remasking of this size."""
    return LowConfidence(size.length, size.per_step, size.block, size.temperature)


def interleaved(
    works: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] | None = None
) -> dict[str, float]:
    """Measures the median seconds of each work, run in turn after one untimed round.

    By ``clock``; by default, on a CPU with one thread, processor time of this process: on a busy machine wall time
    would measure the others.
    """
    if clock is None:
        processor = torch.get_num_threads() == 1 and not torch.cuda.is_available()
        clock = time.process_time if processor else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            started = clock()
            work()
            synchronise()
            if repeat:
                seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronise() -> None:
    """Waits until the GPU, if there is one, has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def growth(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Fits the slope of log(value) on log(size) by least squares: 1 is linear, 0 is constant."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (sizes, values))
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def peak_megabytes(work: Callable[[], object]) -> float:
    """Measures the peak resident memory of this process during ``work``, over what it held before (Linux).

    Meaningful in a process started by ``in_fresh_process``, whose allocator returns freed blocks at once.
    """
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from the present size
    work()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def in_fresh_process(script: str, arguments: dict[str, Any]) -> Any:
    """Runs ``script --worker JSON`` with one thread; returns what it printed last, as JSON."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, script, "--worker", json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine() -> dict[str, Any]:
    """Describes the machine that the numbers were measured on."""
    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        name = next(
            (line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line), name
        )
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def report(name: str, out: Path, rows: list[dict[str, Any]], **more: Any) -> None:
    """Prints rows as a table and writes them to ``out/NAME.json``."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(column), *(len(row[i]) for row in cells)) for i, column in enumerate(columns)]
    for line in (columns, *cells):
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))
    out.mkdir(parents=True, exist_ok=True)
    content = {"command": " ".join(sys.argv), "machine": machine(), "rows": rows, **more}
    (out / f"{name}.json").write_text(json.dumps(content, indent=1))


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def plot(path: Path, title: str, x: str, y: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Draws lines on logarithmic axes, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.5), layout="constrained")
    for label, (sizes, values) in lines.items():
        axes.loglog(sizes, values, marker="o", label=label)
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def as_dict(size: Size) -> dict[str, Any]:
    """Returns a size as JSON can hold it."""
    return asdict(size)


def masked_block_counts(size: Size) -> list[int]:
    """Counts the masked positions of the current block in each step of one row."""
    counts = []
    for start in range(0, size.length, size.block):
        width = min(size.block, size.length - start)
        while width > 0:
            counts.append(width)
            width -= min(size.per_step, width)
    return counts


def full_ids(prompts: TensorDict, completion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Joins prompt and completion; returns them with attention mask and rotary positions."""
    ids = torch.cat([prompts["prompt_ids"], completion], dim=1)
    mask = torch.cat([prompts["prompt_mask"], torch.ones_like(completion, dtype=torch.bool)], dim=1)
    return ids, mask, (mask.long().cumsum(-1) - 1).clamp(min=0)
