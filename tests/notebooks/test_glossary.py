"""The glossary: every term is there, and every link to it arrives."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
GLOSSARY = (FOLDER / "glossary.md").read_text(encoding="utf-8")
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TERMS = {
    "reward-scale",
    "partition-function",
    "log-z",
    "target",
    "reference-policy",
    "residual",
    "trajectory-balance",
    "detailed-balance",
    "subtb",
    "vargrad",
    "reverse-kl",
    "forward-kl",
    "effective-number",
    "pass-at-k",
    "group-normalised-reward",
    "advantage",
    "importance-weight",
    "clip",
    "kl-penalty",
    "k1-k2-k3",
    "entropy-bonus",
    "length-normalisation",
    "on-policy",
    "off-policy",
    "replay",
    "temperature",
    "completion-mask",
    "token-log-prob",
    "sequence-log-prob",
    "lora",
    "noise-floor",
    "distinct-n",
    "self-bleu",
    "vendi-score",
    "rank-correlation",
    "referee",
    "mode",
    "flow",
    "gae",
    "value-head",
    "baseline",
    "z-score",
    "data-parallel",
    "all-reduce",
    "gradient-accumulation",
    "roofline",
    "hidden-test",
    "reward-hacking",
    "total-language",
    "elbo",
    "verifier",
    "critic",
    "reinforce-pp",
    "grpo",
    "rloo",
    "gspo",
    "prorl",
}
LINK = re.compile(r"\]\(([^()\s]*)\)")
# A heading, and the anchor that it is given above where its own would not do.
HEADING = re.compile(r'^(?:<a id="([^"]+)"></a>\n)?(#{1,6}) (.*)$', re.MULTILINE)


def anchors_in(text: str, level: str = "") -> list[str]:
    """What JupyterLab finds the headings of a page by, in their order."""
    return [
        given or jupyterlab_anchor(heading)
        for given, marks, heading in HEADING.findall(text)
        if not level or marks == level
    ]


def jupyterlab_anchor(heading: str) -> str:
    """JupyterLab keeps the case and joins the words."""
    return heading.replace(" ", "-")


def code_host_anchor(heading: str) -> str:
    """A code host puts all in lower case and drops punctuation."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_term_has_an_entry():
    assert set(anchors_in(GLOSSARY, "###")) >= TERMS


def test_entries_are_found_both_in_jupyterlab_and_on_a_code_host():
    anchors = anchors_in(GLOSSARY, "###")
    for anchor in anchors:
        assert anchor == code_host_anchor(anchor), anchor
    assert len(set(anchors)) == len(anchors)


def test_an_anchor_is_given_where_the_headings_own_is_another():
    given = [found for found in HEADING.findall(GLOSSARY) if found[0]]
    assert "GRPO" in {heading for _, _, heading in given}
    for anchor, _, heading in given:
        assert anchor != jupyterlab_anchor(heading), heading


def test_entries_are_short_and_say_something():
    text = re.sub(r"^<a id=.*\n", "", GLOSSARY, flags=re.MULTILINE)
    entries = re.split(r"^###? .*$", text, flags=re.MULTILINE)[1:]
    for entry in entries:
        words = len(re.sub(r"^\|.*$", "", entry, flags=re.MULTILINE).split())
        assert words == 0 or 8 <= words <= 80, entry


def test_links_inside_the_glossary_arrive():
    anchors = set(anchors_in(GLOSSARY))
    inside = [link[1:] for link in LINK.findall(GLOSSARY) if link.startswith("#")]
    assert len(inside) > 5
    assert set(inside) <= anchors


def test_the_table_has_the_words_of_the_other_libraries():
    rows = [line for line in GLOSSARY.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {6}
    head = [cell.strip() for cell in rows[0].strip("|").split("|")]
    assert head == ["here", "means", "TRL", "verl", "torchgfn"]
    table = "\n".join(rows)
    for word in ("response_mask", "rollout.n", "kl_loss_coef", "epsilon", "logZ"):
        assert f"`{word}" in table
    # what stands in the first column is a word of this library
    import flowrl_lab.losses as losses
    import flowrl_lab.types as types

    source = Path(losses.__file__).read_text() + Path(types.__file__).read_text()
    ours = re.findall(r"`(\w+)`", "\n".join(row.split("|")[1] for row in rows))
    assert len(ours) >= 12
    assert [word for word in ours if word not in source] == []


def anchors_of(path: Path) -> set[str]:
    """What JupyterLab finds the headings of a page or of a notebook by."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=nbformat.NO_CONVERT).cells
        text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    return set(anchors_in(text))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_arrive(path):
    """To the glossary, to other notebooks, to drawings, and to their headings."""
    to_glossary = 0
    for cell in nbformat.read(path, as_version=nbformat.NO_CONVERT).cells:
        if cell.cell_type != "markdown":
            continue
        for link in LINK.findall(cell.source):
            if "://" in link:
                continue
            name, _, anchor = link.partition("#")
            target = FOLDER / name if name else path
            assert target.is_file(), link
            assert not anchor or anchor in anchors_of(target), link
            to_glossary += name == "glossary.md"
    assert to_glossary, "link the terms that a reader meets for the first time"
