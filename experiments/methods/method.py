"""What every method can say of itself."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import nn

from experiments.errors import UsageError
from experiments.train import Setup


class Method(Protocol):
    """A way to adapt a model: a frozen dataclass of plain values and rules, since a run is known by them."""

    @property
    def label(self) -> str:
        """The name in tables and figures."""
        ...

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        ...

    def prepare(self, model: nn.Module, targets: Sequence[str], *, steps: int, seed: int, trained: Sequence[str] = ()) -> Setup:
        """Makes `model` trainable, in place.

        Args:
            model: a base model that nothing has touched.
            targets: the layers to adapt, by name.
            steps: optimizer steps of the whole run.
            seed: of what is drawn.
            trained: modules to train in full beside what is adapted, by name or ending of a name: an encoder's new head.

        Returns:
            The model with its optimizer.
        """
        ...

    def inject(self, model: nn.Module, targets: Sequence[str], *, trained: Sequence[str] = ()) -> nn.Module:
        """The layers and `requires_grad` of `prepare` alone, for counting; `model` may lie on the meta device.

        Args:
            model: a base model that nothing has touched.
            targets: the layers to adapt, by name.
            trained: modules to train in full beside them.

        Returns:
            The model to call.
        """
        ...

    def state_size(self, shape: Sequence[int]) -> int:
        """How many numbers the optimizer keeps for a trained parameter.

        Args:
            shape: the parameter's.

        Returns:
            The numbers beside the parameter and its gradient, without step counters.
        """
        ...

    def state_numbers(self, model: nn.Module, targets: Sequence[str], *, trained: Sequence[str] = ()) -> int:
        """How many numbers the optimizer keeps at one time, for a whole model.

        Args:
            model: what `inject` returned.
            targets: as given to it.
            trained: as given to it.

        Returns:
            The sum of `state_size` over the parameters that have a state.
        """
        ...

    def planned_knots(self, steps: int) -> list[int]:
        """The steps after which knots are planned; none where there are no knots, or where the data decide.

        Args:
            steps: optimizer steps of the whole run.

        Returns:
            Their numbers, from 1.
        """
        ...


class Plain:
    """What a method says that has no knots and keeps Adam's two moments of each trained parameter."""

    def state_size(self, shape: Sequence[int]) -> int:
        """Adam's two moments."""
        return 2 * math.prod(shape)

    def state_numbers(self, model: nn.Module, targets: Sequence[str], *, trained: Sequence[str] = ()) -> int:
        """Of all trained parameters."""
        return sum(self.state_size(parameter.shape) for parameter in model.parameters() if parameter.requires_grad)

    def planned_knots(self, steps: int) -> list[int]:
        """None."""
        return []


def called(model: nn.Module, names: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """The modules of a model that go by one of some names, as PEFT matches them.

    Args:
        model: the model.
        names: of modules, or endings of their names.

    Returns:
        Paths and modules.
    """
    return [
        (path, module)
        for path, module in model.named_modules()
        if any(path == name or path.endswith(f".{name}") for name in names)
    ]


def unfreeze(model: nn.Module, names: Sequence[str]) -> list[nn.Parameter]:
    """Lets modules be trained in full.

    Args:
        model: the model.
        names: of modules, or endings of their names.

    Returns:
        Their parameters.

    Raises:
        UsageError: no module is called so.
    """
    for name in names:
        if not called(model, [name]):
            raise UsageError(f"trained={name!r}: the model has no module of that name or ending; name one that it has.")
    chosen = {parameter: None for _, module in called(model, names) for parameter in module.parameters()}
    for parameter in chosen:
        parameter.requires_grad_(True)
    return list(chosen)


def unavailable(method: Method) -> str | None:
    """Why a method cannot run here.

    Args:
        method: any method.

    Returns:
        What is missing and how to get it; None where nothing is.
    """
    needs: dict[str, str] = getattr(method, "needs", {})
    for package, module in needs.items():
        if importlib.util.find_spec(module) is None:
            return f"{package} is not installed: pip install --group peers"
    missing: Callable[[], str | None] = getattr(method, "missing", lambda: None)
    return missing()


def require(method: Method) -> None:
    """Refuses a method whose package is not there.

    Args:
        method: any method.

    Raises:
        UsageError: something is missing.
    """
    reason = unavailable(method)
    if reason is not None:
        raise UsageError(f"{method.label}: {reason}.")
