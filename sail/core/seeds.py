"""Seeds by hash: every random stream is named, none is a position in another stream."""

import hashlib
import json
from typing import TypeAlias

import numpy as np

SeedPart: TypeAlias = int | str

_SEED_BITS = 62  # vLLM refuses 2**63 and sample i of a request uses seed + i


def derive_seed(*parts: SeedPart) -> int:
    """A 62-bit seed in [0, 2**62) from the names of a stream.

    derive_seed(7, "samples", 0, "prompt-3fa9") is the SHA-256 of the parts' JSON, so two streams with different
    names are independent, and neither the order of work nor its split over processes changes a draw.
    """
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)


def uniform(*parts: SeedPart) -> float:
    """One draw from U[0, 1), a pure function of the names of its stream."""
    return derive_seed(*parts) / float(1 << _SEED_BITS)


def permutation(size: int, *parts: SeedPart) -> np.ndarray:
    """A seeded permutation of range(size), shape [size], int64."""
    return np.random.Generator(np.random.Philox(derive_seed(*parts))).permutation(size)
