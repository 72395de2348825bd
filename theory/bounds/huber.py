"""The Huber function, in which the nonconvex rates are written: quadratic below C, linear above."""

from __future__ import annotations

import numpy as np

from theory.points import Array
from theory.trajectory import Trajectory


def phi(g: Array | float, C: float) -> Array:
    """``phi(g) = max_{eta in [0, 1]} eta g - eta^2 C/2 = g^2/(2C)`` for ``g <= C``, ``g - C/2`` above; convex, increasing.

    Args:
        g: gaps, not negative.
        C: ``beta D^2``, not negative.

    Returns:
        The decrease that a step along a gap g is sure of.

    Example:
        >>> phi(np.array([1.0, 3.0]), C=2.0).tolist()
        [0.25, 2.0]
    """
    g = np.asarray(g, dtype=float)
    # eta = min(1, g/C); for C = 0 the whole step.
    eta = np.divide(g, C, out=np.ones_like(g), where=g < C)
    return eta * g - eta**2 * C / 2


def phi_mean(run: Trajectory) -> Array:
    """``phi^{-1}(mean phi(max(ghat_t, 0))) + mean eps_t``: by Jensen no less than the mean gap, ``(T,)``.

    Args:
        run: its gaps, shortfalls and constants.

    Returns:
        One number for every t.
    """
    ghat, C = np.maximum(run.column("gap") - run.column("eps"), 0.0), run.constants.curvature
    return phi_inverse(phi(ghat, C).cumsum() / np.arange(1, len(run) + 1), C) + run.running_mean("eps")


def phi_inverse(y: Array | float, C: float) -> Array:
    """The gap g with ``phi(g) = y``: ``sqrt(2 C y)`` for ``y <= C/2``, ``y + C/2`` above.

    Args:
        y: decreases, not negative.
        C: ``beta D^2``.

    Returns:
        The gaps.

    Example:
        >>> g = np.array([0.0, 1.0, 3.0])
        >>> np.allclose(phi_inverse(phi(g, C=2.0), C=2.0), g)
        True
    """
    y = np.maximum(np.asarray(y, dtype=float), 0.0)
    return np.where(y <= C / 2, np.sqrt(2 * C * y), y + C / 2)
