"""The right answers are right: known in three ways, and no wrong answer that a machine can think of is accepted."""

import ast
import warnings
from dataclasses import replace

import pytest
import torch

from difflesson import exercises
from difflesson.exercises import Exercise
from tests.oracles.independence import ALIKE, likeness
from tests.oracles.wrong_answers import wrong_answers
from tests.package.test_exercises import CHAPTERS, EXERCISES, chapter, function
from tools.exercise_cells import SolvedExercise
from tools.pairs import ROOT

# --- truth and solution are two computations ------------------------------------------------------------------


def same_computation(solution, exercise: Exercise) -> str:
    """What shows that truth and solution are one computation; empty if nothing does."""
    if (alike := likeness(solution, exercise.truth)) >= ALIKE:
        return f"{alike:.0%} of their operations are the same"
    truth = exercise.run(exercise.truth)
    if all(type(value) is int for value in truth):  # counts: two ways to count agree exactly
        return ""
    pairs = zip(exercise.run(solution), truth, strict=True)
    return "they agree to the last bit in every case" if all(identical(*pair) for pair in pairs) else ""


def identical(one, other) -> bool:
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(identical, one, other))
    return torch.equal(*(torch.as_tensor(value, dtype=torch.float64).squeeze() for value in (one, other)))


@pytest.mark.parametrize(("name", "exercise"), EXERCISES)
def test_the_truth_is_not_the_solutions_formula(name: str, exercise: SolvedExercise):
    found = same_computation(function(name, exercise, exercise.solution), exercises.find(exercise.number))
    assert not found, f"exercise {exercise.number}: {found}; let the checker know the answer another way"


@pytest.mark.parametrize(("name", "exercise"), EXERCISES)
def test_a_truth_that_is_the_solution_in_another_order_is_noticed(name: str, exercise: SolvedExercise):
    solution = function(name, exercise, exercise.solution)
    copied = function(name, exercise, rewritten(exercise.solution))
    for truth in (solution, copied):
        assert same_computation(solution, replace(exercises.find(exercise.number), truth=truth)), exercise.number


def rewritten(solution: str) -> str:
    """The same formula: the operands of every sum and product exchanged."""
    tree = ast.parse(solution)
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
            node.left, node.right = node.right, node.left
    return ast.unparse(tree)


def test_other_ways_to_write_the_solution_of_7_5_are_noticed():
    name, exercise = next(param.values for param in EXERCISES if param.id == "7.5")
    solution, known = function(name, exercise, exercise.solution), exercises.find("7.5")
    for truth in (lambda third: (third * third).sum() / 12, lambda third: third.pow(2).sum() / 12):
        assert same_computation(solution, replace(known, truth=truth))


def test_the_solution_with_parts_that_can_be_got_wrong_is_noticed_as_a_truth():
    """Some checkers build their mistakes from such a function; it must not become the truth."""
    for number, builder in (("7.3", "covariance"), ("7.4", "rate_of_change"), ("11.3", "guided"), ("11.4", "step")):
        name, exercise = next(param.values for param in EXERCISES if param.id == number)
        module = exercises.import_module(f"difflesson.exercises.chapter{int(name[:2]):02d}")
        changed = replace(exercises.find(number), truth=getattr(module, builder))
        assert same_computation(function(name, exercise, exercise.solution), changed), number


# --- a third computation ------------------------------------------------------------------------------------------


def test_each_exercise_is_computed_a_third_way():
    """In a test marked `@pytest.mark.answer(number)`, which compares it with the checker's truth."""
    marked = set()
    for path in (ROOT / "tests" / "chapters").glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.answer":
                marked |= {argument.value for argument in node.args}
    assert {exercise.number for name in CHAPTERS for exercise in chapter(name)[1]} == marked


# --- wrong answers made by machine --------------------------------------------------------------------------------

SAME_LABEL = "labels count from 0"
SAME_LEVELS = {"alpha -> abs(alpha)": "alpha is positive", "sigma -> abs(sigma)": "sigma is positive",
               "sigma -> -sigma": "it is squared"}  # fmt: skip
LENGTHS = "areas[1] ** 0.5 - entropy ** 0.5"
DEVIATION = "parts.square().sum().sqrt()"
SAME = {  # wrong only in appearance: for these arguments it is the same answer
    "0.1": {"max(guidance_scale, 1.0) -> max(1.0, guidance_scale)": "the order of arguments does not matter to max"},
    "0.3": {"label -> abs(label)": SAME_LABEL},
    "1.1": {
        f"{name} -> {other}": "it is squared there"
        for name in ("a_2", "s_1", "s_2")
        for other in (f"-{name}", f"abs({name})")
    },
    "1.3": SAME_LEVELS | {"chance -> abs(chance)": "a probability is positive"},
    "1.4": SAME_LEVELS
    | {"alpha -> -alpha": "it is squared"}
    | {f"{name} -> abs({name})": "it is positive" for name in ("dim", "mean_square_score")},
    "1.5": {
        f"often -> {other}": "there only its length is asked for" for other in ("-often", "often ** 2", "1 / often")
    }
    | {f"{name} -> abs({name})": "none of them is negative" for name in ("often", "r", "alpha")}
    | {"alpha -> -alpha": "it is squared there"},
    "4.1": {f"{name} -> abs({name})": "it is not negative" for name in "uv"},
    "4.2": {f"{name} -> abs({name})": "it is positive" for name in "vb"},
    "4.3": {
        f"{name} -> {other}": "it is squared"
        for name in ("sigma_1", "sigma_2")
        for other in (f"-{name}", f"abs({name})")
    }
    | {"m - n -> n - m": "it is squared"}
    | {"q -> abs(q)": "a variance is positive"},
    "4.4": {f"{name} -> abs({name})": "losses of scores are positive" for name in ("loss_r", "loss_u")}
    | {f"sigmas -> {other}": "it is squared" for other in ("-sigmas", "abs(sigmas)")},
    "2.1": {f"mean -> {other}": "it is squared" for other in ("-mean", "abs(mean)")},
    "2.2": {f"r -> {other}": "there only its length is asked for" for other in ("-r", "abs(r)", "r ** 2", "1 / r")},
    "2.3": {
        "shares -> shares ** 2": "there it is only compared with 0",
        "u - gap -> gap - u": "it is squared",
        **{f"{name} -> abs({name})": "probabilities are positive" for name in ("shares", "chances")},
    },
    "2.4": {
        "s -> -s": "it is squared",
        **{f"{name} -> abs({name})": "none of them is negative" for name in ("s", "beta", "variances")},
    },
    "2.5": {
        "s -> -s": "all its powers are even",
        "s -> abs(s)": "a deviation is positive",
        "x - b - (x - b) @ S / s ** 2 -> (x - b) @ S / s ** 2 - (x - b)": "it stands in a square",
    },
    "5.1": {"rho -> -rho": "it is squared", "rho -> abs(rho)": "it is squared"}
    | {f"{name} -> abs({name})": "a correlation with the clean point is positive" for name in ("first", "last")},
    "5.2": {"alphas -> -alphas": "they come in pairs", "alphas -> abs(alphas)": "they are positive"}
    | {"c -> abs(c)": "a variance is positive"},
    "5.3": {"rho -> -rho": "it is squared", "rho -> abs(rho)": "it is squared"}
    | {f"float({DEVIATION}) -> {DEVIATION}": "a number, or a tensor of one"},
    "5.4": {f"{name} -> abs({name})": "it is positive" for name in ("F", "f", "r")},
    "6.1": {
        f"{name} -> abs({name})": "probabilities are positive" for name in ("bound", "chance_at_x_t", "chance_of_label")
    },
    "6.2": {
        "start -> -start": "the sign goes out in the quotient",
        "start -> abs(start)": "probabilities are positive",
        "move -> -move": "the sign goes out in the quotient",
        "move -> abs(move)": "probabilities are positive",
    },
    "6.3": {
        "x_t - alpha_ts * x_s -> alpha_ts * x_s - x_t": "it is squared",
        "alpha_ts -> abs(alpha_ts)": "alpha_{t|s} is positive",
        "chances -> abs(chances)": "probabilities are positive",
        "v -> abs(v)": "variances are positive",
    },
    "6.4": {
        "60 -> 61": "one node more or less changes nothing that counts",
        "60 -> 59": "one node more or less changes nothing that counts",
        "60 -> 120": "more nodes are more accurate",
        "1 -> 2": "of nodes in the plane it looks at one coordinate only",
        "0 -> -1": "there is one coordinate: it is the first and the last",
        "beta -> abs(beta)": "variances are positive",
    },
    "6.5": {
        "1 - power * (1 - 1 / count) -> power * (1 - 1 / count) - 1": "it is squared",
        "count -> abs(count)": "a number of proposals is positive",
        "g -> -g": "it is squared",
        "g -> abs(g)": "it is squared",
    },
    "3.1": {
        f"{name} -> {other}": "it is squared"
        for name in ("alpha_t", "sigma_t", "alpha_s", "sigma_s")
        for other in (f"-{name}", f"abs({name})")
    }
    | {"error -> abs(error)": "a squared error is positive"},
    "3.2": {
        f"{name} -> {other}": "it is squared" for name in ("tau_t", "tau_s") for other in (f"-{name}", f"abs({name})")
    },
    "3.3": {"dim -> abs(dim)": "a dimension is positive", "levels -> abs(levels)": "a number of levels is positive"},
    "3.4": {
        "second -> abs(second)": "a mean square is positive",
        "first -> abs(first)": "a mean of squares is positive",
        "first -> -first": "its integral is squared",
        "log_snr -> -log_snr": "the integral is squared",
    },
    "3.5": {f"{name} -> abs({name})": "a ratio is positive" for name in ("snr_r", "snr_s", "snr_t")}
    | {"dim -> abs(dim)": "a dimension is positive"},
    "7.2": {f"{name} -> abs({name})": "alpha is positive" for name in ("alpha_t", "alpha_s")},
    "7.3": {
        "label -> abs(label)": SAME_LABEL,
        "alpha_ts -> abs(alpha_ts)": "alpha_{t|s} is positive",
        "alpha_ts -> -alpha_ts": "it is squared there",
    },
    "7.4": {"label -> abs(label)": SAME_LABEL, "rate -> abs(rate)": "a rate of noise is not negative"},
    "7.5": {"third -> -third": "it is squared", "third -> abs(third)": "it is squared"},
    "9.1": {f"{v} -> {other}": "there it is a length" for v in "xu" for other in (f"-{v}", f"abs({v})")},
    "9.2": {
        "gamma -> -gamma": "there it is squared",
        "gamma -> abs(gamma)": "there it is squared",
        "weights -> abs(weights)": "weights are positive",
        "variances -> abs(variances)": "variances are positive",
    },
    "9.3": {
        **{f"{name} -> -{name}": "it is squared" for name in ("alpha", "sigma")},
        **{f"{name} -> abs({name})": "none of them is negative" for name in ("alpha", "sigma", "v", "gamma")},
    },
    "9.4": {
        **{f"rho -> {other}": "it is squared, or compared with 0" for other in ("-rho", "abs(rho)", "rho ** 2")},
        "B -> abs(B)": "a length is positive",
    },
    "9.5": {
        **{f"{name} -> -{name}": "it is squared" for name in ("alpha", "sigma")},
        **{f"{name} -> abs({name})": "none of them is negative" for name in ("alpha", "sigma", "m")},
    },
    "8.1": {"p -> abs(p)": "a probability is positive"},
    "8.2": {"label -> abs(label)": SAME_LABEL},
    "8.3": {
        "p -> abs(p)": "probabilities are positive",
        "label -> abs(label)": SAME_LABEL,
        "power.sum(1) -> power.mean(1)": "weights count up to a factor",
    },
    "8.4": {
        **{
            f"20.0 -> {other}": "the exercise says between -20 and 20, a wider search finds it too"
            for other in ("21.0", "19.0", "40.0")
        },
        **{f"100 -> {other}": "halved often enough" for other in (101, 99, 200)},
        "a -> abs(a)": "the exercise says a > 0",
        "gamma -> abs(gamma)": "the exercise says gamma >= 0",
    },  # fmt: skip
    "10.1": {"alpha -> -alpha": "it is squared there", "alpha -> abs(alpha)": "alpha is positive"},
    "10.2": {f"{name} -> abs({name})": "alpha and eta are positive" for name in ("alpha_t", "alpha_s", "eta")}
    | {f"{name} -> -{name}": "it is squared there" for name in ("alpha_t", "alpha_s", "eta")},
    "10.3": {
        "sigma_tilde -> -sigma_tilde": "it is squared there",
        "sigma_tilde -> abs(sigma_tilde)": "a noise level is positive",
    },
    "10.4": {
        "alpha -> -alpha": "it is squared",
        **{f"{name} -> abs({name})": "all three are positive" for name in ("alpha", "U", "phi")},
    },
    "10.5": {
        "rho -> -rho": "it is squared",
        "rho -> abs(rho)": "it is positive",
        "q -> abs(q)": "it is positive",
    },
    "11.3": {
        "gamma -> abs(gamma)": "the exercise says gamma >= 0",
        "class_variance -> abs(class_variance)": "variances are positive",
        "all_variance -> abs(all_variance)": "variances are positive",
    },
    "11.4": {"v -> abs(v)": "v is between 0 and 1"},
    "12.1": SAME_LEVELS,
    "12.2": SAME_LEVELS | {"s2 -> abs(s2)": "a variance is positive"},
    "12.3": SAME_LEVELS
    | {
        "x - alpha * x0 -> alpha * x0 - x": "it is squared",
        "p -> abs(p)": "a probability is positive",
    },
    "12.4": SAME_LEVELS,
    "13.1": {
        f"{name} -> abs({name})": "losses and a number of pixels are positive" for name in ("told", "untold", "pixels")
    },
    "13.2": {
        "float(torch.trapezoid(curve, log_snr)) -> torch.trapezoid(curve, log_snr)": "a tensor of one number will do",
        "distance -> abs(distance)": "a squared distance is positive",
        "entropy -> abs(entropy)": "an entropy is positive",
        f"max(0.0, {LENGTHS}) -> max({LENGTHS}, 0.0)": "the order of arguments does not matter to max",
        "1 -> -1": "there are two areas: the second is the last",
    },
    "13.3": {
        "steps -> abs(steps)": "a number of steps is not negative",
        "decay -> abs(decay)": "a decay is not negative",
    },
    "13.4": {
        **{f"{name} -> abs({name})": "a mean square is positive" for name in ("floor_untold", "floor_told")},
        "1 - m -> m - 1": "it is squared",
    },
    "14.1": {f"{name} -> abs({name})": "a cross-entropy is not negative" for name in ("loss_low", "loss_high")},
    "14.2": {
        **{f"product({u}, {v}) -> product({v}, {u})": "it is symmetric" for u, v in ("ab", "ac", "bc")},
        "length -> abs(length)": "a length is positive",
    },
    "14.3": {"T -> abs(T)": "a temperature is positive", "y -> abs(y)": "labels count from 0"},
    "14.4": {
        **{f"{name} -> abs({name})": "a length is positive" for name in ("len_a", "len_b", "len_g")},
        **{f"rho_ab -> {other}": "it is squared there" for other in ("-rho_ab", "abs(rho_ab)")},
    },
    "15.2": {
        **{
            f"labels -> {other}": "only the length counts there, one for each sample"
            for other in ("log_probs", "1 / log_probs", "-labels", "labels ** 2", "1 / labels", "abs(labels)")
        },
        "labels.unique() -> labels": "a label that comes again gives the same again",
    },
    "15.3": {
        **{f"{name} -> abs({name})": "variances are positive" for name in ("C", "C_hat", "U_hat")},
        "float((U_hat / C).log() / (U_hat / C_hat).log()) -> (U_hat / C).log() / (U_hat / C_hat).log()": "a number",
    },
    "15.4": {
        "0.0 -> -1.0": "the exercise says from 0, a wider search finds it too",
        **{f"10.0 -> {other}": "the exercise says up to 10, a wider search finds it too" for other in (11.0, 20.0)},
        **{f"100 -> {other}": "narrowed often enough" for other in (101, 99, 200)},
        **{f"3 -> {other}": "any two points inside will do" for other in (4, 2, 6)},
        "gamma -> abs(gamma)": "the search looks at positive ones",
        "(deviation - C.sqrt()).square().sum() -> (deviation - C.sqrt()).square().mean()": "least at the same scale",
        "deviation - C.sqrt() -> C.sqrt() - deviation": "it is squared",
    },
    "16.1": {"tau -> abs(tau)": "a temperature is positive"},
    "16.2": {
        **{f"{name} -> abs({name})": "chances are positive" for name in ("chance", "share")},
        "float((chance / share).log()[said].sum()) -> (chance / share).log()[said].sum()": "a number",
    },
    "16.3": {f"{name} -> abs({name})": "chances are positive" for name in ("given", "q")},
    "16.4": {
        **{f"a -> {other}": "inside abs(a)" for other in ("-a", "abs(a)")},
        **{f"{name} -> abs({name})": "the exercise says that it is not negative" for name in ("b", "c")},
    },
    "20.1": {
        "sigma_edm -> -sigma_edm": "it is squared",
        "sigma_edm -> abs(sigma_edm)": "noise over signal is positive",
    },
    "20.2": {
        **{f"swapped -> {it}": "only its truth is asked for" for it in ("-swapped", "swapped ** 2", "abs(swapped)")},
        "times -> abs(times)": "a number of times is not negative",
    },
    "20.3": {
        "alphabar -> abs(alphabar)": "it is not negative",
        "c -> abs(c)": "a deviation is positive",
        "c -> -c": "there it is squared",
    },
    "20.4": {f"{name} -> abs({name})": "none of them is negative" for name in ("alphas_cumprod", "j", "k")},
    "17.1": {"rho -> -rho": "it is squared", "rho -> abs(rho)": "it is squared"},
    "17.2": {
        **{f"{name} -> abs({name})": "variances are positive" for name in "CU"},
        "x -> -x": "it is squared",
        "x -> abs(x)": "it is squared",
    },
    "17.3": {
        "zip(c, (s0, s1, s2), strict=True) -> zip((s0, s1, s2), c, strict=True)": "a product, in either order",
        **{f"s{k} -> {other}": "there it is squared" for k in range(3) for other in (f"-s{k}", f"abs(s{k})")},
    },
    "17.4": {
        "rho -> -rho": "it is squared",
        "rho -> abs(rho)": "it is squared",
        "q -> abs(q)": "a variance of noise is positive",
    },
    "18.1": {"eps_u - eps_c -> eps_c - eps_u": "it is squared"},
    "18.2": {
        "gamma -> abs(gamma)": "one thins with gamma >= 1 only",
        "p_y -> abs(p_y)": "a probability is positive",
    },
    "18.3": {f"{name} -> abs({name})": "variances and a scale" for name in ("C", "U", "gamma")},
    "18.4": {
        **{f"1.0 -> {other}": "a search from below 1 finds it too" for other in (0.0, 0.5, -1.0)},
        **{
            f"64.0 -> {other}": "the exercise says below 64, a wider search finds it too"
            for other in (65.0, 63.0, 128.0, 32.0)
        },
        **{f"60 -> {other}": "halved often enough" for other in (61, 59, 120)},
        "gamma -> abs(gamma)": "the search looks at positive ones",
    },
    "19.3": {f"{name} -> abs({name})": "variances are positive" for name in ("v", "v_1", "v_2")},
    "19.4": {
        "phi -> abs(phi)": "a share is not negative",
        "rescaled - untold - scale[:, None] * push -> scale[:, None] * push - (rescaled - untold)": "a length",
        "1 -> -1": "one axis is left",
    },
}


def accepted(name: str, exercise: SolvedExercise, known: Exercise) -> tuple[list[str], int]:
    """Which wrong answers the checker accepts, and how many it was given that gave an answer at all."""
    truth, found, count = known.run(known.truth), [], 0
    for what, source in wrong_answers(exercise.solution).items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                got = known.run(function(name, exercise, source))
        except Exception:  # noqa: S112 (an answer that raises is refused anyway)
            continue
        count += 1
        if not exercises.faults(known, got, truth):
            found.append(what)
    return found, count


@pytest.mark.parametrize(("name", "exercise"), EXERCISES)
def test_every_wrong_answer_that_a_machine_makes_of_the_solution_is_refused(name: str, exercise: SolvedExercise):
    found, count = accepted(name, exercise, exercises.find(exercise.number))
    same = SAME.get(exercise.number, {})
    wrong = [what for what in found if what.rpartition(", in: ")[0] not in same]
    assert not wrong, f"exercise {exercise.number} accepts, of {count}: {wrong}; add a case that tells them apart"
    assert count >= 10
    stale = same.keys() - {what.rpartition(", in: ")[0] for what in found}
    assert not stale, f"exercise {exercise.number}: no longer accepted, take it off the list: {stale}"


def test_a_checker_with_too_few_cases_is_noticed():
    """11.3 with gamma = 1 and U = 1 / C alone would accept `c ** (2 gamma - 1)`."""
    name, exercise = next(param.values for param in EXERCISES if param.id == "11.3")
    few = replace(exercises.find("11.3"), cases=lambda: {"gamma 1": (0.5, 3.0, 1.0), "gamma 3": (0.5, 2.0, 3.0)})
    found, _ = accepted(name, exercise, few)
    line = "geometric = class_variance ** gamma * all_variance ** (1 - gamma)"
    assert f"all_variance -> 1 / class_variance, in: {line}" in found
