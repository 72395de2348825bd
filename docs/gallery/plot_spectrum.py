r"""
The spectrum of a chain
=======================

An update :math:`B A` of rank 2 has two singular values, however long it is trained. A chain of rank-2 links adds up to more:
this page watches the singular values of its total update grow, link by link.

The problem is a linear map :math:`W_0` of 64 x 64 that is to become :math:`W_0 + \Delta`, where :math:`\Delta` has rank 16. The
data are fresh white inputs with noisy outputs, so what is to be learned is known to the last singular value.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torch.nn.functional import mse_loss

from fwlora import ChainLoRAOptimizer, Decay, Evenly

SIDE, TRUE_RANK, RANK, LINKS, STEPS = 64, 16, 2, 6, 1200

generator = torch.Generator().manual_seed(0)
base = torch.randn(SIDE, SIDE, generator=generator) / SIDE**0.5
left, right = (torch.linalg.qr(torch.randn(SIDE, TRUE_RANK, generator=generator)).Q for _ in range(2))
values = 6 * 0.85 ** torch.arange(TRUE_RANK)
update = left @ values.diag() @ right.mT


def train(rank, links):
    """Adapts the base by a chain; gives back the optimizer and the spectrum of the chain's sum after each knot."""
    model = nn.Sequential(nn.Linear(SIDE, SIDE, bias=False))
    model[0].weight.data = base.clone()
    optimizer = ChainLoRAOptimizer(model, 2e-2, rank=rank, knots=Evenly(links, STEPS), link_lr=Decay(), seed=0)
    spectra, data = [], torch.Generator().manual_seed(1)
    optimizer.on_knot(lambda record: spectra.append(optimizer.chain.spectrum("0").numpy()))
    for _ in range(STEPS):
        x, noise = torch.randn(2, 64, SIDE, generator=data)
        mse_loss(model(x), x @ (base + update).T + noise / 4).backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.tie_knot()  # the last link becomes part of the chain too
    return optimizer, spectra


def error(optimizer):
    """How much of the update is missed, as a share of its squared norm."""
    return ((optimizer.delta("0") - update).square().sum() / update.square().sum()).item()


# %%
# One chain, three runs
# ---------------------
# LoRA is the chain of one link. A hook on each knot reads :meth:`~fwlora.Chain.spectrum`, which goes through the factors and
# never forms the matrix.

runs = {
    f"LoRA, rank {RANK}": train(RANK, 1),
    f"chain of {LINKS}, rank {RANK}": train(RANK, LINKS),
    f"LoRA, rank {RANK * LINKS}": train(RANK * LINKS, 1),
}
for name, (optimizer, _) in runs.items():
    chain = optimizer.chain
    trained = sum(parameter.numel() for parameter in optimizer.parameters())
    print(
        f"{name:<18} {trained:5d} trained numbers, links: {len(chain)}, "
        f"rank {chain.rank('0'):2d}, effective rank {chain.effective_rank('0'):5.2f}, missed {error(optimizer):.2%}"
    )
for rank in (RANK, RANK * LINKS):
    best = (values[rank:].square().sum() / values.square().sum()).item()
    print(f"no update of rank {rank} misses less than {best:.2%}")

# %%
# Link by link
# ------------
# Above, the chain after each of its knots: what a link adds to each singular value of the sum has the link's colour. Below, all
# three runs at the end. Rings are the singular values of the update that is to be learned.

index = np.arange(1, TRUE_RANK + 1)
figure, (grows, ends) = plt.subplots(2, 1, sharex=True, figsize=(7.2, 5.6))
before = np.zeros(TRUE_RANK)
shades = plt.get_cmap("Blues")(np.linspace(0.25, 1.0, LINKS))
for number, (colour, spectrum) in enumerate(zip(shades, runs[f"chain of {LINKS}, rank {RANK}"][1], strict=True), start=1):
    after = np.zeros(TRUE_RANK)
    after[: len(spectrum)] = spectrum[:TRUE_RANK]
    grows.bar(index, after - before, 0.7, bottom=before, color=colour, label=f"link {number}")
    before = after
grows.set_title(f"a chain of {LINKS} links of rank {RANK} as it grows")
for place, (name, (_, spectra)) in enumerate(runs.items()):
    ends.bar(index[: len(spectra[-1])] + 0.27 * (place - 1), spectra[-1][:TRUE_RANK], 0.25, color=f"C{place}", label=name)
ends.set_title(f"three runs after {STEPS} steps")
ends.set(xlabel="index of the singular value", xticks=index)
for axes in (grows, ends):
    axes.plot(index, values, "o", color="black", markerfacecolor="none", markersize=9, linewidth=0, label="to be learned")
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("singular value")
    axes.legend(ncols=2)
plt.show()

# %%
# Each link takes the directions that are then the strongest, and no later one needs to touch them: that is the greedy choice of
# the Frank-Wolfe method, made by gradient descent on two small factors. The chain ends where LoRA of six times the rank does,
# with a sixth of the trained numbers at any time. Both miss the last four values, for their ranks add up to no more; and LoRA
# of that rank has learned the same in one piece. Here links were long enough to finish, and rank was what was missing. Where
# the update to be learned has rank 2, the first link would be all that is needed, and every knot a loss.
