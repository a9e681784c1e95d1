"""no_ipv6.py MODULE: run a module as on a machine that was started with ipv6.disable=1.

A seccomp filter, which whatever it starts inherits, answers socket(AF_INET6, ...) as such a kernel.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import runpy
import socket
import struct
import sys

_SOCKET = {"x86_64": 41, "aarch64": 198}[platform.machine()]  # asm/unistd.h
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h: LD|W|ABS, JMP|JEQ|K, RET|K
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # linux/seccomp.h
_NUMBER, _FIRST_ARGUMENT = 0, 16  # struct seccomp_data
_PROGRAM = (
    (_LOAD, 0, 0, _NUMBER),
    (_EQUAL, 0, 3, _SOCKET),
    (_LOAD, 0, 0, _FIRST_ARGUMENT),
    (_EQUAL, 0, 1, socket.AF_INET6),
    (_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT),
    (_RETURN, 0, 0, _ALLOW),
)


def _restrict() -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in _PROGRAM))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(_PROGRAM), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for words in ((38, 1, 0, 0, 0), (22, 2, ctypes.byref(program))):  # no new privileges; seccomp
        if libc.prctl(*words):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    _restrict()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
