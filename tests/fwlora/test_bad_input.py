"""Options that are no numbers, no flags, no places: named as typed, with the way out, and the model left as it was."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig
from torch import nn

from fwlora import (
    At,
    Blocks,
    Centred,
    ChainLoRAOptimizer,
    Constant,
    Decay,
    Evenly,
    Every,
    Fixed,
    Flat,
    FrankWolfe,
    GapBelow,
    Gaussian,
    GradientAligned,
    Kaiming,
    NuclearBall,
    Plateau,
    ShortStep,
    StepDown,
    SupportBall,
)
from fwlora.errors import ArgumentError, UnsupportedModelError
from tests.conftest import train
from tests.tables import CASES, output

NAN, INF = math.nan, math.inf
CASE = CASES["linear"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": NAN}, "`lr=nan`"),
        ({"lr": INF}, "`lr=inf`"),
        ({"lr": True}, "`lr=True`"),
        ({"lr": "0.1"}, "`lr='0.1'`"),
        ({"lr": -1}, "AdamW.*-1"),
        ({"lr": torch.tensor(NAN)}, r"`lr=tensor\(nan\)`"),
        ({"lr": torch.ones(2)}, "1-element"),
        ({"lr_ratio": INF}, "`lr_ratio=inf`"),
        ({"lr_ratio": NAN}, "`lr_ratio=nan`"),
        ({"lr_ratio": True}, "`lr_ratio=True`"),
        ({"lr_ratio": -1}, "`lr_ratio=-1`"),
        ({"weight_decay": -1}, "AdamW.*weight_decay.*-1"),
        ({"weight_decay": NAN}, "AdamW.*nan"),
        ({"weight_decay": "x"}, "AdamW.*weight_decay"),
        ({"betas": (0.9, 1.5)}, "AdamW.*1.5"),
        ({"betas": 0.9}, "AdamW.*betas"),
        ({"betas": (NAN, 0.9)}, "AdamW.*nan"),
        ({"eps": -1}, "AdamW.*-1"),
        ({"eps": NAN}, "AdamW.*nan"),
        ({"rank": True}, "`rank=True`"),
        ({"rank": "8"}, "`rank='8'`"),
        ({"rank": -1}, "`rank=-1`"),
        ({"alpha": NAN}, "`alpha=nan`"),
        ({"alpha": INF}, "`alpha=inf`"),
        ({"alpha": True}, "`alpha=True`"),
        ({"seed": 1.5}, "`seed=1.5`"),
        ({"seed": "1"}, "`seed='1'`"),
        ({"seed": True}, "`seed=True`"),
        ({"freeze_A": "no"}, "`freeze_A='no'`.*True or False"),
        ({"lora_bias": 1}, "`lora_bias=1`"),
        ({"fast_layers": None}, "`fast_layers=None`"),
        ({"residual_in_state": "x"}, "`residual_in_state='x'`"),
        ({"exact_replay": 0}, "`exact_replay=0`"),
        ({"target_modules": 5}, "`target_modules=5`"),
        ({"target_modules": ["layers.0", 3]}, r"`target_modules=\['layers.0', 3\]`"),
        ({"target_modules": []}, "target_modules"),
        ({"train_modules": None}, "`train_modules=`.*None"),
        ({"train_modules": [3]}, "`train_modules=` names 3"),
        ({"chain_dir": 5}, "`chain_dir=5`"),
        ({"chain_dir": __file__}, "`chain_dir=.*is a file"),
        ({"original": 5}, "`original=5`"),
        ({"original": "/nowhere/at/all"}, "`original='/nowhere/at/all'`: there is no such"),
        ({"lora_config": LoraConfig(r=4)}, "target_modules"),
        ({"lora_config": {"r": 4}}, "`lora_config=`.*dict"),
        ({"inner": "AdamW"}, "`inner='AdamW'`"),
        ({"inner": None}, "`inner=None`"),
        ({"inner": lambda groups, **options: None}, "made a NoneType"),
        ({"inner": torch.optim.Rprop, "weight_decay": 0.1}, "`weight_decay=` is an option neither of"),
        ({"knots": Every}, "`knots=<class.*`knots=Every"),
        ({"reset": Kaiming}, "`reset=<class"),
    ],
    ids=lambda value: ",".join(f"{k}={str(v)[:12]}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_bad_option_is_named_and_the_model_left_as_it_was(options, message):
    model = CASE.model()
    before = [(name, p.requires_grad, id(p)) for name, p in model.named_parameters()]
    shape = {} if "lora_config" in options else {"rank": 2, "target_modules": ["layers.0"]}
    with pytest.raises(ArgumentError, match=message):
        ChainLoRAOptimizer(model, **{**shape, **options})
    assert [(name, p.requires_grad, id(p)) for name, p in model.named_parameters()] == before
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize("alpha", [0, NAN, INF])
def test_adapter_whose_scale_lets_nothing_be_learned_is_refused(alpha):
    config = LoraConfig(r=2, lora_alpha=alpha, target_modules=["layers.0"])
    with pytest.raises(UnsupportedModelError, match="lora_alpha"):
        ChainLoRAOptimizer(CASE.model(), lora_config=config)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: nn.Linear(0, 4), "empty"),
        (lambda: nn.Linear(4, 0), "empty"),
        (lambda: nn.Embedding(5, 4, sparse=True), "sparse=False"),
        (lambda: expanded(nn.Linear(4, 4)), "give it a copy"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "plain Linear"),
    ],
    ids=["no input", "no output", "sparse", "expanded", "weight norm"],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_layer_that_no_link_fits_is_refused(layer, message):
    with pytest.raises(UnsupportedModelError, match=message):
        ChainLoRAOptimizer(nn.Sequential(layer(), nn.Linear(4, 4)), target_modules="0")


def expanded(linear: nn.Linear) -> nn.Linear:
    linear.weight = nn.Parameter(torch.ones(1, 4).expand(4, 4))
    return linear


@pytest.mark.parametrize("inner", [torch.optim.Rprop, torch.optim.ASGD, torch.optim.Adagrad], ids=lambda inner: inner.__name__)
def test_inner_optimizer_need_not_have_a_weight_decay(inner):
    model = CASE.model()
    optimizer = ChainLoRAOptimizer(model, 0.01, rank=2, target_modules=["layers.0"], knots=Every(3), inner=inner)
    train(optimizer, model, CASE.batch(), 4)
    assert len(optimizer.chain) == 1


def test_hook_that_cannot_be_called_is_refused_before_the_knot(chained):
    _, optimizer, _ = chained()
    with pytest.raises(ArgumentError, match=r"`on_knot\(None\)`"):
        optimizer.on_knot(None)


RULES = {
    "`Every(steps=": [lambda v: Every(v), 0, -1, True, "3", 2.0, NAN],
    "`Evenly(links=": [lambda v: Evenly(v), 0, True, "3", NAN],
    "`Evenly(total_steps=": [lambda v: Evenly(2, total_steps=v), 0, -3, True, 9.0],
    "`At(steps=": [lambda v: At(v), [0], [-1], ["3"], [True], [1.5], "3", 3],
    "`Flat(warmup=": [lambda v: Flat(warmup=v), -1, True, "3", 1.5, NAN],
    "`Decay(warmup=": [lambda v: Decay(warmup=v), -1, True, "3"],
    "`StepDown(widths=": [lambda v: StepDown(v), [], [0], [True], ["4"], [4, 8], 4],
    "`Constant(width=": [lambda v: Constant(v), 0, -1, True, "8", 2.0],
    "`Gaussian(std=": [lambda v: Gaussian(std=v), 0, -1, NAN, INF, True, "1"],
    "`GradientAligned(steps=": [lambda v: GradientAligned(v), 1, 0, True, 2.0, "2"],
    "`Blocks(n=": [lambda v: Blocks(v), 0, -1, True, "2"],
    "`NuclearBall(radius=": [lambda v: NuclearBall(v), 0, -1, NAN, INF, True, "1"],
    "`SupportBall(rank=": [lambda v: SupportBall(1.0, rank=v), 0, True, 1.5],
    "`Fixed(value=": [lambda v: Fixed(v), 2, -0.1, NAN, True, "1"],
    "`ShortStep(beta=": [lambda v: ShortStep(v), 0, -1, NAN, INF, True],
    "`Centred(beta=": [lambda v: Centred(v, 1.0, 3), 0, NAN, True],
    "`Centred(links=": [lambda v: Centred(1.0, 1.0, v), 0, True, 1.5],
    "`FrankWolfe(set=": [lambda v: FrankWolfe(v, 0.5), 3, None, "ball"],
    "`FrankWolfe(step_size=": [lambda v: FrankWolfe(NuclearBall(1.0), v), "x", None, True],
    "`Plateau(window=": [lambda v: Plateau(window=v), 0, True, 2.5],
    "`Plateau(threshold=": [lambda v: Plateau(threshold=v), NAN, -1, "x", 1.0],
    "`Plateau(max_steps=": [lambda v: Plateau(max_steps=v), 1, "x"],
    "`GapBelow(fraction=": [lambda v: GapBelow(fraction=v), 0, 1, NAN, True],
}


@pytest.mark.parametrize(
    ("argument", "value"), [(argument, value) for argument, (_, *values) in RULES.items() for value in values]
)
def test_rule_refuses_a_bad_number_by_its_argument_and_value(argument, value):
    with pytest.raises(ArgumentError) as caught:
        RULES[argument][0](value)
    assert argument in str(caught.value)
    assert str(value).strip("[]'") in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, True, 2.5, "9", None, NAN])
def test_total_steps_takes_whole_numbers_alone(chained, value):
    _, optimizer, _ = chained()
    with pytest.raises(ArgumentError, match=r"`optimizer\.total_steps = "):
        optimizer.total_steps = value
    assert optimizer.total_steps is None


@pytest.mark.parametrize("value", [-1, 3, True, 1.0, "1", None])
def test_rollback_takes_knots_of_the_chain_alone(chained, value):
    model, optimizer, batch = chained(steps=7)
    before = output(model, batch)
    with pytest.raises(ArgumentError, match="knots 0 to 2"):
        optimizer.rollback(value, original=CASE.model().state_dict())
    assert torch.equal(output(model, batch), before)


@pytest.mark.parametrize(
    "options", [{"seed": -1}, {"seed": 2**70}, {"alpha": -2.0}, {"betas": [0.5, 0.9]}, {"lr": torch.tensor(0.1)}]
)
def test_odd_but_legal_option_trains(options):
    model = CASE.model()
    optimizer = ChainLoRAOptimizer(model, **{"rank": 2, "target_modules": ["layers.0"], "knots": Every(3), **options})
    losses = train(optimizer, model, CASE.batch(), 4)
    assert len(optimizer.chain) == 1
    assert all(map(math.isfinite, losses))
