"""A tiny random model with a real tokenizer, as a folder: stands for a hub model."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import torch

WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}


def build_tokenizer(*, pad: str | None = None, chat: bool = True):
    """Bytes as tokens, digits one by one: like SmolLM2's, without its merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: number for number, word in enumerate(WORDS)}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[character] = len(vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        bos_token="<|im_start|>",
        unk_token="<|endoftext|>",
        pad_token=pad,
        padding_side="right",
    )
    if chat:
        tokenizer.chat_template = CHAT
    return tokenizer


def build_model(vocab_size: int, architecture: str = "llama", seed: int = 0):
    """Random weights: grouped-query attention, as in the real ones."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        architecture,
        vocab_size=vocab_size,
        tie_word_embeddings=True,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=0,
        **TINY,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config)


def teach_numbers(model, tokenizer, steps: int = 80) -> None:
    """Teach it to write two digits and an end of line, more or less at random."""
    from flowrl_lab.tasks.open_sets import OpenSets

    task = OpenSets()
    numbers = torch.randint(1, 100, (steps, 8), generator=torch.Generator()).tolist()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        start = task.render(task.questions[step % 4])
        texts = [f"{start}{number:02d}\n" for number in numbers[step]]
        ids = torch.tensor(tokenizer(texts)["input_ids"])
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < ids.shape[1] - 3, -100)
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()


@functools.cache
def model_folder(architecture: str = "llama", chat: bool = True) -> str:
    """The folder of such a model, made once a test session."""
    folder = Path(tempfile.mkdtemp(prefix="flowrl-tiny-"))
    tokenizer = build_tokenizer(chat=chat)
    model = build_model(len(tokenizer), architecture)
    teach_numbers(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_stand_in(cache: Path) -> None:
    """Make ``cache`` look as if SmolLM2 had been fetched into it, with a tiny model."""
    folder = cache / "smollm2-135m"
    shutil.copytree(model_folder(), folder)
    # as unpacking does: a padding token that is no end token
    build_tokenizer(pad="<|endoftext|>").save_pretrained(folder)
    (folder / "ready").touch()
