"""The page for those who teach says what the chapters say, and what it has them type works."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from book import staging, teaching
from tools import reading_time
from tools.equation_labels import unique_slug
from tools.pairs import cells_of

ROOT = Path(staging.__file__).resolve().parent.parent
PARTS = tomllib.loads((ROOT / "book" / "chapters.toml").read_text(encoding="utf-8"))["parts"]
TOLD = {chapter["number"]: chapter for part in PARTS for chapter in part["chapters"]}
CHAPTERS = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((ROOT / "notebooks").glob("??_*.ipynb"))}
SOURCES = {name: cells_of(ROOT / "notebooks" / f"{name}.py") for name in CHAPTERS}


@pytest.fixture(scope="module")
def page() -> str:
    titles = {name: staging.title(chapter) for name, chapter in CHAPTERS.items()}
    return teaching.page(ROOT, PARTS, CHAPTERS, titles, SOURCES, lambda heading: unique_slug(heading, []))


@pytest.mark.parametrize("name", CHAPTERS)
def test_what_a_chapter_needs_is_what_its_page_says_and_comes_before_it(name: str):
    told = TOLD[name[:2]]
    assert told["needs"] == teaching.needed(teaching.prose(CHAPTERS[name]))
    assert all(number < name[:2] for number in told["needs"])


@pytest.mark.parametrize("name", CHAPTERS)
def test_what_helps_is_spoken_of_in_the_main_line_and_not_needed(name: str):
    main = teaching.prose(CHAPTERS[name]).split("\n## Deeper")[0]
    spoken = set(re.findall(r"(?<![\d.])([0-2]\d)(?=_|\b(?![.:]\d))", main))
    told = TOLD[name[:2]]
    assert set(told["helps"]) <= spoken - set(told["needs"]), name


@pytest.mark.parametrize(("name", "way"), teaching.ROUTES)
def test_a_way_through_has_all_that_its_chapters_need_before_them(name: str, way: str):
    way = way.split()
    for place, number in enumerate(way):
        assert set(TOLD[number]["needs"]) <= set(way[:place]), f"{name}: {number}"


def test_a_way_without_what_it_needs_would_be_noticed():
    with pytest.raises(AssertionError):
        test_a_way_through_has_all_that_its_chapters_need_before_them("a hurry", "06 07 11")


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_minutes_of_the_sections_add_up_to_those_of_the_chapter(name: str):
    counted = sum(layer.minutes for layer in reading_time.layers(SOURCES[name]))
    parts = dict(teaching.sections(SOURCES[name]))
    opening = counted - sum(parts.values())  # what stands above the first heading
    assert 0 <= opening < 4 and len(parts) > 5


def test_the_page_has_every_pitfall_and_every_exercise(page: str):
    text = "\n".join(map(teaching.prose, CHAPTERS.values()))
    pitfalls = re.findall(r"^#+ Pitfall: ", text, re.MULTILINE)
    numbers = re.findall(r"^### Exercise (\d+\.\d+)", text, re.MULTILINE)
    assert len(re.findall(r"^\* \[\d\d\]\(notebooks/.*#pitfall-", page, re.MULTILINE)) == len(pitfalls) > 20
    kinds = ", ".join(re.findall(r"^\* \d+ (?:easy|medium|hard|research): (.*)$", page, re.MULTILINE))
    assert sorted(re.findall(r"\d+\.\d+", kinds)) == sorted(numbers)


def test_nothing_is_left_to_fill_in(page: str):
    assert re.findall(r"%\w+%", page) == []


def test_the_variant_of_an_exercise_runs_as_it_stands(page: str, capsys):
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {})
    assert capsys.readouterr().out.startswith("variant A done: ")


def test_the_entry_to_cite_is_what_the_citation_file_says(page: str):
    entry = re.search(r"```bibtex\n(.*?)```", page, re.DOTALL)[1]
    fields = dict(re.findall(r"(\w+) += \{(.*)\},", entry))
    told = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert fields["title"] in told and f'"{fields["year"]}-' in told and f"version: {fields['version']}" in told
    assert fields["author"] == "{The difflesson authors}"
