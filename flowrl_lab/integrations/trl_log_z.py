"""Z_φ beside a model that TRL trains: its own optimiser, its own file.

It is no part of the model: inside a PEFT model it would be frozen and wrapped, and
inside DeepSpeed's it would be cut up.  So it is small, replicated on every process,
and its gradient is averaged over them before each step.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from flowrl_lab.partition import LogPartitionHead

__all__ = ["LOG_Z_FILE", "LogZRider", "load_log_z"]

LOG_Z_FILE = "log_z.safetensors"
OPTIMIZER_FILE = "log_z_optimizer.pt"


class LogZRider:
    """The head, its AdamW, and how both are stepped, saved and loaded.

    Args:
        hidden_size: of the model.
        seed: of the head's initial weights; the global random state stays.
        learning_rate: at its peak.
        features: "last" or "mean"; noted in the file, so that nobody reads it wrong.
        device: where the model is.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        seed: int,
        learning_rate: float,
        features: str,
        device: torch.device,
    ):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = LogPartitionHead(hidden_size).to(device)
        self.features = features
        self.peak_learning_rate = learning_rate
        self.optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=learning_rate, weight_decay=0.0
        )

    def __call__(self, features: Float[Tensor, "B H"]) -> Float[Tensor, " B"]:
        return self.head(features)

    def step(self, accelerator, schedule: float) -> None:
        """One step on the gradient's mean over all processes; then forget it.

        Args:
            accelerator: whose processes share the batch.
            schedule: share of the peak learning rate, now.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak_learning_rate * schedule
        for parameter in self.head.parameters():
            if parameter.grad is not None:
                # Works in place on some versions of accelerate, not on others.
                parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def save(self, folder: str | Path) -> None:
        """Write the head to ``folder``, beside the adapter."""
        from safetensors.torch import save_file

        facts = {"hidden_size": self.head.hidden_size, "features": self.features}
        weights = {k: v.contiguous() for k, v in self.head.state_dict().items()}
        save_file(weights, Path(folder) / LOG_Z_FILE, {"flowrl": json.dumps(facts)})

    def save_optimizer(self, folder: str | Path) -> None:
        """Write what AdamW remembers, so that a resumed run goes on exactly."""
        torch.save(self.optimizer.state_dict(), Path(folder) / OPTIMIZER_FILE)

    def load(self, folder: str | Path) -> None:
        """Take head and optimiser from a checkpoint.

        Raises:
            ValueError: no Z there, of another size, or trained on other features.
        """
        facts, weights = _read(folder)
        mine = {"hidden_size": self.head.hidden_size, "features": self.features}
        shapes = {k: v.shape for k, v in self.head.state_dict().items()}
        if facts != mine or {k: v.shape for k, v in weights.items()} != shapes:
            raise ValueError(
                f"{Path(folder) / LOG_Z_FILE} holds a Z for {facts}; this run's is for "
                f"{mine}. Fix: resume with the model and log_z_features that the "
                "checkpoint was trained with."
            )
        self.head.load_state_dict(weights)
        path = Path(folder) / OPTIMIZER_FILE
        if path.is_file():  # absent with save_only_model
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(state)


def load_log_z(folder: str | Path) -> tuple[LogPartitionHead, str]:
    """The trained Z of a checkpoint, for use without TRL.

    Returns:
        The head, and the features it reads ("last" or "mean").

    Raises:
        ValueError: no Z there, or a damaged file.
    """
    facts, weights = _read(folder)
    head = LogPartitionHead(facts["hidden_size"])
    head.load_state_dict(weights)
    return head, facts["features"]


def _read(folder: str | Path) -> tuple[dict, dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / LOG_Z_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {LOG_Z_FILE}. Fix: resume from a checkpoint that "
            "FlowRLTrainer saved; one of GRPOTrainer's has no Z."
        )
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["flowrl"])
            return facts, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}). Fix: use an older "
            "checkpoint."
        ) from error
