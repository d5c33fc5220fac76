"""What is remembered of an uploaded file: everything but its bytes."""

import secrets
from dataclasses import asdict, dataclass

from broker.sandbox.records import Records


@dataclass(frozen=True)
class StoredFile:
    id: str
    file_name: str
    bytes: int
    sha256: str
    content_type: str | None
    created_at: int
    token_kind: str
    client_id: str | None

    def data(self) -> dict[str, str | int]:
        """Coze's own four fields."""
        return {
            "id": self.id,
            "bytes": self.bytes,
            "created_at": self.created_at,
            "file_name": self.file_name,
        }


class StoredFiles:
    def __init__(self, capacity: int) -> None:
        self._files: Records[StoredFile] = Records(capacity)

    def add(self, file: StoredFile) -> None:
        self._files.put(file.id, file)

    def find(self, file_id: str) -> StoredFile | None:
        return self._files.find(file_id)

    def listing(self) -> list[dict[str, object]]:
        return [asdict(file) for file in self._files]


def new_file_id() -> str:
    """Nineteen digits, as Coze's: more than a JavaScript number holds exactly."""
    return str(7 * 10**18 + secrets.randbelow(10**18))
