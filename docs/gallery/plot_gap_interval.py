r"""
The gap of a language model, as an interval
===========================================

The Frank-Wolfe gap :math:`g = \max_V \langle G, W - V \rangle` says how much a first-order step within a ball around the
original weights can still gain. Of a real model nobody has the full gradient :math:`G`: there are minibatches, and matrices too
large to keep. :meth:`~fwlora.ChainLoRAOptimizer.measure_gap` therefore gives an interval. This page measures a tiny Llama
before every link and compares with the truth, which is to be had for a model as small as this one.

The text is made here: numbers counted up and down in words. The model learns to count up, and is then adapted to counting down.
"""

import copy

import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fwlora import ChainLoRAOptimizer, Decay, Every, NuclearBall

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
LETTERS = {letter: number for number, letter in enumerate(sorted({*" ".join(WORDS)}))}
LENGTH, BATCH, LINKS, LINK_STEPS, RADIUS = 48, 16, 5, 100, 20.0


def batches(direction, seed):
    """Batches without end: counts from random starts that now and then leave a number out, as letters' numbers."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        strides = 1 + (torch.rand(BATCH, LENGTH, generator=generator) < 0.2).long()
        strides[:, 0] = torch.randint(len(WORDS), (BATCH,), generator=generator)
        counts = (direction * strides.cumsum(1)) % len(WORDS)
        lines = [" ".join(WORDS[n] for n in row)[:LENGTH] for row in counts.tolist()]
        yield torch.tensor([[LETTERS[letter] for letter in line] for line in lines])


def loss_fn(batch, of=None):
    """Nats a letter, of the model that is trained unless told otherwise."""
    return (of or model)(input_ids=batch, labels=batch).loss


def train(optimizer, direction, steps, seed):
    """Any loop would do; gives back the losses."""
    losses = []
    for _, batch in zip(range(steps), batches(direction, seed), strict=False):
        loss = loss_fn(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(LETTERS), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=LENGTH, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )
)  # fmt: skip
learned = train(torch.optim.AdamW(model.parameters(), lr=3e-3), +1, steps=150, seed=0)
base = copy.deepcopy(model)
print(f"counting up: {learned[0]:.2f} nats a letter at first, {np.mean(learned[-10:]):.2f} after {len(learned)} steps")

# %%
# How the measurement compares with the truth
# -------------------------------------------
# For a model of this size the gradient can be had in full: from 160 batches, on a copy of the base with the links so far added
# to it. A chain of one link is trained first; then the gap of the weights after its knot is measured, three times each from
# fresh batches. Half of the batches of a measurement find a vertex and the other half measure it: two uses of the same noise
# would make every gap look too large.

optimizer = ChainLoRAOptimizer(model, 5e-3, rank=2, knots=Every(LINK_STEPS), link_lr=Decay())
ball, fresh = NuclearBall(RADIUS), batches(-1, seed=2)
updates = [{name: torch.tensor(0.0) for name in optimizer.sites}]
optimizer.on_knot(lambda record: updates.append({name: optimizer.chain.delta(name) for name in optimizer.sites}))
optimizer.measure_at_knots(lambda: [next(fresh) for _ in range(16)], loss_fn, ball)
losses = train(optimizer, -1, steps=LINK_STEPS, seed=3)
texts = batches(-1, seed=5)
many = [torch.cat([next(texts) for _ in range(16)]) for _ in range(10)]


def truth(update):
    """The gap by the dense gradient: the ball's support is the radius times the largest singular value."""
    dense = copy.deepcopy(base).requires_grad_(False)
    weights = {name: dense.get_submodule(name).weight for name in update}
    for name, weight in weights.items():
        weight.add_(update[name]).requires_grad_(True)
    for batch in many:
        loss_fn(batch, dense).div(len(many)).backward()
    return sum(
        torch.sum(weight.grad * update[name]).item() + ball.radius * torch.linalg.matrix_norm(weight.grad, 2).item()
        for name, weight in weights.items()
    )


after_one, counts, repeats = truth(updates[1]), [8, 16, 32], 3
figure, axes = plt.subplots(figsize=(7.2, 3.0))
for row, count in enumerate(counts):
    found = [optimizer.measure_gap([next(fresh) for _ in range(count)], loss_fn, ball).total.gap for _ in range(repeats)]
    for place, gap in zip(row + np.linspace(-0.3, 0.3, repeats), found, strict=True):
        axes.hlines(place, gap.lower, gap.upper, color="C1", alpha=0.3, linewidth=7)
        axes.plot(gap.point, place, "o", color="C1", markersize=5)
    holding, width = sum(gap.lower <= after_one <= gap.upper for gap in found), np.mean([g.upper - g.lower for g in found])
    print(f"{count:2d} batches: {holding} of {repeats} intervals hold {after_one:.2f}, their mean width is {width:.1f}")
axes.axvline(after_one, color="black", linestyle="--", linewidth=1.2, label="by the dense gradient")
axes.set_yticks(range(len(counts)), [f"{count} batches" for count in counts])
axes.set(xlabel="Frank-Wolfe gap after one link (nats a letter)", ylim=(len(counts) - 0.45, -0.55))
axes.grid(axis="y", visible=False)
axes.legend()
plt.show()

# %%
# Each bar is a 95 % interval, its dot the best guess. The bars reach farther up than down: what a few random directions did not
# see of the gradient may still be there, and the upper end counts it in. The dots lie low rather than high, for the vertex that
# was found is at most the best one. More batches narrow the interval.
#
# The chain at its knots
# ----------------------
# :meth:`~fwlora.ChainLoRAOptimizer.measure_at_knots` has said above on what to measure, and each knot's record has the gap that
# its link was to close: that of the weights where the link began, with the link set aside. Here is the rest of the chain.

losses += train(optimizer, -1, steps=(LINKS - 1) * LINK_STEPS, seed=4)
gaps = np.array([record.gap["total"]["gap"] for record in optimizer.ledger])  # lower end, point, upper end
true = [truth(updates[0]), after_one, *map(truth, updates[2:LINKS])]
for record, value in zip(optimizer.ledger, true, strict=True):
    lower, point, upper = record.gap["total"]["gap"]
    held = "holds" if lower <= value <= upper else "misses"
    print(f"before link {record.knot + 1}: {point:7.3f} in [{lower:7.3f}, {upper:7.3f}] {held} {value:7.3f}")
reach = max(optimizer.chain.spectrum(name).sum().item() for name in optimizer.sites)
print(f"{len(optimizer.sites)} sites, each in a nuclear ball of radius {RADIUS:g}; the farthest has come to {reach:.1f}")

starts, lowest = np.arange(LINKS) * LINK_STEPS, 0.3
figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(7.2, 5.2))
above.plot(np.arange(1, len(losses) + 1), losses, linewidth=1.2)
above.set_ylabel("loss (nats a letter)")
below.vlines(starts, np.maximum(gaps[:, 0], lowest), gaps[:, 2], color="C1", alpha=0.3, linewidth=9, label="95 % interval")
below.plot(starts, gaps[:, 1], "o", color="C1", markersize=6, label="measured, from 16 batches")
below.plot(starts, true, "x", color="black", markersize=7, markeredgewidth=1.6, label="by the dense gradient")
below.set(yscale="log", xlabel="optimizer step", ylabel="Frank-Wolfe gap (nats a letter)", ylim=(lowest, None))
below.legend()
for axes in (above, below):
    axes.grid(axis="x", visible=False)
    for record in optimizer.ledger:
        axes.axvline(record.step, color="C5", linestyle=":", linewidth=0.9)
plt.show()

# %%
# Above the training loss, below the gap before each link; dotted lines are the knots, and a bar that reaches the bottom goes on
# below. The first link closes most of the gap. Later gaps are small against the noise of 16 batches, and the intervals say so:
# from the dots alone one would read more than is known. Measuring is not free, 40 forward and backward passes a knot here.
