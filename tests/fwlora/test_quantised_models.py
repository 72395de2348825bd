"""transformers' own quantised models: loaded, trained by hand and by Trainer, and given back as ordinary ones."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, LlamaForCausalLM, Trainer, TrainingArguments

from fwlora import ChainLoRAOptimizer, Every
from fwlora.integrations.transformers import ChainCallback
from tests.conftest import make_chain, train
from tests.tables import CASES, output

CONFIGS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}
CASE = CASES["llama"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny Llama's folder."""
    folder = tmp_path_factory.mktemp("llama")
    CASE.model().save_pretrained(folder)
    return folder


@pytest.fixture(params=CONFIGS)
def load(request, saved):
    """`load()`: the same quantised model at each call, in training mode, where forward passes compare."""

    def loaded(**options) -> LlamaForCausalLM:
        config = BitsAndBytesConfig(**CONFIGS[request.param], **options)
        return LlamaForCausalLM.from_pretrained(saved, quantization_config=config, device_map={"": "cpu"}).train()

    return loaded


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value - expected).norm() / expected.norm()).item()


def test_loaded_model_trains_resumes_and_exports(load, tmp_path):
    model, batch = load(), CASE.batch()
    optimizer = make_chain(CASE, model)
    losses = train(optimizer, model, batch, 8)
    assert losses[-1] < losses[0]
    assert {type(site).__name__ for site in optimizer.sites.values()} == {"StackedSite"}
    resumed = load()
    other = make_chain(CASE, resumed)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(output(resumed, batch), output(model, batch))
    optimizer.export_adapter(tmp_path)
    reloaded = PeftModel.from_pretrained(load(), str(tmp_path)).train()
    assert relative(output(reloaded, batch), output(model, batch)) <= 1e-6
    optimizer.rollback(0)
    assert torch.equal(output(model, batch), output(load(), batch))


def test_dequantized_model_is_saved_loaded_and_cast_as_an_ordinary_one(load, tmp_path):
    model, batch = load(), CASE.batch()
    optimizer = make_chain(CASE, model)
    train(optimizer, model, batch, 5)
    before = output(model, batch)
    plain = optimizer.merge_and_unload(dequantize=True)
    assert relative(output(plain, batch), before) < 1e-6
    plain.save_pretrained(tmp_path)
    reloaded = LlamaForCausalLM.from_pretrained(tmp_path).train()
    assert not hasattr(reloaded.config, "quantization_config")
    assert torch.equal(output(reloaded, batch), output(plain, batch))
    assert output(plain.to("cpu").half(), batch).dtype is torch.float16
    again = make_chain(CASE, reloaded)
    train(again, reloaded, batch, 4)


@pytest.mark.filterwarnings("ignore::fwlora.errors.SaveModelWarning")
def test_trainer_resumes_a_quantised_model_exactly(load, tmp_path):
    """Checkpoints of a PeftModel hold its live factors and the chain's state; the base is loaded anew."""

    def trainer(steps: int, folder) -> tuple[Trainer, ChainLoRAOptimizer]:
        model = prepare_model_for_kbit_training(load(), use_gradient_checkpointing=False)
        shape = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(model, shape)
        optimizer = ChainLoRAOptimizer(model, 0.02, knots=Every(3))
        rows = [{"input_ids": row, "labels": row} for row in torch.randint(64, (8, 6), generator=torch.manual_seed(3))]
        arguments = TrainingArguments(
            str(folder), max_steps=steps, per_device_train_batch_size=2, save_steps=5, report_to=[], disable_tqdm=True,
            use_cpu=True, lr_scheduler_type="constant",
        )  # fmt: skip
        made = Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None), callbacks=[ChainCallback()])
        return made, optimizer

    torch.manual_seed(0)
    whole, expected = trainer(8, tmp_path / "whole")
    whole.train()
    resumed, optimizer = trainer(8, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert (len(optimizer.chain), optimizer.progress) == (2, expected.progress)
    assert optimizer.ledger == expected.ledger.replayed(None)
    assert all(torch.equal(optimizer.delta(name), expected.delta(name)) for name in optimizer.sites)
