"""Every parameter out of its range is refused by name, before anything runs, and so is one that a loss has not."""

import math

import pytest

from sail.core.errors import UserError
from sail.objectives import LOSSES

WITH_BETA = [name for name, row in LOSSES.items() if "beta" in row.params]
OUT_OF_RANGE = [
    *((name, "beta", value) for name in WITH_BETA if name != "rloo" for value in (0.0, -0.1, math.nan)),
    *((name, "epsilon", value) for name in ("cdpo", "rdpo", "dpo_pro", "exo") for value in (-0.1, 0.5, 0.7, math.nan)),
    *((name, "tau", value) for name in ("dro_v", "dro_p") for value in (0.0, -1.0, math.inf, math.nan)),
    *(("rwr", name, value) for name in ("temperature", "cap") for value in (0.0, -1.0, math.inf, math.nan)),
    *(("rwr", "min_effective", value) for value in (-0.1, 1.1, math.nan)),
    *(("kto", name, -1.0) for name in ("desirable_weight", "undesirable_weight")),
    ("exo", "epsilon", 0.0), ("slic", "delta", -1.0), ("simpo", "gamma", -0.5), ("orpo", "odds_weight", -1.0),
    ("discopop", "tau", 0.0), ("discopop", "tau", 1.5), ("dpo_pro", "nu", -0.1), ("dpo", "beta", math.inf),
    *(("ppo", name, value) for name in ("cliprange", "cliprange_value") for value in (0.0, -1.0, math.nan)),
    *(("ppo", name, value) for name in ("gamma", "lam") for value in (-0.1, 1.1, math.nan)),
    ("ppo", "gamma", 0.0), ("ppo", "kl_coef", -0.1), ("ppo", "whiten", 0.5), ("fpo", "alpha", -1.0),
    ("rloo", "beta", -0.1), ("optimism", "sign", 0.0), ("optimism", "sign", 0.5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "parameter", "value"), OUT_OF_RANGE)
def test_a_parameter_out_of_range_is_refused_by_name(name, parameter, value):
    with pytest.raises(UserError, match=f"loss.{parameter}: {parameter} is {value}"):
        LOSSES[name].check(**{parameter: value})


@pytest.mark.parametrize("name", LOSSES)
def test_every_parameter_has_a_range_and_a_loss_refuses_those_of_others(name):
    refused = {parameter for row, parameter, _ in OUT_OF_RANGE if row == name}
    assert refused == set(LOSSES[name].params)
    with pytest.raises(UserError, match=r"loss.betta: no parameter 'betta'. Its parameters: "):
        LOSSES[name].check(betta=0.1)


def test_no_pull_to_the_reference_is_reinforce_and_is_allowed():
    LOSSES["rloo"].check(beta=0.0)
    LOSSES["optimism"].check(sign=-1.0)
