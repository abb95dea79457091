"""Responses of several origins to one prompt."""

from pathlib import Path

import pytest

from sail.core.errors import UserError
from sail.core.records import PreferencePair, SampleGroup
from sail.core.store import Store
from sail.generation.meet import meet_responses
from sail.labeling.labelers.order import OrderEvidence
from sail.labeling.pairs import PairingOptions, pair_responses
from tests.update.stored import KEEP, groups, stored_groups


def test_a_prompt_has_the_responses_of_all_sources_in_their_order_and_of_pairs_the_chosen_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    data = stored_groups(store, groups(4, "data:demos"), "data")  # two responses each, the first one chosen
    samples = stored_groups(store, groups(3, "policy"), "samples")
    met = meet_responses(store, [data, samples], "routes.selfplay").read(SampleGroup, "groups")
    assert [group.prompt.prompt_id for group in met] == ["p-0", "p-1", "p-2"]  # the fourth has no sample
    assert [sample.response_id for sample in met[1].samples] == ["p-1-data:demos-0", "p-1-policy-0"]


def test_where_others_rank_the_rejected_responses_meet_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    data = stored_groups(store, groups(2, "data:demos"), "data")
    samples = stored_groups(store, groups(2, "policy"), "samples")
    met = meet_responses(store, [samples, data], "routes.online", rejected=True).read(SampleGroup, "groups")
    assert [sample.origin for sample in met[0].samples] == ["policy"] * 2 + ["data:demos"] * 2


def test_sources_without_a_common_prompt_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    some, others = groups(4, "policy")[:2], groups(4, "reference")[2:]
    sources = [stored_groups(store, some, "samples"), stored_groups(store, others, "samples")]
    with pytest.raises(UserError, match=r"routes\.online\.responses: no prompt is answered by all sources"):
        meet_responses(store, sources, "routes.online.responses")


@pytest.mark.parametrize("first", ["demos", "policy"])
def test_by_order_the_earlier_source_wins_and_only_different_origins_meet(first: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    data = stored_groups(store, groups(3, "data:demos"), "data")
    samples = stored_groups(store, groups(3, "policy"), "data")
    met = meet_responses(store, [data, samples], "routes.selfplay")
    sources = ("demos", "policy") if first == "demos" else ("policy", "demos")
    options = PairingOptions("across", "hard", seed=1, hygiene=KEEP)
    pairs = pair_responses(store, met, OrderEvidence(sources), options).read(PreferencePair, "pairs")
    assert len(pairs) == 3
    for pair in pairs:
        winner = pair.a_id if pair.p_a == 1.0 else pair.b_id
        assert first in winner and pair.labeler == "order"
