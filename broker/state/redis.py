"""Redis or Valkey: what several processes share and what may be forgotten, behind a breaker.

One server, or a primary behind one address; no Redis Cluster, though all keys would hash to its one slot
``{cub}``. Everything that goes wrong surfaces as :class:`~broker.errors.StoreUnavailable`.

*The epoch.* What is in Redis can be lost: flushed, or restored from a copy that is older than the last
claims. So it carries a random name that is made anew when the store is empty, and when the server is another
process than before (by its ``run_id``): a restart or a fail-over may have lost the last writes.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import re
import secrets
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from broker.errors import StoreUnavailable
from broker.observe import logs, snapshot
from broker.settings import SettingsError
from broker.state.redis_line import Line, Loss

if TYPE_CHECKING:
    from redis.asyncio.connection import ConnectionPool

PREFIX = "{cub}:"
STORE = PREFIX + "store"
"""A hash: the epoch, the generation, and the ``run_id`` of the server that the epoch belongs to."""

CONNECT_SECONDS = 1.0
HASTE_SECONDS = 0.1
"""How long callers wait while an idle line that the server closed is opened again."""
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 1.0
"""Before another try; twice as long each time."""
STEADY_SECONDS = 10.0
"""A line that held for so long was a good one."""

PRELUDE = """
local store = redis.call('HMGET', KEYS[1], 'epoch', 'generation')
if not store[1] then return false end
local epoch, generation = store[1], store[2] or '0'
"""


class Script:
    """A Lua script that has ``epoch`` and ``generation`` and answers with both first.

    ``KEYS[1]`` is the store, ``KEYS[2]`` the first of its own.
    """

    def __init__(self, source: str) -> None:
        self.source = PRELUDE + source
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class Shared(NamedTuple):
    """What all processes on one Redis agree on.

    ``generation`` counts the changes of keys and revocations, in this ``epoch``.
    """

    generation: int
    epoch: str


# It writes in any case: a server that takes no writes can't be used, however well it answers.
_BEGIN = """
local known = redis.call('HMGET', KEYS[1], 'run', 'epoch')
if known[1] ~= ARGV[1] or not known[2] then redis.call('HSET', KEYS[1], 'epoch', ARGV[2]) end
redis.call('HSET', KEYS[1], 'run', ARGV[1])
return {}
"""
_PING = Script("redis.call('SET', KEYS[2], '1', 'PX', 1000) return {epoch, generation}")


class Redis:
    """Runs scripts on the server at ``url`` (``redis://``, ``rediss://``, ``unix://``), and fails fast.

    While the server can't be used, or takes no writes, every call fails at once without a try. One task in
    the background tries again, and says in the log when it went and when it is back.
    """

    def __init__(self, url: str) -> None:
        """Raises :class:`SettingsError` for a URL that can't be used, or without the package."""
        self._pool = _pool(url)
        self._line: Line | None = None
        self._trouble: str | None = "not opened"
        """Why it is down; None while it is up, or a line is just being replaced."""
        self._run_id = ""
        self._pause = PAUSE_SECONDS
        self._tried = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._shared: Shared | None = None
        self._has_told = False
        self._has_looked_around = False

    @property
    def is_up(self) -> bool:
        """Whether calls are tried at all."""
        return self._line is not None and not self._line.lost.done()

    @property
    def shared(self) -> Shared | None:
        """As the newest answer told it; None while Redis is down, and before the first answer."""
        return self._shared if self.is_up else None

    async def open(self) -> None:
        """Connect and keep connected. Raises nothing: a server that is down now may come later."""
        self._trouble = "connecting"
        self._keeper = asyncio.create_task(self._keep())
        snapshot.count("redis_calls_in_flight", lambda: self._line.in_flight if self._line else 0)
        await self._tried.wait()

    async def close(self) -> None:
        """Let go of the connection; what is called from now on fails."""
        self._trouble = "closed"
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])

    async def ping(self) -> None:
        """Raise :class:`StoreUnavailable` unless the server answers and takes a write."""
        await self.run(_PING, [PREFIX + "ping"])

    async def run(self, script: Script, keys: Sequence[str], *values: str | float) -> list[Any]:
        """What ``script`` answers for ``keys``, which begin with :data:`PREFIX`, and ``values``.

        Raises :class:`StoreUnavailable` within a quarter of a second.
        """
        line = await self._current_line()
        answer = await self._evaluate(line, script, keys, values)
        if answer is None:
            await self._begin(line)
            answer = await self._evaluate(line, script, keys, values)
        if answer is None:
            raise StoreUnavailable(log="Redis was emptied twice in one moment")
        self._shared = Shared(int(answer[1]), answer[0])
        rest: list[Any] = answer[2:]
        return rest

    # --- one call ---------------------------------------------------------------------------------------

    async def _evaluate(
        self, line: Line, script: Script, keys: Sequence[str], values: Sequence[str | float]
    ) -> Any:
        arguments = (len(keys) + 1, STORE, *keys, *values)
        try:
            return await line.call("EVALSHA", script.sha, *arguments)
        except _no_script():
            return await self._command(line, "EVAL", script.source, *arguments)
        except _errors() as error:
            raise _unusable(line, error) from error

    async def _begin(self, line: Line) -> None:
        await self._command(line, "EVAL", _BEGIN, 1, STORE, self._run_id, secrets.token_hex(8))

    async def _command(self, line: Line, *command: Any) -> Any:
        try:
            return await line.call(*command)
        except _errors() as error:
            raise _unusable(line, error) from error

    async def _current_line(self) -> Line:
        if self._line is None and self._trouble is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(HASTE_SECONDS):
                    await self._tried.wait()
        if self._line is None:
            raise StoreUnavailable(log=f"Redis is down: {self._trouble or 'connecting'}")
        return self._line

    # --- the background ---------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Open a line, and another one whenever it is lost."""
        seconds = CONNECT_SECONDS
        while True:
            try:
                line = await self._connect(seconds)
            except Exception as error:
                self._went_down(_reason(error))
                await self._wait()
                seconds = CONNECT_SECONDS
                continue
            loss, held_seconds = await self._use(line)
            if held_seconds > STEADY_SECONDS:
                self._pause = PAUSE_SECONDS
            if loss.is_closed and held_seconds > HASTE_SECONDS:
                seconds = HASTE_SECONDS
                continue
            self._went_down(loss.reason)
            await self._wait()
            seconds = CONNECT_SECONDS

    async def _use(self, line: Line) -> tuple[Loss, float]:
        """Let callers have the line until it is lost; why it was, and how long it held."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        self._came_up(line)
        try:
            await asyncio.wait([line.lost])
        finally:
            self._line = self._shared = None
            self._tried.clear()
            await line.close()
        return line.lost.result(), loop.time() - since

    async def _connect(self, seconds: float) -> Line:
        async with asyncio.timeout(seconds):
            connection: Any = self._pool.make_connection()  # type: ignore[no-untyped-call] # redis-py's
            try:
                await connection.connect()
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            line = Line(connection)
            try:
                await self._greet(line)
            except BaseException:
                await line.close()
                raise
            return line

    async def _greet(self, line: Line) -> None:
        """Learn which server it is, and that it takes writes."""
        self._run_id = await self._ask_run_id(line)
        await self._begin(line)
        if not self._has_looked_around:
            self._has_looked_around = True
            await self._look_at_policy(line)

    async def _ask_run_id(self, line: Line) -> str:
        try:
            info = str(await line.call("INFO", "server"))
        except _errors() as error:
            if not self._has_looked_around:
                logs.warning(
                    "redis does not tell its run_id: a restart that loses claims goes unseen",
                    detail=_reason(error),
                )
            return ""
        return info.partition("run_id:")[2].partition("\n")[0].strip()

    async def _look_at_policy(self, line: Line) -> None:
        with suppress(_errors()):  # not all servers let everyone ask
            name_and_value = await line.call("CONFIG", "GET", "maxmemory-policy")
            if name_and_value and name_and_value[1] != "noeviction":
                logs.warning(
                    "redis forgets when its memory is full: a used token may be good again. "
                    "Set maxmemory-policy to noeviction.",
                    policy=name_and_value[1],
                )

    def _came_up(self, line: Line) -> None:
        self._line = line
        self._trouble = None
        self._tried.set()
        if self._has_told:
            self._has_told = False
            logs.info("redis is back")

    def _went_down(self, reason: str) -> None:
        self._trouble = reason
        self._tried.set()
        if not self._has_told:
            self._has_told = True
            logs.warning("redis is down", detail=reason)

    async def _wait(self) -> None:
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)


def _unusable(line: Line, error: Exception) -> StoreUnavailable:
    """A server that answers with an error is read-only, full, or loading: as good as down."""
    line.lose(Loss(_reason(error)))
    return StoreUnavailable(log=_reason(error))


@functools.cache
def _errors() -> type[Exception]:
    """Whatever redis-py raises."""
    from redis.exceptions import RedisError

    return RedisError


@functools.cache
def _no_script() -> type[Exception]:
    """The server was restarted, or told to forget its scripts."""
    from redis.exceptions import NoScriptError

    return NoScriptError


def _reason(error: BaseException) -> str:
    if isinstance(error, StoreUnavailable) and error.log:
        return error.log
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _pool(url: str) -> ConnectionPool:
    """What makes connections to ``url``; the pooling itself is not used."""
    pool_class = _pool_class()
    try:
        pool = pool_class.from_url(url)
        pool.connection_kwargs.update(_options())
        pool.make_connection()  # type: ignore[no-untyped-call] # redis-py's
        _check_path(url)
    except (ValueError, TypeError, _errors()):
        # Without the cause: it may repeat a part of the URL, and there the password is.
        raise SettingsError(
            ["REDIS_URL can't be used: write redis://, rediss:// or unix://, as in redis://host:6379/0."]
        ) from None
    if not _verifies(pool.connection_kwargs):
        raise SettingsError(["REDIS_URL turns off the verification of TLS. Name the CA with ssl_ca_certs."])
    _check_ca(pool.connection_kwargs.get("ssl_ca_certs"))
    return pool


def _pool_class() -> type[ConnectionPool]:
    try:
        from redis.asyncio.connection import ConnectionPool
    except ImportError:
        raise SettingsError(
            ["REDIS_URL needs a package more: pip install 'coze-upload-broker[redis]'."]
        ) from None
    return ConnectionPool


def _options() -> dict[str, Any]:
    """These win over what the URL says: the time-outs are the line's, and it reads text of RESP2."""
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return {
        "protocol": 2,
        "decode_responses": True,
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "health_check_interval": 0,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
        "driver_info": None,
    }


def _check_path(url: str) -> None:
    """Raises ``ValueError`` for a database that is no number, which redis-py takes for the first one."""
    parts = urlsplit(url)
    if parts.scheme != "unix" and not _DATABASE.fullmatch(parts.path):
        raise ValueError("path")


_DATABASE = re.compile("/?[0-9]*")


def _check_ca(path: str | None) -> None:
    """Else a server would only ever seem to be down."""
    try:
        if path is not None:
            ssl.create_default_context(cafile=path)
    except OSError as error:
        reason = error.strerror if not isinstance(error, ssl.SSLError) else "no certificates in it"
        raise SettingsError([f"REDIS_URL: the file in ssl_ca_certs can't be read ({reason})."]) from None


def _verifies(options: dict[str, Any]) -> bool:
    wanted = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    return all(options.get(name, value) == value for name, value in wanted.items())
