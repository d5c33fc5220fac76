"""Memory with an upper bound: the newest entries stay."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

Record = TypeVar("Record")


class Records(Generic[Record]):
    """A mapping that forgets its oldest entry once it holds more than `capacity`."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[str, Record] = OrderedDict()

    def put(self, key: str, record: Record) -> None:
        self._entries[key] = record
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def find(self, key: str) -> Record | None:
        return self._entries.get(key)

    def clear(self) -> None:
        self._entries.clear()

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Record]:
        return iter(tuple(self._entries.values()))
