"""Has the kernel stop this process at the first socket or the first byte written to a file: for native code too.

Both are one-way: only for a process that is started for the purpose, and before it starts threads.
"""

import ctypes
import platform
import signal
import struct
import sys

# BPF and seccomp: the kernel's include/uapi/linux/{filter,seccomp,audit}.h and Documentation/userspace-api/seccomp_filter.rst.
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4  # offsets in struct seccomp_data
_KILL_PROCESS, _ALLOW = 0x80000000, 0x7FFF0000
_SET_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER_MODE = 38, 22, 2
_FOREIGN_ABI = 0x40000000  # x32 numbers its calls from here; no other architecture has calls so high
_IO_URING_SETUP = 425  # could open a socket without the call for it; one number everywhere
_SYSTEMS = {  # machine: (AUDIT_ARCH_*, the numbers of socket and socketpair)
    "x86_64": (0xC000003E, (41, 53)),
    "aarch64": (0xC00000B7, (198, 199)),
}


def kill_on_socket() -> bool:
    """Have this process killed by SIGSYS when any code in it asks for a socket; False where the system cannot do that."""
    if sys.platform != "linux" or platform.machine() not in _SYSTEMS:
        return False
    architecture, sockets = _SYSTEMS[platform.machine()]
    calls = (*sockets, _IO_URING_SETUP)
    checks = [
        struct.pack("HBBI", _LOAD, 0, 0, _ARCHITECTURE_AT),
        struct.pack("HBBI", _EQUAL, 0, len(calls) + 3, architecture),  # jumps count instructions to skip: (if true, if false)
        struct.pack("HBBI", _LOAD, 0, 0, _NUMBER_AT),
        struct.pack("HBBI", _AT_LEAST, len(calls) + 1, 0, _FOREIGN_ABI),
        *(struct.pack("HBBI", _EQUAL, len(calls) - place, 0, call) for place, call in enumerate(calls)),
        struct.pack("HBBI", _RETURN, 0, 0, _ALLOW),
        struct.pack("HBBI", _RETURN, 0, 0, _KILL_PROCESS),
    ]
    instructions = ctypes.create_string_buffer(b"".join(checks))
    program = ctypes.create_string_buffer(struct.pack("HP", len(checks), ctypes.addressof(instructions)))
    system = ctypes.CDLL(None)
    one, zero = ctypes.c_ulong(1), ctypes.c_ulong(0)
    if system.prctl(_SET_NO_NEW_PRIVILEGES, one, zero, zero, zero) != 0:
        return False
    return bool(system.prctl(_SET_SECCOMP, ctypes.c_ulong(_FILTER_MODE), program, zero, zero) == 0)


def kill_on_write() -> bool:
    """Have this process killed by SIGXFSZ when any code in it writes to a regular file; False where there is no such limit.

    Pipes and terminals are no files. A file that is created and left empty is not noticed.
    """
    try:
        import resource
    except ImportError:  # not a POSIX system
        return False
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, and the write would only fail
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    return True
