"""Ways to adapt a model: each turns a model into a model and an optimizer.

They share the loop, the data order and the number of steps; what differs is what is trained and when knots are tied.
"""

from experiments.methods.chain import ChainKeepingAdam, ChainOfLoRA, chain_with_decay
from experiments.methods.compiled import Compiled
from experiments.methods.floor import FrozenFloor
from experiments.methods.full import FullFineTuning
from experiments.methods.inner import INNERS, Inner
from experiments.methods.lora import DoRA, FusedLoRA, HalfLoRA, LoRA, LoRAFA, LoRAPlus, PiSSA, RsLoRA
from experiments.methods.method import Method, unavailable
from experiments.methods.others import BottleneckAdapters, PrefixTuning
from experiments.methods.peers import BAdam, GaLore
from experiments.methods.relora import ReLoRA
from experiments.methods.weights import effective_weights

__all__ = [
    "INNERS",
    "BAdam",
    "BottleneckAdapters",
    "ChainKeepingAdam",
    "ChainOfLoRA",
    "Compiled",
    "DoRA",
    "FrozenFloor",
    "FullFineTuning",
    "FusedLoRA",
    "GaLore",
    "HalfLoRA",
    "Inner",
    "LoRA",
    "LoRAFA",
    "LoRAPlus",
    "Method",
    "PiSSA",
    "PrefixTuning",
    "ReLoRA",
    "RsLoRA",
    "chain_with_decay",
    "effective_weights",
    "unavailable",
]
