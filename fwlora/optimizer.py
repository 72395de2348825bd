"""`ChainLoRAOptimizer`: Chain of LoRA as a torch.optim optimizer.

The story is told by `step()` and `tie_knot()`: an inner step on the live link's factors and, when the schedule says so, a
knot that merges the link into the frozen weights and starts the next one from scratch.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fwlora import distributed
from fwlora.arguments import check_biases, check_first_rank, check_places, check_rate, flags, rule, whole
from fwlora.building import build_inner, check_muon, groups_by_role
from fwlora.course import Course
from fwlora.errors import (
    DecompositionError,
    FwloraError,
    FwloraWarning,
    KnotError,
    NonFiniteFactorsError,
    RefusedKnotWarning,
    warn,
)
from fwlora.folding import plan
from fwlora.gap import GapReport
from fwlora.inner import check_connected
from fwlora.interrupts import sigint_waits
from fwlora.knot import Knot, check_finite, verify_agreement
from fwlora.layers.attach import attach, lora_layers, undone_on_error
from fwlora.layers.sites import Site, generator_for
from fwlora.linalg import extremes
from fwlora.measuring import MeasuredChain
from fwlora.record.ledger import KnotRecord
from fwlora.restore import Original
from fwlora.rules import (
    Add,
    AllSites,
    BlockRule,
    Every,
    Flat,
    Kaiming,
    KnotSchedule,
    LinkLR,
    MergeRule,
    RankSchedule,
    ResetRule,
)
from fwlora.sharding import local
from fwlora.turns import Turns

if TYPE_CHECKING:
    from peft import LoraConfig


class ChainLoRAOptimizer(MeasuredChain):
    r"""Chain of LoRA (COLA, arXiv 2401.04151, Algorithm 1) in any training loop.

    At every site the frozen weight W carries a live link, ``W + s B A``. Between knots an inner optimizer trains A and B; at a
    knot ``W <- W + s B A``, the factors are reset, the inner optimizer forgets them, and the next link begins. The sum of the
    links is a high-rank update at the memory of one low-rank adapter; in Frank-Wolfe words, each link is one approximate
    linear minimisation.

    Args:
        model: a plain or transformers model, which gets LoRA layers in place, or one that has them (PEFT), which is adopted
            as it stands.
        lr: learning rate of A and of trained modules.
        rank: rank of a link, or a `RankSchedule`; 8 where nothing says otherwise.
        alpha: LoRA's alpha; twice the rank where nothing says otherwise. The scale is ``alpha / rank``.
        target_modules: which layers, as in PEFT; None takes PEFT's choice for the architecture, else every Linear and Conv.
        lora_config: a `peft.LoraConfig` in place of rank, alpha and target_modules.
        knots: when to tie a knot.
        link_lr: a factor on the learning rate within a link.
        reset: where a fresh link starts from.
        merge: how a retired link is folded in: `Add()`, or `FrankWolfe(set, step_size)`, Algorithm 2 of the paper.
        blocks: which sites learn in a link: `AllSites()`, or `Blocks(n)`, one block of layers a link, above frozen ones.
        freeze_A: train B only; A is drawn anew at each knot (RAC-LoRA).
        lora_bias: train a bias with each B and merge it into the layer's own (the paper's OPT setting).
        train_modules: names of modules to train in full beside the factors; their moments survive knots.
        inner: the class of the inner optimizer, or a callable that takes groups and options.
        lr_ratio: B's learning rate over A's (LoRA+).
        weight_decay: the inner optimizer's.
        fast_layers: let a plain Linear run this library's own LoRA forward, which is faster and keeps less; PEFT's runs at
            other layers, and everywhere if False, as second derivatives and forward mode need it.
        chain_dir: a folder to keep retired links in; None keeps them on the CPU.
        original: the base's original weights (a state_dict, a safetensors file or folder), should a load need them.
        residual_in_state: keep the rounding errors of half-precision weights in the state (1 byte a weight).
        exact_replay: refuse a replay that differs from the saved weights by rounding.
        seed: of every draw; the same on all ranks.
        **inner_options: go to the inner optimizer, e.g. ``betas=(0.9, 0.95)``.

    Raises:
        ArgumentError: for an argument that breaks a rule.
        UnsupportedModelError: for a model that cannot be served; the model is left as it was.
        OwnershipError: for a model that another chain owns.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        >>> optimizer = ChainLoRAOptimizer(model, rank=2, knots=Every(500))
        >>> x = torch.randn(4, 6)
        >>> model(x).square().mean().backward(); optimizer.step(); optimizer.zero_grad()
        >>> before = model(x)
        >>> record = optimizer.tie_knot()
        >>> torch.allclose(model(x), before, atol=1e-6), len(optimizer.chain), optimizer.chain.rank("0")
        (True, 1, 2)
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float | Tensor = 2e-4,
        *,
        rank: int | RankSchedule | None = None,
        alpha: float | None = None,
        target_modules: str | Sequence[str] | None = None,
        lora_config: LoraConfig | None = None,
        knots: KnotSchedule = Every(500),  # noqa: B008 - rules are frozen
        link_lr: LinkLR = Flat(warmup=10),  # noqa: B008
        reset: ResetRule = Kaiming(),  # noqa: B008
        merge: MergeRule = Add(),  # noqa: B008
        blocks: BlockRule = AllSites(),  # noqa: B008
        freeze_A: bool = False,
        lora_bias: bool = False,
        train_modules: Sequence[str] = (),
        inner: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
        lr_ratio: float = 1.0,
        weight_decay: float = 0.0,
        fast_layers: bool = True,
        chain_dir: str | os.PathLike[str] | None = None,
        original: Original | None = None,
        residual_in_state: bool = True,
        exact_replay: bool = False,
        seed: int = 0,
        **inner_options: Any,
    ) -> None:
        self.knots = rule("knots", knots, KnotSchedule, "Every(500)")
        self.link_lr = rule("link_lr", link_lr, LinkLR, "Flat(warmup=10)")
        self.merge = rule("merge", merge, MergeRule, "Add()")
        self.blocks = rule("blocks", blocks, BlockRule, "AllSites()")
        check_rate(lr, lr_ratio)
        check_places(chain_dir, original)
        flags(
            freeze_A=freeze_A, lora_bias=lora_bias, fast_layers=fast_layers,
            residual_in_state=residual_in_state, exact_replay=exact_replay,
        )  # fmt: skip
        self.ranks = rank if isinstance(rank, RankSchedule) else None
        course = Course(knots, link_lr)
        brings_its_ranks = lora_config is not None or (isinstance(model, nn.Module) and bool(lora_layers(model)))
        first_rank = rank if self.ranks is None else None if brings_its_ranks else self.ranks.rank(0)

        with undone_on_error(model):
            attachment = attach(
                model,
                rank=first_rank,  # type: ignore[arg-type]
                alpha=alpha,
                target_modules=target_modules,
                lora_config=lora_config,
                lora_bias=lora_bias,
                train_modules=train_modules,
            )
            sites = attachment.sites
            for site in sites.values():
                site.compute_fast(fast_layers)
            check_biases(sites, self.merge)
            turns = Turns(self.blocks, self.merge, sites)
            turns.check(0)
            check_muon(inner, ((name, site.is_linear, site.parameters()) for name, site in sites.items()))
            if freeze_A:
                for site in sites.values():
                    site.drawn.requires_grad_(False)
            groups = groups_by_role(
                [site.parameters() for site in sites.values()], list(attachment.parameters().values()), lr, lr_ratio
            )
            options = {"lr": lr, "weight_decay": weight_decay, **inner_options}
            own_names = inspect.signature(type(self).__init__).parameters
            draws_first = not attachment.adopted and attachment.config.init_lora_weights is True
            if self.ranks is not None and brings_its_ranks:
                check_first_rank(sites, self.ranks)
            if not draws_first:
                turns.check_zero(0)
            super().__init__(
                build_inner(inner, groups, options, own_names),
                attachment,
                course,
                turns,
                rule("reset", reset, ResetRule, "Kaiming()"),
                seed=whole("seed", seed),
                chain_dir=chain_dir,
                original=original,
                residual_in_state=residual_in_state,
                exact_replay=exact_replay,
            )
            self._unchecked_agreement = False
            self._is_connected = False
            if draws_first:
                self.start_link(0)
            elif all(site.is_idle for site in sites.values()):
                self._begin_link(0)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One inner step on the live link; then a knot, if one is due.

        Args:
            closure: evaluates the model and returns the loss, as in torch.optim; called once.

        Returns:
            The closure's loss, or None.

        Raises:
            DisconnectedParametersError: at the first step of a link, where the factors are not in the parameter groups, or a
                layer or its adapter is gone.
            UnsupportedModelError: at the first step of a link, where PEFT has merged the adapter, tensors have come to be
                shared, or weights were cast.
            NoGradientError: at the first step, where no factor has a gradient.
        """
        if closure is None and self.is_state_filling():
            self.inner.step()
            self.forget(self.parameters())
            return None
        self._check_ready()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            self.observe(loss)
        self._turns.drop_gradients()
        if not self._is_connected:
            self._turns.check(len(self._chain))
            self._turns.check_zero(len(self._chain))
            check_connected(self.parameters(), self._factors(), self._alignment.borrowed())
        if not self._is_connected or not self._course.link_step:
            self._check_link()
            self._is_connected = True
        self._course.observe(self._descent(), trains=not self._alignment.is_on)
        with self.rates_times(self.link_factor), self._alignment.probing():
            self.step_inner()
        self._course.count()
        self._is_asked = False
        self._ask_schedule()
        return loss

    def tie_knot(self) -> KnotRecord:
        """Tie a knot now: retire, merge, reset, forget, record. Legal before any step; the schedule is not asked.

        Returns:
            The knot's record.

        Raises:
            NonFiniteFactorsError: where a factor holds inf or nan; nothing was changed.
            DecompositionError: where a rule that reads spectra cannot have one; nothing was changed.
        """
        self._check_measured()
        self._ask_schedule()
        return self._tie(self.merge, self._at_knots)

    def _tie(self, merge: MergeRule, measure: Callable[[], GapReport] | None = None) -> KnotRecord:
        self._check_unfinished()
        self._check_loaded()
        self._reshard()
        self._check_links_of_all()
        self._settle()
        check_finite(self._sites)
        fresh = self._draw_coming()
        gap = None if measure is None else measure()
        self.fingerprint_originals()
        # Read once: with `chain_dir` a link is a file.
        earlier = self._chain if merge.ball is None else self._chain.in_memory()
        live = {name: site.live() for name, site in self._turns.active.items()}
        coefficients, norms, eta, link_norms = plan(merge, live, earlier, None if gap is None else gap.ghat)
        self._knot = Knot(
            len(self._chain),
            self._course.step,
            self._course.link_step,
            live,
            coefficients,
            link_norms,
            earlier,
            fresh,
            {
                "eta": eta,
                "norms": norms,
                "gap": None if gap is None else gap.document(),
                "fallbacks": dict(self._alignment.fallbacks),
            },
        )
        self._unchecked_agreement = True
        self._settle()
        return self._ledger[-1]

    def complete_knot(self) -> None:
        """Go on with a knot that an exception cut off, on this rank and without asking the others; nothing to do otherwise."""
        self._tie_sites()
        self._tell(self._record_knot())
        if distributed.world_size() == 1:  # one that had not begun begins on all ranks, in `step()`
            self._ask_schedule()

    def _settle(self) -> None:
        """Complete a knot on all ranks, or raise on all: its record is written when every rank has tied every site."""
        if not self._unchecked_agreement:
            return
        try:
            self._tie_sites()
        except BaseException:
            distributed.every(False)  # the others wait for this rank's word
            raise
        if not distributed.every(True):
            raise KnotError("The knot was cut off on another rank; `step()` or `tie_knot()` on all ranks completes it.")
        record = self._record_knot()
        if distributed.world_size() > 1:
            # What is sharded differs: there the draws themselves are compared.
            index = len(self._chain)
            verify_agreement(self._draw(s, index) if s.is_sharded else s.drawn for s in self._sites.values())
        self._unchecked_agreement = False
        self._tell(record)

    def _tie_sites(self) -> None:
        if self._knot is not None:
            self._knot.tie_all(self._sites, self._residuals, self, self._chain)

    def _record_knot(self) -> KnotRecord | None:
        if self._knot is None:
            return None
        with sigint_waits():
            record = self._knot.record()
            # All that can fail, the rules among it, comes first, and may be done again.
            self._begin_link(len(self._chain))
            self._keep_links(self._knot.link().shrinks)
            self._knot = None
            self._course.begin_link()
            self._ledger.append(record)
        return record

    def _draw_coming(self) -> dict[str, Tensor]:
        """Ask the rules all that the coming knot needs, before anything is merged: a knot that cannot end must not begin."""
        self._turns.check_zero(len(self._chain))
        self._turns.check(len(self._chain) + 1)
        return self._draw_all(len(self._chain) + 1, KnotError)

    def _draw_all(self, index: int, refusal: type[FwloraError]) -> dict[str, Tensor]:
        fresh = {name: self._draw(site, index) for name, site in self._sites.items()}
        for name, ends in zip(fresh, extremes([*fresh.values()]), strict=True):
            if ends == (0, 0) or not all(map(math.isfinite, ends)):
                raise refusal(f"`reset={self.reset}` draws zeros, inf or nan at {name!r}; a link could never grow from that.")
        return fresh

    def _draw(self, site: Site, index: int) -> Tensor:
        rank = site.width if self.ranks is None else min(site.width, self.ranks.rank(index))
        return self.reset.draw(site.draw_shape(rank), generator_for(self.seed, index, site.name))

    def _descent(self) -> float | None:
        """``-<grad_B, B>``: to first order, what the loss gains as the link grows; None unless the schedule reads it."""
        if "descent" not in self.knots.reads:
            return None
        pairs = [(local(site.zeroed.grad), local(site.zeroed)) for site in self._sites.values() if site.zeroed.grad is not None]
        descent = float(sum(-torch.sum(gradient * B) for gradient, B in pairs))
        # The course takes the mean over the ranks: of shards that is to be the sum.
        return descent * distributed.world_size() if self.is_sharded else descent

    def _ask_schedule(self) -> None:
        """Ask once a step, and tie the knot if it is due; again, where anything was out of memory before the knot had begun."""
        if self._is_asked:
            return
        self._is_asked, knots = True, len(self._chain)
        try:
            if self._course.is_due:
                self._tie_scheduled()
        except BaseException as error:
            is_answer = isinstance(error, FwloraError | FwloraWarning)
            self._is_asked = is_answer or self._knot is not None or len(self._chain) > knots
            raise

    def _tie_scheduled(self) -> None:
        if self._course.link_step <= self.reset.probes and all(site.is_idle for site in self._sites.values()):
            reason = f"`reset={self.reset}` has taken all steps of the link so far, and there is nothing to retire."
        else:
            try:
                self.tie_knot()
                return
            except (NonFiniteFactorsError, DecompositionError) as error:
                reason = str(error)
        self._ledger.append(KnotRecord(len(self._chain), self._course.step, self._course.link_step, refused=reason))
        warn(f"A scheduled knot was refused and waits for the next due step: {reason}", RefusedKnotWarning)

    def _check_ready(self) -> None:
        self._check_unfinished()
        self._reshard()
        self._check_loaded()
        self._settle()
        self._ask_schedule()
        self._check_measured()
        self._course.check_link()
