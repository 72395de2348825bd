"""`load_best_model_at_end`: the chain follows Trainer back to the best checkpoint."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainingArguments

from fwlora import ChainLoRAOptimizer, Every, Never
from fwlora.errors import ArgumentError
from fwlora.integrations.transformers import ChainCallback
from tests.integrations.trainers import BEST, ScoreAt, assert_at, begin

# The callback says at the end of every training what save_model() would not write.
pytestmark = pytest.mark.filterwarnings("ignore::fwlora.errors.SaveModelWarning")


@pytest.mark.parametrize("best", [2, 3, 4, 7, 8])
def test_best_plain_model_comes_with_its_chain(bench, tmp_path, best):
    """Weights, links and ledger are those of the best checkpoint."""
    trainer, chain = begin(bench, "plain", tmp_path, callbacks=[ScoreAt(best), ChainCallback()], options=BEST)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert_at(bench, chain, tmp_path, best)
    saved = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())
    exported = PeftModel.from_pretrained(bench.llama(), str(tmp_path / "chain_adapter"))
    assert float((bench.logits(exported) - bench.logits(trainer.model)).abs().max()) <= 1e-6


@pytest.mark.parametrize("best", [2, 3, 4, 7, 8])
def test_best_peft_model_comes_with_its_chain_from_the_original(bench, tmp_path, best):
    """With original=, the base goes back to the best checkpoint's: W = W_0 + links."""
    trainer, chain = begin(
        bench,
        "peft",
        tmp_path,
        callbacks=[ScoreAt(best), ChainCallback()],
        options=BEST,
        chain_options={"original": bench.llama().state_dict()},
    )
    trainer.train()
    assert_at(bench, chain, tmp_path, best)
    pristine = bench.llama().state_dict()
    for name, site in chain.sites.items():
        retired = chain.chain.delta(name) if len(chain.chain) else 0
        assert torch.allclose(site.weight, pristine[f"{name}.weight"] + retired, atol=1e-6)
        if best < 3:
            assert torch.equal(site.weight, pristine[f"{name}.weight"])
    exported = PeftModel.from_pretrained(bench.llama(), str(tmp_path / "chain_adapter"))
    assert float((bench.logits(exported) - bench.logits(trainer.model)).abs().max()) <= 1e-6


def test_best_peft_model_without_the_original_is_refused_before_the_first_step(bench, tmp_path):
    """At the end it would be too late: the checkpoint has no base weights and the base has moved on."""
    trainer, chain = begin(bench, "peft", tmp_path, callbacks=[ScoreAt(2), ChainCallback()], options=BEST)
    with pytest.raises(ArgumentError, match=r"original="):
        trainer.train()
    assert chain.progress.step == 0


def test_best_peft_model_that_never_knots_needs_no_original(bench, tmp_path):
    """Without a knot the base is its own original."""
    trainer, chain = begin(
        bench, "peft", tmp_path, callbacks=[ScoreAt(7), ChainCallback()], options=BEST, chain_options={"knots": Never()}
    )
    trainer.train()
    assert chain.progress.step == 7


def test_best_peft_model_finds_the_original_where_its_base_came_from(bench, tmp_path):
    """A base that was loaded from a folder is read there again."""
    bench.llama().save_pretrained(tmp_path / "base")
    options = {**BEST, "output_dir": str(tmp_path)}
    trainer, chain = begin(bench, "peft", tmp_path, callbacks=[ScoreAt(2), ChainCallback()], options=options)
    trainer.model.get_base_model().config._name_or_path = str(tmp_path / "base")
    trainer.train()
    assert_at(bench, chain, tmp_path, 2)


def test_best_model_without_its_optimizer_file_is_a_clear_error(bench, tmp_path):
    """save_only_model=True leaves the chain behind: the error says so."""
    options = {**BEST, "save_only_model": True}
    trainer, _chain = begin(bench, "plain", tmp_path, callbacks=[ScoreAt(4), ChainCallback()], options=options)
    with pytest.raises(ArgumentError, match=r"optimizer\.pt"):
        trainer.train()


def test_training_goes_on_from_the_best_model(bench, tmp_path):
    """After following Trainer back to step 4 the chain takes step 5 as a chain resumed from checkpoint 4 does."""
    trainer, chain = begin(bench, "plain", tmp_path, callbacks=[ScoreAt(4), ChainCallback()], options=BEST)
    trainer.train()
    twin_model = bench.llama()
    twin = bench.chain(twin_model)
    twin.load_state_dict(torch.load(tmp_path / "checkpoint-4" / "optimizer.pt", weights_only=True))
    bench.train(trainer.model.eval(), chain, range(4, 8))
    bench.train(twin_model, twin, range(4, 8))
    bench.assert_same(bench.facts(chain), bench.facts(twin))


class Classifier(nn.Module):
    """A network of no library, as Trainer takes it: a loss and logits from keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(8, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x, labels=None):
        logits = self.head(torch.relu(self.map(x)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_best_model_of_no_library_needs_no_original(tmp_path):
    """Its checkpoints hold all weights, as a plain transformers model's do: links and base are those of step 4."""
    torch.manual_seed(0)
    model = Classifier()
    pristine = {name: value.clone() for name, value in model.state_dict().items()}
    chain = ChainLoRAOptimizer(model, 1e-2, rank=2, target_modules=["map"], knots=Every(3))
    data = [{"x": torch.randn(8), "labels": torch.tensor(k % 3)} for k in range(12)]
    arguments = TrainingArguments(
        **BEST, output_dir=str(tmp_path), max_steps=8, save_strategy="steps", save_steps=1, report_to=[], use_cpu=True
    )
    trainer = Trainer(
        model, arguments, train_dataset=data, eval_dataset=data, optimizers=(chain, None),
        callbacks=[ScoreAt(4), ChainCallback()],
    )  # fmt: skip
    trainer.train()
    assert (chain.progress.step, len(chain.chain), chain.ledger.column("step")) == (4, 1, [3])
    assert torch.allclose(chain.sites["map"].weight, pristine["map.weight"] + chain.chain.delta("map"), atol=1e-6)
