"""A process that gives up what decoding never needs: a network, writing, other processes. By seccomp, through libseccomp.

What is not on the list is refused by the kernel, in every thread, for good: a decoder that a file has taken over can compute,
read files that its user may read, and answer. The list is of what may be done, not of what may not: what kernels learn later
is refused. What lies in /proc can be read, and so would be the memory and the pipes of other processes: Landlock closes those.

start -> separate (Landlock; one thread yet) -> libraries are imported, with their threads -> enter (seccomp) -> items
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from types import MappingProxyType

from mmrope.extras import needed_for

LIBRARIES = MappingProxyType(
    {
        "mmrope.preprocess.image": ("simplejpeg", "pillow_heif"),
        "mmrope.preprocess.text": ("tokenizers", "jinja2"),
        "mmrope.preprocess.patches": ("torch", "av"),
    }
)
"""What these modules import when it is first needed. Importing may start programs and write files, as torch's does."""
_FREE = """
read readv pread64 preadv preadv2 lseek close close_range dup dup2 dup3 pipe pipe2 write writev
stat lstat fstat newfstatat statx access faccessat faccessat2 readlink readlinkat getdents getdents64 getcwd statfs fstatfs
fadvise64 poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd eventfd2
mmap munmap mremap mprotect brk mincore membarrier get_mempolicy
futex futex_waitv set_robust_list get_robust_list set_tid_address rseq sched_yield sched_getaffinity sched_getparam
sched_getscheduler sched_get_priority_max sched_get_priority_min arch_prctl prctl exit exit_group restart_syscall
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack pause alarm
setitimer getitimer timer_create timer_settime timer_gettime timer_delete nanosleep clock_nanosleep clock_gettime clock_getres
gettimeofday time times getrusage getrlimit sysinfo uname getrandom getcpu
getpid getppid gettid getpgrp getpgid getsid getuid geteuid getgid getegid getresuid getresgid getgroups capget
"""
"""Calls of the system that touch nothing but the process itself, or read."""
_UNKNOWN = "clone3 openat2 io_uring_setup"
"""Calls whose arguments lie where a filter cannot look: said to be unknown, so that libraries take the older ones."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CLONE_THREAD = 0x00010000
_COMMANDS = {
    "fcntl": (0, 1, 2, 3, 1030),  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC: none sends signals, or blocks others
    "ioctl": (0x5401, 0x5413, 0x541B, 0x5450, 0x5451),  # TCGETS, TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX: none types
}


def why_not() -> str:
    """Why there can be no sandbox on this system; empty if there can be one.

    Raises:
        ImportError: the extra that brings it is missing.
    """
    if sys.platform != "linux":
        return f"a sandbox is made by Linux alone, and this is {sys.platform}"
    with needed_for("a sandbox"):
        try:
            import pyseccomp  # noqa: F401
        except RuntimeError:  # what it raises without the library
            return "libseccomp is not installed (Debian's package is libseccomp2)"
    return ""


def lacking() -> str:
    """What a sandbox cannot keep on this system, though there can be one; empty if nothing.

    Example:
        >>> from mmrope.preprocess import sandbox
        >>> sandbox.lacking() in ("", sandbox.NO_LANDLOCK)
        True
    """
    return "" if _landlock() else NO_LANDLOCK


NO_LANDLOCK = (
    "the kernel has no Landlock, or the container around it allows none: a worker can read the memory, the environment and "
    "the pipes of other processes of your user, other workers among them (Linux 5.13 or newer has it, where it is switched on)"
)
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every architecture that Python runs on
_MAKE_BLOCK, _REFER = 1 << 11, 1 << 13  # to make a block device; to move a file from folder to folder
_SCOPES = 0b11  # UNIX sockets without a file, signals
_CAPABILITIES_OF_FILES = 0b11111  # to read, write and own any: what else root may do is given up


def separate() -> None:
    """Gives up, for good, what other processes hold: by Landlock, where the kernel has it; see `lacking`.

    A process in a domain of Landlock may not look into one outside it: not even root may open its memory or its descriptors
    in /proc, or send it signals, and root without its privileges (from Linux 6.13 on they go before) no environment or maps.
    The domain forbids nothing of files, which libraries write as they are imported: that is for `enter`. All this is of one
    thread and those that it starts, so it comes before there are others: code that has taken over one thread can make any
    other of its process run for it.

    Raises:
        OSError: there are threads already, or the domain cannot be entered.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise OSError("a sandbox cannot be made: something that Python imports at its start has started threads")
    libc = ctypes.CDLL(None)
    header, sets = struct.pack("=Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    libc.capget(header, sets)
    kept = [part & mask for part, mask in zip(struct.unpack("=6I", sets), [_CAPABILITIES_OF_FILES] * 3 + [0] * 3, strict=True)]
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, which Landlock asks for: no program brings them back, either
    if libc.capset(header, struct.pack("=6I", *kept)):
        raise OSError("a sandbox cannot be made: the system does not let privileges be given up")
    if not (version := _landlock()):
        return
    # a domain has some rule: moving files, which any domain forbids that does not allow it (version 1 has no word for it)
    right = _REFER if version >= 2 else _MAKE_BLOCK
    ruleset = _call(_CREATE_RULESET, struct.pack("=3Q", right, 0, _SCOPES if version >= 6 else 0), 24, 0)
    root = os.open("/", os.O_PATH)
    try:
        _call(_ADD_RULE, ruleset, 1, struct.pack("=Qi", right, root), 0)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(root)
        os.close(ruleset)


def _landlock() -> int:
    """The version of Landlock; 0 if there is none."""
    try:
        return _call(_CREATE_RULESET, None, 0, 1)
    except OSError:
        return 0


def _call(number: int, *arguments: int | bytes | None) -> int:
    """A call of the system that Python has no name for."""
    given = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *given)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def enter() -> None:
    """Gives up, in all threads of this process and for good, whatever is not on the lists above.

    Refused calls fail with EPERM, a PermissionError. What was opened before stays open.

    Raises:
        OSError: the kernel, or the container around it, allows no filters.
    """
    import pyseccomp as seccomp
    from pyseccomp import ALLOW, EQ, ERRNO, MASKED_EQ, Arch, Arg, Attr, SyscallFilter

    allowed = SyscallFilter(ERRNO(errno.EPERM))
    allowed.set_attr(Attr.CTL_TSYNC, 1)
    allowed.set_attr(Attr.ACT_BADARCH, seccomp.KILL_PROCESS)  # calls of another architecture: not one thread alone
    known = {name: seccomp.resolve_syscall(Arch.NATIVE, name) for name in f"{_FREE} {_UNKNOWN}".split()}
    for name, number in known.items():
        if number != -1:  # libseccomp may be older than the call
            allowed.add_rule(ERRNO(errno.ENOSYS) if name in _UNKNOWN.split() else ALLOW, number)
    allowed.add_rule(ALLOW, "open", Arg(1, MASKED_EQ, _WRITING, 0))
    allowed.add_rule(ALLOW, "openat", Arg(2, MASKED_EQ, _WRITING, 0))
    allowed.add_rule(ALLOW, "clone", Arg(0, MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD))  # a thread, not a process
    allowed.add_rule(ALLOW, "prlimit64", Arg(0, EQ, 0), Arg(2, EQ, 0))  # to read one's own limits
    allowed.add_rule(ALLOW, "madvise", Arg(2, MASKED_EQ, ~0x1F & 0xFFFFFFFF, 0))  # not what root may do to pages, from 100 on
    for call in ("kill", "tgkill"):  # oneself, as abort does
        allowed.add_rule(ALLOW, call, Arg(0, EQ, os.getpid()))
    for call, commands in _COMMANDS.items():
        for command in commands:
            allowed.add_rule(ALLOW, call, Arg(1, MASKED_EQ, 0xFFFFFFFF, command))
    allowed.load()
