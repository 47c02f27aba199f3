"""The version, in a module of its own so that asking for it imports nothing else."""

from __future__ import annotations

VERSION = "0.1.0"
