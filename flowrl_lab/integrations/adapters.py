"""What a run leaves behind: an adapter that others can load, and a card that says how.

The adapter is written by peft, so plain transformers and peft read it; log Z is no
part of it, since generating needs none.  Nothing is overwritten.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

from flowrl_lab._files import write_atomically
from flowrl_lab.measuring.folder import describe_environment
from flowrl_lab.training.run import Run

__all__ = ["export_adapter", "export_merged", "push_folder", "write_card"]


def export_adapter(run: Run, folder: str | Path) -> Path:
    """Write the adapter in peft's format, with its tokenizer and model card.

    Args:
        run: of the policy "hf_lm".
        folder: a new or empty one.

    Returns:
        The folder.

    Raises:
        ValueError: another policy, or a folder that holds something.
    """
    folder = _prepare(run, folder)
    loaded = run.policy.loaded
    config = run.policy.model.peft_config["default"]
    config.base_model_name_or_path = loaded.base_name
    # By default peft asks the hub whether the vocabulary has grown; it never does here.
    run.policy.model.save_pretrained(
        folder, safe_serialization=True, save_embedding_layers=False
    )
    loaded.tokenizer.save_pretrained(folder)
    write_card(run, folder, merged=False)
    return folder


def export_merged(run: Run, folder: str | Path) -> Path:
    """Write base and adapter as one model, which needs no peft to be loaded.

    The run goes on with its own copy, adapter and base apart.

    Raises:
        ValueError: as ``export_adapter``.
    """
    folder = _prepare(run, folder)
    merged = copy.deepcopy(run.policy.model).merge_and_unload()
    merged.save_pretrained(folder, safe_serialization=True)
    run.policy.loaded.tokenizer.save_pretrained(folder)
    write_card(run, folder, merged=True)
    return folder


def _prepare(run: Run, folder: str | Path) -> Path:
    if getattr(run.policy, "loaded", None) is None:
        raise ValueError(
            f"the run's policy is {run.policy.name!r}; expected 'hf_lm', a model of "
            "the hub or a folder. Fix: export a run of such a model; others are saved "
            "by Run.save."
        )
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder} already holds something; nothing is overwritten. Fix: name a "
            "new folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_card(run: Run, folder: Path, *, merged: bool) -> None:
    """Write README.md: what the model is, how it was made, what was measured."""
    text = _front_matter(run, merged) + _body(run, merged)
    write_atomically(folder / "README.md", text.encode())


def _front_matter(run: Run, merged: bool) -> str:
    library = "transformers" if merged else "peft"
    return (
        "---\n"
        f"base_model: {json.dumps(run.policy.loaded.base_name)}\n"
        f"library_name: {library}\n"
        "pipeline_tag: text-generation\n"
        "tags:\n- flowrl\n- lora\n- reinforcement-learning\n"
        "---\n\n"
    )


def _body(run: Run, merged: bool) -> str:
    config, loaded = run.config, run.policy.loaded
    what = "The model" if merged else "A LoRA adapter"
    versions = describe_environment(str(run.policy.device))["versions"]
    rows = {
        "base model": loaded.base_name,
        "weights of the base": f"{loaded.source}, {str(run.policy.dtype)[6:]}",
        "task": f"{config.task} {json.dumps(config.task_options)}",
        "algorithm": config.algorithm,
        "reward scale (the paper's β)": f"{config.reward_scale:g}",
        "KL penalty": f"{config.kl_coef:g}",
        "steps done": f"{run.step} of {config.steps}",
        "batch": f"{config.prompts_per_step} prompts x {config.num_generations}",
        "LoRA": f"rank {config.lora_rank}, alpha {config.lora_alpha:g}, all linear",
        "learning rate": f"{config.learning_rate:g}",
        "seed": str(config.seed),
        "completion tokens": f"{run.tokens:,}",
        "training time": f"{run.seconds:.0f} s on {run.policy.device}",
        "versions": ", ".join(f"{name} {v}" for name, v in versions.items()),
        **_measured(run),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"# {what} of run `{config.run_name}`\n\n"
        "Trained with flowrl_lab, a course on FlowRL (arXiv:2509.15207). Made to teach "
        "and to look at; no safety work was done on it.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f"{_how_to_load(loaded.base_name, merged)}"
    )


def _measured(run: Run) -> dict[str, str]:
    """The last report of the referee, or else the last batch's reward."""
    exact = next((r.exact for r in reversed(run.records) if r.exact), None)
    if exact is not None:
        return {
            "accuracy (exact)": f"{exact.accuracy:.1%}",
            "effective number of right answers (exact)": (
                f"{exact.effective_answers:.2f}"
            ),
            "KL(π‖p*), nats (exact)": f"{exact.kl_policy_target:.3f}",
        }
    rewards = [r.reward for r in run.records if math.isfinite(r.reward)]
    return {"mean reward of the last batch": f"{rewards[-1]:.3f}"} if rewards else {}


def _how_to_load(base_name: str, merged: bool) -> str:
    if merged:
        return (
            "```python\nfrom transformers import AutoModelForCausalLM\n\n"
            'model = AutoModelForCausalLM.from_pretrained("this folder")\n```\n'
        )
    return (
        "```python\nfrom peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({base_name!r})\n"
        'model = PeftModel.from_pretrained(base, "this folder")\n```\n'
    )


def push_folder(
    folder: str | Path, name: str, *, private: bool = True, api=None
) -> str:
    """Put an exported folder on the hub, under your account.

    Args:
        folder: what an export wrote.
        name: ``owner/name``.
        private: whether only you can see it.
        api: a ``huggingface_hub.HfApi``; None makes one, with your own login.

    Returns:
        The address of the commit.

    Raises:
        ValueError: no export there, a bad name, or no permission.
        ConnectionError: the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    folder = Path(folder)
    if not (folder / "README.md").is_file() or name.count("/") != 1:
        raise ValueError(
            f"got the folder {folder} and the name {name!r}; expected an exported "
            "folder and owner/name. Fix: `python -m flowrl_lab export-adapter` first."
        )
    api = HfApi() if api is None else api
    try:
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=str(folder)))
    except HfHubHTTPError as error:
        raise ValueError(
            f"the hub refused {name!r} ({str(error).splitlines()[0][:160]}). Fix: log "
            "in with a token that may write (hf auth login), under your own name."
        ) from error
    except OSError as error:
        raise ConnectionError(
            f"the hub cannot be reached ({error}). Fix: try again; {folder} is kept."
        ) from error
