"""Find the function in what a model wrote: a bare body, or code within a chat's prose.

Nothing here runs or parses code; that is left to the sandbox.
"""

from __future__ import annotations

import re
import textwrap
from typing import NamedTuple

__all__ = ["cut_body", "find_programs"]

# What ends a reasoning model's thinking; the answer stands behind the last of them.
_THOUGHT = re.compile(
    r".*(?:</(?:think|thinking|thought|reasoning|analysis)>|\[/THINK\]"
    r"|<\|channel\|>final<\|message\|>)",
    re.DOTALL | re.IGNORECASE,
)
_THINKS = re.compile(
    r"\s*(?:<(?:think|thinking|thought|reasoning|analysis)>|\[THINK\])"
)
# Tokens that end a text, as tokenizers spell them when they show them.
_OVER = re.compile(
    r"<\|(?:endoftext|end_of_text|im_end|eot_id|eom_id|end|return|endofturn)\|>"
    r"|<｜end▁of▁sentence｜>|<end_of_turn>"
    r"|(?:</s>|<eos>|<pad>)(?=\s*(?:</s>|<eos>|<pad>|\Z))"
)
# An opening fence may stand on the line of a list's marker; what follows it names
# the language and whatever else a writer likes.
_FENCE = re.compile(
    r"(?P<indent>[ \t]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+)*)"
    r"(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>.*)"
)
_PYTHON = re.compile(r"\W*(?:py|$)", re.IGNORECASE)
_INDENTED = re.compile(r"(?: {4}|\t)[ \t]*\S")
# Lines at the margin of a block that only defines something: helpers for another one.
_DEFINING = re.compile(
    r"(?:async def|def|class|import|from) |@|#|[])}]|\w+(?:: [^=\n]+)? = [^\n(]*$"
)


_MOST_BLOCKS = 4


class _Block(NamedTuple):
    code: str
    python: bool
    closed: bool


def find_programs(prompt: str, entry: str, completion: str) -> list[str]:
    """The programs that a completion may mean, the likeliest first.

    The text after a thinking block counts, up to an end token.  Of fenced blocks, the
    last that defines the function is meant, one that was closed before one that was
    not, with what the others define for it; else the first, as the function's body.
    Without fences, a text that defines
    the function is the program, and anything else the body.

    Args:
        prompt: imports, helpers, the function's header and docstring.
        entry: the function's name.
        completion: what the model wrote.

    Returns:
        Programs, each with what comes before the header in ``prompt``; none if the
        thinking never ends.
    """
    text = completion.replace("\r\n", "\n").replace("\r", "\n")
    if _THINKS.match(text) and not _THOUGHT.match(text):
        return []
    text = _OVER.split(text[_thought_end(text) :], maxsplit=1)[0]
    if _is_bare(text) and not _defines(_first_line(text), entry):
        whole = [text, _until_margin(text)]
        return [prompt + one for one in dict.fromkeys([*whole, text.expandtabs(4)])]
    blocks = _find_blocks(text)
    whole = [block for block in blocks if _defines(block.code, entry)]
    if whole:
        whole = sorted(whole, key=lambda block: block.closed)[::-1]
        codes = [block.code for block in whole]
        helpers = [b.code for b in blocks if b not in whole and _only_defines(b)]
        if helpers:
            codes[:1] = ["\n".join([*helpers, codes[0]]), codes[0]]
        return _as_programs(prompt, entry, codes)
    if blocks:
        bodies = [b.code for b in blocks if b.python] or [b.code for b in blocks]
        bodies = [prompt + _as_body(code) for code in bodies[:_MOST_BLOCKS]]
        before = _until_fence(text)  # the prompt may have opened the fence
        if _defines(before, entry):
            return [*_as_programs(prompt, entry, [before]), *bodies]
        return bodies
    if _defines(text, entry):
        return _as_programs(prompt, entry, [text])
    # A body whose first indentation was lost on the way, or all of it.
    return [prompt + text, prompt + "    " + text.lstrip(), prompt + _as_body(text)]


def _as_programs(prompt: str, entry: str, codes: list[str]) -> list[str]:
    """Whole functions after the prompt's imports and helpers.

    Alone as well: "from __future__" must come first.
    """
    head = re.split(rf"^def {entry}\b", prompt, maxsplit=1, flags=re.MULTILINE)[0]
    codes = [_at_margin(code, entry) for code in codes[:_MOST_BLOCKS]]
    return [program for code in codes for program in (head + code, code)]


def cut_body(completion: str, stop: tuple[str, ...]) -> str:
    """A bare body without what follows it at the margin; anything else as it is.

    A stop string may stand anywhere in a chat's answer, so it ends a body only.
    """
    start = _thought_end(completion)
    if not _is_bare(completion[start:]):
        return completion
    places = [completion.find(one, start) for one in stop]
    return completion[: min((p for p in places if p >= 0), default=len(completion))]


def _thought_end(text: str) -> int:
    thought = _THOUGHT.match(text)
    return thought.end() if thought else 0


def _first_line(text: str) -> str:
    """The first line that is not empty."""
    return re.sub(r"\A(?:[ \t]*\r?\n)+", "", text).partition("\n")[0]


def _is_bare(text: str) -> bool:
    """Whether a text goes on where the prompt stopped: in the function's body."""
    line = _first_line(text)
    return bool(_INDENTED.match(line)) and not _FENCE.match(line)


def _until_margin(text: str) -> str:
    """Up to the first line that is not indented, after one that is."""
    end = re.search(r"^[ \t]+\S.*\n(?=\S)", text, re.MULTILINE)
    return text[: end.end()] if end else text


def _until_fence(text: str) -> str:
    """Up to the first line that opens a block, or closes one that was open before."""
    lines = text.split("\n")
    ends = (n for n, line in enumerate(lines) if _FENCE.fullmatch(line))
    return "\n".join(lines[: next(ends, len(lines))])


def _defines(code: str, entry: str) -> bool:
    pattern = rf"^[ \t]*def[ \t]+{entry}\b|^{entry}[ \t]*(?::.*)?=[^=]"
    return re.search(pattern, code, re.MULTILINE) is not None


def _only_defines(block: _Block) -> bool:
    """Whether a block of Python does nothing but name things, line by line."""
    lines = block.code.split("\n")
    margin = [line for line in lines if line.strip() and line[0] not in " \t"]
    return block.python and bool(margin) and all(map(_DEFINING.match, margin))


def _find_blocks(text: str) -> list[_Block]:
    """All fenced blocks, in order; the last may be unfinished."""
    blocks, lines = [], text.split("\n")
    at = 0
    while at < len(lines):
        opening = _FENCE.fullmatch(lines[at])
        at += 1
        if opening is None or "`" in opening["info"]:
            continue
        width, fence = len(opening["indent"]), opening["fence"]
        ending = re.compile(rf"[ \t]{{0,{width + 3}}}{fence[0]}{{{len(fence)},}}[ \t]*")
        end = at
        while end < len(lines) and not ending.fullmatch(lines[end]):
            end += 1
        inside = _move_left(lines[at:end], width)
        closed = end < len(lines)
        if not closed:  # a fence right behind the code closes it as well
            closed, inside = inside.endswith(fence), inside.removesuffix(fence)
        blocks.append(_Block(inside, bool(_PYTHON.match(opening["info"])), closed))
        at = end + 1
    return blocks


def _move_left(lines: list[str], width: int) -> str:
    """Without the indentation of the list in which they stand."""
    indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    width = min([width, *indents])
    return "\n".join(line[width:] if line.strip() else "" for line in lines)


def _at_margin(code: str, entry: str) -> str:
    """A function that is indented as a whole, moved to the margin."""
    found = re.search(rf"^([ \t]+)def[ \t]+{entry}\b", code, re.MULTILINE)
    at_margin = re.search(rf"^(?:def[ \t]+)?{entry}\b", code, re.MULTILINE)
    if found is None or at_margin:
        return code
    rest = code[found.start() :]
    prose = re.search(r"^\S", rest, re.MULTILINE)
    return textwrap.dedent(rest[: prose.start()] if prose else rest)


def _as_body(code: str) -> str:
    """Code as the body of a function: indented, if it is not."""
    return code if _INDENTED.match(code.lstrip("\n")) else textwrap.indent(code, "    ")
