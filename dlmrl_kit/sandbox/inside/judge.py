"""The process that runs tests: for each program a child of its own, which talks to the program and tells the verdicts.

It stays, so that what it imports is imported once. Each request comes with two sockets: one to the process of the
program, which the tests alone use, and one through which the verdicts go back, which no program ever holds.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import sys

from dlmrl_kit.sandbox.inside.limits import limit_process
from dlmrl_kit.sandbox.inside.messages import read_messages, write_message
from dlmrl_kit.sandbox.inside.objects import Objects
from dlmrl_kit.sandbox.inside.plain_data import from_bytes, to_bytes
from dlmrl_kit.sandbox.inside.program import READY
from dlmrl_kit.sandbox.inside.streams import close_standard_streams
from dlmrl_kit.sandbox.inside.suites import run_suite

GRACE_SECONDS = 5.0
"""How much longer than the program a judge may take."""


def serve(control: socket.socket) -> None:
    """Forks a child for each pair of sockets that comes through ``control``, until that ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    while True:
        sign, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not sign or len(descriptors) != 2:
            return
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        if os.fork() == 0:
            control.close()
            with contextlib.suppress(BaseException):  # whatever happens, this process ends here
                _judge(*sockets)
            os._exit(0)
        for each in sockets:
            each.close()


def _judge(program: socket.socket, results: socket.socket) -> None:
    stream = results.makefile("rwb", buffering=0)
    request = next(read_messages(stream), None)
    if request is None:
        return
    text, suite, seconds = from_bytes(request)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds + GRACE_SECONDS)
    objects = Objects(program.detach(), suite["classes"])
    verdicts = run_suite(objects, text, suite)
    write_message(stream, to_bytes([verdicts, objects.gone]))


def main() -> None:
    """Judges: standard input is ``control``; the arguments are bytes of memory and modules to import beforehand."""
    limit_process(int(sys.argv[1]), None)
    control = socket.socket(fileno=os.dup(0))
    close_standard_streams()
    try:
        for name in sys.argv[2:]:
            importlib.import_module(name)
    except Exception as error:
        control.sendall(f"{name}: {type(error).__name__}: {error}".encode())
        return
    control.sendall(READY)
    serve(control)
