"""The sleeve worker as a process: `python -m dataplane.sleeve SOCKET`. The daemon starts it and speaks to it there."""

from __future__ import annotations

import gc
import sys

from dataplane.sleeve.worker import Worker


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m dataplane.sleeve SOCKET (the daemon does that)", file=sys.stderr)
        return 2
    # Nothing on the frame path makes cycles; a collection would only stop everything for some milliseconds.
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    Worker(sys.argv[1]).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
