"""Becomes another program, tied to the life of the process that started it.

The runner starts every child through this file (`python -I -S launch.py …`) and not with `preexec_fn`, which would run
Python between fork and exec in a process with gRPC's threads. It needs the standard library alone and starts in 30 ms.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence

# include/uapi/linux/{prctl,capability}.h
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_CAPBSET_READ, PR_SET_SECUREBITS, PR_CAP_AMBIENT = 1, 8, 23, 28, 47
PR_CAP_AMBIENT_RAISE = 2
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
CAPABILITY_VERSION_3 = 0x20080522
SIGKILL = 9


def command(
    argv: Sequence[str | os.PathLike[str]], *, death_signal: int = SIGKILL, user: tuple[int, int] | None = None
) -> list[str]:
    """The command line that runs `argv` so that it gets `death_signal` when the calling process ends, however it ends.

    `user` is a (uid, gid) to become; only root may. That user keeps one right of root, to walk through folders that are
    closed to it (CAP_DAC_READ_SEARCH), so that program and data may lie below a folder that only root may enter.
    """
    options = [str(os.getpid()), str(death_signal), f"{user[0]}:{user[1]}" if user else "-"]
    return [sys.executable, "-I", "-S", __file__, *options, *(os.fspath(a) for a in argv)]


def main(parent: str, death_signal: str, user: str, *argv: str) -> None:
    """Drops privileges, ties itself to its parent, and becomes `argv`. Exits 127 if `argv` cannot be run."""
    if user != "-":
        uid, gid = map(int, user.split(":"))
        _become(uid, gid)
    if sys.platform == "linux":
        # After the change of user: the kernel forgets the death signal at every change of credentials.
        _libc().prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != int(parent):  # it ended before the call above
            os._exit(1)
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - no shell is the point
    except OSError as error:
        sys.stderr.write(f"cannot run {argv[0]}: {error.strerror}\n")
        os._exit(127)


def _become(uid: int, gid: int) -> None:
    if sys.platform == "linux":
        capability = _traversal_capability()
        _libc().prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
        # access(2), by which initdb looks for its other programs, leaves capabilities out of account without this.
        _libc().prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        _keep_only(capability)
    else:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)


def _traversal_capability() -> int | None:
    """The weakest capability of this process that opens closed folders; containers often have the second only."""
    owned = (c for c in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE) if _libc().prctl(PR_CAPBSET_READ, c, 0, 0, 0) == 1)
    return next(owned, None)


def _keep_only(capability: int | None) -> None:
    """Gives up every capability but this one, and makes it ambient, so that it outlives exec (capabilities(7))."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    bits = 0 if capability is None else 1 << capability
    data = (ctypes.c_uint32 * 6)(bits, bits, bits, 0, 0, 0)  # effective, permitted, inheritable; then the high halves
    if _libc().capset(header, data) != 0:
        os._exit(126)
    if capability is not None:
        _libc().prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
