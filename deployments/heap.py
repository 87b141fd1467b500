"""Memory that the C library keeps of what was freed. Pure: no Ray."""

from __future__ import annotations

import ctypes

GIVE_BACK_EVERY_S = 30.0
"""It takes three milliseconds, and the next chunk half a dozen more, to get again what it needs."""

# glibc alone has it; others do not keep as much.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """Hand freed memory back to the system. Chunks of many sizes leave holes in every thread's heap, which glibc keeps for good: a server
    whose hosts were lost a few times would hold hundreds of megabytes more than it uses.
    """
    if _trim is not None:
        _trim(0)
