"""`ChainCallback`: a chain in a `transformers.Trainer` (and in TRL's, which are Trainers)."""

from __future__ import annotations

import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fwlora.errors import ArgumentError, SaveModelWarning
from fwlora.integrations.publish import discard, publish, sweep
from fwlora.optimizer import ChainLoRAOptimizer, unwrap
from fwlora.rules import Never

logger = logging.getLogger(__name__)
FOLDER = "chain_adapter"
SAVES = "chain_adapters"
STEP = "step-"


class ChainCallback(TrainerCallback):
    """Tells the chain the run's length, logs its knots and writes the whole chain as one adapter, at each save and at the end.

    Trainer's own checkpoints hold the chain, for it is in the optimizer's state; `resume_from_checkpoint` and
    `load_best_model_at_end` need nothing else. The link factor goes into `state.log_history`, and a line for each knot.

    Adapters lie beside the checkpoints, each there whole or not at all, and each loads with `PeftModel.from_pretrained` on the
    original base::

        <output_dir>/checkpoint-500/             Trainer's, to resume from
        <output_dir>/chain_adapters/step-500/    the model of that checkpoint; goes when `save_total_limit` rotates it away
        <output_dir>/chain_adapter/              the model at the end: the best one under `load_best_model_at_end`

    The main process writes them. An adapter has the sum of the links' ranks, so those of a long chain grow with it.

    Args:
        folder: where the adapter of the end goes, ``<output_dir>/chain_adapter`` where None. Not inside a checkpoint folder:
            Trainer would load it as a second adapter on resume.
        at_saves: whether an adapter is written at each save too.

    Example:
        >>> # trainer = Trainer(model, args, train_dataset=data, optimizers=(optimizer, None), callbacks=[ChainCallback()])
        >>> ChainCallback("out/adapter").folder
        PosixPath('out/adapter')
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, at_saves: bool = True) -> None:
        self.folder = None if folder is None else Path(folder)
        self.at_saves = at_saves
        if self.folder is not None and any(re.fullmatch(r"checkpoint-\d+", part) for part in self.folder.parts):
            raise ArgumentError(
                f"`ChainCallback(folder={str(folder)!r})` lies inside a checkpoint folder, whose sub-folders Trainer loads as "
                "adapters on resume; choose a place beside it."
            )
        self._seen = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Bind the number of steps, and refuse what could only fail at the end."""
        if args.load_best_model_at_end and args.save_only_model:
            raise ArgumentError(
                "`load_best_model_at_end=True` needs the best checkpoint's optimizer.pt, which `save_only_model=True` leaves "
                "out; leave it off."
            )
        chain = unwrap(kwargs["optimizer"])
        returns = args.load_best_model_at_end and chain.knots != Never()
        if returns and _saves_adapter_only(kwargs["model"]) and chain.original() is None:
            raise ArgumentError(
                "`load_best_model_at_end=True` on a PeftModel: its checkpoints hold no base weights, and knots change those of "
                "the model. Give `ChainLoRAOptimizer(original=...)` the original weights, so that the chain can go back."
            )
        # A resumed run may lack steps that a gradient scaler skipped; a length that the schedule brings stands then.
        if state.global_step == 0 or getattr(chain.knots, "total_steps", None) is None:
            # In a chain's second training its own count goes on.
            chain.total_steps = chain.progress.step + state.max_steps - state.global_step
        self._seen = len(chain.ledger)
        if state.is_world_process_zero:
            sweep(_saves(args), f"{STEP}*")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the knots that were tied."""
        chain = unwrap(kwargs["optimizer"])
        for record in chain.ledger[self._seen :]:
            if record.refused is not None:
                logger.warning("knot refused at step %d: %s", record.step, record.refused)
                continue
            norm = sum(value**2 for value in record.link_norms.values()) ** 0.5
            logger.info("knot %d at step %d, link norm %.3g", record.knot + 1, record.step, norm)
            line = {"step": state.global_step, "chain_knot": record.knot + 1, "chain_link_norm": norm}
            if record.gap is not None:
                line |= dict(zip(("chain_gap_lower", "chain_gap", "chain_gap_upper"), record.gap["total"]["gap"], strict=True))
            state.log_history.append(line)
        self._seen = len(chain.ledger)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the link factor and the number of knots to what is logged."""
        if kwargs.get("optimizer") is None or logs is None or "loss" not in logs:
            return
        chain = unwrap(kwargs["optimizer"])
        extra = {"link_factor": chain.link_factor, "knots": len(chain.chain)}
        logs.update(extra)
        if state.log_history:
            state.log_history[-1].update(extra)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Export the chain as it was saved, and drop the exports whose checkpoints are gone."""
        if not self.at_saves or not state.is_world_process_zero:
            return
        folder = _saves(args) / f"{STEP}{state.global_step}"
        if folder.exists():  # of the run that this one resumes
            discard(folder)
        logger.info("%s", publish(unwrap(kwargs["optimizer"]), folder))
        _rotate(args)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Follow Trainer to the best checkpoint, export the chain, and say what `save_model()` would not write."""
        chain = unwrap(kwargs["optimizer"])
        if args.load_best_model_at_end and state.best_model_checkpoint:
            _follow(chain, Path(state.best_model_checkpoint))
        folder = self.folder or Path(args.output_dir or ".") / FOLDER
        if state.is_world_process_zero:
            logger.info("%s", publish(chain, folder))
            if self.at_saves:
                _rotate(args)  # under save_total_limit=1 Trainer has removed all but the best checkpoint
        what = (
            "only the live link, which is wrong on the original base"
            if _saves_adapter_only(kwargs["model"])
            else "base-layer weights that `from_pretrained` re-initialises in silence"
        )
        warnings.warn(
            f"`trainer.save_model()` would write {what}. The whole chain lies in {folder}, an adapter for the original base; "
            "`optimizer.merge_and_unload()` gives the plain model.",
            SaveModelWarning,
            stacklevel=2,
        )


def _follow(chain: ChainLoRAOptimizer, checkpoint: Path) -> None:
    """Trainer has loaded the best model's weights; bring the chain to the same point, replaying where they are the base's."""
    file = checkpoint / "optimizer.pt"
    if not file.is_file():
        raise ArgumentError(
            f"`load_best_model_at_end=True` needs the best checkpoint's optimizer.pt, and {checkpoint} has none; leave "
            "`save_only_model` off."
        )
    chain.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))


def _saves(args: TrainingArguments) -> Path:
    return Path(args.output_dir or ".") / SAVES


def _rotate(args: TrainingArguments) -> None:
    """Trainer has removed the checkpoints beyond `save_total_limit`; remove their exports."""
    if args.save_total_limit is None or args.save_total_limit <= 0:
        return
    for export in _saves(args).glob(f"{STEP}[0-9]*"):
        if not (_saves(args).parent / f"checkpoint-{export.name.removeprefix(STEP)}").is_dir():
            discard(export)


def _saves_adapter_only(model: Any) -> bool:
    """Whether Trainer's checkpoints of this model lack the base's weights: those of a PeftModel do."""
    return hasattr(_inside(model), "get_base_model")


def _inside(model: Any) -> Any:
    while hasattr(model, "module") or hasattr(model, "_orig_mod"):
        model = getattr(model, "module", None) or model._orig_mod
    return model
