"""Redis: whatever befalls it, a call fails fast, the log says it once, and it is back by itself."""

from __future__ import annotations

import asyncio
import gc
import itertools
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from broker.errors import StoreUnavailable
from broker.settings import SettingsError
from broker.state.claims import RedisClaims
from broker.state.generation import RedisGeneration
from broker.state.leases import Hold, RedisLeases
from broker.state.limits import Limit, RedisLimits, Turn
from broker.state.redis import PREFIX, Redis, Script
from tests.support.log_lines import LogLines
from tests.support.redis import BACK_SECONDS, RedisServer, opened, running_redis, until_back

FAST_SECONDS = 0.3
COUNT = Script("return {epoch, generation, redis.call('INCR', KEYS[2])}")
KEYS = [PREFIX + "count"]

CALLS: dict[str, Callable[[Redis], Awaitable[object]]] = {
    "ping": lambda redis: redis.ping(),
    "a claim": lambda redis: RedisClaims(redis).claim("name", ttl_seconds=60),
    "a hold": lambda redis: RedisClaims(redis).hold("name", "holder", ttl_seconds=60),
    "the epoch": lambda redis: RedisClaims(redis).epoch(),
    "a hit": lambda redis: RedisLimits(redis).hit([Limit("key", "k", 10, 60)]),
    "a turn": lambda redis: RedisLimits(redis).reserve(Limit("up", "coze", 10, 60), max_wait_seconds=1),
    "giving back": lambda redis: RedisLimits(redis).give_back(Limit("key", "k", 10, 60), 1),
    "a lease": lambda redis: RedisLeases(redis).take([Hold("k", 3)], "lease", 30),
    "renewing": lambda redis: RedisLeases(redis).renew([Hold("k", 3)], "lease", 30),
    "releasing": lambda redis: RedisLeases(redis).release([Hold("k", 3)], "lease"),
    "a bump": lambda redis: RedisGeneration(redis).bump(),
}
# What writes nothing, or deletes first, may be answered until something else was refused.
SPARED = {("the epoch", fault) for fault in ("read-only", "without its replicas", "full")}
SPARED |= {("giving back", "full"), ("a lease", "full"), ("releasing", "full")}


def _set(server: RedisServer, name: str, value: str) -> None:
    server.command("CONFIG", "SET", name, value)


def _shut(server: RedisServer) -> None:
    _set(server, "requirepass", "hunter2")
    server.password = "hunter2"
    server.command("CLIENT", "KILL", "TYPE", "normal")


FAULTS: dict[str, Callable[[RedisServer], None]] = {
    "down": RedisServer.kill,
    "silent": RedisServer.pause,
    "read-only": RedisServer.refuse_writes,
    "without its replicas": lambda server: _set(server, "min-replicas-to-write", "1"),
    "full": lambda server: _set(server, "maxmemory", "1"),
    "shut by a password": _shut,
}


async def failing(call: Awaitable[object]) -> float:
    """How long it took to fail."""
    began = time.perf_counter()
    with pytest.raises(StoreUnavailable) as refused:
        await call
    assert refused.value.log
    return time.perf_counter() - began


@pytest.mark.parametrize(
    ("name", "fault"), [case for case in itertools.product(CALLS, FAULTS) if case not in SPARED]
)
async def test_a_call_fails_fast_and_is_back_by_itself(
    redis_server: RedisServer, redis: Redis, name: str, fault: str
) -> None:
    took = []
    for _ in range(3):  # the machine may be busy elsewhere, but not three times
        FAULTS[fault](redis_server)
        took.append(await failing(CALLS[name](redis)))
        assert not redis.is_up
        assert redis.shared is None
        redis_server.heal()
        await until_back(redis)
        await CALLS[name](redis)
        if took[-1] < FAST_SECONDS:
            break
    assert min(took) < FAST_SECONDS


@pytest.mark.parametrize("fault", FAULTS)
async def test_an_outage_is_two_lines_in_the_log(
    redis_server: RedisServer, redis: Redis, log_lines: LogLines, fault: str
) -> None:
    """However many ask meanwhile; nobody's password is in them, and nothing grows."""
    FAULTS[fault](redis_server)
    give_up = time.monotonic() + BACK_SECONDS
    while not log_lines():
        await failing(redis.ping())
        await asyncio.sleep(0)
        assert time.monotonic() < give_up
    tasks, began = len(asyncio.all_tasks()), time.perf_counter()
    for _ in range(2000):
        await asyncio.sleep(0)
        await failing(redis.ping())
    assert time.perf_counter() - began < 2000 * 0.01, "they fail without a try"
    assert len(asyncio.all_tasks()) <= tasks + 1
    redis_server.heal()
    await until_back(redis)
    assert log_lines.events() == ["redis is down", "redis is back"]
    assert "hunter2" not in log_lines.text


async def test_a_server_that_is_not_there_at_the_start_may_come_later(log_lines: LogLines) -> None:
    with running_redis() as server:
        server.kill()
        async with opened(server.url) as redis:
            assert await failing(redis.ping()) < FAST_SECONDS
            server.start()
            await until_back(redis)
        assert log_lines.events() == ["redis is down", "redis is back"]


async def test_what_is_not_open_fails() -> None:
    with running_redis() as server:
        redis = Redis(server.url)
        await failing(redis.ping())
        await redis.open()
        await redis.ping()
        await redis.close()
        await failing(redis.ping())
        assert server.connections() == 0
        await redis.close()


async def test_a_connection_that_the_server_closes_is_made_again_unnoticed(
    redis_server: RedisServer, redis: Redis, log_lines: LogLines
) -> None:
    """As servers and load balancers do with those that were quiet for long."""
    await asyncio.sleep(0.15)
    redis_server.command("CLIENT", "KILL", "TYPE", "normal")
    give_up = time.monotonic() + BACK_SECONDS
    while redis_server.connections() == 0:
        assert time.monotonic() < give_up
        await asyncio.sleep(0)
    await until_back(redis)
    assert log_lines.events() == []


async def test_a_server_that_closes_every_connection_is_not_hammered(
    redis_server: RedisServer, redis: Redis, log_lines: LogLines
) -> None:
    """Each try may succeed and fail again at once; tries then are further and further apart."""
    until = time.monotonic() + 2
    while time.monotonic() < until:
        redis_server.command("CLIENT", "KILL", "TYPE", "normal")
        await asyncio.sleep(0.002)
    assert len(log_lines()) < 15
    await until_back(redis)


async def test_many_calls_at_once_need_one_connection(redis_server: RedisServer, redis: Redis) -> None:
    counts = await asyncio.gather(*(redis.run(COUNT, KEYS) for _ in range(2000)))
    assert sorted(count for (count,) in counts) == list(range(1, 2001))
    assert redis_server.connections() == 1


async def test_an_answer_that_nobody_waits_for_any_more_goes_to_nobody(redis: Redis) -> None:
    """Callers that are cancelled break nothing off for the others."""
    calls = [asyncio.create_task(redis.run(COUNT, KEYS)) for _ in range(100)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    told = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(each, asyncio.CancelledError) for each in told] == [True, False] * 50
    assert [each for each in told if isinstance(each, list)] == [[count] for count in range(2, 101, 2)]
    assert redis.is_up


async def test_an_event_loop_that_was_busy_is_no_silent_server(redis: Redis, log_lines: LogLines) -> None:
    for _ in range(5):
        call = asyncio.create_task(redis.run(COUNT, KEYS))
        await asyncio.sleep(0)
        time.sleep(0.5)
        await call
    assert log_lines.events() == []


async def test_a_server_that_forgot_its_scripts_is_told_them_again(
    redis_server: RedisServer, redis: Redis
) -> None:
    assert await redis.run(COUNT, KEYS) == [1]
    redis_server.command("SCRIPT", "FLUSH")
    assert await redis.run(COUNT, KEYS) == [2]


async def test_a_store_that_was_emptied_has_another_epoch(redis_server: RedisServer, redis: Redis) -> None:
    await redis.run(COUNT, KEYS)
    before = redis.shared
    redis_server.command("FLUSHALL")
    assert await redis.run(COUNT, KEYS) == [1]
    assert before
    assert redis.shared
    assert redis.shared.epoch != before.epoch


async def test_all_processes_have_one_epoch(redis_server: RedisServer) -> None:
    """Also when they come to an empty store at once, or find another server after an outage."""
    async with opened(redis_server.url) as one, opened(redis_server.url) as two:
        for befall in (RedisServer.heal, RedisServer.restart):  # the first empties it
            befall(redis_server)
            await asyncio.sleep(0)
            await asyncio.gather(until_back(one), until_back(two))
            await asyncio.gather(*(redis.run(COUNT, KEYS) for redis in (one, two) * 10))
            assert one.shared == two.shared


async def test_a_memory_that_forgets_is_warned_of(log_lines: LogLines) -> None:
    with running_redis("--maxmemory-policy", "volatile-lru") as server:
        async with opened(server.url) as redis:
            await redis.ping()
            server.restart()
            await asyncio.sleep(0)
            await until_back(redis)
        (line, *_) = log_lines()
        assert line["level"] == "warning"
        assert line["policy"] == "volatile-lru"
        assert sum("policy" in each for each in log_lines()) == 1


async def test_a_user_that_may_not_ask_the_server_about_itself_will_do(log_lines: LogLines) -> None:
    with running_redis() as server:
        server.command("ACL", "SETUSER", "broker", "on", ">hunter2", "~*", "+@all", "-config", "-info")
        async with opened(server.url.replace("://", "://broker:hunter2@")) as redis:
            await redis.ping()
            assert await RedisClaims(redis).epoch()
        (line,) = log_lines()
        assert "run_id" in line["event"]
        assert "hunter2" not in log_lines.text


async def test_a_wrong_password_is_an_outage_that_does_not_repeat_it(log_lines: LogLines) -> None:
    with running_redis() as server:
        _set(server, "requirepass", "right")
        async with opened(server.url.replace("://", "://:wrong-hunter2@")) as redis:
            with pytest.raises(StoreUnavailable) as refused:
                await redis.ping()
        assert "hunter2" not in f"{refused.value.log}{log_lines.text}"
        assert log_lines.events() == ["redis is down"]


async def test_a_socket_serves_as_well_as_a_port(redis_server: RedisServer) -> None:
    async with opened(redis_server.socket_url) as redis:
        await redis.ping()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for loopback, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost"
    )
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command.split(), *names], cwd=folder, check=True, capture_output=True)
    return folder


async def test_over_tls_the_server_proves_who_it_is(certificate: Path, log_lines: LogLines) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    files = ("--tls-cert-file", f"{certificate}/cert.pem", "--tls-key-file", f"{certificate}/key.pem")
    with running_redis("--tls-port", str(port), "--tls-auth-clients", "no", *files):
        url = f"rediss://127.0.0.1:{port}"
        async with opened(f"{url}?ssl_ca_certs={certificate}/cert.pem") as redis:
            await redis.ping()
        assert log_lines.events() == []
        async with opened(url) as redis:
            await failing(redis.ping())
        assert log_lines.events() == ["redis is down"]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://127.0.0.1",
        "redis://:pass/word-hunter2@127.0.0.1",
        "redis://127.0.0.1:port",
        "redis://127.0.0.1?socket_timeout=hunter2",
        "redis://127.0.0.1?no_such_option=hunter2",
        "redis://127.0.0.1/hunter2",
        "redis://127.0.0.1/0/hunter2",
        "redis://127.0.0.1/-1",
        "rediss://127.0.0.1?ssl_ca_certs=/no/such/hunter2",
        f"rediss://127.0.0.1?ssl_ca_certs={__file__}",
        "rediss://127.0.0.1?ssl_cert_reqs=none",
        "rediss://127.0.0.1?ssl_check_hostname=false",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Redis(url)
    assert refused.value.problems[0].startswith("REDIS_URL")
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None or refused.value.__suppress_context__


async def test_options_of_the_url_do_not_change_how_fast_it_fails(redis_server: RedisServer) -> None:
    async with opened(f"{redis_server.url}?socket_timeout=20&health_check_interval=1&protocol=3") as redis:
        await redis.ping()
        redis_server.pause()
        assert await failing(redis.ping()) < 1


async def test_outages_leave_nothing_behind(redis_server: RedisServer, redis: Redis) -> None:
    def open_files() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    counts = []
    for _ in range(8):
        redis_server.restart()
        await asyncio.sleep(0)
        await until_back(redis)
        counts.append(open_files())
    assert counts[-1] <= counts[0]
    assert redis_server.connections() == 1


# --- the clock of its host -------------------------------------------------------------------------------

HOUR = 3600


async def test_a_claim_is_kept_for_longer_than_a_clock_jumps(redis_server: RedisServer, redis: Redis) -> None:
    """By an hour: Redis ends keys by its host's clock, which may jump ahead and then back."""
    await RedisClaims(redis).claim("token", ttl_seconds=60)
    await RedisClaims(redis).hold("file", "one", ttl_seconds=60)
    for key in ("claim:token", "hold:file"):
        left = redis_server.command("PTTL", PREFIX + key)
        assert isinstance(left, int)
        assert HOUR * 1000 < left <= (HOUR + 60) * 1000


async def test_after_a_clock_jumped_back_nobody_waits_for_the_time_it_showed(
    redis_server: RedisServer, redis: Redis
) -> None:
    limits, leases = RedisLimits(redis), RedisLeases(redis)
    key, upstream, place = Limit("key", "k", 5, 60), Limit("upstream", "coze", 2, 1), Hold("k", 1)
    for _ in range(6):
        await limits.hit([key])
        await limits.reserve(upstream, max_wait_seconds=10)
    assert await leases.take([place], "one", 30) is None
    put_ahead(redis_server, HOUR)
    refused = await limits.hit([key])
    assert refused.retry_after_seconds is not None
    assert refused.retry_after_seconds <= 60
    assert isinstance(await limits.reserve(upstream, max_wait_seconds=10), Turn)
    assert await leases.take([place], "two", 30) is None
    await leases.renew([place], "one", 30)
    assert await leases.take([place], "three", 30) == place


def put_ahead(server: RedisServer, seconds: int) -> None:
    """What is there is as it would be, had the clock been so far ahead until now."""
    full_at = float(str(server.command("GET", PREFIX + "limit:key:k")))
    server.command("SET", PREFIX + "limit:key:k", str(full_at + seconds))
    taken_at = float(str(server.command("GET", PREFIX + "clock:upstream:coze")))
    server.command("SET", PREFIX + "clock:upstream:coze", str(taken_at + seconds))
    turns = server.command("LRANGE", PREFIX + "turns:upstream:coze", "0", "-1")
    assert isinstance(turns, list)
    for index, at in enumerate(turns):
        server.command("LSET", PREFIX + "turns:upstream:coze", str(index), str(float(at) + seconds))
    server.command("ZINCRBY", PREFIX + "leases:k", str(seconds * 1000), "one")
