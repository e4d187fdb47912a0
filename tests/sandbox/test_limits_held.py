"""No program gets more than its limits, by any of a hundred ways."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from greedy_programs import (
    CLOCK,
    CLOCK_FAMILY,
    ENTRIES_ENDED,
    FAMILY,
    FILES_HELD,
    FILES_REFUSED,
    FIRST,
    LIMITS,
    MEMORY_ENDED,
    MEMORY_ENDED_FAMILY,
    MEMORY_ENDED_WIDE,
    MEMORY_HELD,
    MEMORY_REFUSED,
    OTHER,
    PRELUDE,
    TIME_USED,
    TIME_USED_FAMILY,
)

from flowrl_lab.sandbox import (
    Limits,
    SandboxResult,
    SandboxServer,
    SandboxUnavailable,
    groups,
    run_python,
    running,
    usage,
)
from flowrl_lab.sandbox.groups import find_place
from flowrl_lab.sandbox.watching import Watch

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the sandbox needs Linux"
)
OVER = 1.1  # as much as anything may go over its limit


def run(source: str, limits: Limits = LIMITS, **options) -> SandboxResult:
    head = 'x86 = os.uname().machine == "x86_64"\n'
    return run_python(PRELUDE + head + source, limits=limits, **options)


def last_held(result: SandboxResult) -> float:
    """The most that a program said it held, in MB."""
    return max(map(float, result.stdout.split()), default=0.0)


def by_name(*tables: dict) -> pytest.MarkDecorator:
    """A test for each program; most of them only with the full budget."""
    return pytest.mark.parametrize(
        ("name", "source"),
        [
            pytest.param(
                name, source, id=name, marks=() if name in FIRST else pytest.mark.full
            )
            for table in tables
            for name, source in table.items()
        ],
    )


@by_name(MEMORY_HELD)
def test_the_kernel_gives_no_more_memory(name, source):
    result = run(source)
    assert result.outcome in ("memory", "error", "killed", "ok"), (name, result)
    assert last_held(result) <= OVER * LIMITS.memory_mb, result


def test_what_nobody_could_count_is_refused():
    attempts = {**MEMORY_REFUSED, **FILES_REFUSED}
    source = f"""
for name, source in {attempts!r}.items():
    try:
        exec(source)
        print(name, "ALLOWED")
    except PermissionError:
        print(name, "refused")
"""
    result = run(source, arguments=("/proc/self/cwd",))
    assert result.stdout == "".join(f"{name} refused\n" for name in attempts), result


@by_name(MEMORY_ENDED)
def test_memory_that_limits_of_the_kernel_miss_ends_the_program(name, source):
    result = run(source)
    assert result.outcome == "memory", (name, result)


@by_name(MEMORY_ENDED_WIDE)
def test_so_does_memory_where_the_address_space_is_free(name, source, tmp_path):
    result = run(source, readable=(tmp_path,))
    assert result.outcome == "memory", (name, result)


@by_name(MEMORY_ENDED_FAMILY)
def test_so_does_what_a_family_holds_together(name, source):
    result = run(source, FAMILY)
    assert result.outcome == "memory", (name, result)


@by_name(FILES_HELD)
def test_the_kernel_gives_no_more_room_for_files(name, source):
    result = run(source, FAMILY if "fork" in source else LIMITS)
    assert result.outcome in ("output", "error", "killed"), (name, result)
    assert 0 < last_held(result) <= OVER * LIMITS.file_mb, result


@by_name(ENTRIES_ENDED)
def test_too_many_files_end_the_program(name, source):
    result = run(source)
    assert result.outcome == "output", (name, result)
    assert result.reason == "made more than 256 files and folders"


@by_name(TIME_USED)
def test_processor_time_is_counted(name, source):
    result = run(source, replace(LIMITS, cpu_seconds=0.3))
    assert (result.outcome, name) == ("timeout", name), result
    assert result.reason == "used more than 0.3 s of processor time"


@by_name(TIME_USED_FAMILY)
def test_processor_time_of_a_family_is_counted(name, source):
    """Or there are too many that nobody waits for, before that."""
    result = run(source, replace(FAMILY, cpu_seconds=0.4))
    assert result.reason in (
        "used more than 0.4 s of processor time",
        "ran more than 4 processes",
    ), (name, result)
    assert result.outcome in ("timeout", "killed")


@by_name(CLOCK, CLOCK_FAMILY)
def test_the_clock_ends_everything(name, source):
    limits = FAMILY if name in CLOCK_FAMILY else LIMITS
    result = run(source, replace(limits, wall_seconds=0.3))
    assert (result.outcome, name) == ("timeout", name), result
    assert result.reason == "ran for more than 0.3 s"


@by_name({name: source for name, (source, _) in OTHER.items()})
def test_other_limits_hold_too(name, source):
    result = run(source)
    assert result.outcome == OTHER[name][1], result


# ------------------------------------------------- where the kernel cannot hold it all


def changed_inside(folder: Path, old: str, new: str) -> Path:
    """A copy of the sandbox's inner side, as if the kernel said no."""
    for file in running._START.parent.glob("*.py"):
        (folder / file.name).write_text(file.read_text().replace(old, new))
    return folder / "start.py"


@pytest.fixture
def no_mounts(monkeypatch, tmp_path):
    """A machine on which no file system may be mounted."""
    start = changed_inside(
        tmp_path, "    _checked(_libc.mount(", "    raise OSError(1, 'no')\n    (("
    )
    monkeypatch.setattr(running, "_START", start)
    monkeypatch.setattr(
        running, "sandbox_weaknesses", running.sandbox_weaknesses.__wrapped__
    )


@by_name(FILES_HELD, ENTRIES_ENDED)
@pytest.mark.usefixtures("no_mounts")
def test_files_without_a_file_system_of_their_own_are_weighed(name, source):
    result = run(source, FAMILY if "fork" in source else LIMITS)
    assert result.outcome in ("output", "error"), (name, result)


def test_a_namespace_where_the_user_has_no_name_is_better_than_none(
    monkeypatch, tmp_path
):
    """As on systems where AppArmor lets users unshare, and then do nothing with it."""
    line = '            with open(f"/proc/self/{name}", "w") as file:\n'
    refuse = "            raise OSError(13, 'no')\n"
    start = changed_inside(tmp_path, line, refuse + line)
    monkeypatch.setattr(running, "_START", start)
    source = "print(open('d/f').read()); open('g', 'w').write('y')"
    result = run(source, files={"d/f": b"x"}, collect=("g",))
    assert (result.outcome, result.stdout) == ("ok", "x\n"), result
    assert result.files == {"g": b"y"}
    result = run(FILES_HELD["deleted files that are mapped"])
    assert (result.outcome, result.reason) == (
        "output",
        "its files hold more than 4 MB",
    )


@pytest.mark.usefixtures("no_mounts")
def test_files_that_are_only_mapped_are_weighed_for_other_users_too(monkeypatch):
    """Only root may ask how large they are."""
    monkeypatch.setattr(usage, "_note_deleted", lambda *_: False)
    result = run(FILES_HELD["deleted files that are mapped"])
    assert (result.outcome, result.reason) == (
        "output",
        "its files hold more than 4 MB",
    )


@pytest.mark.usefixtures("no_mounts")
def test_strict_limits_are_refused_without_mounts(monkeypatch):
    monkeypatch.setattr(running, "find_place", lambda: Path("/"))
    monkeypatch.setattr(running, "_make_group", lambda *_: None)
    assert running.sandbox_weaknesses() == (
        "files are looked at, because no file system may be mounted",
    )
    with pytest.raises(SandboxUnavailable, match=r"strict limits .* files .*Fix: "):
        run_python("print('ran')", limits=Limits(strict=True))


def test_strict_limits_are_refused_without_control_groups(monkeypatch):
    monkeypatch.setattr(running, "find_place", lambda: None)
    running.sandbox_weaknesses.cache_clear()
    try:
        assert "no cgroup" in running.sandbox_weaknesses()[0]
        with pytest.raises(SandboxUnavailable, match=r"strict .* memory .*Fix: "):
            run_python("print('ran')", limits=Limits(strict=True))
        with (
            SandboxServer("print('ran')", limits=Limits(strict=True)) as server,
            pytest.raises(SandboxUnavailable, match=r"strict .* memory .*Fix: "),
        ):
            server.ask(1)
    finally:
        running.sandbox_weaknesses.cache_clear()


@pytest.mark.skipif(find_place() is None, reason="this user may make no cgroup (v2)")
@by_name(MEMORY_HELD, MEMORY_ENDED, MEMORY_ENDED_WIDE, MEMORY_ENDED_FAMILY)
def test_a_control_group_holds_what_nobody_looks_at(
    name, source, tmp_path, monkeypatch
):
    monkeypatch.setattr(Watch, "_look_at_usage", lambda *_: None)
    wide = (tmp_path,) if name in MEMORY_ENDED_WIDE else ()
    limits = replace(FAMILY if "fork" in source else LIMITS, strict=True)
    result = run(source, limits, readable=wide)
    assert result.outcome in ("memory", "error", "killed", "ok"), (name, result)
    most = OVER * (LIMITS.memory_mb + LIMITS.file_mb)
    assert last_held(result) <= most, result


# -------------------------------------------------------- where control groups are


def make_tree(folder: Path, own: str, root: str = "/") -> Path:
    """/proc/self and a group file system as they lie on a machine with systemd."""
    top = folder / "cgroup"
    (top / own.lstrip("/")).mkdir(parents=True)
    process = folder / "self"
    process.mkdir()
    (process / "cgroup").write_text(f"1:name=systemd:/x\n0::{own}\n")
    (process / "mountinfo").write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        f"30 22 0:26 {root} {top} rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
    )
    return process


def test_the_groups_above_this_process_are_looked_at_nearest_first(tmp_path):
    own = "/user.slice/user-1000.slice/session-2.scope"
    found = groups._candidates(make_tree(tmp_path, own))
    top = tmp_path / "cgroup"
    inner = top / "user.slice/user-1000.slice"
    assert found == [inner / "session-2.scope", inner, inner.parent, top]


@pytest.mark.parametrize("text", ["", "9:memory:/a\n", "0::/\n"])
def test_machines_without_groups_have_no_place(tmp_path, text):
    process = make_tree(tmp_path, "/")
    (process / "cgroup").write_text(text)
    if text.startswith("0::"):  # the old kind is all there is
        (process / "mountinfo").write_text("30 22 0:26 / /x rw - cgroup cgroup rw\n")
    assert groups._candidates(process) == []


def test_a_place_must_hand_memory_on_and_let_processes_in(tmp_path, monkeypatch):
    process = make_tree(tmp_path, "/a/b")
    monkeypatch.setattr(
        groups, "_candidates", lambda _, f=groups._candidates: f(process)
    )
    top = tmp_path / "cgroup"
    for folder, given in ((top / "a/b", ""), (top / "a", "cpu pids"), (top, "memory")):
        (folder / "cgroup.subtree_control").write_text(given)
    tried = []
    monkeypatch.setattr(groups, "_try_out", tried.append)
    assert groups.find_place.__wrapped__() == top
    assert tried == [top]

    def refuse(_folder):
        raise PermissionError(13, "cgroup.procs")

    monkeypatch.setattr(groups, "_try_out", refuse)
    assert groups.find_place.__wrapped__() is None
