"""Lightning: the chain is made with the module, returned by `configure_optimizers`, and resumed by `fit(ckpt_path=...)`."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from peft import LoraConfig, PeftModel, get_peft_model
from torch.optim.lr_scheduler import LambdaLR

from fwlora import Evenly, Plateau
from fwlora.errors import ArgumentError
from fwlora.integrations.lightning import ChainCallback

STEPS = 8
# In a link, just before, at and just after the knots after steps 3 and 6.
PHASES = [1, 2, 3, 4, 6, 7]

pytestmark = [
    # Lightning 2.6 asks torch 2.13 for an old name.
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


class Tuned(LightningModule):
    """The chain is there before a checkpoint's weights are read."""

    def __init__(self, bench, kind="plain", **options):
        super().__init__()
        if kind == "plain":
            self.model = bench.llama()
            self.chain = bench.chain(self.model, **options)
        else:
            shape = {"r": 4, "lora_alpha": 8, "target_modules": bench.targets}
            self.model = get_peft_model(bench.llama(), LoraConfig(**shape))
            self.chain = bench.adopt(self.model, **options)
        self.model.train()

    def training_step(self, ids, _index):
        return self.model(input_ids=ids, labels=ids).loss

    def configure_optimizers(self):
        return [self.chain], [{"scheduler": LambdaLR(self.chain, lambda step: 0.9**step), "interval": "step"}]


class Batches:
    """On step k the batch of seed k; a loader that goes on where it was."""

    def __init__(self, bench, count=STEPS):
        self.bench, self.count, self.begun = bench, count, 0

    def __len__(self):
        return self.count

    def __iter__(self):
        for k in range(self.begun, self.count):
            self.begun = k + 1
            yield self.bench.tokens(k)
        self.begun = 0

    def state_dict(self):
        return {"begun": self.begun}

    def load_state_dict(self, state):
        self.begun = state["begun"]


def fit(module, folder, data, *, checkpoint=None, callbacks=(), **options):
    """A run on the CPU that logs nothing by itself."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", callbacks=[*callbacks], **{"max_epochs": 1, **quiet, **options}
    )
    trainer.fit(module, data, ckpt_path=checkpoint)
    return trainer


def saver(folder):
    """A checkpoint after every step."""
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


@pytest.fixture(scope="module", params=["plain", "peft"])
def uninterrupted(request, bench, tmp_path_factory):
    """One whole run of each kind, with a checkpoint after every step."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    module = Tuned(bench, request.param)
    trainer = fit(module, folder, Batches(bench), callbacks=[saver(folder)], enable_checkpointing=True)
    assert trainer.global_step == module.chain.progress.step == STEPS
    return request.param, folder, module


def test_lightning_run_is_the_plain_loop(bench, tmp_path):
    """Weights, links, moments and rates, bit for bit."""
    module = Tuned(bench)
    fit(module, tmp_path, Batches(bench))
    model = bench.llama().train()
    twin = bench.chain(model)
    bench.train(model, twin, range(STEPS), LambdaLR(twin, lambda step: 0.9**step))
    bench.assert_same(bench.facts(module.chain), bench.facts(twin))
    assert module.chain.ledger == twin.ledger
    assert twin.ledger.column("step") == [3, 6]


def test_schedule_that_reads_the_loss_needs_no_observe(bench, tmp_path):
    """Lightning steps with a closure that returns it."""
    module = Tuned(bench, knots=Plateau(window=2, patience=1, min_steps=4))
    fit(module, tmp_path, Batches(bench, 12))
    model = bench.llama().train()
    twin = bench.chain(model, knots=Plateau(window=2, patience=1, min_steps=4))
    scheduler = LambdaLR(twin, lambda step: 0.9**step)
    for k in range(12):
        ids = bench.tokens(k)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        twin.observe(loss)
        twin.step()
        scheduler.step()
        twin.zero_grad()
    assert len(twin.chain) > 0
    bench.assert_same(bench.facts(module.chain), bench.facts(twin))


def test_accumulated_and_clipped_batches_are_the_plain_loops(bench, tmp_path):
    """8 batches, 2 to a step, clipped at every step: 4 steps, a knot after the third."""
    module = Tuned(bench)
    fit(module, tmp_path, Batches(bench), accumulate_grad_batches=2, gradient_clip_val=0.05)
    model = bench.llama().train()
    twin = bench.chain(model)
    scheduler = LambdaLR(twin, lambda step: 0.9**step)
    for k in range(STEPS):
        ids = bench.tokens(k)
        (model(input_ids=ids, labels=ids).loss / 2).backward()
        if k % 2:
            assert torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.05) > 0.05
            twin.step()
            scheduler.step()
            twin.zero_grad()
    assert twin.ledger.column("step") == [3]
    bench.assert_same(bench.facts(module.chain), bench.facts(twin))


@pytest.mark.parametrize("step", PHASES)
def test_resumed_run_is_bitwise_the_uninterrupted_run(bench, uninterrupted, tmp_path, step):
    """fit(ckpt_path = checkpoint k) = the run itself: weights, links, moments, lr, ledger; the weights came merged."""
    kind, folder, whole = uninterrupted
    torch.manual_seed(step)  # a fresh PeftModel draws other factors, which the checkpoint replaces
    module = Tuned(bench, kind)
    fit(module, tmp_path, Batches(bench), checkpoint=folder / f"step={step}.ckpt")
    bench.assert_same(bench.facts(module.chain), bench.facts(whole.chain))
    assert module.chain.ledger == whole.chain.ledger
    assert module.chain.ledger.column("step") == [3, 6]


@pytest.mark.parametrize("step", [2, 7])
def test_chain_of_a_checkpoint_comes_back_without_its_weights(bench, uninterrupted, step):
    """The optimizer's state alone, on a pristine base: the model of that checkpoint."""
    kind, folder, _whole = uninterrupted
    checkpoint = torch.load(folder / f"step={step}.ckpt", weights_only=True)
    module = Tuned(bench, kind)
    module.chain.load_state_dict(checkpoint["optimizer_states"][0])
    assert all(torch.equal(value, checkpoint["state_dict"][name]) for name, value in module.state_dict().items())


# -- ChainCallback ----------------------------------------------------------------------------------------------------


def test_callback_binds_the_length_and_a_resumed_run_ties_where_the_whole_does(bench, tmp_path):
    """Evenly(links=2) left open, 12 batches, 2 to a step: one knot, after step 3 of 6; so in a run that was cut at 2."""
    data, options = Batches(bench, 12), {"accumulate_grad_batches": 2}
    runs = []
    for name, checkpoint in [("whole", None), ("resumed", tmp_path / "whole" / "step=2.ckpt")]:
        module = Tuned(bench, knots=Evenly(links=2))
        folder = tmp_path / name
        callbacks = [ChainCallback(), saver(folder)]
        fit(module, folder, data, checkpoint=checkpoint, callbacks=callbacks, enable_checkpointing=True, **options)
        assert module.chain.total_steps == 6
        assert module.chain.ledger.column("step") == [3]
        runs.append(bench.facts(module.chain))
    bench.assert_same(*runs)


def test_callback_leaves_a_run_without_an_end_unbound(bench, tmp_path):
    module = Tuned(bench)
    stop = ChainCallback()
    stop.on_train_batch_end = lambda trainer, *_: setattr(trainer, "should_stop", True)
    fit(module, tmp_path, Batches(bench), callbacks=[stop], max_epochs=-1)
    assert module.chain.progress.step >= 1
    assert module.chain.total_steps is None


def test_callback_exports_the_chain_and_logs_its_knots(bench, tmp_path):
    """PeftModel.from_pretrained(pristine base, chain_adapter): logits to 1e-6; the log has a line a knot."""
    module = Tuned(bench)
    log = CSVLogger(tmp_path, name="log", version=0)
    fit(module, tmp_path, Batches(bench), callbacks=[ChainCallback()], logger=log, log_every_n_steps=1)
    adapter = tmp_path / "chain_adapter"
    trained = bench.logits(module.model.eval())
    exported = PeftModel.from_pretrained(bench.llama(), str(adapter))
    assert float((bench.logits(exported) - trained).abs().max()) <= 1e-6
    assert float((bench.logits(bench.llama()) - trained).abs().max()) > 1e-3
    assert len((adapter / "ledger.jsonl").read_text().splitlines()) == 2
    head, *rows = [line.split(",") for line in (tmp_path / "log" / "version_0" / "metrics.csv").read_text().splitlines()]
    knots = [(row[head.index("step")], row[head.index("chain_knot")]) for row in rows if row[head.index("chain_knot")]]
    assert knots == [("3", "1"), ("6", "2")]


def test_callback_exports_where_it_is_told(bench, tmp_path):
    fit(Tuned(bench), tmp_path / "root", Batches(bench, 1), callbacks=[ChainCallback(tmp_path / "mine")])
    assert (tmp_path / "mine" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "root" / "chain_adapter").exists()


def test_callback_refuses_a_module_of_several_optimizers(bench, tmp_path):
    class Two(Tuned):
        automatic_optimization = False

        def configure_optimizers(self):
            return [self.chain, torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)]

    module = Two(bench)
    with pytest.raises(ArgumentError, match=r"\['ChainLoRAOptimizer', 'SGD'\]"):
        fit(module, tmp_path, Batches(bench), callbacks=[ChainCallback()])
    assert module.chain.progress.step == 0
