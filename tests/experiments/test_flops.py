"""FLOPs from shapes are torch's own count, and a run's are its passes, its knots and what a method computes beside."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig

from experiments.__main__ import main
from experiments.accounting.architectures import LLAMA, OPT, SMALL, config_of, linear_layers, random_model, skeleton
from experiments.accounting.bench import Bench
from experiments.accounting.contenders import contenders
from experiments.accounting.flops import Reading, cost, cost_of, count, factors, run_flops, svd_flops, train_only
from experiments.errors import UsageError
from experiments.methods import BAdam, ChainOfLoRA, DoRA, FullFineTuning, GaLore, LoRA, LoRAFA, Method, PiSSA, PrefixTuning
from experiments.methods.peers import blocks
from experiments.pages import flops as page
from experiments.records import RunFolder
from fwlora import Evenly

# Three kinds of linear layers (plain, without a bias, GPT-2's), grouped keys, tied and untied heads.
CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=32,
    ),
    "opt": OPTConfig(
        vocab_size=50, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=16,
        max_position_embeddings=32,
    ),
    "gpt2": GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=1,
    ),
}  # fmt: skip
SOME = {"llama": ["q_proj", "v_proj"], "opt": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}
ALL = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
WAYS: dict[str, tuple[Method, dict[str, list[str]]]] = {
    "LoRA": (LoRA("LoRA", 1e-3, 2), SOME),
    "LoRA everywhere": (LoRA("LoRA", 1e-3, 3), ALL),
    "LoRA-FA": (LoRAFA("LoRA-FA", 1e-3, 2), SOME),
    "DoRA": (DoRA("DoRA", 1e-3, 2), SOME),
    "prefix": (PrefixTuning("prefix", 1e-3, 5), SOME),
    "chain": (ChainOfLoRA("chain", 1e-3, 2, Evenly(3)), SOME),
    "B only": (ChainOfLoRA("chain", 1e-3, 2, Evenly(3), freeze_A=True), ALL),
    "full": (FullFineTuning("full", 1e-3), SOME),
}


def build(kind: str, attention: str = "eager") -> nn.Module:
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[kind]), attn_implementation=attention)


def torch_count(model: nn.Module, rows: int, length: int) -> int:
    ids = torch.randint(50, (rows, length))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("way", WAYS)
def test_the_count_is_torchs_at_sizes_where_it_was_not_measured(kind: str, way: str):
    method, targets = WAYS[way]
    model = method.inject(build(kind), targets[kind])
    read = Reading.of(3, 11)
    ours = cost(model).flops(read.examples, read.tokens, read.squares)
    assert ours == torch_count(model, 3, 11)


def test_the_attention_kernel_does_not_change_the_count():
    """Torch's counter passes the CPU's kernel over: it misses the whole of attention, and nothing else."""
    eager, fused = (LoRA("LoRA", 1e-3, 2).inject(build("llama", kind), ["q_proj", "v_proj"]) for kind in ("eager", "sdpa"))
    assert cost(fused) == cost(eager)
    assert torch_count(eager, 2, 8) - torch_count(fused, 2, 8) == cost(eager).square * 2 * 8**2


def test_full_training_of_a_decoder_costs_six_per_weight_and_twelve_widths_per_pair():
    """2 forward and 4 backward for each weight of a linear layer; scores and mixing 4 d a pair, and 8 d backward."""
    made = cost(FullFineTuning("full", 1e-3).inject(build("llama"), []))
    weights = sum(module.weight.numel() for module in build("llama").modules() if isinstance(module, nn.Linear))
    assert (made.token, made.square) == (6 * weights, 12 * 16 * 3)
    assert made.example == made.once == made.knot == 0


def test_a_networks_layers_count_as_torch_counts_them():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.Flatten(),
        nn.Linear(54, 10), nn.ReLU(), nn.Linear(10, 3),
    )  # fmt: skip
    example = torch.randn(1, 1, 8, 8)
    method = LoRA("LoRA", 1e-3, 2)
    for model in (network, method.inject(network, ["0", "5"])):
        with FlopCounterMode(display=False) as counter:
            model(example.expand(7, -1, -1, -1)).sum().backward()
        made = cost(model, example)
        assert made.flops(7, 0, 0) == counter.get_total_flops()
        assert made.token == made.square == 0


def test_a_network_without_an_example_is_refused():
    with pytest.raises(ValueError, match="give an example of its input"):
        cost(nn.Linear(2, 2))


def test_counting_leaves_a_model_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cost(model, torch.randn(1, 4))
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_meta_device_counts_what_the_cpu_does():
    made = [LoRA("LoRA", 1e-3, 8).inject(model, ["q_proj", "v_proj"])
            for model in (skeleton(config_of(SMALL)), random_model(config_of(SMALL), torch.float32))]  # fmt: skip
    assert count(made[0], 2, 16) == count(made[1], 2, 16)


@pytest.mark.parametrize(("base", "parameters"), [(OPT, 1_315_758_080), (LLAMA, 6_738_415_616), (SMALL, 3_426_560)])
def test_the_architectures_have_the_published_sizes(base: str, parameters: int):
    assert sum(parameter.numel() for parameter in skeleton(config_of(base)).parameters()) == parameters


def test_a_folders_config_is_read_and_anything_else_is_refused(tiny_model: Path, tmp_path: Path):
    assert config_of(str(tiny_model)).hidden_size == 16
    with pytest.raises(UsageError, match="give one, or one of small-llama, facebook"):
        config_of("facebook/opt-1.4b")
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}', encoding="utf-8")
    with pytest.raises(UsageError, match=r"config\.json: not a config that transformers reads") as error:
        config_of(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_chains_run_costs_loras_and_its_knots():
    rank, steps, read = 2, 30, Reading.of(60, 12)
    lora, chain = LoRA("LoRA", 1e-3, rank), ChainOfLoRA("chain", 1e-3, rank, Evenly(3))
    costs = [cost_of(method, build("llama"), ["q_proj", "v_proj"]) for method in (lora, chain)]
    assert costs[0] == costs[1]
    plain, tied = (run_flops(method, made, read, steps) for method, made in zip((lora, chain), costs, strict=True))
    # q is 16 x 16 and v 8 x 16 in each of three layers.
    assert tied - plain == 2 * 3 * (2 * rank * 16 * 16 + 2 * rank * 16 * 8)


def test_what_galore_and_pissa_compute_beside_is_added():
    read, targets = Reading.of(10, 8), ["q_proj"]
    full = run_flops(method := FullFineTuning("full", 1e-3), cost_of(method, build("llama"), targets), read, 10)
    method = GaLore("GaLore", 1e-3, 4, update_proj_gap=4)
    # In 10 steps, subspaces are taken at steps 0, 4 and 8; a gradient is projected and its update projected back.
    beside = 3 * (10 * 2 * (2 * 16 * 16 * 4) + 3 * (6 * 16**3 + 20 * 16**3))
    assert run_flops(method, cost_of(method, build("llama"), targets), read, 10) - full == beside
    lora, pissa = LoRA("LoRA", 1e-3, 2), PiSSA("PiSSA", 1e-3, 2)
    plain, begun = (run_flops(each, cost_of(each, build("llama"), targets), read, 10) for each in (lora, pissa))
    assert begun - plain == 3 * svd_flops(torch.empty(16, 16))


def test_badam_costs_the_mean_of_its_blocks():
    method, model = BAdam("BAdam", 1e-3), build("llama")
    made = cost_of(method, model, [])
    each = []
    for block in blocks(model, ()):
        train_only(model, block, ())
        each.append(cost(model))
    assert len(each) == 3
    assert made.token == sum(one.token for one in each) / 3
    assert made.square == sum(one.square for one in each) / 3
    assert each[0].token > each[-1].token


def test_factors_are_found_in_every_kind_of_layer():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3))
    LoRA("LoRA", 1e-3, 2).inject(model, ["0", "1"])
    assert [(tuple(A.shape), tuple(B.shape)) for A, B in factors(model)] == [((2, 7), (4, 2)), ((2, 4), (3, 2))]


def test_linear_layers_leave_the_head_out():
    assert linear_layers(build("llama")) == tuple(ALL["llama"])


def test_contenders_have_names_of_their_own():
    labels = [method.label for method in contenders(2, 3, 30, half=True)]
    assert labels[0] == "LoRA"
    assert len(set(labels)) == len(labels) == 14


def test_smoke_run_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert main(["flops", "--preset", "smoke", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    folder = RunFolder(tmp_path)
    for row in folder.rows("check.jsonl"):
        assert row["ours"] == row["torch"] > 0
    rows = {row["method"]: row for row in folder.rows("costs.jsonl")}
    assert list(rows) == ["LoRA", "chain", "full fine-tuning", "GaLore"]
    assert rows["chain"]["run"] - rows["LoRA"]["run"] == rows["chain"]["beside"] > 0
    assert rows["LoRA"]["run"] == pytest.approx(rows["LoRA"]["step"] * rows["LoRA"]["steps"])
    for text in (said, (tmp_path / "README.md").read_text(encoding="utf-8")):
        assert "a chain's run costs LoRA's plus its 2 knots" in text
        assert "GaLore" in text


def test_a_model_that_does_not_fit_has_its_reason_in_the_table():
    rows = [
        {"base": "b", "method": name, "parameters": 1, "step": 1e12, "run": 1e15, "beside": 0, "bytes": {"weights": 1e11},
         "reason": reason}
        for name, reason in (("LoRA", None), ("full fine-tuning", "needs 108 GB"))
    ]  # fmt: skip
    assert page.table(rows, "b").rows[1][-1] == "needs 108 GB"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bases", "nowhere"], "base 'nowhere' is no folder with a config.json"),
        (
            ["--bases", SMALL, "--targets", "qproj"],
            "--targets qproj: small-llama has no layer of that name; choose from q_proj",
        ),
        (["--bases", SMALL, "--methods", "lore"], "--methods 'lore': choose from 'LoRA', 'chain'"),
        (["--bases", SMALL, "--length", "2000"], "--length 2000: small-llama has 1024 positions"),
        (["--bases", SMALL, "--dtype", "fp8"], "--dtype fp8: choose from fp32, bf16, fp16"),
        (["--bases", SMALL, "--memory-gb", "0"], "--memory-gb 0.0: give a number above 0"),
        (["--bases", SMALL, "--rank", "0"], "--rank 0: give a number of at least 1"),
    ],
    ids=lambda value: value[-2] if isinstance(value, list) else "",
)
def test_wrong_options_are_told_in_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert main(["flops", *arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_counting_restores_a_module_that_has_two_names():
    """A PeftModel calls its base's embedding by a name of its own."""
    model = PrefixTuning("prefix", 1e-3, 5).inject(build("llama"), [])
    before = dict(model.named_parameters(remove_duplicate=False))
    cost(model)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


@pytest.fixture
def tiny_bench(tiny_model: Path) -> Callable[[str], Bench]:
    return lambda dtype: Bench(str(tiny_model), dtype, "cpu", 2, 8, ("q_proj",), 2, 1, 4)


def test_a_folder_is_a_base_like_the_known_ones(tiny_bench: Callable[[str], Bench]):
    bench = tiny_bench("bf16")
    bench.check()
    assert bench.model().get_parameter("model.norm.weight").dtype == torch.bfloat16
    assert bench.task().batches(0)[0].shape == (2, 8)
