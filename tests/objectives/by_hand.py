"""Losses worked out on paper: formulas with math, never with torch.

BY_HAND: three pairs with numbers whose loss can be worked out on paper.
          log-ratios           h    log pi      tokens   log-ratio per token   log pi per token
  pair 0: s_w =  2, s_l = -1   3    -4 and -4   2, 5      1,   -1/5 (6/5)      -2, -4/5 (-6/5)
  pair 1: s_w =  0, s_l =  0   0    -6 and -3   3, 1      0,    0   (0)        -2, -3   ( 1)
  pair 2: s_w = -2, s_l =  1  -3    -8 and -3   4, 2     -1/2,  1/2 (-1)       -2, -3/2 (-1/2)
Losses of single responses see the winners, of which the first two answer one prompt and the third another:
  response 0: score 1, thumb up,   win rate 3/4, token log-probs -1 -3,       values 1/2 1
  response 1: score 0, thumb down, win rate 1/4, token log-probs -1 -2 -3,    values 0 0 1/4
  response 2: score 2, thumb up,   win rate 1/2, token log-probs -2 -2 -2 -2, values 1 1 2 2
"""

import math

import torch

from sail.objectives import Responses
from sail.objectives.responses import Rollout, Tokens


def sigmoid(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-z))


def nls(z: float) -> float:
    """-log sigmoid(z)"""
    return math.log(1.0 + math.exp(-z))


def log_odds(logp: float) -> float:
    return math.log(math.exp(logp) / (1.0 - math.exp(logp)))


def kl(p: float, q: float) -> float:
    """KL(Bernoulli(p) || Bernoulli(q))"""
    return p * math.log(p / q) + (1.0 - p) * math.log((1.0 - p) / (1.0 - q))


BY_HAND = {
    # name: (params, values)
    "dpo": ({"beta": 0.5}, [nls(1.5), nls(0.0), nls(-1.5)]),
    "cdpo": (
        {"beta": 0.5, "epsilon": 0.2},
        [0.8 * nls(1.5) + 0.2 * nls(-1.5), nls(0.0), 0.8 * nls(-1.5) + 0.2 * nls(1.5)],
    ),
    "rdpo": (
        {"beta": 0.5, "epsilon": 0.25},
        [1.5 * nls(1.5) - 0.5 * nls(-1.5), nls(0.0), 1.5 * nls(-1.5) - 0.5 * nls(1.5)],
    ),
    "ipo": ({"beta": 0.25}, [(3.0 - 2.0) ** 2, 2.0**2, 5.0**2]),
    "ipo_mean": ({"beta": 0.25}, [(1.2 - 2.0) ** 2, 2.0**2, 3.0**2]),
    "slic": ({"delta": 1.0}, [1.0, 1.0 + 6.0 - 3.0, 1.0 + 8.0 - 3.0]),
    "hinge": ({"beta": 0.25}, [0.25, 1.0, 1.75]),
    "simpo": ({"beta": 2.0, "gamma": 0.5}, [nls(-2.9), nls(1.5), nls(-1.5)]),
    "orpo": (
        {"odds_weight": 0.25},
        [2.0 + 0.25 * nls(log_odds(-2.0) - log_odds(m)) for m in (-0.8, -3.0, -1.5)],
    ),
    "dpo_norm": ({"beta": 0.5}, [nls(0.6), nls(0.0), nls(-0.5)]),
    "fpo": (  # M_w = 1 2 4, M_l = 2 2 1
        {"beta": 2.0, "alpha": 0.5},
        [nls(2.0 * (1.2 - 0.5)), nls(0.0), nls(2.0 * (-1.0 + 1.5))],
    ),
    "sppo_hard": ({"beta": 0.25}, [0.0 + 1.0, 4.0 + 4.0, 16.0 + 9.0]),
    "exo": (
        {"beta": 0.5, "epsilon": 0.2},
        [kl(sigmoid(1.5), 0.8), 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2), kl(sigmoid(-1.5), 0.8)],
    ),
    "nca": (
        {"beta": 0.5},
        [
            nls(1.0) + 0.5 * nls(-1.0) + 0.5 * nls(0.5),
            2.0 * nls(0.0),
            nls(-1.0) + 0.5 * nls(1.0) + 0.5 * nls(-0.5),
        ],
    ),
    "bco_pair": ({"beta": 0.5}, [nls(1.0) + nls(0.5), 2.0 * nls(0.0), nls(-1.0) + nls(-0.5)]),
    "apo_zero": ({"beta": 0.5}, [1.0 - sigmoid(1.0) + sigmoid(-0.5), 1.0, 1.0 - sigmoid(-1.0) + sigmoid(0.5)]),
    "apo_down": ({"beta": 0.5}, [sigmoid(1.0) + 1.0 - sigmoid(1.5), 1.0, sigmoid(-1.0) + 1.0 - sigmoid(-1.5)]),
    "discopop": (
        {"beta": 0.5, "tau": 0.5},
        [
            (1.0 - sigmoid(3.0)) * nls(1.5) + sigmoid(3.0) * math.exp(-1.5),
            0.5 * nls(0.0) + 0.5,
            (1.0 - sigmoid(-3.0)) * nls(-1.5) + sigmoid(-3.0) * math.exp(1.5),
        ],
    ),
    "dpo_pro": (  # q = .8, radius sqrt(.25 * .16) = .2: the worst p is .6 where z > 0 and 1 where z < 0
        {"beta": 0.5, "epsilon": 0.2, "nu": 0.25},
        [0.6 * nls(1.5) + 0.4 * nls(-1.5), nls(0.0), nls(-1.5)],
    ),
    "sft": ({}, [4.0 / 2.0, 6.0 / 3.0, 8.0 / 4.0]),
    "nll": ({}, [4.0, 6.0, 8.0]),
    "rwr": (  # log_z = 1; the third weight, e^3, is capped
        {"temperature": 0.5, "cap": 10.0},
        [math.exp(1.0) * 4.0, math.exp(-1.0) * 6.0, 10.0 * 8.0],
    ),
    "kto": (  # z0 = 1
        {"beta": 0.5, "desirable_weight": 2.0, "undesirable_weight": 3.0},
        [2.0 * (1.0 - sigmoid(0.5)), 3.0 * (1.0 - sigmoid(0.5)), 2.0 * (1.0 - sigmoid(-1.5))],
    ),
    "sppo": ({"beta": 0.25}, [(2.0 - 1.0) ** 2, (0.0 + 1.0) ** 2, (-2.0 - 0.0) ** 2]),
    "dro_v": ({"tau": 0.5}, [0.5 * 1.0 + 0.25 * 4.0, -0.25 * 3.0, 1.0 * 2.0 + 1.0 * 2.0 + 0.25 * 4.0]),
    "dro_p": ({"tau": 1.0}, [0.5 * 2.0 * 0.25, 0.5 * 2.0 * 0.25, 0.0]),  # r - s = -1 and 0, mean -1/2
    "ppo": (  # rho A, clipped: 1, 3 -> 2.4 / 1, -1, -2 / 0, 1, -1, -1 -> -1.6
        {"cliprange": 0.2},
        [-(1.0 + 2.4), -(1.0 - 1.0 - 2.0), -(0.0 + 1.0 - 1.0 - 1.6)],
    ),
    "rloo": ({"beta": 1.0}, [1.0 * -4.0, -1.0 * -6.0, 0.0]),  # r - s = -1 and 0, each the other's baseline
    "kl_policy_ref": ({}, [2.0 * -4.0, -2.0 * -6.0, 0.0]),
    "kl_ref_policy": ({}, [-2.0, 0.0, 2.0]),
    "optimism": ({"sign": -1.0}, [-2.0, 0.0, 2.0]),
    "linear": ({"beta": 0.5}, [-1.5, 0.0, 1.5]),
    "abs_margin": ({"beta": 0.5}, [1.5, 0.0, 1.5]),
}
CRITICS_BY_HAND = {  # r - tau s = 0, 0, 3
    "dro_v": ({"tau": 0.5}, [0.5 * (0.25 + 1.0) / 2.0, 0.5 * 0.0625 / 3.0, 0.5 * (4.0 + 4.0 + 1.0 + 1.0) / 4.0]),
    "ppo": (  # the second-last but two lies 1 from its old value: clipped to 1/2, whose error is the smaller one
        {"cliprange_value": 0.5},
        [0.5 * 0.25 / 2.0, 0.5 * 1.0 / 3.0, 0.5 * (1.0 + 1.0 + 0.0 + 1.0) / 4.0],
    ),
}


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


LOGPS = tensor(-1.0, -3.0, -1.0, -2.0, -3.0, -2.0, -2.0, -2.0, -2.0)
ROLLOUT = Rollout(
    LOGPS - tensor(*map(math.log, (1.0, 1.5, 0.5, 1.0, 2.0, 1.0, 1.0, 1.0, 0.5))),
    values=tensor(0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 2.0, 2.0),
    advantages=tensor(1.0, 2.0, 2.0, -1.0, -1.0, 0.0, 1.0, -1.0, -2.0),
    returns=tensor(1.0, 1.0, 0.0, 1.0, 0.25, 2.0, 0.0, 2.0, 1.0),
)
CHOSEN = Responses(
    tensor(-4.0, -6.0, -8.0),
    tensor(-6.0, -6.0, -6.0),
    tensor(2.0, 3.0, 4.0),
    group=torch.tensor([0, 0, 1]),
    feature_distances=tensor(1.0, 2.0, 4.0),
    tokens=Tokens(LOGPS, torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2]), ROLLOUT),
)
REJECTED = Responses(
    tensor(-4.0, -3.0, -3.0), tensor(-3.0, -3.0, -4.0), tensor(5.0, 1.0, 2.0), feature_distances=tensor(2.0, 2.0, 1.0)
)

TARGETS = {"score": tensor(1.0, 0.0, 2.0), "thumbs": tensor(1.0, 0.0, 1.0), "win_rate": tensor(0.75, 0.25, 0.5)}
STATISTIC = tensor(1.0)[0]  # log_z of rwr, z0 of kto
VALUES = tensor(0.5, 1.0, 0.0, 0.0, 0.25, 1.0, 1.0, 2.0, 2.0)
