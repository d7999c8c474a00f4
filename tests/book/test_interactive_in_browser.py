"""The interactive parts in a real browser, from the disk, moved by mouse, finger and keys: the package's numbers.

On a bare page; test_book_in_browser.py looks at them inside the book. Times of a frame and of a cloud are printed.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from book import staging
from difflesson import divergence, guidance, interactive, kernels
from difflesson.grid import GridDensity
from difflesson.mixture import GaussianMixture
from difflesson.plane import four_blobs
from difflesson.samplers import draw, time_grid
from difflesson.schedule import from_betas, vp_linear
from difflesson.steps import FullGaussian

HEAD = """<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Parts</title><style>
:root { --pst-color-primary: #00f; --pst-color-surface: #eee; --pst-color-border: #888; --pst-color-text-base: #111;
--pst-color-text-muted: #444 } body { font-family: sans-serif }</style>"""
KNOB, STEP = "document.querySelector('#turn-the-knob').knob", "document.querySelector('#one-step').step"
SETTLED = f"() => {KNOB}.truth && {KNOB}.cloud.stale === 0 && {KNOB}.told_at"
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    """A page with both parts, beside their script and style."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "interactive.js").write_text(interactive.script(), encoding="utf-8")
    (folder / "interactive.css").write_text(interactive.style(), encoding="utf-8")
    parts = (staging.part_to_play_with(name, ".") for name in ("turn-the-knob", "one-step"))
    texts = (re.sub("```.*\n?", "", part) for part in parts)
    script = '<script defer src="./interactive.js"></script>'
    body = "\n".join(texts).replace(script, "", 1)  # once: a page of the book has one part
    page = f'<!doctype html><html lang="en"><head>{HEAD}</head><body><main><h1>Parts</h1>{body}</main></body></html>'
    (folder / "index.html").write_text(page, encoding="utf-8")
    return folder / "index.html"


@pytest.fixture
def visit(html: Path, browser):
    """Opens the page at an address, in a window of its own. At the end, nothing went wrong or left the machine."""
    complaints, contexts, usual = [], [], {"viewport": {"width": 1280, "height": 1400}, "color_scheme": "light"}

    def go(hash: str = "", **options):
        context = browser.new_context(**(usual | options))
        contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on("console", lambda said: complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith("file:") or complaints.append(request.url))
        page.goto(html.as_uri() + hash)
        page.wait_for_function(SETTLED)
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []


def settle(page) -> None:
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.wait_for_function(SETTLED)
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def slider(page, name: str):
    return page.locator(f"label.slider:has-text('{name}') input").first


def blob(page, number: int):
    return page.locator(f"#turn-the-knob .handle[aria-label='blob {number}']")


def drag(page, handle, right: int, down: int) -> None:
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right, y + down, steps=5)
    page.mouse.up()


def touch(page, handle, right: int, down: int) -> None:
    handle.scroll_into_view_if_needed()
    box, session = handle.bounding_box(), page.context.new_cdp_session(page)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for kind, share in (("touchStart", 0), ("touchMove", 0.5), ("touchMove", 1), ("touchEnd", None)):
        points = [] if share is None else [{"x": x + share * right, "y": y + share * down}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


# --- turn the knob: the page's numbers are the package's ----------------------------------------------------

SHOWN = f"""() => {{
    const {{state, readings, cloud}} = {KNOB}, {{gamma, t, label, sampler, steps, blobs}} = state;
    return {{gamma, t, label, sampler, steps, blobs, readings, points: [...cloud.at(t)], start: [...cloud.start]}};
}}"""


def agree(page, same_points: bool = True) -> dict:
    """Compare what the page shows with the package, for the state that it is in. Returns it."""
    settle(page)
    shown = page.evaluate(SHOWN)
    blobs, schedule, label, gamma = shown["blobs"], vp_linear(), shown["label"], shown["gamma"]
    weights = torch.tensor([blob["weight"] for blob in blobs], dtype=torch.float64)
    means = torch.tensor([blob["mean"] for blob in blobs], dtype=torch.float64)
    covs = [blob["cov"] for blob in blobs]
    mixture = GaussianMixture(weights / weights.sum(), means, covs, [blob["label"] for blob in blobs])
    start, points = (torch.tensor(shown[name], dtype=torch.float64).view(-1, 2) for name in ("start", "points"))
    if same_points and shown["sampler"] == "ddim":
        guided = guidance.classifier_free(mixture.pair(schedule, label), gamma)
        times = time_grid(shown["steps"])
        times = times[: round((1 - shown["t"]) * shown["steps"]) + 1]
        want = draw(kernels.ddim(guided, schedule), start, times) if len(times) > 1 else start
        torch.testing.assert_close(points, want, atol=1e-9, rtol=1e-9)
    alpha, sigma = schedule.alpha(shown["t"]), schedule.sigma(shown["t"])
    noisy = mixture.noised(alpha, sigma)
    told = GridDensity(lambda x: mixture.log_prob(x) + gamma * mixture.class_log_prob(x, label), -11, 11, 300)
    readings, cov = shown["readings"], told.cov.diagonal()
    sure, spread = noisy.class_log_prob(points, label).exp(), (alpha**2 * cov + sigma**2).sqrt()
    for axis, name in enumerate(("x₁", "x₂")):
        got, want = readings[f"mean {name}"], readings[f"spread {name}"]
        x, root = points[:, axis], math.sqrt(len(points))
        away = (x - x.mean()).square()
        error = ((away.square().mean() / away.mean() - away.mean()).sqrt() / 2 / root, x.std(correction=0) / root)
        np.testing.assert_allclose(got[0], [x.mean(), error[1]], atol=1e-9)
        np.testing.assert_allclose(want[0], [x.std(correction=0), error[0]], atol=1e-9)
        assert abs(got[1] - alpha * told.mean[axis]) < 1e-4 and abs(want[1] - spread[axis]) < 1e-4
    np.testing.assert_allclose(readings["class mass"][0], [sure.mean(), sure.std(correction=0) / root], atol=1e-9)
    if shown["t"] == 0:
        mass = told.expectation(lambda x: mixture.class_log_prob(x, label).exp())
        assert abs(readings["class mass"][1] - mass) < 1e-4
    cell = page.locator("#turn-the-knob tbody td").first.inner_text()  # 2.23 ± 0.02
    assert float(cell.split()[0]) == round(float(points[:, 0].mean()), 2)
    return shown


def test_the_first_thing_seen_is_that_dots_leave_the_contours(visit):
    page = visit()
    shown = agree(page)
    (far,), chance = shown["readings"]["distance"]
    assert shown["gamma"] == 3 and shown["t"] == 0 and far > 10 * chance
    assert "not where they were meant to be" in page.locator("#turn-the-knob .beside .note").inner_text()
    reference = four_blobs()
    assert [blob["mean"] for blob in shown["blobs"]] == reference.means.tolist()


@pytest.mark.nightly
def test_keys_turn_the_knob_and_at_one_the_dots_stay(visit):
    page = visit()
    page.keyboard.press("Tab")  # the first thing in the part
    assert page.evaluate("document.activeElement.closest('label').innerText").startswith("guidance scale")
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    shown = agree(page)
    (far,), chance = shown["readings"]["distance"]
    assert round(shown["gamma"], 6) == 1 and far < 2 * chance
    said = "() => document.querySelector('#turn-the-knob [aria-live]').textContent"
    page.wait_for_function(f"({said})().startsWith('γ 1.0')")
    assert "The dots are where they were meant to be" in page.evaluate(said)


@pytest.mark.nightly
def test_a_mouse_turns_the_knob(visit):
    page = visit()
    box = slider(page, "guidance scale").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.75, box["y"] + box["height"] / 2)
    assert 5.7 < agree(page)["gamma"] < 6.3


def test_a_mouse_moves_a_blob_and_the_numbers_follow(visit):
    page = visit()
    width = page.locator("#turn-the-knob .stage").bounding_box()["width"]
    drag(page, blob(page, 4), round(-width / 10), round(width / 20))
    shown = agree(page)
    np.testing.assert_allclose(shown["blobs"][3]["mean"], [1.4, 0.5], atol=0.05)  # the map is ten units wide
    assert shown["blobs"][:3] == page.evaluate(f"{KNOB}.state.blobs.slice(0, 3)")


@pytest.mark.nightly
def test_a_finger_moves_a_blob_on_a_phone_and_the_page_is_no_wider(visit):
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True)
    width = page.locator("#turn-the-knob .stage").bounding_box()["width"]
    touch(page, blob(page, 1), round(width / 10), 0)
    np.testing.assert_allclose(agree(page)["blobs"][0]["mean"], [-1, -0.5], atol=0.05)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


@pytest.mark.nightly
def test_keys_move_stretch_weigh_and_relabel_a_blob(visit):
    page = visit()
    blob(page, 2).focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Shift+ArrowRight")
    page.locator("#turn-the-knob .handle[aria-label='long axis of the blob']").focus()
    page.keyboard.press("ArrowDown")
    slider(page, "weight").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#turn-the-knob .blob label:has-text('class 1') input").focus()
    page.keyboard.press("Space")
    second = agree(page)["blobs"][1]
    np.testing.assert_allclose(second["mean"], [-0.19, 1.5], atol=1e-9)
    assert second["cov"] != four_blobs().covs[1].tolist() and second["cov"][0][1] == second["cov"][1][0]
    assert (second["weight"], second["label"]) == (0.31, 1)
    assert blob(page, 2).get_attribute("aria-valuetext") == "x 1 -0.19, x 2 1.50"


@pytest.mark.nightly
def test_the_last_blob_of_a_class_keeps_its_label_and_the_page_says_why(visit):
    page = visit()
    for number in (1, 2):
        blob(page, number).focus()
        page.locator("#turn-the-knob .blob label:has-text('class 1') input").click()
    settle(page)
    assert [blob["label"] for blob in page.evaluate(f"{KNOB}.state.blobs")] == [1, 0, 1, 1]
    assert page.locator("#turn-the-knob .beside .note").inner_text() == "One blob must stay in class 0."
    assert page.locator("#turn-the-knob .blob label:has-text('class 0') input").is_checked()


@pytest.mark.nightly
@pytest.mark.parametrize("sampler", ["DDPM", "more noise"])
def test_at_gamma_3_samplers_with_noise_sample_something_else(visit, sampler):
    page = visit()
    without = agree(page)["readings"]["distance"][0][0]
    page.locator(f"#turn-the-knob label:has-text('{sampler}') input").click()
    assert agree(page)["readings"]["distance"][0][0] < 0.8 * without


@pytest.mark.nightly
def test_at_a_time_between_the_intended_density_has_the_noise_of_that_time(visit):
    layers = "dots,told,arrows_u,arrows_c,arrows_g,all,class"
    shown = agree(visit(f"#turn-the-knob:gamma=2&t=0.4&class=0&steps=100&show={layers}"))
    assert (shown["gamma"], shown["t"], shown["label"], shown["steps"]) == (2, 0.4, 0, 100)


@pytest.mark.nightly
def test_the_address_has_the_state_and_leads_back_to_it(visit):
    page = visit()
    page.locator("#turn-the-knob label:has-text('class 0') input").first.click()
    drag(page, blob(page, 3), 30, 30)
    settle(page)
    page.wait_for_function("location.hash.includes('blobs=')")
    one, two = agree(page), agree(visit("#" + page.url.split("#")[1]))
    for name in ("gamma", "t", "label", "sampler", "steps"):
        assert one[name] == two[name]
    for before, after in zip(one["blobs"], two["blobs"], strict=True):
        np.testing.assert_allclose(after["mean"], before["mean"], rtol=1e-3)
    page.locator("button:has-text('The mixture of the chapter')").click()
    settle(page)
    page.wait_for_function("!location.hash.includes('blobs=')")
    assert [blob["mean"] for blob in agree(page)["blobs"]] == four_blobs().means.tolist()


@pytest.mark.nightly
@pytest.mark.parametrize("hash", ["gamma=9", "sampler=euler", "steps=7", "blobs=1,2", "blobs=" + "1,0,0,1,2,1,0;" * 4])
def test_an_address_that_cannot_be_read_is_named_and_changes_nothing(visit, hash):
    page = visit(f"#turn-the-knob:{hash}")
    assert agree(page)["gamma"] == 3
    assert "cannot be read" in page.locator("#turn-the-knob .beside .note").inner_text()


@pytest.mark.nightly
def test_the_walk_from_noise_to_data_runs_and_who_wants_no_motion_gets_steps(visit):
    page = visit()
    page.locator("button:has-text('From noise to data')").click()
    page.wait_for_function(f"{KNOB}.state.t < 0.9 && {KNOB}.state.t > 0 && {KNOB}.playing")
    page.wait_for_function(f"{KNOB}.state.t === 0 && !{KNOB}.playing")
    page = visit(reduced_motion="reduce")
    times = []
    for _ in range(3):
        page.locator("button:has-text('From noise to data')").click()
        settle(page)
        times.append(page.evaluate(f"{KNOB}.state.t"))
    assert times == [1, 0.9, 0.8] and not page.evaluate(f"{KNOB}.playing")


@pytest.mark.nightly
def test_on_a_dark_page_the_map_is_drawn_in_other_colours(visit):
    page = visit()
    light = page.evaluate(f"{KNOB}.canvas.toDataURL()")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.wait_for_function(f"{KNOB}.plot.colour('truth') === '#fff'")
    settle(page)
    assert page.evaluate(f"{KNOB}.canvas.toDataURL()") != light


# --- one step -------------------------------------------------------------------------------------------------

STATE = f"""() => {{
    const {{state: {{x, t, label}}, nats, falls}} = {STEP};
    return {{x, t, s: Math.max(0.01, t - {STEP}.state.length), label, nats, falls}};
}}"""


def agree_on_the_step(page) -> dict:
    settle(page)
    shown = page.evaluate(STATE)
    mixture, schedule = four_blobs(), from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    x, t, s, label = torch.tensor([shown["x"]], dtype=torch.float64), shown["t"], shown["s"], shown["label"]
    truth = kernels.exact(mixture, schedule, label)(x, t, s)
    alpha_ts, sigma_ts = schedule.transition(t, s)
    g = mixture.noised(schedule.alpha(t), schedule.sigma(t)).class_gradient(x, label)
    best = divergence.closest_gaussian(truth)
    want = {"moments": float(divergence.kl(truth, FullGaussian(best.mean, best.cov)))}
    for variance, names in {"large": ("none", "large", "mended_large"), "small": ("small", "mended_small")}.items():
        step = kernels.ddpm(mixture.denoiser(schedule), schedule, variance)(x, t, s)
        for name in names:
            kind = name.split("_")[0]
            far = {"none": 0.0, "mended": sigma_ts**2 / alpha_ts}.get(kind, step.var)
            moved = type(step)(step.mean + far * g, step.var)
            want[name] = float(divergence.kl(truth, moved))
    assert set(want) == set(shown["nats"])
    for name, value in want.items():
        assert abs(shown["nats"][name] - value) <= 1e-6 * value + 1e-12, name
    return shown


def test_the_nats_of_one_step_are_the_packages_moved_by_mouse_keys_and_slider(visit):
    page = visit()
    first = agree_on_the_step(page)
    assert first["x"] == [-0.9, 0.2] and abs(first["s"] - 0.21) < 1e-12
    point = page.locator("#one-step .handle")
    drag(page, point, 60, -30)
    second = agree_on_the_step(page)
    assert second["x"] != first["x"] and second["nats"] != first["nats"]
    point.focus()
    page.keyboard.press("ArrowLeft")
    third = agree_on_the_step(page)
    np.testing.assert_allclose(third["x"], [second["x"][0] - 0.1, second["x"][1]], atol=1e-9)
    slider(page, "from time t").focus()
    page.keyboard.press("ArrowRight")
    assert abs(agree_on_the_step(page)["t"] - 0.31) < 1e-9
    page.locator("#one-step label:has-text('class 0') input").click()
    assert agree_on_the_step(page)["label"] == 0
    page.locator("button:has-text('The step of the chapter')").click()
    assert agree_on_the_step(page)["nats"] == first["nats"]


@pytest.mark.nightly
def test_a_finger_moves_the_point(visit):
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True)
    point = page.locator("#one-step .handle")
    touch(page, point, 40, 40)
    assert agree_on_the_step(page)["x"] != [-0.9, 0.2]


@pytest.mark.nightly
def test_short_steps_fall_with_the_first_the_second_and_the_third_power(visit):
    page = visit()
    slider(page, "length of the step").focus()
    page.keyboard.press("Home")
    falls = agree_on_the_step(page)["falls"]
    for name, power in {"none": 1, "small": 2, "large": 2, "mended_small": 2, "mended_large": 2, "moments": 3}.items():
        assert abs(falls[name] - power) < 0.05, name


@pytest.mark.nightly
def test_a_step_is_linked_to_by_its_address(visit):
    page = visit("#one-step:x=0.5,-1&t=0.4&s=0.3&class=0&show=large,moments&zoom=1")
    shown = agree_on_the_step(page)
    assert (shown["x"], shown["t"], shown["label"]) == ([0.5, -1], 0.4, 0) and abs(shown["s"] - 0.3) < 1e-12
    ticked = page.locator("#one-step th label:has(input:checked)").all_inner_texts()
    assert ticked == ["large, shifted", "exact mean, covariance"]
    assert page.locator("#one-step label:has-text('follows') input").is_checked()


# --- both -----------------------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_in_the_parts_keeps_readers_out(visit, audit, theme):
    page = visit(viewport=PHONE)
    page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    blob(page, 1).focus()
    settle(page)
    assert [found for found in audit(page) if not found.startswith("color-contrast")] == []  # colours: in the book


@pytest.mark.nightly
def test_without_a_script_the_parts_say_where_their_figure_is(html, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(html.as_uri())
    told = page.locator("noscript > p")
    assert told.count() == 2
    assert all("needs JavaScript" in text for text in told.all_inner_texts())
    context.close()


@pytest.mark.nightly
def test_the_times_of_a_frame_and_of_a_cloud_are_printed(visit, capsys):
    """While a blob is dragged, with all arrows on; nothing is asserted about a machine."""
    page = visit("#turn-the-knob:gamma=3&show=dots,told,other,arrows_u,arrows_c,arrows_g")
    page.evaluate(f"""() => {{
        const {{frame}} = {KNOB};
        window.times = [];
        {KNOB}.frame = now => {{
            const more = frame.call({KNOB}, now);
            times.push({KNOB}.costs.frame);
            return more;
        }};
    }}""")
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

    before = spent()
    for _ in range(3):
        drag(page, blob(page, 4), 20, 10)
    settle(page)
    frames = page.evaluate("times")
    costs = page.evaluate(f"{KNOB}.costs")
    processor = 1000 * (spent() - before) / len(frames)
    with capsys.disabled():
        print(f"\n{len(frames)} frames of a drag: median {np.median(frames):.1f} ms by the clock;")
        print(f"{processor:.1f} ms of the processor, the browser's own work included;")
        print(f"2,000 points x 50 steps, while frames are drawn: {costs['sampling']:.0f} ms by the clock")
    assert len(frames) > 5 and all(math.isfinite(cost) for cost in frames)
