"""Opening the data folder and the database, with a sentence instead of a trace for whatever is in the way.

Imports no server and no client, so that a command that needs just the database starts fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from broker.auth import signing_keys
from broker.auth.api_keys import ApiKeys
from broker.auth.secrets_on_disk import pepper
from broker.errors import StoreUnavailable
from broker.settings import Settings, SettingsError
from broker.state.database import Database


@contextmanager
def troubles_told() -> Iterator[None]:
    """Raises :class:`SettingsError` with a sentence for whatever keeps data folder and database from use."""
    try:
        yield
    except StoreUnavailable as error:
        raise SettingsError(
            [f"DATABASE_URL, BROKER_DATA_DIR: the database can't be used ({error.log})."]
        ) from error
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
        return f"DATABASE_URL: the database can't be reached ({error.strerror or error})."
    return f"BROKER_DATA_DIR: {error.filename} can't be used ({error.strerror})."


async def open_once(settings: Settings) -> None:
    """Open all that the app will open: there, what is wrong would end in a trace."""
    database = Database(settings.resolved_database_url)
    try:
        await database.migrate()
        api_keys(settings, database)
        _check_ring(settings)
    finally:
        await database.close()


def api_keys(settings: Settings, database: Database) -> ApiKeys:
    """The store of API keys."""
    secret = settings.broker_key_pepper
    given = None if secret is None else secret.get_secret_value()
    return ApiKeys(database, pepper(given, settings.broker_data_dir))


def _check_ring(settings: Settings) -> None:
    if settings.broker_signing_keys is not None:
        return  # checked with the other settings
    try:
        signing_keys.load(None, settings.broker_data_dir)
    except ValueError as error:
        raise SettingsError([f"BROKER_DATA_DIR: signing-keys.pem is damaged ({error})."]) from error
