"""Tests of the life and the end of an engine that LAUNCH runs, with real processes."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from disagg_operator.engines.launch import LAUNCH
from disagg_operator.status.last_words import MAX_TAIL_CHARS, cause_of, cleaned
from disagg_wire.problems import ENGINE_OUT_OF_MEMORY

_NO_NETWORK = ("", "auto", "", "0", "", "")
_PR_SET_CHILD_SUBREAPER = 36
# As vLLM 0.32 ends when its KV cache is too small.
_CORE, _API = "(EngineCore pid=52) ERROR 10-04 09:12:31 [core.py:1104]", "(APIServer pid=7)"
_CAUSE = (
    "ValueError: To serve at least one request with the model's max seq len (131072), 16.0 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (9.1 GiB). "
    + "Try increasing `gpu_memory_utilization` or decreasing `max_model_len`. "
    * 5
)
_END = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"


def argv(message: Path, program: str) -> list[str]:
    return [sys.executable, "-c", LAUNCH, str(message), *_NO_NETWORK, sys.executable, "-uc", program]


def run(message: Path, program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv(message, program), capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def message(tmp_path: Path) -> Path:
    return tmp_path / "termination-log"


def test_the_cause_is_kept_although_hundreds_of_lines_follow_it(message: Path) -> None:
    lines = [f"INFO line {n}" for n in range(250)]
    lines += [f"{_CORE} Traceback (most recent call last):", f"{_CORE}     raise ValueError(", f"{_CORE} {_CAUSE}"]
    lines += [f'{_API}   File "serve.py", line {n}, in serve' for n in range(250)]
    lines += [f"{_API} {_END}"]
    program = f"import sys; print('a warning', file=sys.stderr); print(chr(10).join({lines!r})); sys.exit(1)"
    ended = run(message, program)
    assert ended.returncode == 1
    assert (ended.stdout.splitlines(), ended.stderr.splitlines()) == (lines, ["a warning"])
    text = message.read_text()
    assert len(text) < 4096  # of more the kubelet keeps nothing
    words = text.split("\n")
    assert words[-2:] == ["errors above these lines:", _CAUSE[:300]]
    assert f"{_API} {_END}" in words[:-2]
    found = cause_of(text)
    assert found is not None
    assert (found.reason, found.line) == (ENGINE_OUT_OF_MEMORY, _CAUSE[:300].strip())
    quoted = cleaned(text)
    assert len(quoted) <= MAX_TAIL_CHARS
    assert _CAUSE[:300].strip() in quoted
    assert _END in quoted


def test_what_the_engine_survived_is_not_its_cause(message: Path) -> None:
    warning = "WARNING 10-04 09:12:02 [interface.py:20] Failed to import: ImportError: libcuda.so.1: cannot open"
    fillers = "\\n".join(f"line {n} of many that follow" for n in range(100))
    assert run(message, f"print({warning!r}); print('{fillers}'); print('the end'); exit(3)").returncode == 3
    text = message.read_text()
    assert text.endswith("\nthe end")
    assert "errors above" not in text


def test_a_progress_bar_is_its_last_state(message: Path) -> None:
    program = "import sys; sys.stderr.write('loading 1%\\rloading 99%\\r\\nno newline at the end'); exit(1)"
    assert run(message, program).stderr.endswith("no newline at the end")
    assert message.read_text() == "loading 99%\nno newline at the end"


def test_many_long_errors_are_the_first_and_the_last_of_them(message: Path) -> None:
    errors = [f"pkg.RankError: {n} {'x' * 250}" for n in range(40)]
    program = f"print(chr(10).join({errors!r})); print(chr(10).join(f'{{n}} ' + 'y' * 300 for n in range(9))); exit(1)"
    assert run(message, program).returncode == 1
    assert message.read_text().split("errors above these lines:\n")[1].split("\n") == [errors[8], errors[-1]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_the_engines_and_so_is_the_exit_status(message: Path, number: signal.Signals) -> None:
    program = (
        f"import signal, sys; signal.signal({number.value}, lambda *_: (print('bye'), sys.exit(7)))\n"
        "print('ready')\nwhile True: signal.pause()"
    )
    with subprocess.Popen(argv(message, program), stdout=subprocess.PIPE, text=True) as launched:
        assert launched.stdout is not None
        assert launched.stdout.readline() == "ready\n"
        launched.send_signal(number)
        assert launched.wait(30) == 7
        assert launched.stdout.read() == "bye\n"
    assert message.read_text() == "ready\nbye"


def test_an_engine_that_a_signal_ends_gives_its_number(message: Path) -> None:
    ended = run(message, "import os; print('on'); os.kill(os.getpid(), 9)")
    assert ended.returncode == 128 + signal.SIGKILL
    assert message.read_text() == "on"


def test_an_engine_that_ends_well_leaves_no_message(message: Path) -> None:
    assert run(message, "print('ValueError: x')").returncode == 0
    assert not message.exists()


def test_a_message_that_can_not_be_written_changes_nothing_else(message: Path) -> None:
    ended = run(message / "no folder", "print('x'); exit(5)")
    assert (ended.returncode, ended.stdout, ended.stderr) == (5, "x\n", "")


def test_a_command_that_does_not_exist_is_named() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LAUNCH, os.devnull, *_NO_NETWORK, "/no/engine"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (1, "/no/engine: No such file or directory\n")


def test_a_process_that_the_engine_leaves_behind_delays_nothing(message: Path) -> None:
    program = "import os, sys\nif os.fork() == 0: sys.stdin.read()\nelse: print('gone'); os._exit(4)"
    with subprocess.Popen(argv(message, program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as launched:
        # The process that is left ends when its input does, after this.
        assert launched.wait(30) == 4
        assert launched.stdout is not None
        assert launched.stdout.read() == "gone\n"


def _adopts() -> None:
    """Make this process the parent of orphans, as the first process of a container is."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def test_orphans_of_the_engine_do_not_stay_as_zombies(message: Path) -> None:
    program = """
import os, time
read, write = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.write(write, str(os.getpid()).encode())
    os._exit(0)
os.wait()
orphan = os.read(read, 20).decode()
until = time.monotonic() + 30
while os.path.exists(f"/proc/{orphan}") and time.monotonic() < until:
    time.sleep(0.01)
exit(6 if os.path.exists(f"/proc/{orphan}") else 0)
"""
    assert subprocess.run(argv(message, program), preexec_fn=_adopts, timeout=60, check=False).returncode == 0


def test_endless_output_takes_no_memory(message: Path) -> None:
    program = (
        "import os\nfor n in range(400): os.write(1 + n % 2, b'x' * 65536)\nfor n in range(99999): print(n)\nexit(1)"
    )
    read, write = os.pipe()
    # The peak of a process starts with that of its parent, which must therefore be small as well.
    measure = (
        "import os, sys; pid = os.spawnv(os.P_NOWAIT, sys.argv[2], sys.argv[2:]); _, status, used = os.wait4(pid, 0)\n"
        "print(used.ru_maxrss, os.waitstatus_to_exitcode(status), file=open(int(sys.argv[1]), 'w'))"
    )
    measured = [sys.executable, "-c", measure, str(write), *argv(message, program)]
    subprocess.run(measured, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[write], check=True)
    os.close(write)
    with open(read) as told:
        peak_kib, code = map(int, told.read().split())
    assert code == 1
    assert peak_kib < 32 * 1024  # Python itself included
