"""Theorems A, B, C and E, each as an identity that a machine has read.

What the constraints are called; each is at most 0:

    smooth_t     L(W_{t+1}) - L(W_t) - eta_t <G_t, d_t> - (beta/2) eta_t^2 |d_t|^2        d_t = V_t - W_t
    oracle_t     g_t - eps_t + <G_t, d_t>
    diameter_t   |d_t|^2 - D^2
    ball_t       |V_t - c|^2 - R^2
    start        L(W_1) - L(W_{T+1}) - M
    origin       |W_1 - c|^2 - start_distance^2

Step sizes are rational. The tuned ones are square roots: where these are fractions, the tuned bound is the one here; elsewhere
it is a limit of bounds here, which depend on eta continuously. Theorem D is no identity of this kind: its steps are quotients.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from theory.certificates.algebra import Combination, Exact, Vector, rational
from theory.certificates.identity import Identity, Proof
from theory.errors import ArgumentError, count

unknown, number = Combination.unknown, Combination.constant


def fixed_step(T: int, eta: Exact, beta: Exact = 1, diameter: Exact = 1, initial_gap: Exact = "1/2") -> Identity:
    """Theorem A: ``mean g_t <= M/(eta T) + beta D^2 eta/2 + mean eps_t``.

    Args:
        T: iterations.
        eta: the step size, in (0, 1].
        beta: upper smoothness.
        diameter: D.
        initial_gap: M.

    Returns:
        The identity, which says whether it `holds`.

    Raises:
        ArgumentError: a number is not exact or out of its range.

    Example:
        >>> fixed_step(3, "1/3", beta=2, diameter="3/2", initial_gap=5).residual
        0
        >>> fixed_step(4, "1/2").bound == Fraction(1, 2)  # sqrt(2 M beta) D/sqrt T at the tuned eta; M = 1/2, beta = D = 1
        True

    Source: Lacoste-Julien 2016 (arXiv 1607.00345); Theorem 4.1 of arXiv 2401.04151, corrected.
    """
    T, step = count("T", T), _step_size(eta)
    return _never_growing("A", [step] * T, *_at_least_zero(beta=beta, diameter=diameter, initial_gap=initial_gap))


def anytime_step(etas: Sequence[Exact], beta: Exact = 1, diameter: Exact = 1, oscillation: Exact = "1/2") -> Identity:
    """Theorem B: ``mean g_t <= M_o/(eta_T T) + (beta D^2/2) mean eta_t + mean eps_t`` for step sizes that never grow.

    With ``eta_t = min(1, sqrt(M_o/(beta D^2 t)))`` and ``sum 1/sqrt t <= 2 sqrt T`` it is ``2 sqrt(M_o beta) D/sqrt T``.

    Args:
        etas: ``eta_1, ..., eta_T``. If one exceeds its predecessor, a multiplier is negative and nothing is proved.
        beta: upper smoothness.
        diameter: D.
        oscillation: M_o, at least ``L(W_t) - min L`` for every t.

    Returns:
        The identity, which says whether it `holds`.

    Raises:
        ArgumentError: a number is not exact or out of its range.

    Example:
        >>> anytime_step([1, "1/2", "1/3"]).holds, anytime_step(["1/3", "1/2", 1]).holds
        (True, False)
    """
    count("len(etas)", len(etas))
    numbers = _at_least_zero(beta=beta, diameter=diameter, oscillation=oscillation)
    return _never_growing("B", [_step_size(eta) for eta in etas], *numbers)


def centred_step(
    T: int,
    eta: Exact,
    beta: Exact = 1,
    radius: Exact = "1/2",
    initial_gap: Exact = "1/2",
    start_distance: Exact = 0,
) -> Identity:
    """Theorem C: ``mean g_t <= M/(eta T) + beta (|W_1 - c|^2/(eta T) + R^2) eta/(2 (1 - eta)) + mean eps_t``.

    The positions are unknowns too: every ``W_t - c`` is a combination of ``W_1 - c`` and the ``V_s - c`` before it, and what
    ``|d_t|^2`` can sum up to is part of the identity. The squares left over, ``|W_t - c|^2``, are what the bound gives away.

    Args:
        T: iterations.
        eta: the step size, in (0, 1).
        beta: upper smoothness.
        radius: R.
        initial_gap: M.
        start_distance: at least ``|W_1 - c|``: 0 starts from the centre, R from anywhere.

    Returns:
        The identity, which says whether it `holds`.

    Raises:
        ArgumentError: a number is not exact or out of its range.

    Example:
        >>> centred_step(3, "1/3", radius=2, start_distance=2).residual
        0

    Source: derived in this project.
    """
    T, eta = count("T", T), _step_size(eta)
    if eta == 1:
        raise ArgumentError("`eta` must be below 1 (Theorem C divides by 1 - eta), and is 1; use fixed_step, which allows it.")
    beta, R, M, distance = _at_least_zero(beta=beta, radius=radius, initial_gap=initial_gap, start_distance=start_distance)
    proof, squares, weight = Proof(T), {}, beta / (2 * T * (1 - eta))
    W = Vector.unknown("W_1")
    proof.use("origin", W @ W - number(distance**2), weight)
    for t in range(1, T + 1):
        V = Vector.unknown(f"V_{t}")
        proof.step(t, eta, beta, V - W, (f"f_{t}", f"f_{t + 1}"))
        proof.use(f"ball_{t}", V @ V - number(R * R), eta * weight)
        squares[f"W_{t}"] = (eta * weight, W)
        W += eta * (V - W)
    squares[f"W_{T + 1}"] = (weight, W)
    proof.use("start", unknown("f_1") - unknown(f"f_{T + 1}") - number(M), proof.mean / eta)
    bound = M / (eta * T) + beta * (distance**2 / (eta * T) + R * R) * eta / (2 * (1 - eta))
    return Identity("C", T, bound, proof.constraints, proof.multipliers, squares)


def drifting_loss(
    T: int,
    eta: Exact,
    beta: Exact = 1,
    diameter: Exact = 1,
    initial_gap: Exact = "1/2",
    up: Exact = 0,
    down: Exact = 0,
) -> Identity:
    """Theorem E: ``mean g_t <= (M + Delta+ + Delta-)/(eta T) + beta D^2 eta/2 + mean eps_t`` when step t uses a loss ``L_t``.

    Args:
        T: iterations.
        eta: the step size, in (0, 1].
        beta: upper smoothness of every loss.
        diameter: D.
        initial_gap: M, at least ``L_1(W_1) - min L_1``.
        up: Delta+, the sum over t < T of ``sup_K (L_{t+1} - L_t)^+``.
        down: Delta-, likewise with ``L_t - L_{t+1}``.

    Returns:
        The identity, which says whether it `holds`.

    Raises:
        ArgumentError: a number is not exact or out of its range.

    Example:
        >>> drifting_loss(3, "1/3", up="1/10", down="1/5").residual
        0

    Source: derived in this project.
    """
    T, eta = count("T", T), _step_size(eta)
    beta, D, M, up, down = _at_least_zero(beta=beta, diameter=diameter, initial_gap=initial_gap, up=up, down=down)
    proof, moves = Proof(T), number(-up)
    for t in range(1, T + 1):
        d = Vector.unknown(f"d_{t}")
        # f_t = L_t(W_t) and f_t+ = L_t(W_{t+1}): the loss moves in between.
        proof.step(t, eta, beta, d, (f"f_{t}", f"f_{t}+"))
        proof.use(f"diameter_{t}", d @ d - number(D * D), proof.mean * beta * eta / 2)
        if t < T:
            moves += unknown(f"f_{t + 1}") - unknown(f"f_{t}+")
    proof.use("start", unknown("f_1") - unknown("min L_1") - number(M), proof.mean / eta)
    proof.use("up", moves, proof.mean / eta)
    proof.use("down", unknown("min L_1") - unknown("min L_T") - number(down), proof.mean / eta)
    proof.use("end", unknown("min L_T") - unknown(f"f_{T}+"), proof.mean / eta)
    return Identity("E", T, (M + up + down) / (eta * T) + beta * D * D * eta / 2, proof.constraints, proof.multipliers)


def _never_growing(theorem: str, etas: Sequence[Fraction], beta: Fraction, D: Fraction, M: Fraction) -> Identity:
    """Theorems A and B: where the step size never changes, only the loss of the start has to be bounded."""
    T = len(etas)
    proof = Proof(T)
    inverse = Fraction(0)
    for t, eta in enumerate(etas, start=1):
        d = Vector.unknown(f"d_{t}")
        proof.step(t, eta, beta, d, (f"f_{t}", f"f_{t + 1}"))
        proof.use(f"diameter_{t}", d @ d - number(D * D), proof.mean * beta * eta / 2)
        # Abel: sum_t (f_t - f_{T+1}) (1/eta_t - 1/eta_{t-1}) = sum_t (f_t - f_{t+1})/eta_t, and every f_t - f_{T+1} <= M.
        if 1 / eta != inverse:
            above_end = unknown(f"f_{t}") - unknown(f"f_{T + 1}") - number(M)
            proof.use("start" if t == 1 else f"oscillation_{t}", above_end, (1 / eta - inverse) * proof.mean)
            inverse = 1 / eta
    bound = M * inverse / T + beta * D * D / 2 * sum(etas) / T
    return Identity(theorem, T, bound, proof.constraints, proof.multipliers)


def _step_size(eta: Exact) -> Fraction:
    step = rational("eta", eta)
    if not 0 < step <= 1:
        raise ArgumentError(f"`eta` must be above 0 and at most 1 (W + eta (V - W) stays in the set), and is {eta}.")
    return step


def _at_least_zero(**values: Exact) -> list[Fraction]:
    fractions = {name: rational(name, value) for name, value in values.items()}
    for name, value in fractions.items():
        if value < 0:
            raise ArgumentError(f"`{name}` must be at least 0, and is {value}.")
    return list(fractions.values())
