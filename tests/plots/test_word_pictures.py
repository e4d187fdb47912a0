"""Pictures of distributions over words: each pixel shows its own word."""

import pytest
import torch
from fake_records import make_record, make_snapshot

from flowrl_lab.course import draw_pictures
from flowrl_lab.plots.live import LivePlot
from flowrl_lab.tasks.strings import Strings


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


def test_a_picture_is_large_and_its_pixels_touch():
    wide = Strings(length=6, alphabet=4, blobs=2, train_prompts=1, heldout_prompts=0)
    even = torch.zeros(4096).log_softmax(0)
    bundle = draw_pictures(wide, even, {"flowrl": even})._repr_mimebundle_()
    figure = bundle["application/vnd.plotly.v1+json"]
    for trace in figure["data"]:
        assert (len(trace["z"]), trace["xgap"], trace["ygap"]) == (64, 0, 0)
    left, right = figure["layout"]["xaxis"]["domain"]
    side = (right - left) * figure["layout"]["width"]
    assert side >= 320 and side % 64 == pytest.approx(0)
    assert len(bundle["image/svg+xml"]) < 150_000


def test_a_live_map_is_the_same_picture(task):
    snapshot = make_snapshot(1.0, size=81)
    records = [make_record(0, snapshot=snapshot)]
    plot = LivePlot((), solution_map=True, picture=task.picture, backend="static")
    plot.update(records[0])
    target, run = plot.page().maps
    places = task.picture(torch.arange(81.0)).long().flatten()
    assert run.columns == target.columns == 9
    for panel, probs in ((target, snapshot.target_probs), (run, snapshot.probs)):
        assert panel.probs.tolist() == [probs[n] for n in places]
    assert run.labels == tuple(snapshot.labels[n] for n in places)


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
