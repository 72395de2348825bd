"""A loss on which the circumradius theorem gives away less and less: its constant cannot be improved."""

from __future__ import annotations

from math import sqrt

from theory.errors import ArgumentError, count, positive


def centred_average(T: int, initial_gap: float = 0.5, beta: float = 1.0, radius: float = 0.5) -> float:
    """The average gap of the centred step on ``L(W) = -s sum W_i + beta |W|^2/2`` over the l1 ball of radius R in T dimensions.

    With ``s = M/R + beta R/(2T)``, M is ``L(0) - min L``. From the centre, iteration t plays the fresh vertex ``R e_t``, for no
    coordinate that was visited has a larger ``|G_i|`` than s. With ``q = 1 - eta`` that gives ``|W_t|_1 = R (1 - q^{t-1})``,
    ``|W_t|^2 = eta R^2 (1 - q^{2(t-1)})/(2 - eta)`` and ``g_t = s R q^{t-1} + beta |W_t|^2``.

    Every constraint of `centred_step` but the start holds with equality. What the bound gives away are its squares,
    ``beta/(2T(1 - eta)) (|W_{T+1}|^2 + eta sum |W_t|^2)`` with ``|W_t|^2 <= eta R^2``, and ``(M - h')/(eta T)``: a share of it
    that vanishes with eta, so that the ratio tends to 1 as T grows. L is convex. Written on diagonal matrices, it is the same
    example for the nuclear ball.

    Args:
        T: iterations, at least ``beta R^2/(2M)``.
        initial_gap: M.
        beta: smoothness.
        radius: R.

    Returns:
        The average gap.

    Raises:
        ArgumentError: T is smaller than that.

    Example:
        >>> ratios = [centred_average(T) / (0.5 * (1 / T) ** 0.5 + 0.5 / T) for T in (10, 1000, 100000)]
        >>> [f"{ratio:.3f}" for ratio in ratios]
        ['0.873', '0.981', '0.998']

    Source: derived in this project.
    """
    T, M, beta, R = count("T", T), positive("initial_gap", initial_gap), positive("beta", beta), positive("radius", radius)
    if 2 * M * T < beta * R**2:
        raise ArgumentError(f"`T` must be at least beta R^2/(2 M) = {beta * R**2 / (2 * M):g}, and is {T}; give a larger M.")
    s, eta = M / R + beta * R / (2 * T), 1 / (1 + R * sqrt(beta * T / (2 * M)))
    q = 1 - eta
    slopes = s * R * (1 - q**T) / (eta * T)
    squares = eta * R**2 / (2 - eta) * (1 - (1 - q ** (2 * T)) / (T * (1 - q**2)))
    return slopes + beta * squares
