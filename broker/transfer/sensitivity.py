"""Which files are sensitive by the operator's own rules. Decides, opens nothing."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from fnmatch import fnmatchcase

from broker.transfer import filenames
from broker.transfer.multipart import media_type

SAYS_NOTHING = {"", "application/octet-stream"}
"""Types that a file has when nobody knows its type."""


@dataclass(frozen=True)
class Sensitivity:
    """Files are sensitive by media type and by name, both as globs; a name's case makes no difference."""

    types: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    everything: bool = False

    def marks(self, file_name: str | None, content_type: str | None) -> bool:
        """Whether a file of this name and type is sensitive; ``None`` for what the caller did not say.

        What can't be ruled out is sensitive: a rule for types marks a file of unknown type, a rule for
        names one without a name. A file's type is what it is declared as, and what its extension says.
        """
        return self.everything or self._marks_name(file_name) or self._marks_type(file_name, content_type)

    def _marks_name(self, file_name: str | None) -> bool:
        if not self.names:
            return False
        return file_name is None or any(fnmatchcase(_folded(file_name), _folded(glob)) for glob in self.names)

    def _marks_type(self, file_name: str | None, content_type: str | None) -> bool:
        if not self.types:
            return False
        known = {media_type(content_type or ""), filenames.content_type_of(file_name or "")} - SAYS_NOTHING
        return not known or any(fnmatchcase(kind, glob.lower()) for kind in known for glob in self.types)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
