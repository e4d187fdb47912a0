"""A model that was trained before: its base with a LoRA adapter added to the weights.

Merged, not beside it, so that a new adapter can be trained on top and "the reference"
means the model as it was found.
"""

from __future__ import annotations

import json
from pathlib import Path

from flowrl_lab._files import data_path
from flowrl_lab._validation import bad_input

__all__ = ["SHIPPED_ADAPTERS", "adapter_base", "find_adapter", "merge_adapter"]

# name of a model -> the folder in data/ with what is added to its base
SHIPPED_ADAPTERS = {"smollm2-135m-formulas": "formulas_smollm2"}


def find_adapter(name: str) -> Path | None:
    """The folder of the adapter that ``name`` stands for; None: it is another model."""
    shipped = SHIPPED_ADAPTERS.get(name.lower())
    folder = data_path(shipped) if shipped else Path(name).expanduser()
    return folder if name and (folder / "adapter_config.json").is_file() else None


def adapter_base(folder: Path) -> str:
    """The model that an adapter was trained on, by the name it was loaded under.

    Raises:
        ValueError: the adapter does not say, or names its own folder.
    """
    config = folder / "adapter_config.json"
    try:
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base or Path(base) == folder:
        raise bad_input(
            "model",
            f"is the adapter {folder}, whose base is {base!r}",
            "an adapter_config.json that names the model it was trained on",
            "write its base_model_name_or_path there, or name another model",
        )
    return base


def merge_adapter(model, folder: Path):
    """``model`` with the adapter in ``folder`` added to its weights.

    Raises:
        ValueError: the adapter belongs to another model, or is damaged.
    """
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(model, folder)
        return adapted.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, OSError, KeyError, TypeError) as error:
        raise bad_input(
            "model",
            f"is the adapter {folder}, which could not be added to its base "
            f"({type(error).__name__}: {str(error)[:200]})",
            "a LoRA adapter as peft saves it, for that base",
            "restore it, or correct base_model_name_or_path in its adapter_config.json",
        ) from error
