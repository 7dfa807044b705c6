"""A tiny random LLaDA whose tokenizer writes all printable ASCII, and small files in the formats of published data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.checkpoints import LLADA_TEMPLATE, fast_tokenizer, llada_checkpoint

PRINTABLE = "".join(map(chr, range(32, 127))) + "\n"
NAMES = ("<|startoftext|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|mdm_mask|>")

SMALL_RUN = (
    "Pretrained.lora_rank = 2",
    "Pretrained.quantisation = 'none'",
    "Pretrained.dtype = 'float32'",
    "Sampler.block_length = 8",
    "Sampler.tokens_per_step = 4",
    "Selector.k = 2",
    "ChatPrompt.max_tokens = 60",
    "Trainer.updates = 2",
    "Trainer.prompts_per_update = 2",
    "Trainer.minibatches = 1",
    "Trainer.eval_every = 0",
    "Trainer.eval_size = 2",
    "Trainer.precision = 'float32'",
    "Trainer.device = 'cpu'",
)
"""Bindings that make two tiny updates of a recipe of the papers; the length and the size of groups are the test's."""


def text_checkpoint(folder: Path) -> Path:
    """Writes the checkpoint, chat template included; returns its folder."""
    end, mask = len(PRINTABLE) + 1, len(PRINTABLE) + 5
    llada_checkpoint(folder, vocab_size=112, embedding_size=112, eos_token_id=end, pad_token_id=end, mask_token_id=mask)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    roles = dict(zip(("bos_token", "eos_token", "pad_token"), (NAMES[0], NAMES[1], NAMES[1]), strict=True))
    tokenizer = fast_tokenizer([*NAMES], characters=PRINTABLE, **roles)
    tokenizer.chat_template = LLADA_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def gsm8k_row(n: int) -> dict[str, Any]:
    return {
        "question": f"What are {n} and {n + 1}?",
        "answer": f"{n} + {n + 1} = <<{n}+{n + 1}=1>>x.\n#### 1,{100 + n}",
    }


def math_row(n: int) -> dict[str, Any]:
    return {"problem": f"Halve {n}.", "solution": f"It is $\\boxed{{\\frac{{{n}}}{{2}}}}$.", "level": 1}


def countdown_row(n: int) -> dict[str, Any]:
    return {"nums": [n + 1, n + 2, n + 3], "target": 3 * n + 6}


def sudoku_row(n: int) -> dict[str, Any]:
    solution = "1234341221434321"
    return {
        "Puzzle": "".join("0" if n >> bit & 1 else given for bit, given in enumerate(solution)),
        "Solution": solution,
    }


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(
        "\n".join(",".join(map(str, row)) for row in [rows[0].keys(), *[row.values() for row in rows]]) + "\n"
    )
    return str(path)
