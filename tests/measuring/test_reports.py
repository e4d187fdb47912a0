"""Results on disk, tables over seeds, and the offline HTML report."""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from flowrl_lab.measuring.folder import RunResult, is_finished, load_result, save_result
from flowrl_lab.measuring.pages import draw_front, render_report, write_report
from flowrl_lab.measuring.recorded import load_recorded
from flowrl_lab.measuring.tables import (
    CONTROLS,
    LEGEND,
    Spread,
    average_runs,
    format_table,
    fronts,
    group_runs,
    name_betas,
    summarize,
)
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.records import nothing_measured, record_to_dict
from flowrl_lab.types import ExactReport, Snapshot, StepRecord

OUTSIDE = re.compile(r"(src|href|xlink:href|action|poster)\s*=|url\(|@import|<script")


def make_report(accuracy: float, **changes) -> ExactReport:
    fields = {
        "accuracy": accuracy,
        "pass_at_k": {1: accuracy, 64: min(1.0, 2 * accuracy)},
        "distinct_64": 9.0,
        "effective_answers": 10 * accuracy,
        "kl_policy_target": 1 - accuracy,
        "kl_target_policy": 2 - accuracy,
        "total_variation": 0.5,
        "modes_covered": 1.0,
        "lost_prompts": 0.0,
        "log_z_exact": 3.0,
        "log_z_learned": math.nan,
        "log_z_rmse": math.nan,
        "num_prompts": 7,
    }
    return ExactReport(**(fields | changes))


def make_snapshot(seed: int, count: int = 60) -> Snapshot:
    probs = np.random.default_rng(seed).dirichlet(np.ones(count))
    return Snapshot(
        prompt="a prompt",
        labels=tuple(str(i) for i in range(count)),
        probs=probs,
        target_probs=np.full(count, 1 / count),
        rewards=np.linspace(0, 1, count),
    )


def make_result(name: str, seed: int, accuracy: float, steps: int = 2) -> RunResult:
    algorithm = name.split()[0]
    records = []
    for step in range(steps + 1):
        exact = make_report(accuracy * step / steps)
        numbers = nothing_measured() | {"reward": accuracy + step, "entropy": 2.0}
        records.append(
            StepRecord(
                run=name,
                algorithm=algorithm,
                seed=seed,
                step=step,
                steps=steps,
                tokens=10 * step,
                seconds=0.5 * step,
                exact=exact,
                snapshot=make_snapshot(seed),
                samples=(("a prompt", "an answer", 1.0),),
                **numbers,
            )
        )
    config = ExperimentConfig(algorithm=algorithm, name=name, seed=seed, steps=steps)
    environment = {
        "versions": {"torch": "9.9.9"},
        "device": "cpu",
        "threads": 1,
        "wall_seconds": 3.0,
    }
    return RunResult(dataclasses.asdict(config), tuple(records), environment)


@pytest.fixture(name="results")
def fixture_results() -> list[RunResult]:
    accuracies = {"flowrl": (0.5, 0.6, 0.9), "grpo": (0.8, 0.7, 0.75)}
    return [
        make_result(name, seed, accuracy)
        for name, row in accuracies.items()
        for seed, accuracy in enumerate(row)
    ]


# ------------------------------------------------------------------------ tables


def test_summary_is_mean_and_sample_deviation(results):
    table = summarize(results)
    spread = table["flowrl"]["accuracy"]
    assert spread.mean == pytest.approx(statistics.fmean([0.5, 0.6, 0.9]))
    assert spread.deviation == pytest.approx(np.std([0.5, 0.6, 0.9], ddof=1))
    assert spread.count == 3
    assert table["grpo"]["pass@64"].mean == pytest.approx(1.0)


def test_metrics_that_apply_to_no_run_are_left_out(results):
    assert "log_z_rmse" not in summarize(results)["flowrl"]
    exact = make_report(0.4, log_z_rmse=0.25)
    last = dataclasses.replace(results[0].records[-1], exact=exact)
    one = RunResult(results[0].config, (last,), results[0].environment)
    table = summarize([one, *results[1:]])
    assert str(table["flowrl"]["log_z_rmse"]) == "0.25"  # the other seeds have none
    assert table["grpo"]["log_z_rmse"].count == 0


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((0.84123, 0.0213, 5), "0.841 ± 0.021"),
        ((12.345, 1.6, 5), "12.3 ± 1.6"),
        ((0.000512, 0.00008, 3), "0.000512 ± 0.000080"),
        ((1.0, 1e-16, 5), "1 ± 0"),
        ((0.25, math.nan, 1), "0.25"),
        ((math.nan, math.nan, 0), "–"),
    ],
)
def test_spread_shows_digits_that_mean_something(values, shown):
    assert str(Spread(*values)) == shown


def test_text_table_has_a_column_for_each_run_and_its_seeds(results):
    lines = format_table(results).splitlines()
    assert lines[0].split() == ["untrained", "flowrl", "grpo"]
    assert lines[1].split() == ["seeds", "3", "3", "3"]
    accuracy = next(line for line in lines if line.startswith("accuracy"))
    assert accuracy.split()[-6:] == ["0.67", "±", "0.21", "0.750", "±", "0.050"]
    assert len({len(line) for line in lines[1:]}) == 1


def test_average_curve_is_the_mean_of_the_seeds(results):
    averaged = average_runs(results[:3])
    assert [record.step for record in averaged] == [0, 1, 2]
    assert averaged[2].reward == pytest.approx(2 + 2 / 3)
    assert averaged[1].exact.accuracy == pytest.approx(1 / 3)
    assert averaged[2].exact.pass_at_k[64] == pytest.approx(1.0)
    assert math.isnan(averaged[2].loss)
    assert averaged[2].snapshot is results[0].records[2].snapshot


def test_average_leaves_out_steps_that_a_seed_lacks(results):
    short = RunResult(results[1].config, results[1].records[:2], results[1].environment)
    assert [r.step for r in average_runs([results[0], short])] == [0, 1]


# ------------------------------------------------------------------------ report


class Page(HTMLParser):
    """Collects what the checks need, and that every tag is closed in order."""

    VOID = ("meta", "br", "path")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_report_stands_alone_and_is_well_formed(results):
    html = render_report(results, title="Two ways")
    page = Page(html)
    assert page.open == []
    assert not OUTSIDE.search(html)
    addresses = set(re.findall(r"https?://[^\s\"']+", html))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, never fetched
    assert "prefers-color-scheme: dark" in html


def test_report_holds_numbers_settings_versions_and_command(results):
    html = render_report(results, title="Two ways", command="python -m flowrl_lab x")
    text = " ".join(" ".join(Page(html).text).split())
    table = summarize(results)
    for row in table.values():
        for spread in row.values():
            assert str(spread) in text
    for needed in ("seeds 0, 1, 2", "torch 9.9.9", "device cpu", "18 s"):
        assert needed in text
    assert "python -m flowrl_lab x" in text
    assert "reward_scale 15.0" in text and "algorithm flowrl grpo" in text


def test_every_picture_has_alt_text_with_numbers(results):
    pictures = [
        a for tag, a in Page(render_report(results, title="x")).tags if tag == "svg"
    ]
    assert len(pictures) == 3
    for attributes in pictures:
        assert attributes["role"] == "img"
        assert re.search(r"flowrl.*\d", attributes["aria-label"])


def test_names_are_text_not_markup():
    result = make_result('flowrl <b>&"x"', 0, 0.5)
    page = Page(render_report([result], title="<i>title</i>"))
    assert not {"b", "i"} & {tag for tag, _ in page.tags}
    assert '<b>&"x"' in "".join(page.text)


def test_front_puts_the_more_accurate_run_to_the_right(results):
    svg = draw_front(group_runs(results))
    marks = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" font-size="15"', svg)
    (flowrl_x, flowrl_y), (grpo_x, grpo_y) = [tuple(map(float, m)) for m in marks]
    assert flowrl_x < grpo_x  # 0.667 < 0.75
    assert flowrl_y > grpo_y  # 6.67 < 7.5 effective answers: lower on the page


def test_one_run_makes_a_report(results):
    page = Page(render_report(results[:1], title="one"))
    assert page.open == []


@pytest.mark.bad_input
def test_report_never_replaces_a_file_unasked(results, tmp_path):
    path = write_report(results, tmp_path / "new" / "report.html")
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"already exists.*overwrite=True"):
        write_report(results, path)
    assert path.read_text(encoding="utf-8") == "mine"
    write_report(results, path, overwrite=True, title="again")
    assert "<title>again</title>" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


@pytest.mark.bad_input
def test_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


# ----------------------------------------------------------------------- on disk


def save_all(result: RunResult, folder: Path) -> None:
    """What ``Run.save`` and ``save_result`` leave in a folder."""
    import json

    folder.mkdir()
    rows = [json.dumps(record_to_dict(record)) + "\n" for record in result.records]
    (folder / "records.jsonl").write_text("".join(rows), encoding="utf-8")
    config = {"config_version": 1, **result.config}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_result(result, folder)


def test_result_comes_back_from_disk_as_it_was(tmp_path):
    result = make_result("flowrl", 3, 0.5)
    exact = make_report(0.5, kl_policy_target=math.inf)
    last = dataclasses.replace(result.records[-1], exact=exact)
    result = RunResult(result.config, (*result.records[:-1], last), result.environment)
    save_all(result, tmp_path / "run")
    back = load_result(tmp_path / "run")
    assert repr(back.exact) == repr(result.exact)  # repr: NaN equals NaN
    assert (back.name, back.seed, back.environment) == ("flowrl", 3, result.environment)
    assert [repr(r.reward) for r in back.records] == [
        repr(r.reward) for r in result.records
    ]
    np.testing.assert_array_equal(back.snapshot.probs, result.snapshot.probs)
    assert back.snapshot.labels == result.snapshot.labels
    assert back.records[1].snapshot is None


@pytest.mark.bad_input
def test_unfinished_or_damaged_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        load_result(tmp_path)
    assert not is_finished(tmp_path)
    folder = tmp_path / "run"
    save_all(make_result("flowrl", 0, 0.5), folder)
    assert is_finished(folder)
    (folder / "records.jsonl").write_text('{"run": "flow', encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot be read.*delete that folder"):
        load_result(folder)


@pytest.mark.bad_input
def test_a_result_needs_an_exact_report():
    record = dataclasses.replace(make_result("flowrl", 0, 0.5).records[0], exact=None)
    with pytest.raises(ValueError, match="at least one evaluated step"):
        _ = RunResult({}, (record,), {}).exact


def test_the_fronts_have_flowrl_on_every_study_and_say_each_beta() -> None:
    """Where β = 8 is the only one, its name has no dial in it."""
    legend = LEGEND | CONTROLS
    for study, betas in (
        ("make_number", ["β=4", "β=8", "β=15", "β=30"]),
        ("make_number_graded", ["β=8"]),
        ("programs", ["β=4", "β=8", "β=15"]),
    ):
        runs = load_recorded(study)
        drawn, said = fronts(runs, legend), name_betas(runs, legend)
        assert list(drawn) == list(said)
        assert said["flowrl"] == betas and said["kl_reinforce β=8"] == [""]
        assert all(len(drawn[name][0]) == len(words) for name, words in said.items())
        assert drawn["flowrl"][0][betas.index("β=8")] == pytest.approx(
            summarize(runs)["flowrl β=8"]["effective_answers"].mean
        )
