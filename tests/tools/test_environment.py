"""One declaration of the dependencies, pyproject.toml; everything else that names packages agrees with it."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import difflesson
from tools import notebooks

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
CONSTRAINTS = [
    Requirement(line.split(" #")[0])
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
DECLARED = [Requirement(text) for texts in (PROJECT["dependencies"], *EXTRAS.values()) for text in texts]
PLATFORMS = {  # sys_platform: (os_name, platform_machine)
    "linux": ("posix", "x86_64"),
    "darwin": ("posix", "arm64"),
    "win32": ("nt", "AMD64"),
}


def pins(name: str, python: str, platform: str) -> list[Requirement]:
    """The constraints on package `name` that apply on this Python and platform."""
    os_name, machine = PLATFORMS[platform]
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": platform,
        "os_name": os_name,
        "platform_machine": machine,
    }
    return [
        pin
        for pin in CONSTRAINTS
        if canonicalize_name(pin.name) == canonicalize_name(name)
        and (pin.marker is None or pin.marker.evaluate(environment))
    ]


def test_conda_environment_has_the_projects_name_and_python_range():
    assert CONDA["name"] == PROJECT["name"] == "difflesson"
    (python,) = (item for item in CONDA["dependencies"] if str(item).startswith("python "))
    assert SpecifierSet(python.removeprefix("python ")) == SpecifierSet(PROJECT["requires-python"])


def test_conda_environment_installs_this_project_with_every_extra_and_nothing_else():
    plain = [item.split()[0] for item in CONDA["dependencies"] if isinstance(item, str)]
    (pip,) = (item["pip"] for item in CONDA["dependencies"] if isinstance(item, dict))
    assert plain == ["python", "pip"]
    assert pip == ["-c constraints.txt", "-e .[all]"]


def test_the_extra_all_is_every_other_extra():
    (everything,) = (Requirement(text) for text in EXTRAS["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == set(EXTRAS) - {"all"}


@pytest.mark.parametrize("name", ["pyproject.toml", "environment.yml", "constraints.txt", "Makefile"])
def test_no_address_is_written_where_packages_are_named(name: str):
    assert "://" not in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_declared_dependency_has_one_exact_version_that_satisfies_it(python: str, platform: str):
    for dependency in DECLARED:
        if dependency.name == PROJECT["name"]:
            continue
        (pin,) = pins(dependency.name, python, platform)
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and "*" not in specifier.version, pin
        assert Version(specifier.version) in dependency.specifier, f"{pin} is not in {dependency}"


def test_the_torch_version_is_plain_so_that_every_platform_has_it():
    (torch,) = (pin for pin in CONSTRAINTS if pin.name == "torch")
    assert torch.marker is None
    assert re.fullmatch(r"==\d+\.\d+\.\d+", str(torch.specifier))


def test_every_installed_package_that_the_project_pulls_in_is_pinned():
    """Follows the requirements of what is installed; what torch brings for a GPU follows from its version."""
    pinned = {canonicalize_name(pin.name) for pin in CONSTRAINTS} | {PROJECT["name"]}
    todo, seen, missing = [Requirement("difflesson[all]")], set(), set()
    while todo:
        requirement = todo.pop()
        try:
            requires = metadata.distribution(requirement.name).requires or []
        except metadata.PackageNotFoundError:
            continue
        for extra in requirement.extras or {""}:
            for child in map(Requirement, requires):
                key = (canonicalize_name(child.name), frozenset(child.extras))
                if key in seen or (child.marker and not child.marker.evaluate({"extra": extra})):
                    continue
                seen.add(key)
                todo.append(child)
                for_gpu = re.match(r"nvidia-|cuda-|(pytorch-)?triton", key[0])
                if key[0] not in pinned and not for_gpu:
                    missing.add(key[0])
    assert len(seen) > 100, "difflesson[all] is not installed here"
    assert missing == set()


def test_the_package_imports_nothing_that_is_not_declared():
    """At the top of a module: a core dependency. Inside a function: at least one of an extra."""
    core = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    extras = {canonicalize_name(dependency.name) for dependency in DECLARED}
    distributions = metadata.packages_distributions()
    undeclared = set()
    for path in sorted((ROOT / "difflesson").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module.split(".")[0]]
            else:
                continue
            for module in set(modules) - set(sys.stdlib_module_names) - {"difflesson"}:
                names = {canonicalize_name(name) for name in distributions.get(module, [module])}
                if not names & (core if node.col_offset == 0 else extras):
                    undeclared.add(f"{path.relative_to(ROOT)}: {module}")
    assert undeclared == set()


def test_the_shipped_networks_and_logs_are_package_data_and_stay_under_12_megabytes():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["difflesson.digits"]
    package = ROOT / "difflesson" / "digits"
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    there = {path for folder in ("weights", "logs") for path in (package / folder).rglob("*") if path.is_file()}
    assert there == shipped
    assert sum(path.stat().st_size for path in shipped) < 12_000_000


def test_the_citation_names_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == difflesson.__version__


def test_a_cell_has_the_same_time_limit_when_built_and_when_tested():
    options = PYPROJECT["tool"]["pytest"]["ini_options"]["addopts"]
    assert f"--nbval-cell-timeout={notebooks.CELL_TIMEOUT}" in options
