"""Trainer may make the optimizer itself, as it must under FSDP, where it refuses `optimizers=`."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

from fwlora import ChainLoRAOptimizer, Every, Flat, unwrap
from fwlora.integrations.transformers import ChainCallback
from tests.integrations.trainers import STEPS, begin

OPTIONS = {"lr": 1e-2, "rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"], "knots": Every(3), "link_lr": Flat(2)}

# The callback says at the end of every training what save_model() would not write.
pytestmark = pytest.mark.filterwarnings("ignore::fwlora.errors.SaveModelWarning")


class ChainTrainer(Trainer):
    """The recipe."""

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            self.optimizer = ChainLoRAOptimizer(self.model if model is None else model, **OPTIONS)
        return self.optimizer


# Trainer calls a factory of a factory with the model.
WAYS = {
    "create_optimizer": (ChainTrainer, {}),
    "optimizer_cls_and_kwargs": (Trainer, {"optimizer_cls_and_kwargs": (lambda: ChainLoRAOptimizer, OPTIONS)}),
}


def trainer_of(bench, way, folder, **arguments):
    """Made on a plain model, which gets its layers when training begins."""
    kind, options = WAYS[way]
    arguments = TrainingArguments(**{
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "save_steps": 4,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
        **arguments,
    })
    rows = [{"input_ids": row, "labels": row} for row in bench.tokens(0, rows=12)]
    return kind(bench.llama(), arguments, train_dataset=rows, callbacks=[ChainCallback()], **options)


@pytest.mark.parametrize("way", WAYS)
def test_chain_that_trainer_makes_is_the_one_that_it_is_given(bench, tmp_path, way):
    """Weights, links, moments and ledger, bit for bit; and so after a resume, which injects what the checkpoint holds."""
    torch.manual_seed(0)
    given, chain = begin(bench, "plain", tmp_path / "given", options={"save_strategy": "no"})
    given.train()
    torch.manual_seed(0)
    trainer = trainer_of(bench, way, tmp_path)
    trainer.train()
    made = unwrap(trainer.optimizer)
    assert made.ledger.column("step") == [3, 6]
    assert made.ledger == chain.ledger
    bench.assert_same(bench.facts(made), bench.facts(chain))

    again = trainer_of(bench, way, tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    bench.assert_same(bench.facts(unwrap(again.optimizer)), bench.facts(chain))
    # The layers were not there yet when the weights were read, so these are the originals and the link was replayed.
    assert unwrap(again.optimizer).ledger.column("replay") == ["exact", None]


def test_second_training_goes_on_with_the_chain_of_the_first(bench, tmp_path):
    trainer = trainer_of(bench, "create_optimizer", tmp_path, save_strategy="no")
    trainer.train()
    chain = unwrap(trainer.optimizer)
    trainer.train()
    assert unwrap(trainer.optimizer) is chain
    assert chain.progress.step == 2 * STEPS
    assert chain.ledger.column("step") == [3, 6, 9, 12, 15]
