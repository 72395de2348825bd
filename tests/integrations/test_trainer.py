"""`transformers.Trainer` with a plain model and with a PeftModel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM, Trainer, TrainerCallback

from fwlora import Blocks, Decay, Evenly, FrankWolfe, GradientAligned, NuclearBall, OpenLoop, StepDown
from fwlora.errors import ArgumentError, RefusedKnotWarning, SaveModelWarning
from fwlora.integrations.transformers import ChainCallback
from tests.integrations.trainers import STEPS, begin

KINDS = ["plain", "peft"]
# In a link, just before, at and just after the knots after steps 3 and 6.
PHASES = [1, 2, 3, 4, 6, 7]

# The callback says at the end of every training what save_model() would not write; one test asks for it.
pytestmark = pytest.mark.filterwarnings("ignore::fwlora.errors.SaveModelWarning")


@pytest.fixture(scope="module", params=KINDS)
def uninterrupted(request, bench, tmp_path_factory):
    """One whole run of each kind, with a checkpoint after every step."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    trainer, chain = begin(bench, request.param, folder)
    trainer.train()
    return request.param, folder, trainer, chain


# -- resume -----------------------------------------------------------------------------------------------------------


def test_run_counts_trainers_steps(uninterrupted):
    """Counters, lr and knots are those of the loop: 8 steps, knots after 3 and 6, lr decayed to 0."""
    _kind, _folder, trainer, chain = uninterrupted
    assert trainer.state.global_step == chain.progress.step == STEPS
    assert chain.ledger.column("step") == [3, 6]
    assert chain.param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize("step", PHASES)
def test_resumed_run_is_bitwise_the_uninterrupted_run(bench, uninterrupted, tmp_path, step):
    """resume(checkpoint k) = the run itself: weights, links, moments, lr, ledger."""
    kind, folder, whole, chain = uninterrupted
    torch.manual_seed(step)  # a fresh PeftModel draws other factors, which the checkpoint replaces
    trainer, resumed = begin(bench, kind, tmp_path)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    bench.assert_same(bench.facts(resumed), bench.facts(chain))
    assert bench.records(resumed) == bench.records(chain)
    for name in chain.sites:
        assert torch.equal(resumed.delta(name), chain.delta(name))
    # A PeftModel's checkpoint has no base weights, so its links are replayed; a plain model's come merged.
    replayed = {"plain": None, "peft": "exact"}[kind]
    assert resumed.ledger.column("replay") == [replayed if k <= step else None for k in (3, 6)]
    knots = [(e["step"], e["chain_knot"]) for e in trainer.state.log_history if "chain_knot" in e]
    assert knots == [(e["step"], e["chain_knot"]) for e in whole.state.log_history if "chain_knot" in e] == [(3, 1), (6, 2)]


@pytest.mark.parametrize("step", PHASES)
def test_double_load_merges_nothing_twice(bench, uninterrupted, tmp_path, step):
    """load; load = load."""
    kind, folder, _whole, _chain = uninterrupted
    document = torch.load(folder / f"checkpoint-{step}" / "optimizer.pt", weights_only=True)
    _trainer, chain = begin(bench, kind, tmp_path)
    chain.load_state_dict(document)
    once = bench.facts(chain)
    chain.load_state_dict(document)
    chain.load_state_dict(chain.state_dict())
    bench.assert_same(bench.facts(chain), once)
    pristine = bench.llama().state_dict()
    for name, site in chain.sites.items():
        retired = chain.chain.delta(name) if len(chain.chain) else 0
        assert torch.allclose(site.weight, pristine[f"{name}.weight"] + retired, atol=1e-6)
        assert torch.equal(site.weight, pristine[f"{name}.weight"]) == (step < 3)


@pytest.mark.parametrize("kind", KINDS)
def test_run_with_links_on_disk_resumes_exactly(bench, tmp_path, kind):
    """chain_dir=: the checkpoint names the links' files; later ones are ignored, and the same link has the same file."""
    folder, links = tmp_path / "whole", tmp_path / "links"
    whole, chain = begin(bench, kind, folder, chain_options={"chain_dir": links})
    whole.train()
    trainer, resumed = begin(bench, kind, tmp_path / "resumed", chain_options={"chain_dir": links})
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    bench.assert_same(bench.facts(resumed), bench.facts(chain))
    assert sorted(path.name[:11] for path in links.iterdir()) == ["link-00000-", "link-00001-"]


@pytest.mark.parametrize("step", [3, 4])
@pytest.mark.parametrize(
    "case", ["masked ranks", "modules trained in full", "bf16 base", "links to be aligned", "Algorithm 2", "blocks"]
)
def test_run_of_a_peft_model_resumes_exactly_with(bench, tmp_path, case, step):
    """Ranks after a step-down, trained modules and rounding errors come back from an adapter-sized checkpoint."""

    def run(name, checkpoint=None):
        rules = {
            "masked ranks": {"rank": StepDown([4, 2])},
            # Saved before and within the two steps that look for a direction, with the dropout that is off meanwhile.
            "links to be aligned": {"reset": GradientAligned()},
            "Algorithm 2": {"merge": FrankWolfe(NuclearBall(0.1), OpenLoop())},
            "blocks": {"blocks": Blocks(2)},
        }
        shapes = {"modules trained in full": {"modules_to_save": ["lm_head"]}, "links to be aligned": {"lora_dropout": 0.2}}
        trainer, chain = begin(
            bench,
            "peft",
            tmp_path / name,
            chain_options=rules.get(case),
            config=shapes.get(case),
            dtype=torch.bfloat16 if case == "bf16 base" else torch.float32,
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return bench.facts(chain), [site.rank for site in chain.sites.values()], bench.records(chain)

    whole = run("whole")
    resumed = run("resumed", str(tmp_path / "whole" / f"checkpoint-{step}"))
    bench.assert_same(resumed[0], whole[0])
    assert resumed[1:] == whole[1:]
    assert set(whole[1]) == {2 if case == "masked ranks" else 4}


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing_changes_nothing(bench, tmp_path, kind):
    """Recomputed activations, the same run bit for bit."""
    runs = []
    for flag in (False, True):
        torch.manual_seed(0)
        trainer, chain = begin(bench, kind, tmp_path / str(flag), options={"save_strategy": "no"})
        if flag:
            trainer.model.activation_checkpointing_enable()
        trainer.train()
        runs.append(bench.facts(chain))
    bench.assert_same(*runs)


# -- ChainCallback ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_callback_binds_the_length_of_the_run(bench, tmp_path, kind):
    """Evenly(links=2), left open: one knot, after step ceil(T / 2)."""
    trainer, chain = begin(bench, kind, tmp_path, options={"max_steps": 7}, chain_options={"knots": Evenly(links=2)})
    trainer.train()
    assert chain.total_steps == 7
    assert [(record.step, record.link_steps) for record in chain.ledger] == [(4, 4)]


def test_callback_binds_effective_steps_of_epochs(bench, tmp_path):
    """12 rows / (2 a batch x 2 accumulated) x 2 epochs = 6 optimizer steps."""
    options = {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 2, "save_strategy": "no"}
    trainer, chain = begin(bench, "plain", tmp_path, options=options, chain_options={"knots": Evenly(links=2)})
    trainer.train()
    assert chain.total_steps == chain.progress.step == trainer.state.global_step == 6
    assert chain.ledger.column("step") == [3]


@pytest.mark.parametrize("knots", [Evenly(links=2), Evenly(links=2, total_steps=STEPS)], ids=["left open", "bound"])
def test_even_schedule_ties_in_the_same_place_after_a_resume(bench, tmp_path, knots):
    """A run of Evenly(links=2) cut before its knot ties it where the whole run does."""
    whole, chain = begin(bench, "peft", tmp_path / "whole", chain_options={"knots": knots})
    whole.train()
    trainer, resumed = begin(bench, "peft", tmp_path / "resumed", chain_options={"knots": knots})
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    bench.assert_same(bench.facts(resumed), bench.facts(chain))
    assert resumed.ledger == chain.ledger


def test_callback_refuses_a_length_that_contradicts_the_schedule(bench, tmp_path):
    """Evenly(links=2, total_steps=99) in a run of 8 steps would tie its knot in another place than asked."""
    trainer, _chain = begin(bench, "plain", tmp_path, chain_options={"knots": Evenly(links=2, total_steps=99)})
    with pytest.raises(ArgumentError, match="contradicts"):
        trainer.train()


def test_second_training_of_a_chain_is_not_decayed_away(bench, tmp_path):
    """Steps of a chain go on counting; a new Trainer's run ends max_steps later, and the factor is above 0 until then."""
    options = {"max_steps": 4, "save_strategy": "no"}
    chain_options = {"knots": Evenly(links=2), "link_lr": Decay(warmup=1)}
    first, chain = begin(bench, "plain", tmp_path, options=options, chain_options=chain_options)
    first.train()
    factors = []
    chain.register_step_pre_hook(lambda *_: factors.append(chain.link_factor))
    second = Trainer(first.model, first.args, train_dataset=first.train_dataset, optimizers=(chain, None))
    second.add_callback(ChainCallback())
    second.train()
    assert chain.progress.step == 8
    assert len(factors) == 4
    assert min(factors) > 0


def test_callback_logs_knots_and_link_factor(uninterrupted):
    """A line for each knot with the link's norm; in every line with a loss the next step's factor."""
    _kind, folder, trainer, chain = uninterrupted
    history = trainer.state.log_history
    knots = [entry for entry in history if "chain_knot" in entry]
    assert [(entry["step"], entry["chain_knot"]) for entry in knots] == [(3, 1), (6, 2)]
    norms = [sum(n**2 for n in record.link_norms.values()) ** 0.5 for record in chain.ledger]
    assert [entry["chain_link_norm"] for entry in knots] == pytest.approx(norms)
    # Flat(warmup=2): 1/2 at the first step after each knot. Steps are logged when they are done.
    lines = {entry["step"]: (entry["link_factor"], entry["knots"]) for entry in history if "loss" in entry}
    factors = {1: 1, 2: 1, 3: 0.5, 4: 1, 5: 1, 6: 0.5, 7: 1, 8: 1}
    assert lines == {step: (factor, step // 3) for step, factor in factors.items()}
    saved = json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in saved if "chain_knot" in entry] == [3, 6]


def test_refused_knot_is_not_logged_as_a_knot(bench, tmp_path):
    """A factor that is inf after step 3 and whole again at step 4: the one knot in the log is that of step 6."""
    trainer, chain = begin(bench, "plain", tmp_path, options={"save_strategy": "no"})
    site = next(iter(chain.sites.values()))
    kept = {}

    @torch.no_grad()
    def poison(*_):
        if chain.progress.step == 2:
            kept[0] = site.A[0, 0].item()
            site.A[0, 0] = torch.inf

    class Heal(TrainerCallback):
        @torch.no_grad()
        def on_step_end(self, args, state, control, **kwargs):
            if kept:
                site.A[0, 0] = kept.pop(0)

    trainer.add_callback(Heal())
    chain.inner.register_step_post_hook(poison)
    with pytest.warns(RefusedKnotWarning):
        trainer.train()
    assert [bool(record.refused) for record in chain.ledger] == [True, False]
    assert [(e["step"], e["chain_knot"]) for e in trainer.state.log_history if "chain_knot" in e] == [(6, 1)]


def test_exported_chain_reproduces_the_trained_model(bench, uninterrupted):
    """PeftModel.from_pretrained(pristine base, chain_adapter): logits to 1e-6."""
    _kind, folder, trainer, chain = uninterrupted
    adapter = folder / "chain_adapter"
    reloaded = PeftModel.from_pretrained(bench.llama(), str(adapter))
    assert float((bench.logits(reloaded) - bench.logits(trainer.model)).abs().max()) <= 1e-6
    assert float((bench.logits(bench.llama()) - bench.logits(trainer.model)).abs().max()) > 1e-3
    assert len((adapter / "ledger.jsonl").read_text().splitlines()) == len(chain.ledger)
    # Not inside a checkpoint, where Trainer would load it as a second adapter.
    assert not any(path.name == "chain_adapter" for path in folder.glob("checkpoint-*/*"))


def test_callback_exports_where_it_is_told(bench, tmp_path):
    """ChainCallback(folder) writes there and nowhere else."""
    trainer, _chain = begin(
        bench, "plain", tmp_path / "out", callbacks=[ChainCallback(tmp_path / "mine")], options={"save_strategy": "no"}
    )
    trainer.train()
    assert (tmp_path / "mine" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "out" / "chain_adapter").exists()


@pytest.mark.parametrize("folder", ["out/checkpoint-3/adapter", "checkpoint-12", Path("/runs/checkpoint-7/a/b")])
def test_folder_inside_a_checkpoint_is_refused(folder):
    """Trainer loads every adapter below checkpoint-N on resume."""
    with pytest.raises(ArgumentError, match="checkpoint"):
        ChainCallback(folder)


@pytest.mark.parametrize("folder", ["out/adapter", "checkpoints/adapter", "out/my-checkpoint-3"])
def test_folder_beside_the_checkpoints_is_taken(folder):
    """Only checkpoint-N is Trainer's."""
    assert ChainCallback(folder).folder == Path(folder)


@pytest.mark.parametrize(("kind", "says"), [("plain", "re-initialises in silence"), ("peft", "only the live link")])
def test_callback_warns_of_save_model(bench, tmp_path, kind, says):
    """SaveModelWarning names what save_model() would write and where the whole chain lies."""
    trainer, _chain = begin(bench, kind, tmp_path, options={"max_steps": 1, "save_strategy": "no"})
    with pytest.warns(SaveModelWarning, match=says) as caught:
        trainer.train()
    [message] = [str(warning.message) for warning in caught if warning.category is SaveModelWarning]
    assert str(tmp_path / "chain_adapter") in message


def test_saved_model_is_what_the_warning_says(bench, tmp_path):
    """PeftModel: the last link alone, wrong on the original base; the exported chain is right."""
    trainer, _chain = begin(bench, "peft", tmp_path, options={"save_strategy": "no"})
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    wrong = PeftModel.from_pretrained(bench.llama(), str(tmp_path / "saved"))
    assert float((bench.logits(wrong) - bench.logits(trainer.model)).abs().max()) > 1e-3


def test_merged_model_saves_and_reloads_as_a_plain_one(bench, tmp_path):
    """save_pretrained(merge_and_unload()) = the trained model, for from_pretrained."""
    trainer, chain = begin(bench, "plain", tmp_path, options={"save_strategy": "no"})
    trainer.train()
    expected = bench.logits(trainer.model)
    merged = chain.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    reloaded = LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert float((bench.logits(reloaded) - expected).abs().max()) <= 1e-6
