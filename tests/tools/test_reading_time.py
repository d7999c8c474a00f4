"""The minutes of a chapter are counted by layer, and the page says them honestly."""

import jupytext
import pytest

from tools.reading_time import LIMIT, Layer, layers, stated, table, time_problems

TIMES = "*{} minutes to read{}, 30 seconds to run, on a laptop, without a GPU or a network connection.*"


def cells(text: str) -> list:
    return jupytext.reads(text, fmt="py:percent").cells


def prose(*paragraphs: str) -> str:
    return "# %% [markdown]\n" + "\n#\n".join(f"# {paragraph}" for paragraph in paragraphs) + "\n\n"


def words(count: int) -> str:
    return " ".join(["word"] * count)


def chapter(main: int, deeper: int, said: str) -> list:
    """A chapter of so many words in the main line, the times among them, and in Deeper, its heading among them."""
    text = prose(said + " " * (not said), words(main - len(said.split())))
    return cells(text + (prose("## Deeper: more", words(deeper - 3)) if deeper else ""))


def test_words_lines_and_equations_are_counted_in_their_layer():
    text = (
        prose("# 00 · A title", "three more words", "$$ a + b = c. \\label{eq-a} $$ after it")
        + "# %%\nx = 1\n\ny = 2  # and a comment\n\n"
        + prose("the end of it", "## Deeper: more", "with $$ d \\label{eq-b} $$ and $$ e. \\label{eq-c} $$")
        + "# %%\nz = 3\n"
    )
    main, deeper = layers(cells(text))
    assert main == Layer(words=5 + 3 + 2 + 4, lines=2, equations=1)
    assert deeper == Layer(words=3 + 2, lines=1, equations=2)
    assert main.minutes == pytest.approx(14 / 200 + 2 / 12 + 2)


@pytest.mark.parametrize("tag", ["hide-input", "remove-cell", "exercise"])
def test_code_that_the_page_hides_takes_no_time(tag: str):
    assert layers(cells(f'# %% tags=["{tag}"]\nx = 1\n')) == (Layer(), Layer())


@pytest.mark.parametrize("text", ["### Exercise 0.1 (easy): a question", "<details><summary>Solution</summary>"])
def test_exercises_and_solutions_take_no_time(text: str):
    assert layers(cells(prose(text, "words of it $$ x \\label{eq-a} $$"))) == (Layer(), Layer())


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (TIMES.format(40, ", 25 more for Deeper"), (40, 25)),
        (TIMES.format(40, ""), (40, None)),
        (TIMES.format("half an hour", ""), None),
        (TIMES.format(40, ", 25 more for Deeper").replace("without", "\n# without"), (40, 25)),
        ("40 minutes to read, 30 seconds to run", None),
    ],
)
def test_the_times_on_the_page_have_one_form(said: str, expected):
    assert stated(cells(prose("# A title", said))) == expected


@pytest.mark.parametrize(("said", "honest"), [(30, True), (40, True), (50, True), (29, False), (51, False)])
def test_the_stated_minutes_are_within_a_quarter_of_the_counted(said: int, honest: bool):
    found = time_problems(chapter(8000, 8000, TIMES.format(40, f", {said} more for Deeper")))
    assert found == (
        [] if honest else [f"says {said} minutes for Deeper, which takes 40 minutes (8000 words, 0 lines, 0 equations)"]
    )
    found = time_problems(chapter(8000, 0, TIMES.format(said, "")))
    assert bool(found) is not honest and all(
        sentence.startswith(f"says {said} minutes for the main line") for sentence in found
    )


@pytest.mark.parametrize(("minutes", "too_long"), [(LIMIT, False), (LIMIT + 1, True)])
def test_the_main_line_has_a_limit(minutes: int, too_long: bool):
    found = time_problems(chapter(200 * minutes, 200 * minutes, TIMES.format(minutes, f", {minutes} more for Deeper")))
    assert [sentence.split(" (")[0] for sentence in found] == too_long * [f"the main line takes {minutes} minutes"]


def test_a_page_that_does_not_say_is_told_what_to_write():
    (sentence,) = time_problems(chapter(2000, 0, ""))
    assert sentence.startswith("lacks the times '*40 minutes to read, 25 more for Deeper,")
    assert "the main line takes 10 minutes" in sentence
    (sentence,) = time_problems(chapter(2000, 1000, TIMES.format(10, "")))
    assert sentence.startswith("does not say how long Deeper takes, which is 5 minutes")


def test_a_promise_of_a_deeper_that_is_not_there_is_reported():
    (sentence,) = time_problems(chapter(2000, 0, TIMES.format(10, ", 25 more for Deeper")))
    assert sentence.startswith("says 25 minutes for Deeper, which takes 0 minutes")


def test_the_table_has_a_row_for_each_layer():
    rows = table(
        {"00_line": chapter(2000, 1000, TIMES.format(11, ", 4 more for Deeper")), "01_curve": chapter(200, 0, "")}
    )
    assert [row.split() for row in rows.splitlines()[1:]] == [
        ["00_line", "main", "line", "2000", "0", "0", "10", "11"],
        ["00_line", "Deeper", "1000", "0", "0", "5", "4"],
        ["01_curve", "main", "line", "200", "0", "0", "1", "-"],
    ]
