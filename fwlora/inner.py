"""The torch.optim contract, kept by delegation to an inner optimizer.

`param_groups` and `state` are properties that read the inner optimizer's at every use. Sharing them as attributes would be
cut off by the first `load_state_dict` (accelerate does one at `prepare`), and then a scheduler would drive nothing, in silence.
The inner optimizer's per-parameter state is its own: nothing of ours is ever written there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fwlora import distributed
from fwlora.errors import DisconnectedParametersError, NoGradientError, StateError
from fwlora.linalg import extremes
from fwlora.sharding import is_sharded, local

# Optimizers for which zeroing every state tensor in place is the same as never having stepped, bit for bit. For the others
# (NAdam's mu_product starts at 1, Rprop's step size at lr, ...) the state is dropped and they build it anew.
_ZEROED_IS_FRESH: tuple[type[Optimizer], ...] = (
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.RMSprop,
    torch.optim.RAdam,
    torch.optim.Adadelta,
    torch.optim.Adafactor,
    torch.optim.Muon,
)
# Attributes that others hang on the instance (schedulers and accelerate patch `step`) or that hold unpicklable callbacks.
_TRANSIENT = frozenset({
    "step", "_opt_called", "_knot_hooks", "_at_knots",
    "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks", "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks", "_optimizer_load_state_dict_post_hooks",
})  # fmt: skip


class DelegatingOptimizer(Optimizer):
    """An optimizer whose groups and state are another's.

    Args:
        inner: the optimizer that takes the steps.
    """

    def __init__(self, inner: Optimizer) -> None:
        self._built = False
        self.inner = inner
        # Sets up hooks and profiling; what it assigns to groups and state is ignored until `_built`.
        super().__init__(inner.param_groups, inner.defaults)
        self._built = True

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's groups."""
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self._built:
            self.inner.param_groups = groups

    @property
    def state(self) -> dict[Tensor, Any]:
        """The inner optimizer's state, keyed by Parameter."""
        return self.inner.state

    @state.setter
    def state(self, state: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self._built:
            self.inner.state = state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Hand a new group to the inner optimizer."""
        if self._built:
            self.inner.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters, as torch.optim does."""
        self.inner.zero_grad(set_to_none)

    @contextmanager
    def rates_times(self, factor: float) -> Iterator[None]:
        """Every group's lr times a factor, for one inner step; the user's own numbers are put back."""
        rates = [group["lr"] for group in self.param_groups]
        try:
            if factor != 1.0:
                for group, rate in zip(self.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            yield
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter that is stepped, for `clip_grad_norm_`."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """The state document, the hooks of torch.optim around it."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        document = self.state_document()
        for hook in self._optimizer_state_dict_post_hooks.values():
            document = hook(self, document) or document
        return document

    # torch's distributed checkpoint passes the argument by this name.
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state document, the hooks of torch.optim around it."""
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        self.load_document(state_dict)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def state_document(self) -> dict[str, Any]:
        """``state`` and ``param_groups``."""
        return self.inner.state_dict()

    def load_document(self, document: dict[str, Any]) -> None:
        """Restore ``state`` and ``param_groups``; what does not fit is refused before anything changes."""
        self.check_moments(document)
        self.inner.load_state_dict({"state": self._fitted(document["state"]), "param_groups": document["param_groups"]})

    def check_moments(self, document: Mapping[str, Any]) -> None:
        """Refuse ``state`` and ``param_groups`` of another optimizer.

        Args:
            document: of a state.

        Raises:
            StateError: saying what does not fit.
        """
        wrong = self._misfit(document.get("state"), document.get("param_groups"))
        if wrong:
            raise StateError(f"The state's {wrong}; give the same model, `inner=` and options as when it was made.")

    def _fitted(self, moments: Mapping[int, Mapping[str, Any]]) -> Mapping[int, Mapping[str, Any]]:
        """The moments to hold: copies, for steps are taken in place, and a document may be loaded again."""
        return {
            number: {key: value.clone() if isinstance(value, Tensor) else value for key, value in entry.items()}
            for number, entry in moments.items()
        }

    def _misfit(self, state: Any, groups: Any) -> str | None:
        """What of a document is not this optimizer's."""
        if not (isinstance(groups, list) and all(isinstance(group, Mapping) for group in groups)):
            return "`param_groups` is no list of dicts"
        # A distributed checkpoint has names for numbers.
        listed = [group.get("params") for group in groups]
        if not all(isinstance(params, list) and {*map(type, params)} <= {int, str} for params in listed):
            return "`param_groups` list something else than numbers of parameters"
        shape = [(group.get("role"), len(group["params"])) for group in self.param_groups]
        theirs = [(group.get("role"), len(group["params"])) for group in groups]
        if shape != theirs:
            return f"`param_groups` have the roles and sizes {theirs}, and this optimizer's have {shape}"
        missing = self._missing_options(groups)
        if missing:
            return f"`param_groups` have no {', '.join(map(repr, missing))}, options of this {type(self.inner).__name__}"
        if not isinstance(state, Mapping):
            return "`state` is no dict"
        numbers = dict(zip((n for group in groups for n in group["params"]), self.parameters(), strict=True))
        homes = {id(p): i for i, group in enumerate(self.param_groups) for p in group["params"]}
        kinds: dict[Any, str] = {}
        keys: dict[Any, set[Any]] = {}
        counted = {"step" in entry for entry in state.values() if isinstance(entry, Mapping)}
        for number, entry in state.items():
            if number not in numbers or not isinstance(entry, Mapping):
                return f"`state` has the entry {number!r}, which is that of no parameter"
            if not self._is_torchs_own:
                continue
            # An optimizer counts the steps of all parameters or of none.
            if not all(isinstance(key, str) for key in entry) or len(counted) > 1:
                return f"`state[{number}]` has {sorted(map(str, entry))}, which no optimizer keeps beside the other entries"
            parameter = numbers[number]
            # Adafactor keeps other sums of vectors than of matrices, and groups may differ in options.
            like = homes[id(parameter)], parameter.ndim
            usual = keys.setdefault(like, set(entry))
            if set(entry) != usual:
                return f"`state[{number}]` has {sorted(map(str, entry))}, and other entries have {sorted(map(str, usual))}"
            for key, value in entry.items():
                kind = _kind(value, parameter) if isinstance(value, Tensor) else type(value).__name__
                if key == "step" and isinstance(value, Tensor) and value.numel() != 1:
                    kind = "misfit"
                # Of a parameter with an axis of one a sum over that axis has the parameter's own shape.
                if kind == "misfit" or (1 not in parameter.shape and kinds.setdefault((*like, key), kind) != kind):
                    shape = f"{value.dtype} of {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                    return f"`state[{number}][{key!r}]` is {shape}, for a parameter of {tuple(parameter.shape)}"
        return None

    def _missing_options(self, groups: list[Mapping[str, Any]]) -> list[str]:
        """Options that the inner optimizer would look for in vain: those of another torch version it fills in itself."""
        if not self._is_torchs_own:
            return []
        filled = copy.copy(self.inner)
        filled.__setstate__({"param_groups": [{**group, "params": []} for group in groups], "state": {}})
        own = [option for option in self.inner.defaults if all(option in group for group in self.param_groups)]
        return [option for option in own if any(option not in group for group in filled.param_groups)]

    @property
    def _is_torchs_own(self) -> bool:
        return type(self.inner).__module__.startswith("torch.optim")

    def step_inner(self) -> None:
        """The inner optimizer's step.

        Raises:
            DisconnectedParametersError: where it fails on parameters that were cast since their moments were made.
            RuntimeError: where it fails otherwise.
        """
        try:
            self.inner.step()
        except RuntimeError as error:
            for parameter, state in self.state.items():
                moments = [v for v in state.values() if isinstance(v, Tensor) and v.shape == parameter.shape]
                if parameter.ndim and any(moment.dtype != parameter.dtype for moment in moments):
                    raise DisconnectedParametersError(
                        f"The model was cast to {parameter.dtype} after the optimizer had stepped in {moments[0].dtype}. Cast "
                        "it back; a model is to be cast before the first step."
                    ) from error
            raise

    def is_state_filling(self) -> bool:
        """Whether torch's distributed checkpoint is asking for a step, with lr 0 and zero gradients, to fill an empty state."""
        if self.state or any(float(group["lr"]) != 0 for group in self.param_groups):
            return False
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        is_empty = not any(bool(local(gradient).any()) for gradient in gradients)
        is_of_all = any(map(is_sharded, gradients))  # then all ranks ask, and one may hold no row
        return len(gradients) > 0 and (distributed.every(is_empty) if is_of_all else is_empty)

    def forget(self, parameters: Iterable[Tensor]) -> None:
        """Make the inner optimizer treat these parameters as never stepped: moments, and Adam's `step` with them."""
        for parameter in parameters:
            if not self._zeroed_is_fresh:
                self.state.pop(parameter, None)
                continue
            for value in self.state.get(parameter, {}).values():
                if isinstance(value, Tensor):
                    value.zero_()

    def blank_states(self, parameters: Iterable[Tensor]) -> dict[int, dict[str, Any]]:
        """States of zeros, by torch's numbers, for those of the parameters that have none and would be served as well by one.

        Args:
            parameters: of the groups.

        Returns:
            Entries for a state document, shaped after the states that others of the group have.
        """
        wanted = {id(parameter) for parameter in parameters if not self.state.get(parameter)}
        numbers = {id(parameter): number for number, parameter in enumerate(self.parameters())}
        blank = {}
        for group in self.param_groups if self._zeroed_is_fresh else ():
            models = {p.ndim: p for p in group["params"] if self.state.get(p)}
            for parameter in group["params"]:
                if id(parameter) in wanted and parameter.ndim in models:
                    model = models[parameter.ndim]
                    blank[numbers[id(parameter)]] = {
                        key: _zeros_alike(value, model, parameter) for key, value in self.state[model].items()
                    }
        return blank

    @property
    def _zeroed_is_fresh(self) -> bool:
        return type(self.inner) in _ZEROED_IS_FRESH or (
            type(self.inner) is torch.optim.SGD and all(group["dampening"] == 0 for group in self.param_groups)
        )

    def remembers(self, parameters: Iterable[Tensor]) -> bool:
        """Whether a non-zero state tensor is left for any of these parameters."""
        states = (self.state.get(parameter, {}) for parameter in parameters)
        tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return any(ends != (0, 0) for ends in extremes([local(tensor) for tensor in tensors]))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _TRANSIENT}


def _kind(value: Tensor, parameter: Tensor) -> str:
    """Whether a state is a number, has the parameter's shape, or lacks axes that were summed over, as Adafactor's have."""
    if not value.is_floating_point():
        return "misfit"
    if value.ndim == 0:
        return "number"
    if value.shape == parameter.shape:
        return "shaped" if value.dtype == parameter.dtype else "misfit"  # torch would cast it
    is_sum = value.ndim == parameter.ndim and all(a in (1, b) for a, b in zip(value.shape, parameter.shape, strict=True))
    return "sum" if is_sum else "misfit"


def _zeros_alike(value: Any, model: Tensor, parameter: Tensor) -> Any:
    """Zeros that are to a parameter what `value` is to a model of as many axes."""
    if not isinstance(value, Tensor) or value.ndim != model.ndim:
        return torch.zeros_like(value) if isinstance(value, Tensor) else value
    sizes = zip(value.shape, model.shape, parameter.shape, strict=True)
    return value.new_zeros([wanted if size == of_model else size for size, of_model, wanted in sizes])


def check_connected(stepped: Iterable[Tensor], factors: Iterable[nn.Parameter], borrowed: Iterable[nn.Parameter] = ()) -> None:
    """At the first step: the groups hold the model's own factors, and some factor has a gradient.

    Args:
        stepped: the parameters in the groups.
        factors: the model's factors, looked up now.
        borrowed: factors that require a gradient for the time being and are not stepped.

    Raises:
        DisconnectedParametersError: for factors that no group holds.
        NoGradientError: where nothing would ever train.
    """
    stepped = list(stepped)
    ids = {id(parameter) for parameter in stepped}
    lent = {id(parameter) for parameter in borrowed}
    trainable = [parameter for parameter in factors if parameter.requires_grad]
    if any(id(parameter) not in ids | lent for parameter in trainable):
        if any(tensor.ndim == 1 and not isinstance(tensor, nn.Parameter) for tensor in stepped):
            raise DisconnectedParametersError(
                "The parameter groups hold flat tensors in place of the model's parameters, as DeepSpeed's ZeRO puts there, "
                "and a chain must find its factors. Use FSDP2 (`fully_shard`), DistributedDataParallel, or ZeRO stage 0."
            )
        raise DisconnectedParametersError(
            "The optimizer's parameters are no longer the model's own (was the model sharded, cast or re-injected after "
            "`ChainLoRAOptimizer(model)`?); make the optimizer last."
        )
    if all(parameter.grad is None for parameter in trainable):
        raise NoGradientError(
            "No factor has a gradient at the first step. Call `loss.backward()` before `step()`; under gradient "
            "checkpointing use `use_reentrant=False`, or `model.enable_input_require_grads()`."
        )
