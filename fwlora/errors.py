"""What can go wrong, by name.

Every message names the argument as the user typed it, the rule, the value and the way out.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch


class FwloraError(Exception):
    """Root of every error that fwlora raises on its own account."""


class ArgumentError(FwloraError, ValueError):
    """An argument breaks a rule; nothing was changed."""


class UnsupportedModelError(FwloraError, ValueError):
    """The model holds something that a chain cannot serve; the model is as it was."""


class OwnershipError(FwloraError, RuntimeError):
    """The LoRA layers of this model belong to another chain."""


class DisconnectedParametersError(FwloraError, RuntimeError):
    """The optimizer's parameters are no longer the model's own."""


class NoGradientError(FwloraError, RuntimeError):
    """A first step at which no factor has a gradient: the model would never train."""


class NonFiniteFactorsError(FwloraError, RuntimeError):
    """A knot was asked for while a factor holds inf or nan; nothing was changed."""


class DecompositionError(FwloraError, RuntimeError):
    """An SVD that did not converge; what asked for it was not done, and nothing was changed."""


class RankDisagreementError(FwloraError, RuntimeError):
    """Data-parallel ranks hold different factors after a knot."""


class KnotError(FwloraError, RuntimeError):
    """A knot did not leave what it promises; a bug of ours or of the inner optimizer."""


class StateError(FwloraError, RuntimeError):
    """A state document that does not belong to this optimizer or to these weights; nothing was changed."""


class ChainFileError(FwloraError, OSError):
    """A link's file is missing or is not the file that the state was saved with."""


class FinishedError(FwloraError, RuntimeError):
    """The chain was folded into the model by `merge_and_unload()`; there is nothing left to train."""


class FwloraWarning(UserWarning):
    """Root of every warning that fwlora gives."""


class ShortLinkWarning(FwloraWarning):
    """A link has fewer optimizer steps than a chain was measured to need."""


class SkippedLayersWarning(FwloraWarning):
    """Layers that `target_modules=None` leaves alone."""


class RefusedKnotWarning(FwloraWarning):
    """A scheduled knot was refused and waits for the next due step."""


class CloseReplayWarning(FwloraWarning):
    """Replayed weights differ from the saved ones by rounding only."""


class LostUpdatesWarning(FwloraWarning):
    """Updates are too small for the weights' precision, and lost for good."""


class RunningStatisticsWarning(FwloraWarning):
    """Layers whose running statistics neither the state nor an export holds."""


class SaveModelWarning(FwloraWarning):
    """`save_model()` will not write what the user expects."""


# Frames of these are between us and the user: torch's hooks, and schedulers that patch `step`.
_BETWEEN = (f"{Path(__file__).parent}/", f"{Path(torch.__file__).parent}/")


def warn(message: str, category: type[FwloraWarning]) -> None:
    """Warn at the user's own line: that of the first frame outside this library and torch."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
