"""Hearing that the mount table changed, which is how named network namespaces come and go.

`ip netns add` binds a namespace to a file, and `ip netns delete` takes the bind away; the kernel tells whoever polls
/proc/self/mountinfo, at the moment at which the namespace can be used. Watching the folder instead would tell of a file
that is no namespace yet. Knows nothing of what was mounted: whoever hears it looks.
"""

from __future__ import annotations

import os
import select


class MountWatch:
    """A descriptor that becomes readable when something was mounted or unmounted, once for what came together."""

    def __init__(self) -> None:
        """Raises OSError where /proc is missing or descriptors are."""
        self._table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._epoll = select.epoll()
        except OSError:
            os.close(self._table)
            raise
        # The table itself can always be read; news of it is "priority". The set around it is readable only then.
        self._epoll.register(self._table, select.EPOLLPRI)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def taken(self) -> None:
        """The news has been heard: until the next, the descriptor is not readable."""
        self._epoll.poll(0)

    def close(self) -> None:
        self._epoll.close()
        os.close(self._table)
