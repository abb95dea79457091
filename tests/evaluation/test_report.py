"""The report as a page: complete, self-contained, safe."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import escape

from sail.core.metrics import METRICS
from sail.evaluation.report import ReportData, RoundRow, headline_tiles, render_report, write_report
from sail.evaluation.round_figures import round_panels
from sail.evaluation.svg import SERIES

from .doubles import full_row

EVIL = "<script>alert('x')</script> $x_1$ \"&"


def example(text: str, **more: str) -> dict[str, object]:
    response = {"text": text, "num_tokens": 3, "stop_kind": "eos", "scores": {text: 0.25}}
    return {"prompt_id": text, "messages": [{"role": text, "content": text}], "responses": [response], **more}


def full_report(text: str = "plain") -> ReportData:
    rows = [full_row(-1, text), full_row(0, f"{text} "), full_row(1, f"{text} ")]
    named = [RoundRow(row.round_index, row.phase, {**row.metrics, f"eval/reward/{text}": 1.0}, {text: text})
             for row in rows]  # fmt: skip
    steps = [{"step": step, "round": 0, "phase": text, "loss": 1 / step} for step in range(1, 60)]
    return ReportData(text, named, steps, f"seed: {text}", [example(text, round=text)], [text])


def figures(page: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)


def test_the_report_is_one_file_without_scripts_or_outside_parts(tmp_path: Path) -> None:
    path = write_report(tmp_path, full_report())
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.html"
    assert "<script" not in page
    addresses = set(re.findall(r"https?://[^\"' <]+", page))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "default-src 'none'" in page


def test_every_metric_is_explained() -> None:
    page = render_report(full_report())
    for name, meaning in METRICS.items():
        assert str(escape(name)) in page
        assert str(escape(meaning)) in page


@pytest.mark.parametrize("text", [EVIL, "<img src=x onerror=alert(1)>", "日本語 …"])
def test_text_of_models_and_users_is_escaped_everywhere(text: str) -> None:
    page = render_report(full_report(text))
    assert text not in page or "<" not in text
    assert page.count(str(escape(text))) >= 9
    tags: set[str] = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.add(tag)
            assert not any(name.startswith("on") for name, _ in attrs)

    Reader().feed(page)
    assert not {"script", "img"} & tags


def test_figures_are_sound_xml_with_ids_of_their_own_and_the_pages_colours() -> None:
    drawn = figures(render_report(full_report(EVIL)))
    assert len(drawn) >= 8
    ids = [id_ for figure in drawn for id_ in {e.get("id") for e in ElementTree.fromstring(figure).iter()} if id_]
    assert len(ids) == len(set(ids))
    together = "".join(drawn)
    assert "var(--series-0)" in together
    assert not any(color in together for color in SERIES)
    assert not re.search(r"(fill|stroke): #(?!none)", together)


def test_the_same_run_gives_the_same_page() -> None:
    assert render_report(full_report()) == render_report(full_report())


def test_an_empty_run_has_a_page() -> None:
    page = render_report(ReportData("new", []))
    assert "No round has finished yet" in page
    assert figures(page) == []


def test_a_run_without_scorers_shows_what_there_is() -> None:
    rows = [RoundRow(0, "main", {"completions/mean_length": 12.0, "objective/kl": 0.5})]
    page = render_report(ReportData("offline", rows))
    assert [tile.name for tile in headline_tiles(rows)] == ["KL to the reference", "Length"]
    assert len(figures(page)) == 1
    assert "Reward by round" not in page


def test_a_second_scorer_gets_a_figure_and_the_headline_only_one() -> None:
    rows = [full_row(k, eval__reward=k, eval__reward__gold=k, eval__reward__rm=2.0 * k) for k in (0, 1)]
    titles = [panel.title for panel in round_panels(rows)]
    assert "Reward by rm" in titles
    assert "Reward by gold" not in titles


def test_rounds_on_one_prompt_stand_together() -> None:
    entries = [example("p", round="start"), example("q", round="start"), example("p", round="last")]
    page = render_report(ReportData("run", [], examples=entries))
    assert page.count('<article class="example">') == 2
    assert page.index(">last<") < page.rindex('<article class="example">')
