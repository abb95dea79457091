"""The loss that CONTRIBUTING.md adds keeps the contract, in the registries as they are."""

import re
from typing import Any

import pytest
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sail.core.errors import UserError
from sail.objectives import LOSSES, LossRow, Responses
from sail.objectives.parameters import positive
from sail.objectives.responses import log_ratio_gap
from tests.docs.pages import ROOT
from tests.objectives.by_hand import BY_HAND
from tests.objectives.contract import keeps_the_contract

PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def run(block: str) -> tuple[dict[str, LossRow], dict[str, Any]]:
    """The registries after the block: copies, so that no other test sees its loss."""
    losses, by_hand = dict(LOSSES), dict(BY_HAND)
    names = {"Responses": Responses, "Tensor": Tensor, "F": F, "positive": positive, "log_ratio_gap": log_ratio_gap}
    exec(block, {**names, "LOSSES": losses, "LossRow": LossRow, "BY_HAND": by_hand})
    return losses, by_hand


def the_block() -> str:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return block


def test_the_block_adds_one_loss_that_keeps_the_contract() -> None:
    losses, by_hand = run(the_block())
    (name,) = set(losses) - set(LOSSES)
    assert set(by_hand) - set(BY_HAND) == {name} and name in PAGE.split("```")[2]
    keeps_the_contract(losses[name], *by_hand[name])
    assert losses[name].params == {"beta": 0.1}
    with pytest.raises(UserError, match="beta is -1"):
        losses[name].check(beta=-1.0)


@pytest.mark.parametrize(("right", "wrong"), [
    ("[0.25**2, 1.0, 1.75**2]", "[0.25, 1.0, 1.75]"),  # a value
    ('("reference",)', "()"),  # what it reads
    ('("reference",)', '("reference", "num_tokens")'),
    (".square()", ".square().mean().expand(len(chosen.logps))"),  # rows of their own
    (".square()", ".square().detach() + 0.0 * chosen.logps"),  # the gradient
    (".square()", ".exp()"),  # finite
    (', "an example of this page"', ', ""'),  # the source
])  # fmt: skip
def test_the_contract_finds_what_is_wrong_with_it(right: str, wrong: str) -> None:
    assert right in the_block()
    losses, by_hand = run(the_block().replace(right, wrong))
    with pytest.raises(AssertionError):
        keeps_the_contract(losses["squared_hinge"], *by_hand["squared_hinge"])
