"""The baseline b of the score term: a running mean over earlier optimizer steps."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sail.core.errors import UserError


@dataclass(frozen=True)
class RunningMean:
    """The mean of pair_value over all pairs of all EARLIER optimizer steps; every pair counts once.

    Weighing by pairs, not by steps, makes it independent of batch size, accumulation and rank count: the caller
    all-reduces (sum, count) over the global batch and updates once per optimizer step, after the step's losses are
    formed. That order is what keeps the gradient unbiased: b never depends on a pair it is subtracted from, nor on
    one that shares a response with it (a leave-one-out mean does, and shrinks the term).
    Its lag behind a falling loss costs variance, never bias.

    Example: RunningMean().update(1.4, 2) == RunningMean(count=2, mean=0.7).
    """

    count: int = 0
    """pairs averaged so far, >= 0"""
    mean: float = 0.0
    """their mean, in the unit of the loss; meaningless while count == 0"""

    def value(self, start: float) -> float:
        """b for this step: the mean, or `start` (LossRow.baseline_start) while nothing has been averaged."""
        return self.mean if self.count else start

    def update(self, values_sum: float, count: int) -> "RunningMean":
        """The record after one optimizer step that summed `count` >= 0 values to `values_sum`.

        A non-finite sum raises UserError: it would silence every later step.
        """
        if not math.isfinite(values_sum):
            raise UserError(
                f"the loss values of an optimizer step sum to {values_sum}",
                where="sail baseline",
                cure="Lower update.learning_rate or update.max_grad_norm, or look for a non-finite log-probability",
            )
        total = self.count + count
        if total == 0:
            return self
        return RunningMean(total, self.mean + (values_sum - count * self.mean) / total)

    def to_dict(self) -> dict[str, int | float]:
        """{"count", "mean"}, for the step checkpoint; floats survive JSON to the last bit."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, object], where: str = "sail baseline") -> "RunningMean":
        """The inverse of to_dict; UserError, naming the file `where` it stands, where the record is not one."""
        count, mean = record.get("count"), record.get("mean")
        if type(count) is not int or count < 0 or not isinstance(mean, int | float) or not math.isfinite(mean):
            raise UserError(
                f"expected {{count: int >= 0, mean: finite float}}, got {dict(record)}",
                where=where,
                cure="The file is damaged: delete its folder step-..., and that round's update starts anew; a damaged "
                "file of a committed checkpoint is found by `sail verify`",
            )
        return cls(count, float(mean))
