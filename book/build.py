"""Build the web book from the committed notebooks: python -m book.build -> book/_build/html/index.html

The notebooks are not executed here. MathJax becomes part of the pages, because pages that ask a server for it
show no equation without a network: the first build fetches it with npm, later ones reuse it.
`python -m book.build FOLDER` builds into FOLDER/html instead.
"""

import argparse
import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from sphinx.cmd.build import main as sphinx_build

from book import staging
from difflesson import interactive

BOOK = Path(__file__).resolve().parent
ROOT = BOOK.parent
MATHJAX = "mathjax@3.2.2"
MATHJAX_SHA512 = "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw=="
MATHJAX_PARTS = ("package/LICENSE", "package/es5/tex-mml-chtml.js", "package/es5/output/chtml/fonts/woff-v2/")
NPM_WAITS = ("--fetch-timeout=20000", "--fetch-retries=1", "--fetch-retry-mintimeout=1000")  # ms; npm's own: minutes
VENDORED = BOOK / "_build" / "static" / "mathjax"


class MathJaxOutOfReach(Exception):
    """The equations' program is not here yet, and cannot be fetched; the message says why."""


def unpack(package: str, sha512: str, wanted: tuple[str, ...], folder: Path) -> None:
    """Fetch a package with npm, and put its files whose names begin as one of `wanted` into `folder`/package.

    Raises: MathJaxOutOfReach without npm or network; ValueError if npm delivers something else.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise MathJaxOutOfReach(
            "npm is not on the path. It comes with Node.js, and fetches MathJax for the equations of the web book; "
            "the notebooks show their equations without it."
        )
    print(f"the book: fetching {package} with npm, once; without a network this fails within a minute", flush=True)
    command = [npm, "pack", package, "--silent", *NPM_WAITS]
    fetched = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=False)
    archives = list(folder.glob("*.tgz"))
    if fetched.returncode != 0 or not archives:
        raise MathJaxOutOfReach(f"npm could not fetch {package}; the first build of the book needs a network.")
    digest = base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
    if digest != sha512:
        raise ValueError(f"what npm fetched is not {package}: SHA-512 {digest}, expected {sha512}")
    with tarfile.open(archives[0]) as archive:
        for member in archive.getmembers():
            if member.isfile() and member.name.startswith(wanted):
                archive.extract(member, folder, filter="data")


def vendor_mathjax() -> None:
    """Put the parts of MathJax that the pages use into VENDORED.  Raises: as `unpack`."""
    if VENDORED.exists():
        return
    VENDORED.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=VENDORED.parent.parent) as folder:
        unpack(MATHJAX, MATHJAX_SHA512, MATHJAX_PARTS, Path(folder))
        # The pages expect the script at the top and the fonts at output/chtml/fonts beside it.
        package = Path(folder) / "package"
        shutil.move(package / "LICENSE", package / "es5")
        (package / "es5").rename(VENDORED)  # at once: a build that is interrupted leaves no half of it


def join_interactive() -> None:
    """Put script and style of the interactive parts where the pages find them."""
    for name, text in {
        "interactive.js": interactive.script(),
        "interactive.css": interactive.style(),
    }.items():
        path = VENDORED.with_name(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def build(folder: Path, root: Path = ROOT) -> int:
    """Build the book of the repository at `root` into `folder`/html. Warnings are errors. Returns the exit status."""
    staging.stage(folder / "source", root)
    join_interactive()
    options = ["-b", "html", "-c", str(BOOK), "-d", str(folder / "doctrees"), "-q", "--fail-on-warning"]
    status = sphinx_build([*options, str(folder / "source"), str(folder / "html")])
    for notebook in (root / "notebooks").glob("*.ipynb"):  # readers download the notebook, not what was staged
        shutil.copy(notebook, folder / "html" / "_sources" / "notebooks")
    return status


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m book.build", description="Build the web book into FOLDER/html.")
    parser.add_argument("folder", nargs="?", type=Path, default=BOOK / "_build", help="book/_build by default")
    folder = parser.parse_args().folder.resolve()
    try:
        vendor_mathjax()
        status = build(folder)
    except (MathJaxOutOfReach, ValueError) as error:
        sys.exit(f"book: {error}")
    if status == 0:
        print(f"the book: {folder / 'html' / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
