"""`ChainCallback`: a chain in a `transformers.Trainer` (and in TRL's, which are Trainers)."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fwlora.errors import ArgumentError, SaveModelWarning
from fwlora.integrations.publish import discard, publish, sweep
from fwlora.integrations.telling import bind, lines
from fwlora.optimizer import ChainLoRAOptimizer
from fwlora.persistence import FILE as STATE
from fwlora.rules import Never
from fwlora.unwrapping import unwrap

FOLDER = "chain_adapter"
SAVES = "chain_adapters"
STEP = "step-"


class ChainCallback(TrainerCallback):
    """Tells the chain the run's length, logs its knots and writes the whole chain as one adapter, at each save and at the end.

    Trainer's own checkpoints hold the chain, for it is in the optimizer's state; `resume_from_checkpoint` and
    `load_best_model_at_end` need nothing else. Where FSDP2 shards the model they have no room for links: the callback puts the
    chain's own file into each, and reads it there on resume (in ``output_dir``, or in `args.resume_from_checkpoint`). The link
    factor goes into `state.log_history`, and a line for each knot.

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
        if chain.is_sharded and state.global_step:
            _fetch(chain, args, state.global_step)
        bind(chain, state.global_step, state.max_steps)
        self._seen = len(chain.ledger)
        if state.is_world_process_zero:
            sweep(_saves(args), f"{STEP}*")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the knots that were tied."""
        chain = unwrap(kwargs["optimizer"])
        state.log_history += [{"step": state.global_step} | line for line in lines(chain.ledger[self._seen :])]
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
        chain = unwrap(kwargs["optimizer"])
        if chain.is_sharded:
            chain.save(_checkpoint(args, state.global_step))
        if not self.at_saves:
            return
        folder = _saves(args) / f"{STEP}{state.global_step}"
        if state.is_world_process_zero and folder.exists():  # of the run that this one resumes
            discard(folder)
        publish(chain, folder, is_main=state.is_world_process_zero)
        if state.is_world_process_zero:
            _rotate(args)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Follow Trainer to the best checkpoint, export the chain, and say what `save_model()` would not write."""
        chain = unwrap(kwargs["optimizer"])
        if args.load_best_model_at_end and state.best_model_checkpoint:
            _follow(chain, Path(state.best_model_checkpoint))
        folder = self.folder or Path(args.output_dir or ".") / FOLDER
        publish(chain, folder, is_main=state.is_world_process_zero)
        if state.is_world_process_zero and self.at_saves:
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


def _fetch(chain: ChainLoRAOptimizer, args: TrainingArguments, step: int) -> None:
    """Under FSDP2 Trainer has saved what torch's distributed checkpoint keeps, which has no links; they lie beside it."""
    places = [args.resume_from_checkpoint, _checkpoint(args, step)]
    found = [Path(place) for place in places if place is not None and (Path(place) / STATE).is_file()]
    if found:  # else the first step says what is missing
        chain.load(found[0])


def _follow(chain: ChainLoRAOptimizer, checkpoint: Path) -> None:
    """Trainer has loaded the best model's weights; bring the chain to the same point, replaying where they are the base's."""
    if chain.is_sharded:
        chain.load(checkpoint)
        return
    file = checkpoint / "optimizer.pt"
    if not file.is_file():
        raise ArgumentError(
            f"`load_best_model_at_end=True` needs the best checkpoint's optimizer.pt, and {checkpoint} has none; leave "
            "`save_only_model` off."
        )
    chain.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))


def _saves(args: TrainingArguments) -> Path:
    return Path(args.output_dir or ".") / SAVES


def _checkpoint(args: TrainingArguments, step: int) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{step}"


def _rotate(args: TrainingArguments) -> None:
    """Trainer has removed the checkpoints beyond `save_total_limit`; remove their exports."""
    if args.save_total_limit is None or args.save_total_limit <= 0:
        return
    for export in _saves(args).glob(f"{STEP}[0-9]*"):
        if not _checkpoint(args, int(export.name.removeprefix(STEP))).is_dir():
            discard(export)


def _saves_adapter_only(model: Any) -> bool:
    """Whether Trainer's checkpoints of this model lack the base's weights: those of a PeftModel do."""
    return hasattr(_inside(model), "get_base_model")


def _inside(model: Any) -> Any:
    while hasattr(model, "module") or hasattr(model, "_orig_mod"):
        model = getattr(model, "module", None) or model._orig_mod
    return model
