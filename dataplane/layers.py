"""Rows in layers, of which the first one that has a key says its value; and what another list of layers changes.

A layer is any object from which a function makes rows, always the same ones; it is known by its identity. Knows nothing
of what keys or values mean. The one idea: what is kept for a key is only which layer has it, and rows are made again
when they are looked at. So a new list of layers costs the rows of those that came and went, and of the others nothing
but a look at who they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

L = TypeVar("L")
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Change(NamedTuple, Generic[L, K, V]):
    """What another list of layers means."""

    rows: dict[K, V]
    """Keys whose value may be another one than before, with the value that they have now."""
    gone: list[K]
    """Keys that no layer has any more."""
    came: list[L]
    went: list[L]


class Layers(Generic[L, K, V]):
    """See the module. Starts without any layer."""

    def __init__(self, rows_of: Callable[[L], Mapping[K, V]]) -> None:
        """`rows_of` must make the same of a layer each time."""
        self._rows_of = rows_of
        self._layers: dict[int, L] = {}
        """By identity, in order."""
        self._holder: dict[K, L] = {}
        """The layer that has a key, or one of those that have it."""
        self._rivals: dict[K, list[L]] = {}
        """All of them, for the keys that several have."""

    def replace(self, layers: Iterable[L]) -> Change[L, K, V]:
        """From now on these, first over last."""
        before, self._layers = self._layers, {}
        for layer in layers:
            self._layers.setdefault(id(layer), layer)
        came = [layer for identity, layer in self._layers.items() if identity not in before]
        went = [layer for identity, layer in before.items() if identity not in self._layers]
        rows: dict[K, V] = {}
        left: dict[K, V] = {}
        doubtful: dict[K, None] = {}
        if self._rivals and _have_moved(before, self._layers):
            doubtful.update(dict.fromkeys(self._rivals))
        holder, rivals = self._holder, self._rivals
        for layer in went:
            for key, value in self._rows_of(layer).items():
                if key in rivals:
                    doubtful[key] = None
                    self._withdraw(key, layer)
                else:
                    del holder[key]
                    left[key] = value
        for layer in came:
            for key, value in self._rows_of(layer).items():
                if key in holder:
                    rivals.setdefault(key, [holder[key]]).append(layer)
                    doubtful[key] = None
                    continue
                holder[key] = layer
                if key in left and left[key] == value and key not in doubtful:
                    del left[key]  # as it was: most of a layer in whose place one came that differs in little
                else:
                    rows[key] = value
        rows.update(self._decide(doubtful))
        return Change(rows, [key for key in left if key not in rows], came, went)

    def _withdraw(self, key: K, layer: L) -> None:
        others = [each for each in self._rivals.pop(key) if each is not layer]
        self._holder[key] = others[0]
        if len(others) > 1:
            self._rivals[key] = others

    def _decide(self, doubtful: Iterable[K]) -> Iterator[tuple[K, V]]:
        """The values of keys that several layers have or had, as far as any still has them. Asked for together, since
        a layer makes all of its rows for one of them."""
        asked: dict[int, list[K]] = {}
        position = {identity: number for number, identity in enumerate(self._layers)} if self._rivals else {}
        for key in doubtful:
            if key in self._rivals:
                winner = min(map(id, self._rivals[key]), key=position.__getitem__)
                asked.setdefault(winner, []).append(key)
            elif key in self._holder:
                asked.setdefault(id(self._holder[key]), []).append(key)
        for identity, keys in asked.items():
            rows = self._rows_of(self._layers[identity])
            yield from ((key, rows[key]) for key in keys)


def _have_moved(before: Mapping[int, object], after: Mapping[int, object]) -> bool:
    """Whether those that stayed stand in another order now."""
    return [each for each in before if each in after] != [each for each in after if each in before]
