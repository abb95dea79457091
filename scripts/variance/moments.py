"""Mean and variance of vectors that come one by one."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moments:
    """Running sums over n independent vectors [D]; both figures below are unbiased, for n >= 2."""

    count: int = 0
    total: Tensor | float = 0.0  # [D]
    squares: float = 0.0  # sum of squared norms

    def add(self, vector: Tensor) -> None:
        self.count += 1
        self.total = self.total + vector
        self.squares += float(vector.square().sum())

    @property
    def variance(self) -> float:
        """The trace of the covariance of one vector."""
        return (self.squares - self._norm / self.count) / (self.count - 1)

    @property
    def squared_mean(self) -> float:
        """||E v||^2 by the products of different vectors: below 0 by chance where the mean is nothing."""
        return (self._norm - self.squares) / (self.count * (self.count - 1))

    @property
    def _norm(self) -> float:
        return float(torch.as_tensor(self.total).square().sum())
