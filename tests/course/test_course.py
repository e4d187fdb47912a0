"""Exercises: solutions pass, stubs are "not attempted", mistakes are named."""

import inspect
import json
import threading
from pathlib import Path

import pytest
import torch

from flowrl_lab.course import (
    EXERCISES,
    Exercise,
    Mistake,
    check,
    draw_curves,
    draw_distributions,
    hint_and_solution,
)
from flowrl_lab.course.checking import load_solution
from flowrl_lab.course.time_limit import TimeUp, call_with_limit
from flowrl_lab.tasks.landscape import figure1_log_mixture

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def _stub_cells():
    """(notebook, metadata, source) of every exercise stub in the course."""
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            metadata = cell["metadata"].get("flowrl", {})
            if "exercise" in metadata:
                yield pytest.param(
                    metadata,
                    "".join(cell["source"]),
                    id=f"{path.stem}-{metadata['exercise']}",
                )


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_the_solution_shown_passes_where_it_is_pasted(name):
    namespace: dict = {}
    exec(hint_and_solution(name).source, namespace)
    assert namespace[name] is not load_solution(EXERCISES[name])
    result = check(name, namespace[name])
    assert result.status == "passed", result.message


@pytest.mark.parametrize(("metadata", "source"), list(_stub_cells()))
def test_stub_as_shipped_is_not_attempted(metadata, source):
    name = metadata["exercise"]
    assert metadata["solution"] == EXERCISES[name].solution
    namespace = {"torch": torch}
    exec(source, namespace)
    assert check(name, namespace[name]).status == "not attempted"
    # The stub has the parameters of the function it stands for.
    theirs = inspect.signature(load_solution(EXERCISES[name])).parameters
    assert list(inspect.signature(namespace[name]).parameters) == list(theirs)


@pytest.mark.parametrize(
    ("name", "index"),
    [(e.name, i) for e in EXERCISES.values() for i in range(len(e.mistakes))],
)
def test_every_known_mistake_is_named(name, index):
    mistake = EXERCISES[name].mistakes[index]
    result = check(name, mistake.wrong)
    assert (result.status, result.mistake) == ("failed", mistake.name)
    assert result.message == mistake.message


def test_every_exercise_knows_at_least_three_mistakes():
    assert len(EXERCISES) >= 5
    for exercise in EXERCISES.values():
        assert len({mistake.name for mistake in exercise.mistakes}) >= 3
        assert exercise.hint


def _endless(log_p, log_q):
    while True:
        log_p = log_p + log_q * 0


def _swallowing(log_p, log_q):
    while True:
        try:
            log_p = log_p + log_q * 0
        except Exception:
            continue


def _in_place(log_p, log_q):
    log_p -= log_q
    return log_p.exp().sum(-1)


def _quits(*_):
    raise SystemExit


def _interrupted(*_):
    raise KeyboardInterrupt


def _raises(log_p, log_q):
    return log_p.missing - log_q


def _returns_nothing(log_p, log_q):
    (log_p.exp() * (log_p - log_q)).sum(-1)


def _returns_text(*_):
    return "0.5"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (_endless, "loop that never ends"),
        (_swallowing, "loop that never ends"),
        (_in_place, "changed one of its inputs"),
        (_quits, "SystemExit"),
        (_interrupted, "interrupted"),
        (_raises, "AttributeError"),
        (_returns_nothing, "Is the `return` missing"),
        (_returns_text, "returned a str"),
        (lambda p, q: p - q, "Check which dimension you sum over"),
        (lambda p, q: (p - q).sum(-1) * float("nan"), "NaN"),
        (lambda p, q: (p - q).sum(-1) * 0 + 0.5, "Case 1 of 2: you got 0.5"),
        (lambda p: p, "TypeError"),
        (3.0, "Pass the function itself"),
    ],
)
def test_what_goes_wrong_is_said_and_never_raised(function, words):
    result = check("kl_divergence", function, seconds=0.3)
    assert result.status == "failed" and words in result.message


def test_unknown_exercise_gets_the_closest_name():
    result = check("kl_divergance", lambda: 0)
    assert result.status == "failed" and "kl_divergence" in result.message
    with pytest.raises(ValueError, match="expected one of"):
        hint_and_solution("kl_divergance")


def test_numbers_and_float32_are_welcome():
    def in_float32(log_p, log_q):
        log_p, log_q = log_p.float(), log_q.float()
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    assert check("kl_divergence", in_float32).status == "passed"

    def as_numbers(log_probs, ref_log_probs, rewards, *, reward_scale):
        delta = reward_scale * rewards + ref_log_probs - log_probs
        return float((log_probs.exp() * delta).sum())

    assert check("optimal_log_z", as_numbers).status == "passed"


def test_a_result_shows_itself_once(capsys):
    result = check("total_variation", lambda p, q: (p.exp() - q.exp()).abs().sum(-1))
    assert capsys.readouterr().out == f"{result}\n"
    result._ipython_display_()
    assert capsys.readouterr().out == ""
    result._ipython_display_()
    assert capsys.readouterr().out == f"{result}\n"
    assert "✗ total_variation: failed" in str(result)
    assert "You forgot the ½" in result._repr_html_()


def test_html_is_escaped():
    def bad(_p, _q):
        raise ValueError("<script>alert(1)</script>")

    assert "<script>" not in check("kl_divergence", bad)._repr_html_()


def test_hint_and_solution_are_folded():
    reveal = hint_and_solution("exact_target")
    page = reveal._repr_html_()
    assert page.count("<details>") == 2 and "def exact_target" in page
    assert "def exact_target" in reveal.source and reveal.hint in repr(reveal)
    assert "def exact_target" not in repr(reveal)


def test_a_new_exercise_needs_no_change_to_the_engine():
    double = Exercise(
        "double",
        "operator:pos",
        lambda: [((torch.tensor([1.0, 2.0]),), {})],
        (Mistake("sign", "Wrong sign.", lambda x: -x),),
        "…",
    )
    own = {"double": double}
    assert check("double", lambda x: x, exercises=own).status == "passed"
    assert check("double", lambda x: -x, exercises=own).mistake == "sign"


def test_time_limit_on_another_thread():
    """Where there is no timer signal, a helper thread is stopped instead."""
    outcome = {}

    def work():
        try:
            call_with_limit(lambda: _endless(1.0, 1.0), 0.2)
        except TimeUp:
            outcome["stopped"] = True
        outcome["value"] = call_with_limit(lambda: 7, 5.0)

    before = threading.active_count()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert outcome == {"stopped": True, "value": 7}
    assert threading.active_count() == before


def test_picture_of_distributions_says_what_it_shows():
    target = figure1_log_mixture()
    uniform = torch.full_like(target, 1 / 100).log()
    picture = draw_distributions(target, {"flowrl": target, "start": uniform})
    words, bundle = repr(picture), picture._repr_mimebundle_()
    assert "start: 100.0 of 100" in words
    alive = float(target.exp().pow(-target.exp()).prod())
    assert f"flowrl: {alive:.1f} of 100" in words
    assert bundle["image/svg+xml"].startswith("<svg")
    lines = bundle["application/vnd.plotly.v1+json"]["data"]
    drawn = {line["name"]: line["y"] for line in lines if len(line["y"]) == 100}
    assert drawn["start"] == pytest.approx([0.01] * 100)
    assert drawn["flowrl"] == pytest.approx(target.exp().tolist())


def test_picture_of_curves_says_what_it_shows():
    curves = {"grpo": ([0, 2, 4], [0.2, 0.01, 1e-4]), "other": ([0, 2], [0.3, 0.0])}
    picture = draw_curves(
        curves, title="a & b", x_title="log₂ k", y_title="unsolved", log_y=True
    )
    words, bundle = repr(picture), picture._repr_mimebundle_()
    assert (
        "unsolved (log axis, zeros left out) over log₂ k: at the end grpo 1.0e-04"
        in words
    )
    svg = bundle["image/svg+xml"]
    assert "log₂ k</text>" in svg and "a &amp; b" in svg and ">step<" not in svg
    figure = bundle["application/vnd.plotly.v1+json"]
    assert figure["layout"]["xaxis"]["title"]["text"] == "log₂ k"
    assert figure["layout"]["yaxis"]["type"] == "log"
    drawn = {line["name"]: (line["x"], line["y"]) for line in figure["data"]}
    curves["other"] = ([0, 2], [0.3, None])  # 0 has no place on a log axis
    assert drawn == {name: (list(x), list(y)) for name, (x, y) in curves.items()}
    grpo = next(line for line in figure["data"] if line["name"] == "grpo")
    assert grpo["line"]["color"] == "#D55E00"


@pytest.mark.bad_input
def test_picture_of_curves_refuses_what_it_cannot_draw():
    for curves in ({}, {"a": ([1, 2], [1])}, {"a": ([], [])}):
        with pytest.raises(ValueError, match="got"):
            draw_curves(curves)


def test_pass_at_k_takes_a_product_form_and_a_plain_float():
    """A solution without binomials, as it is often written, passes too."""

    def as_product(num_samples, num_correct, k):
        miss = 1.0
        for i in range(num_samples - num_correct + 1, num_samples + 1):
            miss *= 1 - k / i
        return 1 - miss

    assert check("pass_at_k", as_product).status == "passed"


@pytest.mark.bad_input
def test_picture_refuses_what_it_cannot_draw():
    target = figure1_log_mixture()
    for curves in ({}, {"a": target[:50]}):
        with pytest.raises(ValueError, match="got"):
            draw_distributions(target, curves)
    with pytest.raises(ValueError, match="N ≥ 2"):
        draw_distributions(target[:1], {"a": target[:1]})


def _weighted_square(log_w, x):
    """The library's side of a made-up exercise: the weight carries no gradient."""
    return log_w.detach().exp() * x.square()


def _weight_with_gradient(log_w, x):
    return log_w.exp() * x.square()


def _gradient_exercise(monkeypatch):
    monkeypatch.setattr(
        "flowrl_lab.metrics.weighted_square", _weighted_square, raising=False
    )
    one, two = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in (3, 5))
    return Exercise(
        name="weighted_square",
        solution="flowrl_lab.metrics:weighted_square",
        cases=lambda: [((one, one + 2), {}), ((two,), {"x": two - 2})],
        mistakes=(Mistake("not detached", "Detach it.", _weight_with_gradient),),
        hint="detach",
        gradients=("log_w", "x"),
    )


def test_equal_values_with_another_gradient_are_told_apart(monkeypatch):
    table = {"weighted_square": _gradient_exercise(monkeypatch)}

    def judge(function):
        return check("weighted_square", function, exercises=table)

    assert judge(lambda log_w, x: log_w.detach().exp() * x**2).status == "passed"
    # names of the learner's own
    assert judge(lambda a, x: a.detach().exp() * x * x).status == "passed"
    assert judge(_weight_with_gradient).mistake == "not detached"
    cut = judge(lambda log_w, x: log_w.exp().detach() * x.detach().square())
    assert cut.status == "failed"
    assert "gradient with respect to x" in cut.message
    assert "detach" in cut.message


def test_marks_are_drawn_at_their_height_and_said():
    curves = {"grpo": ([0, 1, 2], [1.0, 2.0, 3.0])}
    marks = {"your prediction": 7.0, "truth": 2, "skipped": None}
    picture = draw_curves(curves, marks=marks, y_title="log Z")
    assert "your prediction 7" in repr(picture) and "truth 2" in repr(picture)
    assert "skipped" not in repr(picture)
    bundle = picture._repr_mimebundle_()
    layout = bundle["application/vnd.plotly.v1+json"]["layout"]
    bottom, top = layout["yaxis"]["domain"]
    low, high = layout["yaxis"]["range"]
    assert high > 7  # the axis makes room for the marks
    for shape, value in zip(layout["shapes"], (7.0, 2.0), strict=True):
        share = (value - low) / (high - low)
        assert shape["y0"] == shape["y1"]
        assert shape["y0"] == pytest.approx(bottom + share * (top - bottom))
    assert "your prediction 7</text>" in bundle["image/svg+xml"]
    plain = draw_curves(curves)._repr_mimebundle_()["application/vnd.plotly.v1+json"]
    assert plain["layout"]["shapes"] == []


@pytest.mark.bad_input
def test_marks_that_cannot_be_drawn_are_refused():
    curves = {"grpo": ([0, 1], [1.0, 2.0])}
    for log_y, value in ((False, float("nan")), (True, 0.0), (False, "3")):
        with pytest.raises(ValueError, match="'guess', expected a finite number"):
            draw_curves(curves, log_y=log_y, marks={"guess": value})
