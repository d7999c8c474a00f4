"""Continuous integration runs the code it names, keeps no credentials beside it, and publishes what passed."""

import re
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / ".github" / "workflows"
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.y*ml"))}
WORKFLOWS = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
JOBS = {(name, job): what for name, flow in WORKFLOWS.items() for job, what in flow["jobs"].items()}


def steps(job, action):
    return [step for step in job["steps"] if step.get("uses", "").startswith(f"actions/{action}@")]


def before(name: str, job: dict) -> set[str]:
    """The jobs that must have passed before this one starts."""
    needs = job.get("needs", [])
    needs = {needs} if isinstance(needs, str) else set(needs)
    return needs.union(*(before(name, JOBS[name, other]) for other in needs))


@pytest.mark.parametrize("name", TEXTS)
def test_every_action_is_pinned_by_its_commit_and_says_its_version(name):
    uses = re.findall(r"uses: (.*)", TEXTS[name])
    assert uses
    for line in uses:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line), line


@pytest.mark.parametrize("where", JOBS)
def test_no_checkout_leaves_its_credentials_to_the_packages_that_run_after_it(where):
    for step in steps(JOBS[where], "checkout"):
        assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("where", JOBS)
def test_a_job_that_may_write_runs_nothing_of_ours_and_only_after_the_tests(where):
    name, job = where[0], JOBS[where]
    may_write = "write" in {*WORKFLOWS[name]["permissions"].values(), *job.get("permissions", {}).values()}
    assert may_write == bool(steps(job, "deploy-pages"))
    if may_write:
        assert len(job["steps"]) == 1 and "test" in before(name, job)


def test_the_book_is_published_once_and_only_from_main():
    (where,) = [where for where, job in JOBS.items() if steps(job, "deploy-pages")]
    name = where[0]
    conditions = [JOBS[name, job].get("if", "") for job in before(name, JOBS[where])]
    assert any("github.ref == 'refs/heads/main'" in condition for condition in conditions)


@pytest.mark.parametrize("name", TEXTS)
def test_scheduled_and_pushed_runs_do_not_cancel_each_other_nor_anything_on_main(name):
    concurrency = WORKFLOWS[name]["concurrency"]
    assert "github.event_name" in concurrency["group"] and "github.ref" in concurrency["group"]
    assert concurrency["cancel-in-progress"] == "${{ github.ref != 'refs/heads/main' }}"
