"""Which prompts go where."""

from sail.testbed.prompts import split_prompts
from sail.testbed.settings import BuildSettings


def test_pairs_heldout_pairs_and_free_prompts_share_none():
    split = split_prompts(BuildSettings(num_labels=4380))
    together = split.heldout + split.free + split.labelled
    assert len(together) == len(set(together)) == 300 + 3000 + 4380


def test_more_labels_keep_the_prompts_of_fewer_and_move_nothing_else():
    few, many = split_prompts(BuildSettings(num_labels=100)), split_prompts(BuildSettings(num_labels=1000))
    assert many.labelled[:100] == few.labelled
    assert (many.heldout, many.free, many.trained) == (few.heldout, few.free, few.trained)


def test_another_seed_gives_another_split():
    assert split_prompts(BuildSettings(seed=1)).heldout != split_prompts(BuildSettings(seed=0)).heldout
