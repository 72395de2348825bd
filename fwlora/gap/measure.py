"""The measurement: half of the batches find, the other half measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fwlora import distributed
from fwlora.errors import ArgumentError
from fwlora.gap.intervals import Reader, Samples
from fwlora.gap.report import GapReport
from fwlora.gap.sketch import COLUMNS, Sketch, sketch
from fwlora.layers.probes import Probes
from fwlora.layers.sites import Site
from fwlora.linalg import Factors
from fwlora.record.chain import Chain
from fwlora.rules import Ball


def measure(
    probes: Probes,
    sites: Mapping[str, Site],
    chain: Chain,
    batches: Sequence[Any],
    ball: Ball,
    *,
    confidence: float,
    passes: int,
    seed: int,
) -> GapReport:
    """The gap at the weights after the last knot; `ChainLoRAOptimizer.measure_gap` has the arguments.

    Returns:
        Every site and the total.

    Raises:
        ArgumentError: an argument breaks a rule.
    """
    check(batches, ball, confidence, passes)
    is_whole = len(batches) == 1
    half = len(batches) // 2
    first, second = (batches, batches) if is_whole else (batches[:half], batches[half:])
    width = max(COLUMNS, ball.atom_rank + 4)
    sketches = sketch(probes, sites, first, width=width, passes=passes, knot=len(chain), seed=seed)
    earlier = chain.in_memory()  # read once: with `chain_dir` a link is a file
    before = {name: earlier.stacked(name) for name in sites}
    directions = {name: _directions(site, sketches[name], before[name], ball) for name, site in sites.items()}
    found = [probes.along(batch, {name: list(d.values()) for name, d in directions.items()}) for batch in second]
    samples = {}
    for name, chosen in directions.items():
        columns = distributed.gathered(torch.stack([theta[name] for theta in found])).unbind(1)
        values = dict(zip(chosen, columns, strict=True))
        zero = torch.zeros_like(columns[0])
        samples[name] = Samples(
            sketches[name], -values["vertex"], -values["whole"], values.get("before", zero), values.get("link")
        )
    counts = len(first) * distributed.world_size(), len(second) * distributed.world_size()
    reader = Reader(ball, 1 - confidence, None if is_whole else counts)
    rows = {name: reader.row([site]) for name, site in samples.items()}
    return GapReport(rows, reader.row(list(samples.values())), confidence, counts)


def _directions(site: Site, sketch: Sketch, before: Factors | None, ball: Ball) -> dict[str, Factors]:
    """What a backward pass is to be read along: the unit vertex, the whole found part, D and the unit live link."""
    weights = ball.vertex_weights(sketch.S)
    k = int((weights != 0).sum())
    shares = sketch.S / sketch.norm(sketch.side) if sketch.S.any() else sketch.S
    chosen = {
        "vertex": Factors(sketch.V[:, :k].mT, -sketch.U[:, :k] * weights[:k], 1.0),
        "whole": Factors(sketch.V.mT, -sketch.U * shares, 1.0),
    }
    if before is not None:
        chosen["before"] = before
    if not site.is_idle:
        live = site.live()
        chosen["link"] = live._replace(scale=live.scale / ball.norm(live.spectrum()))
    return chosen


def check(batches: Any, ball: Ball, confidence: float, passes: int) -> None:
    """Refuse arguments that no measurement can have.

    Args:
        batches: a sequence.
        ball: the set.
        confidence: of the intervals.
        passes: over the first half.

    Raises:
        ArgumentError: naming the first that breaks a rule.
    """
    if not isinstance(ball, Ball):
        raise ArgumentError(f"`measure_gap(set={ball!r})`: give a set, such as `NuclearBall(radius=1.0)`.")
    if not isinstance(batches, Sequence):
        raise ArgumentError(f"`measure_gap(batches=...)` takes a sequence of batches and got {type(batches).__name__}.")
    if len(batches) in (0, 2, 3):
        raise ArgumentError(
            f"`measure_gap(batches=...)` got {len(batches)}: give at least 4, half to find the vertex and half to measure it, "
            "or one that is the whole of the data."
        )
    if isinstance(confidence, bool) or not (isinstance(confidence, int | float) and 0 < confidence <= 0.9999):
        raise ArgumentError(f"`measure_gap(confidence={confidence!r})`: give a number above 0 and up to 0.9999, such as 0.95.")
    if isinstance(passes, bool) or not isinstance(passes, int) or passes < 2:
        raise ArgumentError(f"`measure_gap(passes={passes!r})`: give a whole number of at least 2, one for each side.")
