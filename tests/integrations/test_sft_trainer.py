"""TRL's `SFTTrainer`: what holds for Trainer holds for it, with activations recomputed and a fused loss."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from fwlora import GradientAligned, StepDown
from fwlora.errors import ArgumentError
from fwlora.integrations.transformers import ChainCallback
from tests.integrations.trainers import BEST, STEPS, RecordedSFTTrainer, ScoreAt, assert_at, begin

KINDS = ["plain", "peft"]
# In a link, just before, at and just after the knots after steps 3 and 6.
PHASES = [1, 2, 3, 4, 6, 7]

pytestmark = [
    pytest.mark.filterwarnings("ignore::fwlora.errors.SaveModelWarning"),
    # TRL takes its default from an option that transformers 5.23 renamed.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module", params=KINDS)
def uninterrupted(request, bench, tmp_path_factory):
    """One whole run of each kind, with a checkpoint after every step."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    trainer, chain = begin(bench, request.param, folder, trainer=RecordedSFTTrainer)
    trainer.train()
    return request.param, folder, trainer, chain


@pytest.mark.parametrize("step", PHASES)
def test_resumed_run_is_bitwise_the_uninterrupted_run(bench, uninterrupted, tmp_path, step):
    """resume(checkpoint k) = the run itself: losses, weights, links, moments, lr, ledger."""
    kind, folder, whole, chain = uninterrupted
    torch.manual_seed(step)  # a fresh PeftModel draws other factors, which the checkpoint replaces
    trainer, resumed = begin(bench, kind, tmp_path, trainer=RecordedSFTTrainer)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert trainer.losses[step:] == whole.losses[step:]
    bench.assert_same(bench.facts(resumed), bench.facts(chain))
    assert bench.records(resumed) == bench.records(chain)
    assert chain.ledger.column("step") == [3, 6]
    for name in chain.sites:
        assert torch.equal(resumed.delta(name), chain.delta(name))
    replayed = {"plain": None, "peft": "exact"}[kind]
    assert resumed.ledger.column("replay") == [replayed if k <= step else None for k in (3, 6)]


@pytest.mark.parametrize("step", [3, 4])
@pytest.mark.parametrize(
    "rules", [{"rank": StepDown([4, 2])}, {"reset": GradientAligned()}], ids=["masked ranks", "links to be aligned"]
)
def test_rules_come_back_from_an_adapter_sized_checkpoint(bench, tmp_path, rules, step):
    """A PeftModel's checkpoint between a knot and the end of what it started."""

    def run(name, checkpoint=None):
        torch.manual_seed(0)
        trainer, chain = begin(bench, "peft", tmp_path / name, chain_options=rules, trainer=RecordedSFTTrainer)
        trainer.train(resume_from_checkpoint=checkpoint)
        return bench.facts(chain), bench.records(chain)

    whole = run("whole")
    resumed = run("resumed", str(tmp_path / "whole" / f"checkpoint-{step}"))
    bench.assert_same(resumed[0], whole[0])
    assert resumed[1] == whole[1]


def test_exported_chain_reproduces_the_trained_model(bench, uninterrupted):
    """PeftModel.from_pretrained(pristine base, chain_adapter): logits to 1e-6."""
    _kind, folder, trainer, _chain = uninterrupted
    reloaded = PeftModel.from_pretrained(bench.llama(), str(folder / "chain_adapter"))
    trained = bench.logits(trainer.model.eval())
    assert float((bench.logits(reloaded) - trained).abs().max()) <= 1e-6
    assert float((bench.logits(bench.llama()) - trained).abs().max()) > 1e-3


@pytest.mark.parametrize("best", [2, 3, STEPS])
@pytest.mark.parametrize("kind", KINDS)
def test_best_model_comes_with_its_chain_and_its_adapter(bench, tmp_path, kind, best):
    """Factors, links, ledger and the exported adapter are those of the best checkpoint."""
    original = {} if kind == "plain" else {"original": bench.llama().state_dict()}
    callbacks = [ScoreAt(best), ChainCallback()]
    trainer, chain = begin(
        bench, kind, tmp_path, callbacks=callbacks, options=BEST, chain_options=original, trainer=RecordedSFTTrainer
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert_at(bench, chain, tmp_path, best)
    pristine = bench.llama().state_dict()
    for name, site in chain.sites.items():
        retired = chain.chain.delta(name) if len(chain.chain) else 0
        assert torch.allclose(site.weight, pristine[f"{name}.weight"] + retired, atol=1e-6)
    exported = PeftModel.from_pretrained(bench.llama(), str(tmp_path / "chain_adapter"))
    assert float((bench.logits(exported) - bench.logits(trainer.model.eval())).abs().max()) <= 1e-6
    at_its_save = PeftModel.from_pretrained(bench.llama(), str(tmp_path / "chain_adapters" / f"step-{best}"))
    assert torch.equal(bench.logits(exported), bench.logits(at_its_save))


@pytest.mark.parametrize(
    ("kind", "options", "says"), [("peft", {}, r"original="), ("plain", {"save_only_model": True}, r"optimizer\.pt")]
)
def test_best_model_that_could_not_come_back_is_refused_before_the_first_step(bench, tmp_path, kind, options, says):
    """The error says what `load_best_model_at_end` needs."""
    trainer, chain = begin(
        bench,
        kind,
        tmp_path,
        callbacks=[ScoreAt(2), ChainCallback()],
        options={**BEST, **options},
        trainer=RecordedSFTTrainer,
    )
    with pytest.raises(ArgumentError, match=says):
        trainer.train()
    assert chain.progress.step == 0
    assert not list(tmp_path.glob("checkpoint-*"))
