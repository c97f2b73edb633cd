"""Compiled kernels are kept on disk, and a stale one is never used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import processes
import pytest

CPU = Path("_engines", "cpu")
# What a kernel is made of, and how it is compiled and called. The rest of the folder only uses it.
COMPILED = sorted(
    {Path("_rule.py"), Path("_plan.py")}
    | {
        CPU / file.name
        for file in (processes.PACKAGE / CPU).glob("*.py")
        if file.stem not in ("__init__", "pieces", "inspection")
    }
)

STEP = """
    import sys
    import numpy as np
    import oneadam.numpy
    {before}
    def trained(variable):
        optimizer = oneadam.numpy.Adam(0.1, epsilon=1e-3)
        optimizer.build([variable])
        for gradient in (0.5, -0.25):
            optimizer.apply([np.full(7, gradient, np.float32)])
        state = optimizer.state_dict()
        arrays = [variable, state["0/momentum"], state["0/velocity"]]
        return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays).hex()

    plain = np.linspace(-1, 1, 7, dtype=np.float32)
    print(trained(plain.copy()))
    print(trained(np.repeat(plain, 2)[::2]))
    print("compiled" if "numba" in sys.modules else "loaded")
"""
NO_COMPILER = "sys.modules['numba'] = None"


class Step(NamedTuple):
    """What came of some steps in a process of their own."""

    numbers: str
    """The bits of a variable and its state, from the kernels."""
    interpreted: str
    """The same from the rule as this process has imported it, without any kernel."""
    was: str
    """"compiled" or "loaded"."""


class Copy:
    """A copy of the package that can be edited, and a folder for its kernels."""

    def __init__(self, folder: Path, kernels: Path | None = None) -> None:
        self.source = folder / "source"
        self.package = self.source / "oneadam"
        self.cache = folder / "cache"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(processes.PACKAGE, self.package, ignore=ignored)
        if kernels is not None:
            shutil.copytree(kernels, self.cache)

    def step(self, before: str = "", cache: Path | None = None, **env: str) -> Step:
        code = STEP.replace("{before}", before)
        env = {"XDG_CACHE_HOME": str(cache or self.cache), **env}
        return Step(*processes.run(code, source=self.source, env=env).split())

    def loads(self) -> bool:
        """Whether a process finds all its kernels, asked without compiling any."""
        code, env = STEP.replace("{before}", NO_COMPILER), {"XDG_CACHE_HOME": str(self.cache)}
        process = processes.start(code, source=self.source, env=env)
        out, err = process.communicate(timeout=processes.LIMIT)
        assert process.returncode == 0 or "numba" in err, err
        return process.returncode == 0 and len(out.split()) == 3

    def edit(self, file: str | Path, old: str, new: str, *, hidden: bool = False) -> None:
        """Replace text in a source; if hidden, neither its size nor its times change."""
        path = self.package / file
        before, text = path.stat(), path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file} has changed; adapt this test"
        path.write_text(text.replace(old, new), encoding="utf-8")
        if hidden:
            assert len(old) == len(new)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def forget_bytecode(self) -> None:
        """Remove what Python has cached itself."""
        for folder in self.package.rglob("__pycache__"):
            shutil.rmtree(folder)

    def kept(self) -> dict[str, bytes]:
        """The files in the folder of kernels."""
        files = (path for path in self.cache.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files}


# Edits of the rule that change the result, of one length each.
SIGN = ("param = param - step", "param = param + step")
MOMENT = ("(grad * grad - velocity", "(grad + grad - velocity")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Copy, Step]:
    """A copy whose kernels two processes have compiled at once; not to be edited."""
    copy = Copy(tmp_path_factory.mktemp("compiled"))
    code, env = STEP.replace("{before}", ""), {"XDG_CACHE_HOME": str(copy.cache)}
    both = [processes.start(code, source=copy.source, env=env) for _ in range(2)]
    one, other = (Step(*processes.finish(process).split()) for process in both)
    assert one.numbers == one.interpreted == other.numbers
    assert one.was == "compiled"
    return copy, one


@pytest.fixture
def copy(compiled: tuple[Copy, Step], tmp_path: Path) -> Copy:
    """A copy to edit, with kernels."""
    return Copy(tmp_path, compiled[0].cache)


def test_what_one_process_has_compiled_others_load(compiled: tuple[Copy, Step]) -> None:
    copy, first = compiled
    kept = copy.kept()
    assert kept
    assert copy.step() == first._replace(was="loaded")
    assert copy.loads()
    for seed in ("1", "2", "33"):
        assert copy.step(PYTHONHASHSEED=seed) == first._replace(was="loaded")
    assert copy.kept() == kept


def test_without_kernels_the_compiler_is_wanted(compiled: tuple[Copy, Step], copy: Copy) -> None:
    assert copy.loads()
    shutil.rmtree(copy.cache)
    assert not copy.loads()


@pytest.mark.parametrize(
    ("edit", "hidden"), [(SIGN, True), (MOMENT, False)], ids=["size and time kept", "plainly"]
)
def test_an_edit_of_the_rule_is_noticed(
    compiled: tuple[Copy, Step], copy: Copy, edit: tuple[str, str], hidden: bool
) -> None:
    copy.edit("_rule.py", *edit, hidden=hidden)
    after = copy.step()
    assert after.was == "compiled"
    assert after.numbers == after.interpreted != compiled[1].numbers
    assert copy.step() == after._replace(was="loaded")
    copy.edit("_rule.py", *edit[::-1], hidden=hidden)
    assert copy.step().numbers == compiled[1].numbers


@pytest.mark.parametrize("file", COMPILED, ids=lambda file: file.name)
def test_an_edit_of_anything_that_is_compiled_is_noticed(copy: Copy, file: Path) -> None:
    with (copy.package / file).open("a", encoding="utf-8") as source:
        source.write("\n# Another text.\n")
    assert not copy.loads()


def test_what_is_edited_after_the_import_is_not_kept_under_a_wrong_name(copy: Copy) -> None:
    shutil.rmtree(copy.cache)
    path = copy.package / "_rule.py"
    edited = path.read_text(encoding="utf-8").replace(*SIGN)
    # This process has imported the old rule, and compiles in the sight of the new one.
    early = copy.step(f"open({str(path)!r}, 'w').write({edited!r})")
    assert early.numbers == early.interpreted
    later = copy.step()
    assert later.numbers == later.interpreted != early.numbers


def test_a_rule_that_python_takes_from_its_own_stale_cache_is_not_kept(copy: Copy) -> None:
    # Python knows its bytecode by size and time of the source, and so takes the old one.
    copy.step(PYTHONDONTWRITEBYTECODE="")
    assert list(copy.package.glob("__pycache__/_rule*.pyc"))
    copy.edit("_rule.py", *SIGN, hidden=True)
    stale = copy.step(PYTHONDONTWRITEBYTECODE="")
    assert stale.numbers in (stale.interpreted, copy.step().numbers)
    copy.forget_bytecode()
    right = copy.step()
    assert right.numbers == right.interpreted


def test_constants_that_python_takes_from_its_own_stale_cache_are_not_kept(copy: Copy) -> None:
    copy.step(PYTHONDONTWRITEBYTECODE="")
    layout = CPU / "layout.py"
    copy.edit(layout, "MOMENTUM, VELOCITY, ", "VELOCITY, MOMENTUM, ", hidden=True)
    copy.step(PYTHONDONTWRITEBYTECODE="")
    copy.forget_bytecode()
    right = copy.step(cache=copy.cache.with_name("empty"))
    assert right.was == "compiled"
    assert copy.step().numbers == right.numbers


def test_folders_that_cannot_be_written_do_no_harm(
    compiled: tuple[Copy, Step], tmp_path: Path
) -> None:
    copy, first = compiled
    (tmp_path / "file").write_text("no folder")
    # Not a folder without permissions: root may write there nevertheless.
    assert copy.step(cache=tmp_path / "file").numbers == first.numbers


def test_a_user_without_a_home_does_no_harm(compiled: tuple[Copy, Step]) -> None:
    # As in a container whose user has no entry in /etc/passwd.
    code = """
    import os, pwd
    def nobody(uid): raise KeyError(uid)
    pwd.getpwuid = nobody
    os.environ.pop("HOME", None)
    os.environ.pop("XDG_CACHE_HOME", None)
    """
    copy, first = compiled
    assert copy.step(code.strip()).numbers == first.numbers


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_truncate, _flip, _empty])
def test_damaged_files_are_compiled_again(
    compiled: tuple[Copy, Step], copy: Copy, damage: Callable[[Path], None]
) -> None:
    for name in copy.kept():
        damage(Path(name))
    assert copy.step() == compiled[1]
    assert copy.loads(), "they stay damaged"


def test_folders_in_the_place_of_files_do_no_harm(compiled: tuple[Copy, Step], copy: Copy) -> None:
    for name in copy.kept():
        Path(name).unlink()
        Path(name).mkdir()
    assert copy.step().numbers == compiled[1].numbers


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX forks")
def test_a_fork_while_a_kernel_is_being_compiled(copy: Copy) -> None:
    shutil.rmtree(copy.cache)
    code = """
    import os, signal, sys, threading, time, warnings
    import numpy as np
    import oneadam.numpy

    def step(size):
        variable = np.zeros(size, np.float32)
        optimizer = oneadam.numpy.Adam(0.5)
        optimizer.build([variable])
        optimizer.apply([np.ones(size, np.float32)])
        assert np.allclose(variable, -0.5)

    # Python 3.12 warns of any fork of a process that has threads; that it works is the point.
    warnings.simplefilter("ignore", DeprecationWarning)
    thread = threading.Thread(target=step, args=(3,))
    thread.start()
    while "numba.core.compiler" not in sys.modules:
        time.sleep(0.001)
    time.sleep(0.3)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)
        step(5)
        os._exit(0)
    thread.join()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    said = processes.run(code, source=copy.source, env={"XDG_CACHE_HOME": str(copy.cache)})
    assert said.split() == ["0"], "the child was stuck"
