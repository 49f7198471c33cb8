from . import claims as claims
from . import playground as playground
from . import plot as plot
from . import results as results
from . import stats as stats
from . import theory as theory
from .engine import outcomes as outcomes
from .engine.branch import BranchTest as BranchTest
from .engine.branch import branch_test as branch_test
from .engine.sweep import sweep as sweep
from .instruments import curvature as curvature
from .instruments import memory as memory
from .instruments import noise as noise
from .instruments import throughput as throughput
from .rescale import rescale as rescale
from .theory import least_squares as least_squares
from .theory import noisy_quadratic as noisy_quadratic
from .training import data as data
from .training import models as models
from .training import optim as optim
from .training import parallel as parallel
from .training import schedules as schedules
from .training.loop import History as History
from .training.loop import fit as fit
from .training.run import Run as Run

__version__: str
