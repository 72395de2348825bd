"""The questions a chain answers: when, how wide, how fast, from where, folded how, which sites.

Each answer is a small frozen dataclass. A rule is pure: it sees numbers and shapes, never a model, so the same rule may
serve any number of optimizers and a run is told by the reprs of its rules.
"""

from fwlora.rules.blocks import AllSites as AllSites
from fwlora.rules.blocks import BlockRule as BlockRule
from fwlora.rules.blocks import Blocks as Blocks
from fwlora.rules.knots import At as At
from fwlora.rules.knots import CountedKnots as CountedKnots
from fwlora.rules.knots import Evenly as Evenly
from fwlora.rules.knots import Every as Every
from fwlora.rules.knots import KnotSchedule as KnotSchedule
from fwlora.rules.knots import Never as Never
from fwlora.rules.link_lr import Decay as Decay
from fwlora.rules.link_lr import Flat as Flat
from fwlora.rules.link_lr import LinkLR as LinkLR
from fwlora.rules.merges import Add as Add
from fwlora.rules.merges import Coefficients as Coefficients
from fwlora.rules.merges import FrankWolfe as FrankWolfe
from fwlora.rules.merges import MergeRule as MergeRule
from fwlora.rules.progress import Progress as Progress
from fwlora.rules.ranks import Constant as Constant
from fwlora.rules.ranks import RankSchedule as RankSchedule
from fwlora.rules.ranks import StepDown as StepDown
from fwlora.rules.resets import Gaussian as Gaussian
from fwlora.rules.resets import GradientAligned as GradientAligned
from fwlora.rules.resets import Kaiming as Kaiming
from fwlora.rules.resets import Orthogonal as Orthogonal
from fwlora.rules.resets import ResetRule as ResetRule
from fwlora.rules.sets import Ball as Ball
from fwlora.rules.sets import NuclearBall as NuclearBall
from fwlora.rules.sets import SupportBall as SupportBall
from fwlora.rules.step_sizes import Centred as Centred
from fwlora.rules.step_sizes import Fixed as Fixed
from fwlora.rules.step_sizes import OpenLoop as OpenLoop
from fwlora.rules.step_sizes import Retiring as Retiring
from fwlora.rules.step_sizes import ShortStep as ShortStep
from fwlora.rules.step_sizes import StepSize as StepSize
from fwlora.rules.triggers import GapBelow as GapBelow
from fwlora.rules.triggers import Plateau as Plateau
