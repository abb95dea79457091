"""Objectives: pure functions of per-sequence log-probabilities, [B] in, [B] out, unreduced.

CONTRIBUTING.md ("A loss, from start to end") adds one. A function's keyword-only arguments are its parameters: its
settings under `loss:`, with their defaults.
"""

from sail.core.errors import UserError
from sail.objectives import links
from sail.objectives.averaged import dpo_norm, ipo_mean, orpo, simpo
from sail.objectives.features import fpo
from sail.objectives.loss_row import LossRow
from sail.objectives.pairwise import cdpo, dpo, hinge, ipo, rdpo, slic, sppo_hard
from sail.objectives.pairwise_variants import apo_down, apo_zero, bco_pair, discopop, dpo_pro, exo, nca
from sail.objectives.pointwise import kto, nll, rwr, sft, sppo
from sail.objectives.ppo import ppo, ppo_rollouts, ppo_value
from sail.objectives.regression import dro_p, dro_v, dro_value, rloo
from sail.objectives.responses import Responses
from sail.objectives.statistics import StatisticRow, kto_z0, rwr_log_z
from sail.objectives.streams import abs_margin, kl_policy_ref, kl_ref_policy, linear, optimism

__all__ = ["ALIASES", "LOSSES", "LossRow", "Responses", "find_loss"]

_REFERENCE, _TOKENS, _BOTH = ("reference",), ("num_tokens",), ("reference", "num_tokens")
_NO_RIVAL = "a single response has no rival that could have won"
_NO_LABEL = "nobody labels its responses"

LOSSES: dict[str, LossRow] = {
    "dpo": LossRow(dpo, "pair", _REFERENCE, "Rafailov et al. 2023, arXiv 2305.18290, eq. 7", "exact", links.dpo_link),
    "cdpo": LossRow(
        cdpo, "pair", _REFERENCE, "Mitchell 2023, a note on DPO with noisy preferences", "exact", links.cdpo_link,
        elsewhere="dpo with label_smoothing; TRL's sigmoid takes no notice of that setting since v0.29",
    ),
    "rdpo": LossRow(rdpo, "pair", _REFERENCE, "Chowdhury et al. 2024, arXiv 2403.00409", "exact", links.rdpo_link),
    "ipo": LossRow(
        ipo, "pair", _REFERENCE, "Azar et al. 2023, arXiv 2310.12036, eq. 17", "exact", links.ipo_link,
        elsewhere="TRL's DPOTrainer averages over tokens (here: ipo_mean); this one sums, as its paper does",
    ),
    "ipo_mean": LossRow(
        ipo_mean, "pair", _BOTH, "TRL's ipo: arXiv 2310.12036, eq. 17, averaged", "heuristic", links.ipo_mean_link
    ),
    "hinge": LossRow(
        hinge, "pair", _REFERENCE, "RSO, Liu et al. 2023, arXiv 2309.06657, hinge-norm", "heuristic",
        elsewhere="TRL's hinge, the same formula, is documented there as SLiC; SLiC-HF has no reference (here: slic)",
    ),
    "slic": LossRow(
        slic, "pair", (), "Zhao et al. 2023, arXiv 2305.10425, first term of the loss", "heuristic",
        elsewhere="not TRL's hinge, which has a reference (here: hinge)",
    ),
    "simpo": LossRow(
        simpo, "pair", _TOKENS, "Meng et al. 2024, arXiv 2405.14734", "heuristic", links.simpo_link,
        elsewhere="gamma is the paper's, in the unit of beta m; the authors' code sets gamma_beta_ratio = gamma / beta",
    ),
    "orpo": LossRow(
        orpo, "pair", _TOKENS, "Hong et al. 2024, arXiv 2403.07691", "heuristic",
        elsewhere="odds_weight is lambda in the paper and beta in TRL",
    ),
    "dpo_norm": LossRow(
        dpo_norm, "pair", _BOTH, "Lambert et al. 2024 (Tulu 3), arXiv 2411.15124; TRL's sigmoid_norm", "heuristic",
        links.dpo_norm_link, elsewhere="not simpo, which has a margin and no reference",
    ),
    "fpo": LossRow(
        fpo, "pair", (*_BOTH, "features"), "Yin et al. 2024, arXiv 2411.07618, eq. 11", "heuristic",
        elsewhere="the authors' code takes the policy's largest features alone, reads the last hidden state whatever "
        "the autoencoder's layer, and averages over the padded width",
    ),
    "sppo_hard": LossRow(
        sppo_hard, "pair", _REFERENCE, "Wu et al. 2024, arXiv 2405.00675, eq. 4.7 with win rates 1 and 0", "heuristic",
        links.sppo_link,
    ),
    "exo": LossRow(
        exo, "pair", _REFERENCE, "Ji et al. 2024, arXiv 2402.00856, eq. 16", "heuristic",
        hard_only="they would stand inside its KL, and a mean of two outcomes is another loss",
    ),
    "nca": LossRow(nca, "pair", _REFERENCE, "Chen et al. 2024, arXiv 2402.05369; TRL's nca_pair", "heuristic"),
    "bco_pair": LossRow(
        bco_pair, "pair", _REFERENCE, "Jung et al. 2024, arXiv 2404.04656, without the reward shift", "heuristic",
        elsewhere="the paper and older TRL subtract a running mean of the rewards",
    ),
    "apo_zero": LossRow(
        apo_zero, "pair", _REFERENCE, "D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7", "heuristic"
    ),
    "apo_down": LossRow(
        apo_down, "pair", _REFERENCE, "D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8", "heuristic"
    ),
    "discopop": LossRow(discopop, "pair", _REFERENCE, "Lu et al. 2024, arXiv 2406.08414, eq. 5", "heuristic"),
    "dpo_pro": LossRow(
        dpo_pro, "pair", _REFERENCE, "Kim et al. 2025, arXiv 2510.23590, at a fixed trust in hard labels",
        "reconstructed",
        hard_only="its radius sqrt(nu q (1 - q)) depends on the label; state the trust in hard labels as epsilon",
    ),
    "sft": LossRow(
        sft, "response", _TOKENS, "negative log-likelihood per token, every response weighs the same", "exact",
        hard_only=_NO_RIVAL,
    ),
    "nll": LossRow(
        nll, "response", (),
        "filtering alignment, Hu et al. 2023, arXiv 2308.12050, over the rows a filter keeps; Korbak et al. 2023, "
        "arXiv 2302.08582, eq. 4", "exact", hard_only=_NO_RIVAL,
    ),
    "rwr": LossRow(
        rwr, "response", (), "Hu et al. 2023, arXiv 2308.12050; Korbak et al. 2023, arXiv 2302.08582, eq. 5", "exact",
        hard_only=_NO_RIVAL, target="score", statistic=StatisticRow(rwr_log_z, "rows"),
    ),
    "kto": LossRow(
        kto, "response", _REFERENCE, "Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8", "exact", hard_only=_NO_RIVAL,
        target="thumbs", statistic=StatisticRow(kto_z0, "mismatched"),
        elsewhere="z0 is taken over the global batch; TRL and the authors' code take it over one microbatch",
    ),
    "sppo": LossRow(
        sppo, "response", _REFERENCE, "Wu et al. 2024, arXiv 2405.00675, eq. 4.6", "exact", hard_only=_NO_RIVAL,
        target="win_rate",
    ),
    "dro_v": LossRow(
        dro_v, "response", _REFERENCE, "Richemond et al. 2024, arXiv 2405.19107, eq. 8 divided by tau", "exact",
        hard_only=_NO_RIVAL, target="score", critic=dro_value,
    ),
    "dro_p": LossRow(
        dro_p, "group", _REFERENCE, "Richemond et al. 2024, arXiv 2405.19107, eq. 15", "exact", hard_only=_NO_RIVAL,
        target="score",
    ),
    "rloo": LossRow(
        rloo, "group", _REFERENCE, "Ahmadian et al. 2024, arXiv 2402.14740, section 2.3", "exact", hard_only=_NO_RIVAL,
        target="score", samples="policy",
    ),
    "ppo": LossRow(
        ppo, "response", (), "Schulman et al. 2017, arXiv 1707.06347, eq. 7; Ouyang et al. 2022, arXiv 2203.02155",
        "exact", hard_only=_NO_RIVAL, target="score", samples="policy", critic=ppo_value, rollouts=ppo_rollouts,
        elsewhere="summed over the tokens of a response; TRL averages over the tokens of a batch",
    ),
    "kl_policy_ref": LossRow(
        kl_policy_ref, "group", _REFERENCE, "HyPO, Song et al. 2024, arXiv 2406.01462", "reconstructed",
        hard_only=_NO_LABEL, samples="policy",
    ),
    "kl_ref_policy": LossRow(
        kl_ref_policy, "response", _REFERENCE, "SAIL-RevKL, Wu et al. 2026, arXiv 2606.31524", "reconstructed",
        hard_only=_NO_LABEL, samples="reference",
    ),
    "optimism": LossRow(
        optimism, "response", _REFERENCE,
        "SELM, Zhang et al. 2024, arXiv 2405.19332, eq. 4.2; XPO, Xie et al. 2024, arXiv 2405.21046, Algorithm 1; "
        "VPO, Cen et al. 2024, arXiv 2405.19320, reconstructed", "exact", hard_only=_NO_LABEL,
        samples="others",
    ),
    "linear": LossRow(linear, "pair", _REFERENCE, "SPAC, Ji et al. 2024, arXiv 2406.04274", "reconstructed"),
    "abs_margin": LossRow(
        abs_margin, "pair", _REFERENCE, "oracle-robust SAIL, Li et al. 2026, arXiv 2602.20457", "reconstructed"
    ),
}  # fmt: skip

ALIASES: dict[str, str] = {
    "sigmoid": "dpo",
    "robust": "rdpo",
    "sigmoid_norm": "dpo_norm",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "fa": "nll",
}

_BATCH_SORTED = "TRL's {0} sorts log-ratios over the batch: the loss of a pair would depend on its neighbours"
_NOT_HERE = {name: _BATCH_SORTED.format(name) for name in ("aot", "aot_unpaired")}


def find_loss(name: str, *, where: str = "loss.type") -> LossRow:
    """The row of a loss by its name or alias; UserError, naming what there is, where there is none."""
    row = LOSSES.get(ALIASES.get(name, name))
    if row is None:
        known = ", ".join([*LOSSES, *ALIASES])
        hint = _NOT_HERE.get(name, "")
        raise UserError(
            f"no loss named {name!r}" + (f" ({hint})" if hint else ""), where=where, cure=f"Use one of {known}"
        )
    return row
