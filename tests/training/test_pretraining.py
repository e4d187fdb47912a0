"""The tiny model's recipe, and the checkpoint that ships."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import shutil

import pytest
import torch

from flowrl_lab._files import data_path
from flowrl_lab.evaluation import Referee
from flowrl_lab.policies.language_model import build_tiny_llama
from flowrl_lab.policies.tiny_lm import TRAINED_ON, load_base_model, load_tiny_lm
from flowrl_lab.tasks import load_task, programs, sums
from flowrl_lab.tasks.make_number import CHARACTERS, MakeNumber, verify_answer
from flowrl_lab.training import corpora, pretraining
from flowrl_lab.training.corpora import (
    RECIPES,
    ProgramsPretrainConfig,
    SumsPretrainConfig,
)
from flowrl_lab.training.pretraining import (
    PretrainConfig,
    build_corpus,
    pretrain,
    pretrain_steps,
)

SHORT = PretrainConfig(steps=6, batch_size=16, warmup=2)


class FewPrompts(MakeNumber):
    """make_number with its first few prompts: the whole recipe in seconds."""

    def prompts(self, split: str) -> tuple[str, ...]:
        return super().prompts(split)[:12]


@pytest.fixture(name="task", scope="module")
def fixture_task():
    return FewPrompts()


@pytest.fixture(name="shipped", scope="module")
def fixture_shipped():
    return data_path("make_number_tiny_lm")


def new_model(task, seed: int = 0, **sizes: int):
    return build_tiny_llama(
        task.vocab_size, pad_id=task.pad_id, eos_id=task.eos_id, seed=seed, **sizes
    )


def corpus_rows(task, config):
    """(prompt, answer, weight) of every example, decoded by hand."""
    tokens, weights = build_corpus(task, config)
    for ids, weight in zip(tokens.tolist(), weights.tolist(), strict=True):
        assert ids.count(task.eos_id) == 1
        end = ids.index(task.eos_id)
        assert set(ids[end + 1 :]) <= {task.pad_id}
        text = "".join(CHARACTERS[i] for i in ids[:end])
        yield text[:6], text[6:], weight


# -------------------------------------------------------------------------- corpus


@pytest.mark.parametrize("right_share", [0.55, 0.8])
def test_corpus_weights_share_out_as_the_recipe_says(task, right_share):
    """Every prompt counts 1; ``right_share`` of it comes from its listed answers."""
    rows = list(corpus_rows(task, PretrainConfig(right_share=right_share)))
    for prompt in task.prompts("train"):
        examples = [(answer, w) for text, answer, w in rows if text == prompt]
        answers = task.answers(prompt).labels
        assert tuple(answer for answer, _ in examples[: len(answers)]) == answers
        finished = sum(weight for _, weight in examples[: len(answers)])
        assert finished == pytest.approx(right_share, rel=1e-5)
        assert sum(weight for _, weight in examples) == pytest.approx(1.0, rel=1e-5)
        assert all(weight > 0 for _, weight in examples)
    assert {text for text, _, _ in rows} == set(task.prompts("train"))


def test_corpus_holds_training_prompts_only():
    """Of the real task: no held-out prompt is ever seen before evaluation."""
    task = load_task("make_number")
    assert not set(task.prompts("heldout")) & set(task.prompts("train"))
    seen = {prompt for prompt, _, _ in corpus_rows(FewPrompts(), PretrainConfig())}
    assert seen == set(task.prompts("train")[:12])


def test_right_examples_are_right_and_the_others_stop_half_way(task):
    for prompt in task.prompts("train"):
        right = list(task.answers(prompt).labels)
        unfinished = corpora._unfinished_workings(prompt)
        assert all(verify_answer(prompt, text) for text in right)
        assert unfinished
        for text in unfinished:
            assert any(full.startswith(text) and full != text for full in right)
            value = text.split("=")[1]
            assert verify_answer(prompt, text) == (value == prompt[:2])


def test_working_is_shown_as_often_as_the_recipe_says(task):
    """An expression's weight is its own; only the spelling's share differs."""
    weights = {
        (prompt, answer): weight
        for prompt, answer, weight in corpus_rows(task, PretrainConfig())
    }
    pairs = 0
    for (prompt, answer), weight in weights.items():
        if "=" not in answer and len(answer) == 5:
            first = int(answer[0]), int(answer[2])
            value = {"+": sum(first), "-": first[0] - first[1], "*": math.prod(first)}[
                answer[1]
            ]
            working = f"{answer[:3]}={value}{answer[3:]}={prompt[:2]}"
            assert weights[prompt, working] > 0
            pairs += 1
        assert weight <= 1
    assert pairs > 100
    bare = sum(weight for (_, answer), weight in weights.items() if "=" not in answer)
    assert 0.01 < bare / 12 / 0.55 < 0.12  # 5 % of the right ones, give or take


def test_expression_weights_are_a_fixed_log_normal():
    config = PretrainConfig(working_share=0.5, weight_spread=0.7)
    logs = torch.tensor(
        [
            math.log(2 * corpora._expression_weight(f"{a}+{b}*{c}", config))
            for a in range(10)
            for b in range(10)
            for c in range(10)
        ]
    )
    assert abs(logs.mean()) < 0.1 and abs(logs.std() - 0.7) < 0.05
    flat = PretrainConfig(working_share=0.5, weight_spread=0.0)
    assert corpora._expression_weight("1+2*3", flat) == 0.5
    other = PretrainConfig(working_share=0.5, seed=1)
    assert corpora._expression_weight("1+2*3", other) != pytest.approx(
        corpora._expression_weight("1+2*3", config)
    )


# ----------------------------------------------------------------- the corpus of sums


def test_the_corpus_of_sums_says_the_same_in_every_length():
    """Half of it right, half next to it; an answer's weight is that of its digits."""
    task, config = load_task("sums"), SumsPretrainConfig()
    tokens, weights = build_corpus(task, config)
    found, shares = {}, {}
    for ids, weight in zip(tokens.tolist(), weights.tolist(), strict=True):
        text = task._to_text(ids[: ids.index(task.eos_id)])
        prompt, answer = text[:7], text[7:]
        total, banned, length = sums.parse_prompt(prompt)
        digits = tuple(map(int, answer[:5].split("+")))
        assert answer == sums.spell_answer(digits, length)  # a true working
        assert sum(digits) - total in (-1, 0, 1) and not banned & set(digits)
        found.setdefault((prompt[:5], answer[:5]), []).append(weight)
        shares.setdefault(prompt, [0.0, 0.0])[sum(digits) == total] += weight
    assert set(shares) == set(task.prompts("train"))
    assert all(
        share == pytest.approx([0.5, 0.5], rel=1e-5) for share in shares.values()
    )
    assert {len(same) for same in found.values()} == {3}
    assert all(max(same) == min(same) for same in found.values())


# ------------------------------------------------------------- the corpus of programs


@pytest.fixture(name="few_functions")
def fixture_few_functions(monkeypatch):
    """The programs task with five training functions: the recipe in seconds."""
    few = programs.task_meanings(False)[40:45]
    monkeypatch.setattr(
        programs, "task_meanings", lambda heldout: () if heldout else few
    )
    return load_task("programs"), few


def program_rows(task, config):
    """(prompt, program, weight) of every example, decoded by hand."""
    tokens, weights = build_corpus(task, config)
    for ids, weight in zip(tokens.tolist(), weights.tolist(), strict=True):
        end = ids.index(task.eos_id)
        assert set(ids[end + 1 :]) <= {task.pad_id}
        prompt, colon, program = task._to_text(ids[:end]).partition(":")
        yield prompt + colon, program, weight


def test_the_corpus_of_programs_is_as_careless_as_its_recipe_says(few_functions):
    task, few = few_functions
    config = ProgramsPretrainConfig(prompts_per_function=3, right_share=0.7)
    shares = {}
    for prompt, program, weight in program_rows(task, config):
        assert programs.intended_meaning(prompt) in few
        verdict = programs.check_program(prompt, program)
        right, plausible = programs.list_programs(prompt)
        if not verdict.right and not verdict.fits:  # the last word was left out
            assert any(full[:-1] == program for full in right)
        kind = "right" if verdict.right else "careless"
        assert verdict.right == (program in right)
        assert (verdict.fits and not verdict.right) == (program in plausible)
        share = shares.setdefault(prompt, {"right": 0.0, "careless": 0.0})
        share[kind] += weight
    assert len(shares) == 15
    for share in shares.values():
        assert share["right"] == pytest.approx(0.7, rel=1e-5)
        assert share["careless"] == pytest.approx(0.3, rel=1e-5)


def test_the_corpus_of_programs_holds_no_heldout_prompt():
    """It asks for every function, but held-out prompts are new to the model."""
    task, prompts = load_task("programs"), list(corpora._program_prompts(16))
    assert len(set(prompts)) == len(prompts)
    assert set(task.prompts("train")) <= set(prompts)
    assert not set(task.prompts("heldout")) & set(prompts)
    asked = {programs.intended_meaning(p).simplest for p in prompts}
    both = programs.task_meanings(False) + programs.task_meanings(True)
    assert asked == {m.simplest for m in both}


def test_shorter_programs_are_more_common(few_functions):
    task, _ = few_functions
    flat = ProgramsPretrainConfig(
        prompts_per_function=1, weight_spread=0.0, length_discount=1.5
    )
    weights = {}
    for prompt, program, weight in program_rows(task, flat):
        if program in programs.list_programs(prompt)[0]:
            weights.setdefault(prompt, {})[program] = weight
    for of_prompt in weights.values():
        shortest = min(of_prompt, key=len)
        for program, weight in of_prompt.items():
            gap = len(program) - len(shortest)
            assert weight == pytest.approx(
                of_prompt[shortest] * math.exp(-1.5 * gap), rel=1e-4
            )


def test_answers_that_share_a_prompt_change_nothing(few_functions):
    """A row of four answers has the logits of four rows with the same prompt."""
    task, _ = few_functions
    config = ProgramsPretrainConfig(prompts_per_function=2, batch_size=3)
    tokens, weights = build_corpus(task, config)
    cumulative = weights.double().cumsum(0)
    generator = torch.Generator().manual_seed(0)
    places = pretraining._draw_places(config, cumulative[-1], generator)
    batch = tokens[torch.searchsorted(cumulative, places)]
    width = task.max_prompt_tokens
    assert batch.shape == (3, 4, width + task.max_completion_tokens)
    assert torch.equal(batch[:, :, :width], batch[:, :1, :width].expand(-1, 4, -1))
    model = new_model(task)
    shared = pretraining._shared_prompt_logits(model, batch, width)
    alone = model(input_ids=batch.flatten(0, 1)[:, :-1]).logits[:, width - 1 :]
    torch.testing.assert_close(shared.flatten(0, 1), alone, rtol=1e-4, atol=1e-4)


def test_the_recipe_of_programs_learns(few_functions):
    task, _ = few_functions
    config = ProgramsPretrainConfig(
        steps=20, batch_size=6, warmup=4, prompts_per_function=2
    )
    losses = [loss for _, loss in pretrain_steps(task, new_model(task), config)]
    assert abs(losses[0] - math.log(task.vocab_size)) < 0.3
    assert sum(losses[-4:]) / 4 < 0.8 * losses[0]


# -------------------------------------------------------------------------- recipe


def test_a_few_steps_reduce_the_loss(task):
    config = PretrainConfig(steps=25, batch_size=16, warmup=5)
    losses = [loss for _, loss in pretrain_steps(task, new_model(task), config)]
    assert len(losses) == 25
    assert abs(losses[0] - math.log(task.vocab_size)) < 0.3  # knows nothing yet
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]


def test_the_first_loss_is_the_cross_entropy_of_answers(task):
    """By hand: mean over answer tokens and end tokens, prompt and padding left out."""
    one = dataclasses.replace(SHORT, steps=1)
    model = new_model(task)
    tokens, weights = build_corpus(task, one)
    draws = torch.rand(
        one.batch_size,
        dtype=torch.double,
        generator=torch.Generator().manual_seed(one.seed),
    )
    shares = weights.double() / weights.double().sum()
    rows = [int((shares.cumsum(0) < draw).sum()) for draw in draws]
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids = tokens[row][tokens[row] != task.pad_id]
            scores = model(input_ids=ids[None]).logits[0].log_softmax(-1)
            for place in range(6, len(ids)):
                total -= float(scores[place - 1, ids[place]])
                count += 1
    ((step, loss),) = pretrain_steps(task, model, one)
    assert step == 1
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_the_recipe_is_repeatable_bit_for_bit(task):
    state = torch.get_rng_state()
    models, losses = [], []
    for seed in (0, 0, 1):
        config = dataclasses.replace(SHORT, seed=seed)
        models.append(new_model(task, seed))
        losses.append([loss for _, loss in pretrain_steps(task, models[-1], config)])
    assert losses[0] == losses[1] != losses[2]
    for first, second in zip(
        models[0].parameters(), models[1].parameters(), strict=True
    ):
        assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_learning_rate_rises_then_falls():
    config = PretrainConfig(steps=100, warmup=10, learning_rate=1.0)
    rates = [pretraining._learning_rate(step, config) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 1e-3


def test_pretrain_writes_a_checkpoint_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr("flowrl_lab.tasks.make_number.MakeNumber", FewPrompts)
    lines = []
    facts = pretrain(tmp_path / "one", SHORT, report=lines.append)
    again = pretrain(tmp_path / "two", SHORT, report=lines.append)
    folder = tmp_path / "one"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["config.json", "model.safetensors", "provenance.json"]
    note = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert note == {**facts, "files": note["files"]}
    assert note["recipe"] == dataclasses.asdict(SHORT)
    assert facts["heldout_accuracy"] < 0.05 and facts["heldout_prompts"] == 12
    assert any("6/6" in line for line in lines)
    other = json.loads((tmp_path / "two/provenance.json").read_text(encoding="utf-8"))
    assert note["files"] == other["files"]  # the same bytes
    assert again["heldout_effective_answers"] == facts["heldout_effective_answers"]
    model = new_model(FewPrompts())
    for _ in pretrain_steps(FewPrompts(), model, SHORT):
        pass
    loaded = load_base_model(folder).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded[name], weight)


# ------------------------------------------------------------------ what is shipped


def test_every_recipe_has_its_checkpoint_known_to_the_policy() -> None:
    assert tuple(RECIPES) == TRAINED_ON


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_files_are_the_ones_described(name):
    shipped = data_path(f"{name}_tiny_lm")
    note = json.loads((shipped / "provenance.json").read_text(encoding="utf-8"))
    assert set(note["files"]) == {"config.json", "model.safetensors"}
    for file, digest in note["files"].items():
        assert hashlib.sha256((shipped / file).read_bytes()).hexdigest() == digest
    assert sum(path.stat().st_size for path in shipped.iterdir()) < 3.5e6
    assert note["recipe"] == dataclasses.asdict(RECIPES[name]())
    assert f"pretrain {name}" in note["command"]
    assert note["licence"]


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_model_has_the_recipes_shape(name):
    task = load_task(name)
    shipped_model = load_base_model(data_path(f"{name}_tiny_lm"))
    mine = new_model(task, **RECIPES[name].sizes).state_dict()
    theirs = shipped_model.state_dict()
    assert {n: w.shape for n, w in mine.items()} == {
        n: w.shape for n, w in theirs.items()
    }
    assert shipped_model.config.eos_token_id == task.eos_id
    assert shipped_model.dtype == torch.float32


def test_shipped_model_is_right_nearly_half_of_the_time():
    """Exact: all right answers of 120 held-out prompts, by the referee."""
    task = load_task("make_number")
    policy = load_tiny_lm(task, rank=1, alpha=1.0)
    referee = Referee(policy, task, task.prompts("heldout")[:120])
    report = referee.report()
    assert report.num_prompts == 120
    assert 0.40 < report.accuracy < 0.50
    assert 17 < report.effective_answers < 21
    assert report.pass_at_k[64] > 0.99 and report.lost_prompts == 0
    # its own reference: distances to the target are those of lost accuracy alone
    assert report.kl_policy_target == pytest.approx(0.0, abs=1e-9)


def test_shipped_model_of_programs_is_a_start_for_reinforcement():
    """Exact: right often enough to learn from, in many ways; held-out prompts."""
    task = load_task("programs")
    policy = load_tiny_lm(task, rank=1, alpha=1.0)
    report = Referee(policy, task, task.prompts("heldout")[:40]).report()
    assert report.num_prompts == 40
    assert 0.45 < report.accuracy < 0.60
    assert 16 < report.effective_answers < 24
    assert report.pass_at_k[64] > 0.97


@pytest.mark.parametrize("name", ["sums_6", "sums_21", "sums_57"])
def test_shipped_model_of_sums_starts_alike_in_every_length(name):
    """Exact, on all held-out prompts: what length there is, is not in the start."""
    task = load_task(name)
    policy = load_tiny_lm(task, rank=1, alpha=1.0)
    report = Referee(policy, task, task.prompts("heldout")).report()
    assert report.num_prompts == 73
    assert 0.41 < report.accuracy < 0.44
    assert 20 < report.effective_answers < 22
    assert report.pass_at_k[64] > 0.99


# ----------------------------------------------------------------------- bad input


@pytest.fixture(name="copy")
def fixture_copy(shipped, tmp_path):
    return shutil.copytree(shipped, tmp_path / "copy")


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("harm", ["flipped", "truncated", "emptied", "missing"])
def test_a_harmed_file_is_named(copy, name, harm):
    path = copy / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "missing":
        path.unlink()
    else:
        half = path.read_bytes()[: len(content) // 2]
        path.write_bytes({"flipped": content, "truncated": half, "emptied": b""}[harm])
    word = "missing" if harm == "missing" else "damaged"
    with pytest.raises(ValueError, match=rf"{name} is {word}.*expected.*Fix:"):
        load_base_model(copy)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "content", [b"", b'{"files": {', b"[]", b"{}", b'{"files": 3}', b"\xff\xfe{}"]
)
def test_a_harmed_note_is_named(copy, content):
    (copy / "provenance.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"provenance.json.* is damaged.*Fix:"):
        load_base_model(copy)


@pytest.mark.bad_input
def test_a_note_that_lists_nothing_vouches_for_nothing(copy):
    (copy / "provenance.json").write_text('{"files": {}}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"does not list.*model\.safetensors.*Fix:"):
        load_base_model(copy)


@pytest.mark.bad_input
def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no provenance\.json.*Fix:"):
        load_base_model(tmp_path)


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_pretrain_overwrites_nothing(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(pretraining, "pretrain_steps", None)  # before any work
    target = tmp_path / "out"
    if kind == "folder":
        target.mkdir()
        (target / "notes.txt").write_text("mine", encoding="utf-8")
    else:
        target.write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"out already holds files.*Fix:"):
        pretrain(target, SHORT)


@pytest.mark.bad_input
def test_a_model_of_another_task_is_refused():
    with pytest.raises(ValueError, match=r"tiny_lm.*landscape.*Fix:"):
        load_tiny_lm(load_task("landscape"), rank=1, alpha=1.0)
