"""Pictures of distributions over words: each pixel shows its own word."""

import pytest
import torch

from flowrl_lab.course import LivePictures, draw_pictures
from flowrl_lab.evaluation import Referee
from flowrl_lab.plots.placement import place_page
from flowrl_lab.policies.tabular import TabularPolicy
from flowrl_lab.tasks.strings import Strings
from flowrl_lab.training.records import make_record


@pytest.fixture(scope="module")
def task():
    return Strings(length=4, alphabet=3, blobs=2, train_prompts=1, heldout_prompts=0)


def test_each_pixel_is_its_word(task):
    labels = task.answers("picture 0").labels
    odds = torch.arange(1.0, 82.0).double()
    target = odds.flip(0).log().log_softmax(0)
    policy = odds.log().log_softmax(0)
    picture = draw_pictures(task, target, {"flowrl": policy}, title="both")
    bundle = picture._repr_mimebundle_()
    goal, shown = (
        trace
        for trace in bundle["application/vnd.plotly.v1+json"]["data"]
        if trace["type"] == "heatmap"
    )
    rows = shown["customdata"]
    assert (len(rows), len(rows[0])) == (9, 9)
    x, y = task.points(task.answers("picture 0").completion_ids)
    for n in (0, 17, 80):
        at = (int(y[n]), int(x[n]))
        assert shown["text"][at[0]][at[1]] == labels[n]
        assert rows[at[0]][at[1]] == pytest.approx(policy[n].exp().item())
        assert goal["customdata"][at[0]][at[1]] == pytest.approx(target[n].exp().item())
    assert bundle["image/svg+xml"].startswith("<svg")
    assert "flowrl: " in repr(picture) and repr(picture).startswith("both")


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_pictures_are_square_and_their_pixels_touch(runs):
    task = Strings(length=6, alphabet=4, train_prompts=1, heldout_prompts=0)
    flat = torch.zeros(4096).log_softmax(0)
    picture = draw_pictures(task, flat, {f"run {i}": flat for i in range(runs)})
    boxes = [box for _, box in place_page(picture.page).maps]
    assert len({(box.left, box.top) for box in boxes}) == runs + 1
    for box in boxes:
        assert box.width == box.height >= 240
        assert box.width % 64 == 0  # pixels of one size
    bundle = picture._repr_mimebundle_()
    for trace in bundle["application/vnd.plotly.v1+json"]["data"]:
        assert trace["xgap"] == trace["ygap"] == 0
    assert "crispEdges" in bundle["image/svg+xml"]
    assert len(bundle["image/svg+xml"]) < 50_000  # equal neighbours are one piece


def test_a_live_plot_shows_each_runs_words_as_they_are_now(task):
    policy = TabularPolicy(task)
    judge = Referee(policy, task, ["picture 0"])
    first = judge.snapshot("picture 0")
    policy.logits.data[0, 0, 2] = 5.0  # the first letter is nearly always c
    second = judge.snapshot("picture 0")
    with LivePictures(task, ("reward",)) as plot:
        assert plot.page().maps == ()
        for step, snapshot in enumerate((first, second)):
            plot.update(make_record("TB", step, 1, reward=0.5, snapshot=snapshot))
    target, run = plot.page().maps
    assert (target.run, target.style, run.run) == ("target p*", None, "TB")
    probs = torch.tensor(run.probs).view(9, 9)
    assert probs.sum() == pytest.approx(1)
    assert probs[:, 6:].sum() > 0.98  # c: the right third of the picture
    assert "effective" in plot.bundle()["text/plain"]
    alone = LivePictures(task, beside_target=False)
    alone.update(make_record("TB", 1, 1, snapshot=second))
    assert [panel.run for panel in alone.page().maps] == ["TB"]


@pytest.mark.bad_input
def test_what_cannot_be_drawn_is_refused(task):
    flat = torch.zeros(81).log_softmax(0)
    for curves in ({}, dict.fromkeys("abcde", flat), {"a": flat[:80]}):
        with pytest.raises(ValueError, match="expected"):
            draw_pictures(task, flat, curves)
    oblong = Strings(length=3, alphabet=3, blobs=2, heldout_prompts=0)
    flat = torch.zeros(27).log_softmax(0)
    with pytest.raises(ValueError, match="square"):
        draw_pictures(oblong, flat, {"a": flat})
    with pytest.raises(ValueError, match="square"):
        LivePictures(oblong)
