"""`ChainCallback` writes the chain as an adapter at every save, beside the checkpoints."""

from __future__ import annotations

import re
import shutil
import warnings
from itertools import pairwise

import pytest
import torch
from peft import PeftModel
from transformers import TrainerCallback

from fwlora import GradientAligned
from fwlora.integrations import publish
from fwlora.integrations.transformers import ChainCallback
from tests.integrations.trainers import BEST, STEPS, RecordedSFTTrainer, RecordedTrainer, ScoreAt, begin

pytestmark = [
    pytest.mark.filterwarnings("ignore::fwlora.errors.SaveModelWarning"),
    # TRL takes its default from an option that transformers 5.23 renamed.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]


class Watch(TrainerCallback):
    """Keeps what the model computes at each save."""

    def __init__(self, bench) -> None:
        self.bench = bench
        self.logits: dict[int, torch.Tensor] = {}

    def on_save(self, args, state, control, model=None, **kwargs):
        was = model.training
        self.logits[state.global_step] = self.bench.logits(model.eval())
        model.train(was)


def exported(folder):
    """The steps that an adapter lies there for."""
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "chain_adapters").iterdir())


def logits_of(bench, adapter):
    """The pristine base under an adapter."""
    return bench.logits(PeftModel.from_pretrained(bench.llama(), str(adapter)).eval())


@pytest.mark.parametrize("trainer", [RecordedTrainer, RecordedSFTTrainer])
@pytest.mark.parametrize("kind", ["plain", "peft"])
def test_each_save_has_an_adapter_that_is_the_model_at_that_step(bench, tmp_path, kind, trainer):
    """PeftModel.from_pretrained(pristine base, step-N): logits of step N to 1e-6, before, at and after knots."""
    watch = Watch(bench)
    made, chain = begin(bench, kind, tmp_path, callbacks=[watch, ChainCallback()], trainer=trainer)
    made.train()
    assert exported(tmp_path) == sorted(watch.logits) == list(range(1, STEPS + 1))
    for step, logits in watch.logits.items():
        adapter = tmp_path / "chain_adapters" / f"step-{step}"
        assert float((logits_of(bench, adapter) - logits).abs().max()) <= 1e-6, step
        assert len((adapter / "ledger.jsonl").read_text().splitlines()) == step // 3
        assert f'"step-{step}"' in (adapter / "README.md").read_text()
    # The model has moved between any two saves, so no two adapters can pass for each other.
    steps = list(watch.logits.values())
    assert all(float((one - other).abs().max()) > 1e-4 for one, other in pairwise(steps))
    assert len(chain.chain) == 2


def test_adapter_saved_while_a_link_looks_for_its_direction_is_the_model(bench, tmp_path):
    """Within GradientAligned's first steps the live link is zero, and the adapter holds what came before."""
    watch = Watch(bench)
    made, _chain = begin(
        bench, "plain", tmp_path, callbacks=[watch, ChainCallback()], chain_options={"reset": GradientAligned()}
    )
    made.train()
    for step, logits in watch.logits.items():
        difference = logits_of(bench, tmp_path / "chain_adapters" / f"step-{step}") - logits
        assert float(difference.abs().max()) <= 1e-6, step


@pytest.mark.parametrize("kind", ["plain", "peft"])
def test_no_adapter_lies_where_trainer_would_take_it_for_its_own(bench, tmp_path, kind):
    """No part of its path is a checkpoint-N, no checkpoint holds it, and resuming from beside it works."""
    made, _chain = begin(bench, kind, tmp_path, options={"max_steps": 4})
    made.train()
    configs = [path.relative_to(tmp_path) for path in (tmp_path / "chain_adapters").rglob("adapter_config.json")]
    assert len(configs) == 4
    assert not any(re.match("checkpoint", part) for path in configs for part in path.parts)
    assert not list(tmp_path.glob("checkpoint-*/*/adapter_config.json"))
    again, chain = begin(bench, kind, tmp_path)
    again.train(resume_from_checkpoint=True)
    assert chain.progress.step == STEPS


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_adapter_goes_with_its_checkpoint(bench, tmp_path, limit):
    """save_total_limit=n: the adapters of the n checkpoints that are left."""
    made, _chain = begin(bench, "plain", tmp_path, options={"save_total_limit": limit})
    made.train()
    assert exported(tmp_path) == list(range(STEPS - limit + 1, STEPS + 1))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{k}" for k in exported(tmp_path)]
    assert (tmp_path / "chain_adapter").is_dir()


@pytest.mark.parametrize(("limit", "left"), [(1, [2]), (2, [2, STEPS])])
def test_adapter_of_the_best_checkpoint_stays_with_it(bench, tmp_path, limit, left):
    """Trainer keeps the best checkpoint beyond the limit, and at the end removes the last one under a limit of 1."""
    options = {**BEST, "save_total_limit": limit}
    made, _chain = begin(bench, "plain", tmp_path, callbacks=[ScoreAt(2), ChainCallback()], options=options)
    made.train()
    assert exported(tmp_path) == left
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{k}" for k in left]
    best = logits_of(bench, tmp_path / "chain_adapter")
    assert torch.equal(best, logits_of(bench, tmp_path / "chain_adapters" / "step-2"))


def test_without_a_limit_an_adapter_outlives_a_checkpoint_that_someone_else_removed(bench, tmp_path):
    """Only Trainer's own rotation is followed."""
    made, _chain = begin(bench, "plain", tmp_path, options={"max_steps": 2})
    made.train()
    shutil.rmtree(tmp_path / "checkpoint-1")
    again, _other = begin(bench, "plain", tmp_path, options={"max_steps": 3})
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert exported(tmp_path) == [1, 2, 3]


def test_adapters_at_saves_can_be_left_out(bench, tmp_path):
    """at_saves=False: the adapter of the end alone."""
    made, _chain = begin(bench, "plain", tmp_path, callbacks=[ChainCallback(at_saves=False)])
    made.train()
    assert not (tmp_path / "chain_adapters").exists()
    assert (tmp_path / "chain_adapter" / "adapter_config.json").is_file()


def test_only_the_main_process_writes(bench, tmp_path):
    """Another rank of the same run leaves nothing."""
    made, chain = begin(bench, "plain", tmp_path, options={"save_strategy": "no"}, callbacks=[])
    made.state.is_world_process_zero = False
    callback = ChainCallback()
    callback.on_save(made.args, made.state, made.control, optimizer=chain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        callback.on_train_end(made.args, made.state, made.control, optimizer=chain, model=made.model)
    assert not list(tmp_path.iterdir())


class Killed(BaseException):
    """As if the process had ended here."""


@pytest.mark.parametrize("moment", ["writing", "naming", "discarding"])
def test_run_killed_while_exporting_leaves_whole_adapters_only(bench, tmp_path, monkeypatch, moment):
    """Before the rename there is no step-N; the next run clears what lies about and exports again."""
    options = {"save_total_limit": 2}
    made, _chain = begin(bench, "plain", tmp_path, options=options)

    def kill_at_step_5(original):
        def act(*arguments):
            if made.state.global_step == 5:
                raise Killed
            return original(*arguments)

        return act

    if moment == "writing":
        # The ledger is written last: weights and configuration lie there already.
        monkeypatch.setattr(type(_chain.ledger), "to_jsonl", kill_at_step_5(type(_chain.ledger).to_jsonl))
    elif moment == "naming":
        monkeypatch.setattr(publish.os, "rename", kill_at_step_5(publish.os.rename))
    else:
        # step-3 has lost its name and keeps its files.
        monkeypatch.setattr("fwlora.integrations.transformers.discard", kill_at_step_5(publish.discard))
    with pytest.raises(Killed):
        made.train()
    monkeypatch.undo()
    whole = [path for path in (tmp_path / "chain_adapters").iterdir() if not path.name.startswith(".")]
    assert {int(path.name.removeprefix("step-")) for path in whole} == {3, 4} | ({5} if moment == "discarding" else set())
    for path in whole:
        logits_of(bench, path)

    again, _other = begin(bench, "plain", tmp_path, options=options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert exported(tmp_path) == [STEPS - 1, STEPS]
    assert (
        float((logits_of(bench, tmp_path / "chain_adapters" / f"step-{STEPS}") - bench.logits(again.model)).abs().max()) <= 1e-6
    )


def test_resumed_run_replaces_the_adapters_of_the_run_before(bench, tmp_path):
    """Steps that are done again are exported again, with nothing of the old ones left in them."""
    made, _chain = begin(bench, "plain", tmp_path)
    made.train()
    marker = tmp_path / "chain_adapters" / "step-6" / "old"
    marker.touch()
    again, _other = begin(bench, "plain", tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert exported(tmp_path) == list(range(1, STEPS + 1))
    assert not marker.exists()


def test_what_else_lies_in_the_folder_of_the_end_stays(bench, tmp_path):
    """ChainCallback(folder) may point where a user keeps other things; an adapter there is replaced."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    (mine / "adapter_config.json").write_text("{}")
    made, _chain = begin(bench, "plain", tmp_path / "out", callbacks=[ChainCallback(mine)], options={"save_strategy": "no"})
    made.train()
    assert sorted(path.name for path in mine.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "ledger.jsonl",
        "notes.txt",
    ]
    assert float((logits_of(bench, mine) - bench.logits(made.model)).abs().max()) <= 1e-6


def test_kill_within_the_folder_of_the_end_leaves_no_adapter_that_loads(bench, tmp_path, monkeypatch):
    """Old weights under a new configuration would load: so the configuration goes first and comes last."""
    for _ in range(2):
        made, _chain = begin(bench, "plain", tmp_path, options={"save_strategy": "no", "max_steps": 3})
        if (tmp_path / "chain_adapter").exists():
            replace, done = publish.os.replace, []

            def once(source, target, replace=replace, done=done):
                if "chain_adapter" not in str(target) or ".writing" in str(target):
                    return replace(source, target)
                if done:
                    raise Killed
                done.append(replace(source, target))
                return None

            monkeypatch.setattr(publish.os, "replace", once)
            with pytest.raises(Killed):
                made.train()
        else:
            made.train()
    assert not (tmp_path / "chain_adapter" / "adapter_config.json").exists()
