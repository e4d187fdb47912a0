"""Exercises: solutions pass, stubs are "not attempted", mistakes are named."""

import inspect
import json
import re
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

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
from flowrl_lab.course.showing import markup_to_html, markup_to_text
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
    # The stub has the parameters of the function it stands for, in its order; it may
    # leave out what has a default.
    theirs = inspect.signature(load_solution(EXERCISES[name])).parameters
    ours = list(inspect.signature(namespace[name]).parameters)
    assert ours == [key for key in theirs if key in ours]
    assert {k for k, p in theirs.items() if p.default is p.empty} <= set(ours)


@pytest.mark.parametrize(
    ("name", "index"),
    [(e.name, i) for e in EXERCISES.values() for i in range(len(e.mistakes))],
)
def test_every_known_mistake_is_named(name, index):
    mistake = EXERCISES[name].mistakes[index]
    result = check(name, mistake.wrong)
    assert (result.status, result.mistake) == ("failed", mistake.name)
    assert result.message == mistake.message


KL_CALLS = (
    lambda p, q: F.kl_div(p, q, reduction="none", log_target=True).sum(-1),
    lambda p, q: F.kl_div(p, q.exp(), reduction="sum"),
    lambda p, q: F.kl_div(q, p.exp(), reduction="batchmean"),
)


@pytest.mark.parametrize("function", KL_CALLS)
def test_the_traps_of_torchs_own_kl_are_named(function):
    result = check("kl_divergence", function)
    assert result.status == "failed" and "`F.kl_div(a, b)` is KL(b ‖ a)" in (
        result.message
    )
    assert check("kl_divergence", lambda p, q: KL_CALLS[0](q, p)).status == "passed"


def test_bits_and_a_state_of_probability_0_are_named():
    def bits(log_p):
        return -(log_p.exp() * torch.log2(log_p.exp())).sum(-1)

    result = check("effective_number", lambda log_p: bits(log_p).exp())
    assert result.mistake == "base 2" and "you got 20.09, expected 8" in result.details
    result = check("effective_number", lambda log_p: torch.exp2(bits(log_p)))
    assert result.mistake == "0 · (−∞)"

    def right(log_p):
        return torch.exp2(bits(log_p.clamp(min=-700)))

    assert check("effective_number", right).status == "passed"


GIGABYTES_CALLED = {  # of one GPU in notebook 12, where 193 are right
    159.6: ("neither waste nor process", lambda n, k, *, rest: 16e-9 * n / k + rest),
    185.4: (
        "waste on the 16 bytes only",
        lambda n, k, *, rest: 16e-9 * n / k * 1.2 + rest + 1.5,
    ),
    183.0: ("GiB", lambda n, k, *, rest: (16 * n / k / 1024**3 + rest) * 1.2 + 1.5),
}


@pytest.mark.parametrize("number", GIGABYTES_CALLED)
def test_gigabytes_that_are_off_are_told_why(number):
    called, function = GIGABYTES_CALLED[number]
    assert abs(function(7.6e9, 1, rest=38.0) - number) < 0.05
    assert check("training_gigabytes", function).mistake == called


def test_two_slips_at_once_are_told_the_one_that_shows():
    """Added, and not detached: its value is the sign's, its gradients are neither's."""

    def wrong(log_z, policy, ref, rewards, *, reward_scale, reduction="mean"):
        loss = (log_z + policy - reward_scale * rewards + ref).square()
        return loss.mean() if reduction == "mean" else loss

    result = check("trajectory_balance_loss", wrong)
    assert result.mistake == "plus log π_ref"


def test_a_failed_check_shows_the_case_to_paste_and_try():
    """Its inputs, under the solution's names, give the two numbers that it shows."""
    result = check("total_variation", lambda p, q: (p - q).abs().sum(-1) * 0 + 0.25)
    inputs: dict = {}
    exec(f"import torch\n{result.details}", inputs)
    right = load_solution(EXERCISES["total_variation"])
    number = right(*(inputs[name].log_softmax(-1) for name in ("log_p", "log_q")))
    assert f"you got 0.25, expected {number:.3f}" in result.message
    assert result.details in str(result).replace("\n  ", "\n")
    known = check("total_variation", EXERCISES["total_variation"].mistakes[0].wrong)
    assert known.details.startswith("Case 1 of 2: you got")
    assert "log_p = torch.tensor([" in known._repr_html_()
    crash = check("total_variation", lambda p, q: p.missing(q))
    assert "log_p = torch.tensor([" in crash.details


def test_a_case_with_an_infinite_number_can_be_pasted_too():
    right = load_solution(EXERCISES["js_divergence"])
    wrong = check("js_divergence", lambda p, q: right(p, q) + float(p.isinf().any()))
    inputs: dict = {}
    exec(f"import torch\n{wrong.details}", inputs)
    assert inputs["log_p"].isinf().sum() == 2 and inputs["log_q"].isinf().sum() == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda right: right + 0.5, "Everywhere yours is +0.5 off"),
        (lambda right: 3 * right, "Everywhere yours is 3 times as large"),
    ],
)
def test_what_all_wrong_numbers_have_in_common_is_said(change, words):
    right = load_solution(EXERCISES["exact_target"])
    result = check("exact_target", lambda *a, **k: change(right(*a, **k)))
    assert words in result.message


def test_of_a_large_result_the_first_wrong_number_is_named():
    right = load_solution(EXERCISES["next_token_logits"])

    def wrong(*given, **settings):
        values = right(*given, **settings).clone()
        values[..., -1] = 1.0
        return values

    message = check("next_token_logits", wrong).message
    assert re.search(
        r"\d+ of \d+ numbers differ; the first, at \[0, 0, \d\]: you got 1,", message
    )


def _spoken() -> list[str]:
    """Everything that a check or a hint may say."""
    lines = [m.message for e in EXERCISES.values() for m in e.mistakes]
    return [*lines, *(e.hint for e in EXERCISES.values())]


def test_nothing_is_shown_with_the_marks_of_markdown():
    marked = [text for text in _spoken() if "`" in text or re.search(r"\*\w", text)]
    assert len(marked) > 10
    for text in _spoken():
        assert "`" not in markup_to_text(text) + markup_to_html(text)
        assert not re.search(r"(?<![\w*)\]])\*\w[^*]*\w\*(?!\w)", markup_to_text(text))
    assert markup_to_html("a < *b c* in `x * y * z`") == (
        "a &lt; <em>b c</em> in <code>x * y * z</code>"
    )
    assert markup_to_text("2*3*4, 4*6 and *this*") == "2*3*4, 4*6 and this"


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
    low, high = layout["yaxis"]["range"]
    assert low < 2 and high > 7  # the axis makes room for the marks
    for shape, value in zip(layout["shapes"], (7.0, 2.0), strict=True):
        assert shape["yref"] == "y" and shape["y0"] == shape["y1"] == value
        assert shape["xref"] == "x domain" and (shape["x0"], shape["x1"]) == (0, 1)
    assert "your prediction 7</text>" in bundle["image/svg+xml"]
    plain = draw_curves(curves)._repr_mimebundle_()["application/vnd.plotly.v1+json"]
    assert plain["layout"]["shapes"] == []


@pytest.mark.bad_input
def test_marks_that_cannot_be_drawn_are_refused():
    curves = {"grpo": ([0, 1], [1.0, 2.0])}
    for log_y, value in ((False, float("nan")), (True, 0.0), (False, "3")):
        with pytest.raises(ValueError, match="'guess', expected a finite number"):
            draw_curves(curves, log_y=log_y, marks={"guess": value})
