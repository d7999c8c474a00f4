"""Join plain ES modules into one classic script: pages opened from a disk may not load modules.

Each module becomes a function of its own, run once, after those that it imports; its text stays as it is written. Only
`import { a, b } from "./name.mjs";` on one line, and `export` before a function, class or const, are understood.
"""

import re
from pathlib import Path

IMPORT = re.compile(r'^import \{ ([^{}]+) \} from "\./(\w+)\.mjs";$', flags=re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async function|function|class|const) (\w+))", flags=re.MULTILINE)


def join(start: Path) -> str:
    """One script from the module `start` and all that it imports, from the same folder.

    Raises: ValueError if a module imports or exports in another form, or imports what is not exported, or itself by way
    of others.
    """
    parts = []
    _collect(start, (), {}, parts)
    return '(() => {\n"use strict";\nconst modules = {};\n\n' + "\n".join(parts) + "})();\n"


def _collect(path: Path, above: tuple[str, ...], done: dict[str, list[str]], parts: list[str]) -> None:
    """Append the modules that `path` imports, then itself, unless they are there. done: module -> what it exports."""
    name = path.stem
    if name in above:
        raise ValueError(f"{path.name} imports itself, by way of {', '.join(above)}")
    if name in done:
        return
    text = path.read_text(encoding="utf-8")
    for wanted, other in IMPORT.findall(text):
        _collect(path.with_name(f"{other}.mjs"), (*above, name), done, parts)
        if missing := {word.strip() for word in wanted.split(",")} - set(done[other]):
            raise ValueError(f"{path.name} imports {', '.join(sorted(missing))}, which {other}.mjs does not export")
    names = done[name] = EXPORT.findall(text)
    body = IMPORT.sub(r"const { \1 } = modules.\2;", EXPORT.sub("", text))
    left = re.search(r"^(import|export)\b.*", body, flags=re.MULTILINE)
    if left:
        raise ValueError(f"{path.name}: {left[0]!r} is not a form that joining.py understands")
    parts.append(f"modules.{name} = (() => {{\n{body}\nreturn {{ {', '.join(names)} }};\n}})();\n")
