"""Opening the data folder and the database, with a sentence instead of a trace for whatever is in the way.

Imports no server and no client, so that a command that needs just the database starts fast.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.auth import ring_file, signing_keys
from broker.auth.api_keys import ApiKey, ApiKeys, Witness
from broker.auth.ring_file import RingFile
from broker.auth.secrets_on_disk import derived, pepper
from broker.auth.signing_keys import KeyRing, kid_of
from broker.errors import StoreUnavailable
from broker.observe.events import Action
from broker.settings import Settings, SettingsError
from broker.settings.ed25519_keys import Ed25519Key
from broker.state.audit.chain import Chain
from broker.state.audit.log import AuditLog
from broker.state.audit.row import AuditRow
from broker.state.database import Database
from broker.state.generation import AlwaysAsk, FileGeneration, Generation, RedisGeneration
from broker.state.redis import Redis
from broker.state.schema import SchemaError


@contextmanager
def troubles_told() -> Iterator[None]:
    """Raises :class:`SettingsError` with a sentence for whatever keeps data folder and database from use."""
    try:
        yield
    except StoreUnavailable as error:
        raise SettingsError(
            [f"DATABASE_URL, BROKER_DATA_DIR: the database can't be used ({error.log})."]
        ) from error
    except SchemaError as error:
        raise SettingsError([f"DATABASE_URL, BROKER_DATA_DIR: {error}."]) from error
    except SQLAlchemyError as error:
        cause = str(error).partition("\n")[0]
        raise SettingsError(
            [f"DATABASE_URL, BROKER_DATA_DIR: the database can't be used ({cause})."]
        ) from error
    except OSError as error:
        raise SettingsError([_os_trouble(error)]) from error
    except ValueError as error:
        raise SettingsError([f"BROKER_DATA_DIR: a secret in it is damaged ({error})."]) from error


def _os_trouble(error: OSError) -> str:
    if error.filename is None:
        reason = error.strerror or str(error) or "no answer in time"
        return f"DATABASE_URL: the database can't be reached ({reason})."
    return f"BROKER_DATA_DIR: {error.filename} can't be used ({error.strerror})."


async def open_once(settings: Settings) -> None:
    """Open all that the app will open: there, what is wrong would end in a trace."""
    database = Database(settings.resolved_database_url)
    try:
        await database.make_ready()
        pepper_of(settings)
        redis(settings)
        _check_ring(settings)
    finally:
        await close(database)


async def close(database: Database) -> None:
    """Close it, and wait for what it began: aiosqlite's thread for a file that can't be opened answers late,
    and with a trace where the event loop is over by then.
    """
    await database.close()
    await asyncio.to_thread(_wait_for_threads)


def _wait_for_threads() -> None:
    for thread in threading.enumerate():
        if _AIOSQLITE_THREAD in thread.name:
            thread.join(THREAD_SECONDS)


_AIOSQLITE_THREAD = "_connection_worker_thread"
THREAD_SECONDS = 1.0
"""How long a thread that has nothing to do any more may take to end."""


def api_keys(
    settings: Settings, database: Database, generation: Generation, witness: Witness | None = None
) -> ApiKeys:
    """The store of API keys; ``witness`` writes into the audit what is changed."""
    return ApiKeys(database, pepper_of(settings), generation=generation, witness=witness)


def redis(settings: Settings) -> Redis | None:
    """Redis, to be opened; None where it is not set. Raises :class:`SettingsError`."""
    return None if settings.redis_url is None else Redis(settings.redis_url.get_secret_value())


def generation(database: Database, shared: Redis | None) -> Generation:
    """What tells every process that uses the same database that a key was changed."""
    if shared is not None:
        return RedisGeneration(shared)
    if database.file is not None:
        return FileGeneration(database.file.with_name(f"{database.file.name}-generation"))
    return AlwaysAsk()


@asynccontextmanager
async def changing_keys(settings: Settings, database: Database) -> AsyncIterator[ApiKeys]:
    """The keys for a command: what it changes is in the audit, and known to all workers."""
    log, shared = audit_log(settings, database), redis(settings)

    async def witness(connection: AsyncConnection, action: Action, key: ApiKey) -> None:
        row = AuditRow(action=action, caller="command_line")
        await log.append_within(connection, naming(key, row))

    if shared is not None:
        await shared.open()
    try:
        yield api_keys(settings, database, generation(database, shared), witness)
    finally:
        if shared is not None:
            await shared.close()


def naming(key: ApiKey, row: AuditRow) -> AuditRow:
    """The row of a change, with the key that was changed."""
    return replace(row, detail={"target": key.id, "target_hint": key.hint})


def audit_log(settings: Settings, database: Database) -> AuditLog:
    """The audit's rows; its key comes from the pepper, and is of no use for anything else."""
    return AuditLog(database, Chain(derived(pepper_of(settings), "audit")))


def pepper_of(settings: Settings) -> bytes:
    """The one secret that all workers share. Raises ``ValueError`` when the kept one is damaged."""
    secret = settings.broker_key_pepper
    return pepper(None if secret is None else secret.get_secret_value(), settings.broker_data_dir)


def ring(settings: Settings) -> KeyRing:
    """The ring of signing keys. Raises ``OSError``, and ``ValueError`` when its file is damaged."""
    given = settings.broker_signing_keys
    pem = None if given is None else given.get_secret_value()
    return signing_keys.load(pem, settings.broker_data_dir, settings.broker_signing_keys_file)


def read_ring(settings: Settings) -> list[Ed25519Key]:
    """The keys in the ring's file. Raises :class:`SettingsError`."""
    path = _ring_path(settings)
    with _ring_troubles_told(path):
        return RingFile(path).read()


async def audited_ring(
    settings: Settings, database: Database, change: Callable[[list[Ed25519Key]], list[Ed25519Key]]
) -> list[Ed25519Key]:
    """Replace the keys in the ring's file by what ``change`` makes of them, and put it into the audit.

    The row is written while the new file lies ready, which takes its place only then: what can't be written
    down is not done. Raises :class:`SettingsError`, and :class:`StoreUnavailable` for the audit.
    """
    path, log = _ring_path(settings), audit_log(settings, database)
    with _ring_troubles_told(path), ring_file.edited(path, change) as ring:
        detail = {"kids": [kid_of(key) for key in ring]}
        await log.write(AuditRow(action="signing_key.rotate", caller="command_line", detail=detail))
    return ring


def _ring_path(settings: Settings) -> Path:
    if settings.broker_signing_keys is not None:
        raise SettingsError(
            ["BROKER_SIGNING_KEYS: the keys are in the environment, so they can only be changed there."]
        )
    return settings.broker_signing_keys_file or settings.broker_data_dir / signing_keys.FILE_NAME


@contextmanager
def _ring_troubles_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError([f"{error.filename or path} can't be used ({error.strerror})."]) from error
    except ValueError as error:
        raise SettingsError([f"{path}: {error}."]) from error


def _check_ring(settings: Settings) -> None:
    if settings.broker_signing_keys is not None or settings.broker_signing_keys_file is not None:
        return  # checked with the other settings
    try:
        ring(settings)
    except ValueError as error:
        raise SettingsError([f"BROKER_DATA_DIR: signing-keys.pem is damaged ({error})."]) from error
