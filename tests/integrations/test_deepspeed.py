"""DeepSpeed's ZeRO steps flat copies of the parameters, in which a chain cannot find its factors: it says so at once.

What ZeRO does to the parameter groups is done here by hand, as DeepSpeed 0.19 was seen to do it on two gloo processes.
"""

from __future__ import annotations

import pytest
import torch

from fwlora.errors import DisconnectedParametersError


def _flat(parameters):
    """This rank's half of the parameters of a group, as one float32 tensor with a gradient."""
    values = torch.cat([parameter.detach().flatten() for parameter in parameters])
    half = values[: len(values) // 2].clone().requires_grad_(True)
    half.grad = torch.ones_like(half)
    return half


def partition_states(chain):
    """Stages 1 and 2: a flat tensor a group, and a step for each group alone."""
    groups = chain.param_groups
    for group in groups:
        group["params"] = [_flat(group["params"])]
    for group in groups:
        chain.param_groups = [group]
        chain.step()


def partition_parameters(chain):
    """Stage 3: the module's parameters are emptied too, and a group holds its flat tensor for the time of a step only."""
    flat = []
    for group in chain.param_groups:
        flat.append(_flat(group["params"]))
        for parameter in group["params"]:
            parameter.data = torch.empty(0)
        group["params"] = []
    for group, tensor in zip(chain.param_groups, flat, strict=True):
        group["params"] = [tensor]
        chain.step()


@pytest.mark.parametrize("stage", [partition_states, partition_parameters])
def test_flat_parameters_are_refused_at_the_first_step(bench, stage):
    """The error names ZeRO and what to use instead; nothing was stepped or counted."""
    chain = bench.chain(bench.llama())
    with pytest.raises(DisconnectedParametersError, match=r"DeepSpeed's ZeRO .* Use FSDP2 .*DistributedDataParallel"):
        stage(chain)
    assert (chain.progress.step, len(chain.chain)) == (0, 0)
    assert not chain.state
