"""Who sees whom in a packed row of trees, against a mask written out token by token; the three kernels' inputs."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask

from sail.policy.tree_attention import BLOCK, Tree, TreeLayout, flex_tree_attention, pieces_attention

CPU = torch.device("cpu")
HEADS, KEY_HEADS, DIM = 4, 2, 8
SMALL = [Tree(prompt, branches) for prompt in (1, 2, 4) for branches in ((), (1,), (3,), (1, 2), (2, 1, 3))]
LARGE = (Tree(200, (70, 130, 5)), Tree(129, ()), Tree(3, (250, 1)), Tree(60, (BLOCK,)), Tree(256, (256, 256)))
trees_strategy = st.lists(
    st.builds(Tree, st.integers(1, 90), st.lists(st.integers(1, 150), max_size=4).map(tuple)), min_size=1, max_size=6
)


def written_out(trees: list[Tree] | tuple[Tree, ...]) -> torch.Tensor:
    """[T, T] bool, straight from the definition: same tree, not later, and in the prompt or the same branch."""
    tokens = [
        (tree_index, branch)
        for tree_index, tree in enumerate(trees)
        for branch, length in enumerate((tree.prompt, *tree.branches))
        for _ in range(length)
    ]
    seen = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for q, k in itertools.product(range(len(tokens)), repeat=2):
        same_tree, same_branch = tokens[q][0] == tokens[k][0], tokens[q][1] == tokens[k][1]
        seen[q, k] = k <= q and same_tree and (same_branch or tokens[k][1] == 0)
    return seen


def mask_of(layout: TreeLayout) -> torch.Tensor:
    positions = torch.arange(layout.num_tokens)
    return layout.block_mask.mask_mod(positions[:0], positions[:0], positions[:, None], positions[None, :])


def states(length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return tuple(torch.randn(1, heads, length, DIM) for heads in (HEADS, KEY_HEADS, KEY_HEADS))  # type: ignore[return-value]


def by_pieces(layout: TreeLayout, scaling: float) -> torch.Tensor:
    module = torch.nn.Module()
    module.num_key_value_groups = HEADS // KEY_HEADS  # type: ignore[assignment]
    return pieces_attention(module, *states(layout.num_tokens), layout, scaling=scaling)


def test_the_mask_is_the_definition_for_every_row_of_up_to_two_small_trees() -> None:
    rows = [[tree] for tree in SMALL] + [list(pair) for pair in itertools.product(SMALL, repeat=2)]
    for trees in rows:
        assert torch.equal(mask_of(TreeLayout(trees, CPU)), written_out(trees)), trees


@settings(max_examples=30)
@given(trees_strategy)
def test_blocks_seen_in_part_and_in_full_are_those_of_the_whole_mask(trees: list[Tree]) -> None:
    layout = TreeLayout(trees, CPU)
    length = layout.num_tokens
    expected = create_block_mask(layout.block_mask.mask_mod, None, None, length, length, device="cpu", BLOCK_SIZE=BLOCK)
    found = layout.block_mask
    for lists in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices"),
                  ("q_num_blocks", "q_indices"), ("full_q_num_blocks", "full_q_indices")):  # fmt: skip
        (num, which), (true_num, true_which) = ([getattr(mask, name) for name in lists] for mask in (found, expected))
        assert torch.equal(num, true_num)
        for row, count in enumerate(num.flatten().tolist()):
            named, truly = (sorted(table.flatten(0, 2)[row, :count].tolist()) for table in (which, true_which))
            assert named == truly


def test_blocks_in_full_occur_at_all() -> None:
    assert int(TreeLayout(LARGE, CPU).block_mask.full_kv_num_blocks.sum()) > 3


@pytest.mark.parametrize("scaling", [DIM**-0.5, 0.7])
@pytest.mark.parametrize("trees", [LARGE, tuple(SMALL)], ids=["large", "small"])
def test_pieces_and_flex_attention_are_softmax_under_the_written_out_mask(
    trees: tuple[Tree, ...], scaling: float
) -> None:
    layout = TreeLayout(trees, CPU)
    query, key, value = states(layout.num_tokens)
    key, value = (tensor.repeat_interleave(HEADS // KEY_HEADS, dim=1) for tensor in (key, value))
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~written_out(trees), -torch.inf)
    expected = (torch.softmax(scores, -1) @ value).transpose(1, 2)
    torch.testing.assert_close(by_pieces(layout, scaling), expected)
    found = flex_tree_attention(*states(layout.num_tokens), layout, scaling)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("trees", [LARGE, tuple(SMALL), (Tree(5, (3,)), Tree(2, (4,)))])
def test_the_sequences_for_flash_attention_give_the_same_when_aligned_to_the_lower_right(
    trees: tuple[Tree, ...],
) -> None:
    layout = TreeLayout(trees, CPU)
    query, key, value = states(layout.num_tokens)
    pieces = layout.varlen
    assert (pieces.gathered is None) == all(len(tree.branches) < 2 for tree in trees)
    if pieces.gathered is not None:
        key, value = key[:, :, pieces.gathered], value[:, :, pieces.gathered]
    spans = zip(*(itertools.pairwise(ends.tolist()) for ends in (pieces.queries, pieces.keys)), strict=True)
    outputs = []
    for (q0, q1), (k0, k1) in spans:
        assert q1 - q0 <= pieces.longest_query and k1 - k0 <= pieces.longest_key
        outputs.append(torch.nn.functional.scaled_dot_product_attention(
            query[:, :, q0:q1], key[:, :, k0:k1], value[:, :, k0:k1], causal_lower_right(q1 - q0, k1 - k0),
            scale=0.7, enable_gqa=True,
        ))  # fmt: skip
    torch.testing.assert_close(torch.cat(outputs, dim=2).transpose(1, 2), by_pieces(layout, 0.7))
