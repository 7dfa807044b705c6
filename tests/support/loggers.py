"""What a training loop does with a logger."""

from __future__ import annotations

from pathlib import Path

from dlmrl_kit.loggers.base import Logger


def drive(logger: Logger, folder: Path, updates: range, first_update: int, eval_every: int = 2) -> None:
    """Logs as the training loop does: an evaluation at 0 and, at u + 1, after every second update u."""
    logger.open(folder, first_update)
    if first_update == 0:
        logger.log(0, {"eval/accuracy": 0.0})
    for update in updates:
        logger.log(update, {"reward": update / 3, "kl": 0.1 * update})
        if (update + 1) % eval_every == 0:
            logger.log(update + 1, {"eval/accuracy": (update + 1) / 10})
    logger.close()
