"""Streams are named by hash: different names are independent, equal names are equal everywhere."""

import numpy as np

from sail.core.seeds import derive_seed, permutation, uniform


def test_the_seed_of_a_name_never_changes() -> None:
    assert derive_seed(7, "samples", 0, "p-1") == 3409871256249369855
    assert derive_seed(7, "samples", 0, "p-1") != derive_seed(7, "samples", 1, "p-1")
    assert derive_seed(1, 23) != derive_seed(12, 3)


def test_a_server_accepts_a_seed_and_the_seeds_of_its_samples() -> None:
    assert all(0 <= derive_seed(0, index) + 64 < 2**63 for index in range(1000))


def test_uniforms_look_uniform() -> None:
    draws = np.array([uniform(0, "draw", index) for index in range(20000)])
    assert abs(draws.mean() - 0.5) < 0.01
    assert abs(np.histogram(draws, 10, (0, 1))[0] / 2000 - 1).max() < 0.1


def test_a_permutation_is_one() -> None:
    assert sorted(permutation(100, 3, "order")) == list(range(100))
    assert list(permutation(100, 3, "order")) != list(permutation(100, 4, "order"))
