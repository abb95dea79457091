"""Settings are strict, say what is wrong in one line, and know which fields can change a result."""

import pytest
from pydantic import BaseModel

from sail.core import labeler_settings, route_settings, run_settings
from sail.core.errors import UserError
from sail.core.route_settings import LossSettings, RouteSettings
from sail.core.run_settings import GenerationSettings, RunSettings, VllmSettings
from sail.core.settings import Role, Settings, meaning, parse_settings, role_of


def minimal(**changes: object) -> dict[str, object]:
    phase = {"routes": {"offline": {"responses": "prefs", "labels": "prefs"}}, "loss": {"type": "dpo", "beta": 0.1}}
    return {"model_name_or_path": "m", "data": {"prefs": {"path": "p.jsonl"}}, "phases": [phase], **changes}


def test_every_field_of_every_section_is_marked() -> None:
    named = {**vars(run_settings), **vars(route_settings), **vars(labeler_settings)}.values()
    sections = [section for section in named if isinstance(section, type) and issubclass(section, Settings)]
    assert len(sections) > 30
    for section in sections:
        assert all(role_of(section, name) in (Role.MEANING, Role.EXECUTION) for name in section.model_fields)


def test_an_unmarked_field_is_refused_when_its_class_is_written() -> None:
    with pytest.raises(TypeError, match="mark \\['size'\\]"):

        class Careless(Settings):
            size: int = 3


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    with pytest.raises(UserError, match=r"unknown key 'sed'\. Did you mean 'seed'\?"):
        parse_settings(RunSettings, minimal(sed=3), "run.yaml")


def test_a_wrong_type_names_key_and_value() -> None:
    with pytest.raises(UserError, match=r"run\.yaml: seed: .*integer.*got 'three'"):
        parse_settings(RunSettings, minimal(seed="three"), "run.yaml")


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"labelers": {"rm": {"kind": "reward_model", "path": "m", "batch_size": 0}}}, "labelers.rm.batch_size"),
        ({"labelers": {"rm": {"kind": "callable"}}}, "labelers.rm.path"),
        ({"data": {"prefs": {"limit": 3}}}, "data.prefs.path"),
        ({"lora": {"target_modules": 3}}, "lora.target_modules"),
        ({"seed": None}, "seed"),
    ],
)
def test_a_wrong_key_is_named_as_the_user_wrote_it(wrong: dict[str, object], path: str) -> None:
    """pydantic's own path holds the members of unions: labelers.rm.reward_model.batch_size."""
    with pytest.raises(UserError) as caught:
        parse_settings(RunSettings, minimal(**wrong), "run.yaml")
    assert f"run.yaml: {path}: " in str(caught.value)


def test_the_short_and_the_long_form_of_labels_are_the_same() -> None:
    short = {"responses": "policy", "labels": "rm", "label_mode": "soft", "label_temperature": 2.0}
    long = {"responses": "policy", "labels": {"by": "rm", "mode": "soft", "temperature": 2.0}}
    assert RouteSettings.model_validate(short) == RouteSettings.model_validate(long)


def test_loss_parameters_stand_flat_beside_the_type() -> None:
    loss = LossSettings.model_validate({"type": "dpo", "beta": 0.3})
    assert loss.params == {"beta": 0.3}


def test_a_recipe_holds_meaning_and_no_execution() -> None:
    recipe = GenerationSettings(temperature=0.7, shard_size=3).recipe()
    assert recipe["temperature"] == 0.7
    assert "shard_size" not in recipe
    assert set(VllmSettings().recipe()) == {"dtype", "lora", "args"}


def test_a_resolved_run_reads_back_as_itself() -> None:
    settings = parse_settings(RunSettings, minimal(), "run.yaml")
    assert parse_settings(RunSettings, settings.model_dump(mode="json", by_alias=True)) == settings


def test_settings_are_frozen() -> None:
    class Section(Settings):
        size: int = meaning(3)

    section = Section()
    assert isinstance(section, BaseModel)
    with pytest.raises(ValueError, match="frozen"):
        section.size = 4  # type: ignore[misc]


def test_two_phases_of_one_name_are_refused() -> None:
    phase = minimal()["phases"][0]  # type: ignore[index]
    with pytest.raises(UserError, match="phase names must differ"):
        parse_settings(RunSettings, minimal(phases=[phase, phase]))
