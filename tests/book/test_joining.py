"""Modules become one classic script that says the same, or are refused."""

import shutil
import subprocess
from pathlib import Path

import pytest

from difflesson import interactive
from difflesson.interactive import joining

MODULES = {
    "top": 'import { two, Box } from "./middle.mjs";\nimport { one } from "./leaf.mjs";\nconst name = "top";\n'
    "console.log(name, one, two(), new Box().name);\n",
    "middle": 'import { one } from "./leaf.mjs";\nconst name = "middle";\nexport function two() { return 2 * one; }\n'
    "export class Box { name = name; }\n",
    "leaf": 'const name = "leaf";\nconsole.log(name);\nexport const one = 1;\n',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in MODULES.items():
        (tmp_path / f"{name}.mjs").write_text(text, encoding="utf-8")
    return tmp_path


def run(path: Path) -> str:
    node = shutil.which("node") or pytest.skip("no Node.js on the path")
    return subprocess.run([node, str(path)], capture_output=True, text=True, check=True, timeout=60).stdout


def test_the_joined_script_does_what_the_modules_do_each_once_and_with_its_own_names(folder: Path):
    script = folder / "joined.cjs"
    script.write_text(joining.join(folder / "top.mjs"), encoding="utf-8")
    assert run(script) == run(folder / "top.mjs") == "leaf\ntop 1 2 middle\n"


def test_a_joined_module_stands_there_as_it_is_written(folder: Path):
    script = joining.join(folder / "top.mjs")
    for text in MODULES.values():
        for line in text.splitlines():
            assert line.removeprefix("export ") in script or line.startswith("import")


@pytest.mark.parametrize(
    "line", ['import * as all from "./leaf.mjs";', 'import "./leaf.mjs";', "export default 1;", "export { two };"]
)
def test_a_form_that_it_does_not_understand_is_refused_with_its_line(folder: Path, line: str):
    (folder / "leaf.mjs").write_text(f"{MODULES['leaf']}{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"leaf.mjs: '(import|export)"):
        joining.join(folder / "top.mjs")


def test_a_name_that_is_not_exported_is_refused(folder: Path):
    (folder / "leaf.mjs").write_text("export const other = 2, one = 1;\n", encoding="utf-8")  # `one` is not seen
    with pytest.raises(ValueError, match="middle.mjs imports one, which leaf.mjs does not export"):
        joining.join(folder / "top.mjs")


def test_a_circle_is_refused(folder: Path):
    (folder / "leaf.mjs").write_text('import { two } from "./middle.mjs";\n', encoding="utf-8")
    with pytest.raises(ValueError, match="middle.mjs imports itself, by way of top, middle, leaf"):
        joining.join(folder / "top.mjs")


def test_the_books_script_is_joined_and_small():
    script = interactive.script()
    css = interactive.style()
    assert "class GaussianMixture" in script and len(script.encode()) + len(css.encode()) < 100_000


def test_a_part_in_a_notebook_is_one_frame_with_its_words_style_and_script_and_no_address():
    shown = interactive.show("one-step").data
    assert shown.count("<iframe") == 1 and "class GaussianMixture" in shown and ".interactive {" in shown
    assert "src=" not in shown.replace("srcdoc=", "") and "http" not in shown.replace("http://www.w3.org/", "")
    with pytest.raises(ValueError, match=r"name must be one of \['turn-the-knob', 'one-step'\], got 'knob'"):
        interactive.show("knob")
