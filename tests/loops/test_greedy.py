"""SELM: a greedy response beside a dataset's pair, ranked by others, and losing mass in a stream of its own."""

from pathlib import Path

from sail.core.artifacts import Artifact
from sail.core.records import PreferencePair, SampleGroup, ScoredGroup, index_responses
from tests.loops.running import NO_EVALUATION, Zygote, committed, linked, small_config, store_of, write_config


def test_selm_pairs_the_best_with_the_worst_of_a_greedy_response_and_a_datasets_pair(
    testbed: Path, sail: Zygote, tmp_path: Path
) -> None:
    config = small_config(testbed, preset="selm", num_rounds=1, evaluation=NO_EVALUATION, prompts={"from": "prefs"})
    config["update"] |= {"steps": 1}
    config["hygiene"] = {"truncated": "keep"}  # else one of the three may be missing
    config["generation"] |= {"temperature": 0.7, "top_p": 0.9}
    done = sail.run("run", write_config(tmp_path / "selm.yaml", config), "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.err
    made = {name: committed(store_of(tmp_path / "run"))[id] for name, id in linked(tmp_path / "run").items()}
    groups = made["rounds/000/samples/online"].read(SampleGroup, "groups")
    for group in groups:
        assert [sample.origin for sample in group.samples] == ["policy_greedy", "data:prefs", "data:prefs"]
        assert set(group.samples[0].logprobs) == {0.0}
    scores = _scores(made["rounds/000/scores/online"])
    by_prompt = {group.prompt.prompt_id: [sample.response_id for sample in group.samples] for group in groups}
    for pair in made["rounds/000/pairs/online"].read(PreferencePair, "pairs"):
        there = [scores[response_id] for response_id in by_prompt[pair.prompt_id]]
        assert {scores[pair.a_id], scores[pair.b_id]} == {min(there), max(there)}
    streamed = index_responses(made["rounds/000/samples/optimism"].read(SampleGroup, "groups"))
    assert {sample.origin for _, sample in streamed.values()} == {"policy_greedy"}
    assert {group.samples[0].response_id for group in groups} == set(streamed)


def _scores(artifact: Artifact) -> dict[str, float]:
    groups = artifact.read(ScoredGroup, "scores")
    return {id: score for group in groups for id, score in zip(group.response_ids, group.scores, strict=True)}
