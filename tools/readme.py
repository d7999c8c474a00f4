"""The numbers in README.md: the chapters' times, from their own lines; all of the shipped networks, from their cards.

    python -m tools.readme write    puts them there
    python -m tools.readme check    says which lines differ, exit status 1 if any; `tools.notebooks check` does it too

Between the two marks everything is written from the cards; of the table of chapters, the last column.
"""

import json
import re
import sys
from difflib import unified_diff
from pathlib import Path
from textwrap import fill

from tools.pairs import ROOT
from tools.reading_time import STATED

WEIGHTS = "difflesson/digits/weights"
BEGIN, END = "<!-- from the cards, by python -m tools.readme write -->", "<!-- end of what is from the cards -->"
TIMES = STATED.pattern.replace("^", "^# ", 1)  # in a source, where Markdown is a comment
ROW = re.compile(
    r"^(?P<start>\|.*\]\(notebooks/(?P<name>\w+)\.ipynb\).*\| )(?P<minutes>[^|]*)(?P<end> \|)$", re.MULTILINE
)
NETWORKS = (
    "One U-Net of {parameters:.1f} M parameters ({megabytes:.1f} MB), trained for {steps:,} steps on two CPU cores in "
    "{minutes:.0f} minutes. {count:,} digits a scale, {sampling_steps} {sampler} steps, judged by an independent "
    "classifier that knows {judge:.4g} % of the real test digits; the digit-FID of {images:,} real training digits "
    "against the {images:,} test digits is {floor:.3f}.",
    "{table}",
    "`{evaluate}` measures the column of 1 again, the others likewise; on a processor without bfloat16 instructions "
    "that takes hours, and `--precision no`, in single precision, six minutes on two cores. `{train}` trains the "
    "network again. Every checkpoint has a card beside it, in `{weights}/`, with the command that made it; "
    "each row of metrics in a card has the command that measures it again.",
    "`--network pocket` asks a network of {pocket:,} parameters, which learned from the large one: in {pocket_steps} "
    "steps at γ = 1, {pocket_right:.4g} % of {count:,} digits are what was asked for, with a digit-FID of "
    "{pocket_fid:.3f}. "
    "`pocket_p02`, `pocket_p10` and `pocket_p50` have its size, and saw 98, 90 and 50 % of the labels. `--unlabelled "
    "unlabelled` leaves the answers without a label to a copy of the large network that learned those alone: at γ = 0 "
    "the digit-FID falls from {untold:.3f} to {own:.3f}, at γ = 1 nothing changes.",
)


def expected(root: Path) -> str:
    """README.md as the cards and the chapters have it.  Raises: ValueError if a mark is missing."""
    text = (root / "README.md").read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md needs the line {BEGIN!r}, and after it the line {END!r}, each once")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]

    def row(match: re.Match) -> str:
        source = root / "notebooks" / f"{match['name']}.py"
        time = re.search(TIMES, source.read_text(encoding="utf-8"), re.MULTILINE) if source.exists() else None
        minutes = ", ".join(filter(None, time.groups())) if time else match["minutes"]
        return match["start"] + minutes + match["end"]

    return ROW.sub(row, f"{before}{BEGIN}\n\n{networks(root / WEIGHTS)}\n\n{after}")


def networks(folder: Path) -> str:
    """What the cards say of the shipped networks, as sentences and a table."""
    card, reference = (json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("denoiser", "reference"))
    pocket = json.loads((folder / "pocket.json").read_text("utf-8"))
    ((pocket_setting, pocket_curve),) = pocket["metrics"].items()
    own = json.loads((folder / "unlabelled.json").read_text("utf-8"))["metrics"]
    (setting, curve), *_ = card["metrics"].items()
    sampler, steps, count = re.search(r", (\w+), (\d+) steps, (\d+) digits", setting).groups()
    columns = [
        ("guidance scale γ", list(curve)),
        ("digit is what was asked for", [f"{100 * row['accuracy']:.4g} %" for row in curve.values()]),
        ("digit-FID", [f"{row['digit_fid']:.3f}" for row in curve.values()]),
    ]
    lines = [f"| {name} | {' | '.join(values)} |" for name, values in columns]
    lines.insert(1, "|---" * (len(curve) + 1) + "|")
    facts = {
        "parameters": card["parameters"] / 1e6,
        "megabytes": (folder / "denoiser.safetensors").stat().st_size / 1e6,
        "steps": card["recipe"]["steps"],
        "minutes": card["seconds"] / 60,
        "count": int(count),
        "sampling_steps": steps,
        "sampler": sampler.upper(),
        "judge": 100 * reference["judge_accuracy_on_test"],
        "images": reference["images"],
        "floor": reference["digit_fid_floor"],
        "table": "\n".join(lines),
        "evaluate": curve["1"]["command"],
        "train": card["command"],
        "weights": WEIGHTS,
        "pocket": pocket["parameters"],
        "pocket_steps": re.search(r"(\d+) steps", pocket_setting)[1],
        "pocket_right": 100 * pocket_curve["1"]["accuracy"],
        "pocket_fid": pocket_curve["1"]["digit_fid"],
        "untold": curve["0"]["digit_fid"],
        "own": next(row["0"]["digit_fid"] for made, row in own.items() if f"{steps} steps, {count} digits" in made),
    }
    parts = (part.format(**facts) for part in NETWORKS)
    return "\n\n".join(part if part.startswith("|") else fill(part, 120, break_on_hyphens=False) for part in parts)


def problems(root: Path) -> list[str]:
    """The lines of README.md that are not what the cards and the chapters give, each with what it should be."""
    try:
        wanted = expected(root).splitlines()
    except ValueError as error:
        return [str(error)]
    found, line = [], 0
    for change in unified_diff((root / "README.md").read_text("utf-8").splitlines(), wanted, lineterm="", n=0):
        if hunk := re.match(r"@@ -(\d+)", change):
            line = int(hunk[1])
        elif change.startswith("+") and not change.startswith("+++"):
            found.append(f"README.md:{line}: should read {change[1:]!r}; python -m tools.readme write")
            line += 1
    return found or ([f"README.md:{line}: has lines too many; python -m tools.readme write"] if line else [])


def main() -> None:
    if sys.argv[1:] == ["write"]:
        (ROOT / "README.md").write_text(expected(ROOT), encoding="utf-8", newline="\n")
    elif sys.argv[1:] != ["check"]:
        sys.exit("usage: python -m tools.readme write | check")
    elif found := problems(ROOT):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
