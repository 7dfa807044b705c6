"""The calls to the kernel that a program in a sandbox may not make, as a filter for ``bwrap --seccomp``.

Namespaces hide other processes, the network and the file system. The filter takes away what they leave: starting
processes, which no limit bounds where the kit runs as root; memory that no limit counts; and the parts of the kernel
that programs never need and that were most often broken out through.
"""

from __future__ import annotations

import errno
import platform
import struct
import sys

from dlmrl_kit.core.errors import UserError

REFUSED = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "fork": (57, None),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semget": (64, 190),
    "setns": (308, 268),
    "shmget": (29, 194),
    "socket": (41, 198),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vfork": (58, None),
}
"""The calls that fail with ``EPERM``: with their numbers on x86-64 and on arm64. ``socketpair`` works."""
CLONE, CLONE3 = (56, 220), (435, 435)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of ``REFUSED``, and what the kernel calls the machine (``AUDIT_ARCH_...``)."""
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in ``struct seccomp_data``; the low half of the first argument, as both machines are little-endian."""
_THREAD = 0x00010000
"""``CLONE_THREAD``: what ``clone`` makes is a thread, no process."""
_OTHER_NUMBERS = 0x40000000
"""From here on are the numbers of the x32 calls, which are the same calls once more."""


def refusing_filter(processes: bool = False) -> bytes:
    """Returns the filter: a program of the classic Berkeley packet filter, as the kernel takes it.

    Args:
        processes: whether processes may be started; else threads only.

    Raises:
        UserError: the numbers of the calls are not known for this machine.
    """
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        known = " and ".join(_MACHINES)
        raise UserError(f"the sandbox runs on Linux on {known}, and this is {sys.platform} on {platform.machine()}")
    column, machine = _MACHINES[platform.machine()]
    denied = _ERROR | errno.EPERM
    steps = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, machine), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    steps += [(_AT_LEAST, 0, 1, _OTHER_NUMBERS), (_RETURN, 0, 0, denied)]
    for name, numbers in REFUSED.items():
        number = numbers[column]
        if number is not None and not (processes and name in ("fork", "vfork")):
            steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, denied)]
    # The arguments of clone3 lie in memory, where no filter can look: the C library then takes clone instead.
    steps += [(_EQUAL, 0, 1, CLONE3[column]), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
    if not processes:
        steps += [(_EQUAL, 0, 3, CLONE[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
        steps += [(_ANY_BIT, 1, 0, _THREAD), (_RETURN, 0, 0, denied)]
    return b"".join(struct.pack("HBBI", *step) for step in [*steps, (_RETURN, 0, 0, _ALLOW)])
