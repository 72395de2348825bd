"""Fine-tune a causal language model on JSON lines with a chain of LoRA, and export one adapter for the base model."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import tyro

from experiments.errors import UsageError
from experiments.options import ChainOptions, KeepingOptions, TrainingOptions
from experiments.options import FinetuneOptions as Config

if TYPE_CHECKING:
    from experiments.checkpoints import Checkpoints
    from experiments.tasks.jsonl import Example, JsonlTask
    from experiments.train import Setup, StepRecord
    from fwlora import ChainLoRAOptimizer

# Options that say how a run is carried out, not what it computes: a resumed run may change them.
FREE = frozenset({"--resume", "--stop-after", "--keep-checkpoints", "--checkpoint-every", "--out", "--chain-dir",
                  "--export-max-rank", "--export-tolerance"})  # fmt: skip


PRESETS = {
    "smoke": Config(
        tyro.MISSING, tyro.MISSING, tyro.MISSING, chain=ChainOptions(links=2, rank=(2,), link_warmup=0),
        training=TrainingOptions(max_steps=4, batch_size=2, max_length=16), keeping=KeepingOptions(checkpoint_every=2),
    ),
}  # fmt: skip


class Stopped(Exception):
    """The run was asked to end before its last step; its checkpoint is written."""


def run(config: Config) -> None:
    """Trains, or goes on training, and writes the adapter and the report.

    Args:
        config: the options.
    """
    from experiments import assembly
    from experiments.checkpoints import Checkpoints

    assembly.check(config)
    checkpoints = Checkpoints(config.out / "checkpoints", config.keeping.keep_checkpoints)
    saved = checkpoints.newest() if config.keeping.resume else None
    if saved is None and checkpoints.files():
        raise UsageError(f"--out {config.out}: a run lies there already; go on with --resume, or choose another folder.")
    finetuning = Finetuning(config, checkpoints, saved)
    try:
        finetuning.train()
    except Stopped as stopped:
        print(f"\n{stopped}")
        return
    finetuning.finish()


class Finetuning:
    """One run: its data, its model and what it leaves on disk.

    Args:
        config: the options.
        checkpoints: its checkpoints.
        saved: the checkpoint to go on from; None starts afresh.

    Raises:
        UsageError: an option or a file is wrong.
    """

    def __init__(self, config: Config, checkpoints: Checkpoints, saved: dict[str, Any] | None) -> None:
        import torch

        from experiments import assembly
        from experiments.checkpoints import check_same_run, restore_random_state
        from experiments.records import RunFolder, environment
        from experiments.schedules import scheduler
        from experiments.tasks.jsonl import JsonlTask, read_rows
        from experiments.tasks.order import Order
        from experiments.train import Setup
        from fwlora.errors import FwloraError

        self.config, self.checkpoints = config, checkpoints
        self.identity = identity(config)
        if saved is not None:
            check_same_run(saved["identity"], self.identity)
        # The files first: a model from the hub may take a while to say that its name is wrong.
        files = {"--train": config.train} | ({} if config.eval is None else {"--eval": config.eval})
        rows = {f"{option} {path}": read_rows(path, option) for option, path in files.items()}
        tokenizer = assembly.load_tokenizer(config)
        examples, *held_out = (self._examples(where, found, tokenizer) for where, found in rows.items())
        self.held_out = held_out[0] if held_out else []
        training = config.training
        order = Order(len(examples), training.batch_size * training.accumulate, training.seed)
        self.steps = training.max_steps or max(1, round(training.epochs * order.steps_per_epoch))
        self.steps_per_epoch = order.steps_per_epoch
        self.task: JsonlTask = JsonlTask(examples, order, training.batch_size)
        torch.manual_seed(training.seed)
        model = assembly.load_model(config)
        self.optimizer: ChainLoRAOptimizer = assembly.build_optimizer(model, config, self.steps)
        schedule = scheduler(self.optimizer, assembly.schedule(config), self.steps)
        self.setup: Setup = Setup(model, self.optimizer, self.optimizer.parameters(), schedule)
        self.schedule = schedule
        self.start = 0
        if saved is not None:
            try:
                self.optimizer.load_state_dict(saved["optimizer"])
            except FwloraError as error:
                raise UsageError(f"--resume: {assembly.one_line(error)}") from error
            schedule.load_state_dict(saved["scheduler"])
            restore_random_state(saved["random"])
            self.start = saved["step"]
        # Nothing is written before everything is known to be right.
        try:
            self.folder = folder = RunFolder(config.out)
        except OSError as error:
            raise UsageError(f"--out {config.out}: the folder cannot be made ({error.strerror}); choose another.") from error
        folder.write_json("config.json", config)
        folder.write_json("environment.json", environment())
        # Rows that were written after the checkpoint belong to a future that is about to happen again.
        kept = [row for row in folder.rows("metrics.jsonl") if saved is not None and row["step"] <= self.start]
        folder.replace_rows("metrics.jsonl", kept)
        self.optimizer.on_knot(lambda record: self._write_ledger())

    def train(self) -> None:
        """Runs the steps that are left, with a bar, metrics and checkpoints.

        Raises:
            UsageError: the loss is no longer a number.
            Stopped: `--stop-after` steps are done, or the user interrupted.
        """
        from torch.utils.tensorboard import SummaryWriter

        from experiments.progress import progress
        from experiments.train import train

        if self.start == 0:
            self._evaluate(0)
        limit = self.config.training.max_grad_norm or None
        with (
            SummaryWriter(str(self.folder.path / "tensorboard"), purge_step=self.start + 1) as board,
            progress(total=self.steps, done=self.start, description="fine-tuning", unit="step") as bar,
            _finishing_the_step() as interrupted,
        ):

            def after(record: StepRecord) -> None:
                if not math.isfinite(record.loss):
                    raise UsageError(
                        f"--lr {self.config.training.lr}: the loss is {record.loss} at step {record.step}; give a lower rate."
                    )
                self._log(record, board)
                bar.update()
                bar.set_postfix_str(f"loss {record.loss:.3f}, knots {len(self.optimizer.chain)}", refresh=False)
                self._keep(record.step, stop=bool(interrupted))

            train(self.setup, self.task, steps=self.steps, start=self.start, max_grad_norm=limit, on_step=after)

    def finish(self) -> None:
        """Evaluates, exports the adapter, writes the report and prints the summary."""
        from experiments.assembly import one_line
        from experiments.pages import finetune as page
        from fwlora.errors import FwloraError

        self._evaluate(self.steps)
        self._write_ledger()
        keeping = self.config.keeping
        try:
            report = self.optimizer.export_adapter(
                self.folder.path / "adapter", max_rank=keeping.export_max_rank, tolerance=keeping.export_tolerance
            )
        except FwloraError as error:
            raise UsageError(f"{one_line(error)}; training is done and kept, go on with --resume") from error
        export = {"rank": max(report.ranks.values()), "error": max(report.errors.values()), "sites": len(report.ranks)}
        self.folder.write_json("export.json", export)
        page.build(self.folder)
        print("\n" + page.summary(self.folder))

    def _examples(self, where: str, rows: list[dict[str, str]], tokenizer: Any) -> list[Example]:
        from experiments.tasks.jsonl import tokenize

        training = self.config.training
        examples = tokenize(rows, tokenizer, training.max_length, end_texts=training.end_texts)
        if not examples:
            raise UsageError(f"{where}: no row has two tokens, so there is nothing to predict; give longer rows.")
        if len(examples) < len(rows):
            print(f"{where}: {len(rows) - len(examples)} of {len(rows)} rows have nothing to predict and are left out")
        return examples

    def _evaluate(self, step: int) -> None:
        from experiments.tasks.jsonl import evaluate

        done = any(row["step"] == step and "eval_loss" in row for row in self.folder.rows("metrics.jsonl"))
        if self.held_out and not done:
            loss = evaluate(self.setup.model, self.held_out, self.config.training.batch_size)
            # Beyond exp(700) a float has no room.
            row = {"step": step, "eval_loss": loss, "eval_perplexity": math.exp(min(loss, 700.0))}
            self.folder.append("metrics.jsonl", row)

    def _log(self, record: StepRecord, board: Any) -> None:
        row = {
            "step": record.step,
            "epoch": round(record.step / self.steps_per_epoch, 4),
            "loss": record.loss,
            "gradient_norm": record.gradient_norm,
            "lr": record.lr,
            "link_factor": record.link_factor,
            "knots": len(self.optimizer.chain),
        }
        self.folder.append("metrics.jsonl", row)
        for name in ("loss", "gradient_norm", "lr", "link_factor", "knots"):
            if row[name] is not None:
                board.add_scalar(name, row[name], record.step)

    def _keep(self, step: int, *, stop: bool) -> None:
        from experiments.checkpoints import random_state

        keeping = self.config.keeping
        stop = (stop or step - self.start == keeping.stop_after) and step < self.steps
        due = keeping.checkpoint_every and step % keeping.checkpoint_every == 0
        if keeping.eval_every and step % keeping.eval_every == 0 and step < self.steps:
            self._evaluate(step)
        if due or stop or step == self.steps:
            document = {
                "step": step,
                "identity": self.identity,
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.schedule.state_dict(),
                "random": random_state(),
            }
            self.checkpoints.save(step, document)
        if stop:
            raise Stopped(f"stopped after step {step} of {self.steps}; go on with the same command and --resume")

    def _write_ledger(self) -> None:
        self.folder.write_text("ledger.jsonl", self.optimizer.ledger.to_jsonl())


def identity(config: Config) -> dict[str, Any]:
    """What makes two runs the same: every option that changes a result, and the contents of the files.

    Args:
        config: the options.

    Returns:
        Options as they are typed, with plain values.
    """
    from experiments.records import plain
    from experiments.tasks.jsonl import digest

    flat: dict[str, Any] = {"--model": config.model}
    for group in (config.chain, config.training, config.keeping):
        flat |= {"--" + name.replace("_", "-"): plain(value) for name, value in vars(group).items()}
    same: dict[str, Any] = {option: value for option, value in flat.items() if option not in FREE}
    for option, path in (("--train", config.train), ("--eval", config.eval)):
        same[option] = None if path is None or not path.is_file() else f"with SHA-256 {digest(path)[:16]}"
    return same


@contextmanager
def _finishing_the_step() -> Iterator[list[int]]:
    """Ctrl-C inside is noted, and the step it falls into is finished; a second one interrupts at once."""
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread, which alone receives signals
        yield noted
        return
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
