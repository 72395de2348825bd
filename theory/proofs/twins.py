"""A theorem as Python has it, beside the same theorem as Coq has it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from theory.bounds import Bound, all_bounds, assumptions
from theory.bounds.assumptions import Assumption
from theory.errors import ProofError
from theory.proofs.source import FOLDER, Source

_NAMES = {name for name, kind in vars(assumptions).items() if isinstance(kind, type) and issubclass(kind, Assumption)}


@dataclass(frozen=True)
class Twin:
    """One theorem, twice.

    Args:
        bound: the object that is checked on runs.
        source: the file that proves it.

    Example:
        >>> from theory.bounds import FixedStepBound
        >>> twin = Twin.of(FixedStepBound())
        >>> twin.source.path.name, twin.required() == twin.assumed("statement")
        ('fixed_step.v', True)
    """

    bound: Bound
    source: Source

    @classmethod
    def of(cls, bound: Bound) -> Twin:
        """The file has the name of the bound's module.

        Args:
            bound: a theorem.

        Returns:
            It and its proof.

        Raises:
            ProofError: there is no such file.
        """
        path = FOLDER / f"{type(bound).__module__.rsplit('.', 1)[1]}.v"
        if not path.exists():
            raise ProofError(f"{bound.name} has no proof: there is no {path}.")
        return cls(bound, Source(path))

    @property
    def theorem(self) -> str:
        """What both call it."""
        return type(self.bound).__name__

    @property
    def statement(self) -> str:
        """Name of the definition that Coq's theorem states.

        Raises:
            ProofError: the file has no theorem of this name, or one that is written out.
        """
        stated = self.source.theorems.get(self.theorem)
        if stated is None:
            raise ProofError(f"{self.source.path} has no `Theorem {self.theorem} : statement.`")
        return stated

    def statements(self) -> list[str]:
        """Names of the definitions that Coq's theorem states: one, or those that it joins.

        Returns:
            The names.
        """
        return list(self.source.parts(self.statement))

    def required(self) -> list[str]:
        """What Python asks, as Coq would write it: ``FrankWolfeStep true``."""
        return [_written(type(asked).__name__, vars(asked).values()) for asked in self.bound.requires]

    def assumed(self, statement: str) -> list[str]:
        """Coq's hypotheses that are assumptions in Python too, without what they are about: ``FrankWolfeStep true``.

        Args:
            statement: one of `statements`.

        Returns:
            Them, in order.
        """
        words = [re.findall(r"[\w']+", hypothesis) for hypothesis in self.shared(statement)]
        return [_written(head, [word == "true" for word in rest if word in ("true", "false")]) for head, *rest in words]

    def shared(self, statement: str) -> list[str]:
        """The same as Coq has them: ``FrankWolfeStep P run true``.

        Args:
            statement: one of `statements`.

        Returns:
            Them, in order.
        """
        return [hypothesis for hypothesis in self.source.hypotheses(statement) if hypothesis.split()[0] in _NAMES]

    def others(self) -> list[str]:
        """Coq's other hypotheses, of the setting and its constants, each once."""
        asked = [hypothesis for statement in self.statements() for hypothesis in self.source.hypotheses(statement)]
        return [hypothesis for hypothesis in dict.fromkeys(asked) if hypothesis.split()[0] not in _NAMES]


def twins() -> list[Twin]:
    """One of each theorem of `theory.bounds`.

    Returns:
        Them, each with its proof.

    Raises:
        ProofError: one has none.
    """
    return [Twin.of(bound) for bound in all_bounds()]


def _written(name: str, flags: Iterable[bool]) -> str:
    return " ".join([name, *("true" if flag else "false" for flag in flags)])
