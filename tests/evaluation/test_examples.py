"""Samples for people to read."""

from sail.evaluation.examples import choose_examples

from .doubles import group, scores


def test_an_entry_shows_prompt_responses_and_scores() -> None:
    shown = choose_examples([group("a", [(3, 2)], ["length"], "hi")], {"rm": [scores("a", 1.5)]}, seed=0)
    assert shown == [{
        "prompt_id": "p-a",
        "messages": [{"role": "user", "content": "say a"}],
        "responses": [{"text": "hi", "num_tokens": 2, "stop_kind": "length", "scores": {"rm": 1.5}}],
    }]  # fmt: skip


def test_the_choice_depends_on_seed_and_ids_alone() -> None:
    groups = [group(str(index), [(3,)]) for index in range(40)]
    changed = [group(str(index), [(4, 4)]) for index in reversed(range(40))]

    def chosen(seed: int, from_groups: list) -> list[str]:
        return [entry["prompt_id"] for entry in choose_examples(from_groups, {}, seed)]

    assert chosen(0, groups) == chosen(0, changed) != chosen(1, groups)
    assert len(chosen(0, groups)) == 8
