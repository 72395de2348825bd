"""`ChainCallback`: a chain in a Lightning `Trainer`."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from fwlora.errors import ArgumentError
from fwlora.integrations.publish import publish
from fwlora.integrations.telling import bind, lines
from fwlora.optimizer import ChainLoRAOptimizer
from fwlora.unwrapping import unwrap

FOLDER = "chain_adapter"


class ChainCallback(Callback):
    """Tells the chain the run's length, logs its knots and writes the whole chain as one adapter at the end.

    Lightning's own checkpoints hold the chain, for it is in the optimizer's state, and `fit(ckpt_path=...)` needs nothing else
    where the chain is there before the model's weights are read, hence made in the module's `__init__` or `configure_model`::

        class Tuned(LightningModule):
            def __init__(self, model):
                super().__init__()
                self.model = model
                self.chain = ChainLoRAOptimizer(model, knots=Evenly(3))

            def configure_optimizers(self):
                return self.chain

    Args:
        folder: where the adapter goes, ``<default_root_dir>/chain_adapter`` where None. Rank 0 writes it.

    Example:
        >>> # trainer = Trainer(max_epochs=3, callbacks=[ChainCallback()])
        >>> ChainCallback("out/adapter").folder
        PosixPath('out/adapter')
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bind the number of optimizer steps, where the run has an end."""
        chain = _chain_of(trainer)
        steps = trainer.estimated_stepping_batches
        if steps >= 0 and math.isfinite(steps):
            bind(chain, trainer.global_step, int(steps))
        self._seen = len(chain.ledger)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the knots that were tied."""
        chain = _chain_of(trainer)
        for line in lines(chain.ledger[self._seen :]):
            for log in trainer.loggers:
                log.log_metrics(line, trainer.global_step)
        self._seen = len(chain.ledger)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the chain."""
        folder = self.folder or Path(trainer.default_root_dir) / FOLDER
        publish(_chain_of(trainer), folder, is_main=trainer.is_global_zero)


def _chain_of(trainer: Trainer) -> ChainLoRAOptimizer:
    names = [type(optimizer).__name__ for optimizer in trainer.optimizers]
    if len(names) != 1:
        raise ArgumentError(
            f"`ChainCallback` follows a chain that is the module's one optimizer, and `configure_optimizers` returned {names}; "
            "leave the callback out, and call `export_adapter` yourself."
        )
    return unwrap(trainer.optimizers[0])
