"""Build the web book from the committed notebooks: python book/build.py -> book/_build/html/index.html

The notebooks are not executed here. MathJax becomes part of the pages, because pages that ask a server for it
show no equation without a network: the first build fetches it with npm, later ones reuse it.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from sphinx.cmd.build import main as sphinx_build

BOOK = Path(__file__).resolve().parent
BUILD = BOOK / "_build"
MATHJAX = "mathjax@3.2.2"
MATHJAX_SHA512 = "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw=="
MATHJAX_PARTS = ("package/LICENSE", "package/es5/tex-mml-chtml.js", "package/es5/output/chtml/fonts/woff-v2/")


def vendor_mathjax(target: Path) -> None:
    """Put the parts of MathJax that the pages use into `target`, from the package that npm delivers."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit(
            "book: npm is not on the path. It comes with Node.js, and fetches MathJax for the equations.\n"
            "book: only the web book needs it; the notebooks show their equations without it."
        )
    with tempfile.TemporaryDirectory() as folder:
        fetched = subprocess.run([npm, "pack", MATHJAX, "--silent"], cwd=folder, check=False)
        archives = list(Path(folder).glob("*.tgz"))
        if fetched.returncode != 0 or not archives:
            sys.exit(f"book: npm could not fetch {MATHJAX} (see above). The first build needs a network.")
        digest = base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
        if digest != MATHJAX_SHA512:
            sys.exit(f"book: what npm fetched is not {MATHJAX}: SHA-512 {digest}, expected {MATHJAX_SHA512}")
        unpacked = Path(folder) / "unpacked"
        with tarfile.open(archives[0]) as archive:
            for member in archive.getmembers():
                if member.isfile() and member.name.startswith(MATHJAX_PARTS):
                    archive.extract(member, unpacked, filter="data")
        # The pages expect the script at the top and the fonts at output/chtml/fonts beside it.
        shutil.copytree(unpacked / "package" / "es5", target)
        shutil.copy(unpacked / "package" / "LICENSE", target)


def stage(source: Path) -> None:
    """Lay out what Sphinx reads: the book's pages at the top, the other folders as in the repository."""
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for page in BOOK.glob("*.md"):
        shutil.copy2(page, source)
    for folder in ("notebooks", "figures"):
        left_out = shutil.ignore_patterns("*.py", ".*")
        shutil.copytree(BOOK.parent / folder, source / folder, ignore=left_out)
    for path in (source / "notebooks").glob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            keep_alt_text(cell)
        path.write_text(json.dumps(notebook), encoding="utf-8")


def keep_alt_text(cell: dict) -> None:
    """Repeat the alt text of display(figure, metadata={"image/png": {"alt": ...}}) where MyST-NB reads it."""
    for output in cell.get("outputs", []):
        for settings in output.get("metadata", {}).values():
            if isinstance(settings, dict) and "alt" in settings:
                cell["metadata"]["mystnb"] = {"image": {"alt": settings["alt"]}}


def main() -> int:
    mathjax = BUILD / "static" / "mathjax"
    if not mathjax.exists():
        vendor_mathjax(mathjax)
    stage(BUILD / "source")
    options = ["-b", "html", "-c", str(BOOK), "-d", str(BUILD / "doctrees"), "-q", "--fail-on-warning"]
    status = sphinx_build([*options, str(BUILD / "source"), str(BUILD / "html")])
    if status == 0:
        print(f"the book: {BUILD / 'html' / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
