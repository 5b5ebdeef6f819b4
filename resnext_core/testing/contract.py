"""BackendContract: every standard test in one class."""

from __future__ import annotations

from resnext_core.testing.distributed import DistributedContract
from resnext_core.testing.export import ExportContract
from resnext_core.testing.identity import IdentityContract
from resnext_core.testing.ingredients import IngredientContract
from resnext_core.testing.optimizer import OptimizerContract
from resnext_core.testing.overflow import OverflowContract
from resnext_core.testing.prediction import PredictionContract
from resnext_core.testing.resume import ResumeContract


class BackendContract(
    IdentityContract,
    PredictionContract,
    OptimizerContract,
    IngredientContract,
    OverflowContract,
    ResumeContract,
    ExportContract,
    DistributedContract,
):
    """The contract of a backend. Subclass it, set `backend_id`, and run pytest."""

    __test__ = False  # the kit itself is no backend; __init_subclass__ turns it on for those that name one
