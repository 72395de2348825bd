"""Chain of LoRA as a torch.optim optimizer: train a small adapter, tie a knot, start the next, export the sum."""

from fwlora.confidence import Interval as Interval
from fwlora.gap import GapReport as GapReport
from fwlora.gap import SiteGap as SiteGap
from fwlora.layers.sites import Site as Site
from fwlora.optimizer import ChainLoRAOptimizer as ChainLoRAOptimizer
from fwlora.optimizer import unwrap as unwrap
from fwlora.record.chain import Chain as Chain
from fwlora.record.chain import Link as Link
from fwlora.record.export import ExportReport as ExportReport
from fwlora.record.ledger import KnotRecord as KnotRecord
from fwlora.record.ledger import Ledger as Ledger
from fwlora.rules import Add as Add
from fwlora.rules import AllSites as AllSites
from fwlora.rules import At as At
from fwlora.rules import Ball as Ball
from fwlora.rules import BlockRule as BlockRule
from fwlora.rules import Centred as Centred
from fwlora.rules import Constant as Constant
from fwlora.rules import CountedKnots as CountedKnots
from fwlora.rules import Decay as Decay
from fwlora.rules import Evenly as Evenly
from fwlora.rules import Every as Every
from fwlora.rules import Fixed as Fixed
from fwlora.rules import Flat as Flat
from fwlora.rules import FrankWolfe as FrankWolfe
from fwlora.rules import GapBelow as GapBelow
from fwlora.rules import Gaussian as Gaussian
from fwlora.rules import GradientAligned as GradientAligned
from fwlora.rules import Kaiming as Kaiming
from fwlora.rules import KnotSchedule as KnotSchedule
from fwlora.rules import LinkLR as LinkLR
from fwlora.rules import MergeRule as MergeRule
from fwlora.rules import Never as Never
from fwlora.rules import NuclearBall as NuclearBall
from fwlora.rules import OpenLoop as OpenLoop
from fwlora.rules import Orthogonal as Orthogonal
from fwlora.rules import Plateau as Plateau
from fwlora.rules import Progress as Progress
from fwlora.rules import RankSchedule as RankSchedule
from fwlora.rules import ResetRule as ResetRule
from fwlora.rules import ShortStep as ShortStep
from fwlora.rules import StepDown as StepDown
from fwlora.rules import StepSize as StepSize
from fwlora.rules import SupportBall as SupportBall

__version__ = "0.1.0"
