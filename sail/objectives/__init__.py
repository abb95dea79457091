"""Objectives: pure functions of per-sequence log-probabilities, [B] in, [B] out, unreduced.

To add one: a function in pairwise.py or pointwise.py, a row below, a row in tests/objectives/test_losses.py.
A function's keyword-only arguments are its parameters: they are its settings under `loss:` with their defaults.
"""

from sail.core.errors import UserError
from sail.objectives.links import dpo_link, ipo_link
from sail.objectives.loss_row import LossRow
from sail.objectives.pairwise import dpo, ipo, slic
from sail.objectives.pointwise import sft
from sail.objectives.responses import Responses

__all__ = ["ALIASES", "LOSSES", "LossRow", "Responses", "find_loss"]

LOSSES: dict[str, LossRow] = {
    "dpo": LossRow(
        dpo,
        unit="pair",
        needs=("reference",),
        source="Rafailov et al. 2023, arXiv 2305.18290, eq. 7",
        status="exact",
        link=dpo_link,
    ),
    "ipo": LossRow(
        ipo,
        unit="pair",
        needs=("reference",),
        source="Azar et al. 2023, arXiv 2310.12036, eq. 17",
        status="exact",
        link=ipo_link,
    ),
    "slic": LossRow(
        slic,
        unit="pair",
        needs=(),
        source="Zhao et al. 2023, arXiv 2305.10425, first term of the loss",
        status="heuristic",
    ),
    "sft": LossRow(
        sft,
        unit="response",
        needs=("num_tokens",),
        source="maximum likelihood, mean over the tokens of a response",
        status="exact",
    ),
}

ALIASES: dict[str, str] = {"sigmoid": "dpo"}

_TRL_ONLY = {
    "hinge": "TRL's hinge is max(0, 1 - beta h), with a reference; slic is max(0, delta - log pi_w + log pi_l)",
}


def find_loss(name: str, *, where: str = "loss.type") -> LossRow:
    """The row of a loss by its name or alias; UserError, naming what there is, where there is none."""
    row = LOSSES.get(ALIASES.get(name, name))
    if row is None:
        known = ", ".join([*LOSSES, *ALIASES])
        hint = _TRL_ONLY.get(name, "")
        raise UserError(
            f"no loss named {name!r}" + (f" ({hint})" if hint else ""), where=where, cure=f"Use one of {known}"
        )
    return row
