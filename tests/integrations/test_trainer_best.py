"""`load_best_model_at_end`: the chain follows Trainer back to the best checkpoint."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import TrainerCallback

from fwlora import Never
from fwlora.errors import ArgumentError
from fwlora.integrations.transformers import ChainCallback
from tests.integrations.trainers import begin

# The callback says at the end of every training what save_model() would not write.
pytestmark = pytest.mark.filterwarnings("ignore::fwlora.errors.SaveModelWarning")


class ScoreAt(TrainerCallback):
    """Makes the evaluation after a chosen step the best one."""

    def __init__(self, best: int) -> None:
        self.best = best

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        metrics["eval_score"] = float(state.global_step == self.best)


BEST = {
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
    "greater_is_better": True,
    "eval_strategy": "steps",
    "eval_steps": 1,
}


@pytest.mark.parametrize("best", [2, 3, 4, 7, 8])
def test_best_plain_model_comes_with_its_chain(bench, tmp_path, best):
    """Weights, links and ledger are those of the best checkpoint."""
    trainer, chain = begin(bench, "plain", tmp_path, callbacks=[ScoreAt(best), ChainCallback()], options=BEST)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    _assert_at(bench, chain, tmp_path, best)
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
    _assert_at(bench, chain, tmp_path, best)
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
    _assert_at(bench, chain, tmp_path, 2)


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


def _assert_at(bench, chain, folder, step):
    """The chain is where the checkpoint of this step left it."""
    document = torch.load(folder / f"checkpoint-{step}" / "optimizer.pt", weights_only=True)["fwlora"]
    progress = chain.progress
    assert (progress.step, progress.knot, progress.link_step) == (step, step // 3, step % 3)
    assert len(chain.chain) == len(document["links"]) == step // 3
    assert chain.ledger.column("step") == [3, 6][: step // 3]
    for name, factors in document["live"].items():
        assert torch.equal(chain.sites[name].A, factors["A"])
        assert torch.equal(chain.sites[name].B, factors["B"])
