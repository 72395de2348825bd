"""The plan of a knot: what the merge rule makes of the live link, held against the rule's set before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from fwlora import distributed
from fwlora.errors import KnotError
from fwlora.linalg import Factors, product_norms
from fwlora.record.chain import Chain, combine
from fwlora.rules import Ball, Coefficients, MergeRule, Retiring

TOLERANCE = 1e-5
"""What float32 factors may put on a norm; the iterate is exactly in the set by the convexity of the step."""


class Plan(NamedTuple):
    """What a knot will do.

    Attributes:
        coefficients: by which earlier links shrink and the new one is scaled, at each site.
        norms: of the new sum at each site, in the rule's set; empty without one.
        eta: the step size; None where earlier links do not shrink.
        link_norms: Frobenius norm of the live link at each site.
    """

    coefficients: Mapping[str, Coefficients]
    norms: dict[str, float]
    eta: float | None
    link_norms: dict[str, float]


def plan(rule: MergeRule, links: Mapping[str, Factors], chain: Chain, gap: float | None) -> Plan:
    """Ask the rule, and check that the iterate stays in its set: ``|shrink D + scale s B A| <= radius`` at every site.

    Args:
        rule: how links are folded in.
        links: the live link of each site.
        chain: the earlier links.
        gap: ``<G, W - V>`` of the live link's vertex V, where it was measured.

    Returns:
        The plan.

    Raises:
        KnotError: for a plan that leaves the set; nothing was changed.
    """
    link_norms = product_norms(links)
    ball = rule.ball
    if ball is None:
        return Plan(rule.plan(Retiring(len(chain), link_norms)), {}, None, link_norms)

    norms = {name: ball.norm(link.spectrum()) for name, link in links.items()}
    sums = {name: chain.stacked(name) for name in links}
    distance = _distance(ball, links, norms, sums) if rule.needs_gap else None
    facts = Retiring(len(chain), norms, gap, distance)
    # Algebra on another machine may differ in a last bit: what all ranks do is rank 0's.
    coefficients = _from_first(rule.plan(facts))
    after = {}
    for name, (shrink, scale) in coefficients.items():
        spectrum = combine(sums[name], shrink, links[name]._replace(scale=scale * links[name].scale)).spectrum()
        after[name] = ball.norm(spectrum)
        if not ball.contains(spectrum, TOLERANCE):
            raise KnotError(
                f"`merge={rule}`: after this knot the sum of the links at {name!r} has norm {after[name]:.6g}, outside the "
                "set. The chain so far was made in a larger set, or by another rule: give the one that it was made with."
            )
    return Plan(coefficients, after, rule.eta(facts), link_norms)


def _from_first(coefficients: Mapping[str, Coefficients]) -> dict[str, Coefficients]:
    numbers = distributed.from_first_(torch.tensor([*coefficients.values()], dtype=torch.float64)).tolist()
    return {name: Coefficients(*pair) for name, pair in zip(coefficients, numbers, strict=True)}


def _distance(
    ball: Ball, links: Mapping[str, Factors], norms: Mapping[str, float], sums: Mapping[str, Factors | None]
) -> float:
    """``|V - W|`` over the sites that move, ``V = radius s B A / |s B A|`` and W both around the original weight."""
    square = 0.0
    for name, link in links.items():
        if norms[name] > 0:
            vertex = link._replace(scale=link.scale * ball.radius / norms[name])
            square += combine(sums[name], -1.0, vertex).norm() ** 2
    return square**0.5
