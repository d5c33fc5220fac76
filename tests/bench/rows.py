"""How each row is measured: side by side, in rounds of one run each.

Of large uploads the median of the rounds counts: the kernel charges some of its work now to one side of a
connection, now to the other, so that the best round of one may be luck. Of throughput, rates and a start the
best counts, since whatever else the machine does only adds; quantiles are those of all rounds together.
What every single round gave is kept.
"""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import uvloop

from tests.bench import asking, servers
from tests.bench.load import LoadError, Outcome, SlowUploads, Target, upload_many, upload_one
from tests.bench.meters import Used, measured, memory_of
from tests.bench.servers import Server
from tests.bench.table import GIB, MB, MIB, SLOW_UPLOADS, Size, Values
from tests.bench.unhashed import NO_DIGEST

HELPER = Path(__file__).parents[2] / "web" / "static" / "upload-to-coze.js"
TOKEN_REQUEST = b'{"size": 1000, "route": "proxy"}'
SLOW_BYTES_PER_SECOND = 50_000
SETTLE_SECONDS = 1.0

Found = dict[str, Values]


def measure(folder: Path, size: Size, say: Callable[[str], None]) -> Found:
    """Every row by its number, in one run."""
    with servers.sink() as sink, servers.nginx(folder / "nginx", sink) as nginx:
        say("P1, P2, P3, P10: one large file after another")
        found = large_files(folder / "large", sink, nginx, size)
        say("P3, P4: many uploads at once")
        memory, many = many_uploads(folder / "many", sink, nginx, size)
        say("P5, P7: tokens, and tokens beside slow uploads")
        tokens = token_requests(folder / "tokens", sink, size)
        say("P6, P8, P9: the wait for an answer, the start, the helper")
        return {
            **found,
            "P3": {**found["P3"], **memory},
            "P4": many,
            **tokens,
            "P5b": tokens_with_redis(folder / "shared", sink, size),
            "P6": added_wait(folder / "waiting", sink, size),
            "P8": start(folder / "start", sink, size),
            "P9": {"bytes": len(gzip.compress(HELPER.read_bytes(), 9))},
        }


def large_files(folder: Path, sink: int, nginx: Server, size: Size) -> Found:
    """P1, P1b, P2, P10 and one half of P3."""
    with ExitStack() as running:
        broker = running.enter_context(servers.broker(folder, sink))
        key = broker.target.authorization
        unhashed = running.enter_context(servers.unhashed_broker(folder, sink, key))
        naive = running.enter_context(servers.naive(sink))
        _check_hashes(broker, unhashed)
        for server in (nginx, naive):
            upload_one(server.target, MIB)
        with memory_of(broker.pid) as held:
            upload_one(broker.target, size.large_bytes)
        used = _rounds_of_large_files((nginx, broker, unhashed, naive), size)
    return {**_compared(used, size), "P3": {"one_mb": held.over_idle_bytes / MB}}


def _compared(used: list[list[Used]], size: Size) -> Found:
    """From the rounds of nginx, the broker, the broker without a hash, and the naive relay."""
    gib = size.large_bytes / GIB
    theirs, ours, bare, spooled = ([each.cpu_seconds / gib for each in runs] for runs in used)
    on, off = ([each.seconds for each in runs] for runs in used[1:3])
    return {
        "P1": _medians("broker", ours, "other", theirs),
        "P1b": _medians("broker", bare, "other", theirs),
        "P2": _medians("broker", ours, "other", spooled),
        "P10": {
            **_medians("on", on, "off", off),
            "cpu_on": median(ours),
            "cpu_off": median(bare),
        },
    }


def _check_hashes(broker: Server, unhashed: Server) -> None:
    """That the one hashes and the other does not; warms both."""
    with_hash, without = (upload_one(server.target, MIB).answer["sha256"] for server in (broker, unhashed))
    if with_hash == NO_DIGEST or without != NO_DIGEST:
        raise LoadError(f"sha256 should be on and off, but gave {with_hash} and {without}")


def _rounds_of_large_files(compared: tuple[Server, ...], size: Size) -> list[list[Used]]:
    """What each of them used in each round."""
    used: list[list[Used]] = [[] for _ in compared]
    for _ in range(size.rounds):
        for server, runs in zip(compared, used, strict=True):
            with measured(server.pid) as run:
                upload_one(server.target, size.large_bytes)
            runs.append(run)
    return used


def _medians(name: str, runs: list[float], other_name: str, other: list[float]) -> Values:
    """The medians of two sides, the one over the other, and every round."""
    return {
        "ratio": median(runs) / median(other),
        name: median(runs),
        other_name: median(other),
        f"runs_{name}": runs,
        f"runs_{other_name}": other,
    }


def many_uploads(folder: Path, sink: int, nginx: Server, size: Size) -> tuple[Values, Values]:
    """The other half of P3, from the broker's first burst of uploads, and P4."""
    with servers.broker(folder, sink, BROKER_POOL_WAIT_SECONDS="60") as broker:
        upload_one(broker.target, MIB)
        with memory_of(broker.pid) as held:
            first = _upload_many(broker, size)
        pairs = [(_upload_many(nginx, size), _upload_many(broker, size)) for _ in range(size.rounds)]
    return {"many_mb": held.over_idle_bytes / MB}, _throughput(*zip(*pairs, strict=True), first=first)


def _throughput(theirs: tuple[Outcome, ...], ours: tuple[Outcome, ...], *, first: Outcome) -> Values:
    if any(outcome.failed for outcome in theirs):
        raise LoadError("nginx failed some of the uploads, so there is nothing to measure against")
    nginx, broker = ([outcome.mib_per_second for outcome in runs] for runs in (theirs, ours))
    return {
        "ratio": max(broker) / max(nginx),
        "broker": max(broker),
        "nginx": max(nginx),
        "failed": sum(outcome.failed for outcome in (first, *ours)),
        "runs_broker": broker,
        "runs_nginx": nginx,
    }


def _upload_many(server: Server, size: Size) -> Outcome:
    return uvloop.run(upload_many(server.target, size.uploads))


def token_requests(folder: Path, sink: int, size: Size) -> Found:
    """P5 and P7."""
    with (
        servers.broker(folder, sink, BROKER_MAX_UPSTREAM_CONNECTIONS=str(SLOW_UPLOADS + 100)) as broker,
        servers.naive(sink) as naive,
    ):
        token = _of_tokens(broker)
        rates = _rates(_alternating(naive, broker, size))
        return {"P5": rates, "P7": _responsive(broker.target, token, size)}


def tokens_with_redis(folder: Path, sink: int, size: Size) -> Values:
    """P5b."""
    with servers.broker_with_redis(folder, sink) as broker, servers.naive(sink) as naive:
        return _rates(_alternating(naive, broker, size))


@dataclass(frozen=True)
class Rate:
    """Requests per second, and microseconds of the server's CPU for each."""

    per_second: float
    cpu_us: float


def _alternating(naive: Server, broker: Server, size: Size) -> list[tuple[Rate, Rate]]:
    bare = Target("127.0.0.1", naive.target.port, "/bare")
    return [
        (_ask(naive, bare, size.rate_seconds), _ask(broker, _of_tokens(broker), size.rate_seconds))
        for _ in range(size.rounds)
    ]


def _of_tokens(broker: Server) -> Target:
    return Target("127.0.0.1", broker.target.port, "/token", broker.target.authorization)


def _ask(server: Server, target: Target, seconds: float) -> Rate:
    with measured(server.pid) as used:
        per_second = uvloop.run(asking.per_second(target, TOKEN_REQUEST, seconds=seconds))
    return Rate(per_second, used.cpu_seconds / used.seconds / per_second * 1e6)


def _rates(pairs: list[tuple[Rate, Rate]]) -> Values:
    bare, token = zip(*pairs, strict=True)
    best = {"bare": max(rate.per_second for rate in bare), "broker": max(rate.per_second for rate in token)}
    return {
        **best,
        "ratio": best["broker"] / best["bare"],
        "cpu_us": min(rate.cpu_us for rate in token),
        "bare_cpu_us": min(rate.cpu_us for rate in bare),
        "runs_broker": [rate.per_second for rate in token],
        "runs_bare": [rate.per_second for rate in bare],
    }


def _responsive(uploads: Target, token: Target, size: Size) -> Values:
    pairs = [uvloop.run(_idle_and_busy(uploads, token, size)) for _ in range(2)]
    idle, busy = (_quantile([s for run in runs for s in run], 0.99) for runs in zip(*pairs, strict=True))
    return {"busy_ms": busy * 1000, "idle_ms": idle * 1000, "ratio": busy / idle}


async def _idle_and_busy(uploads: Target, token: Target, size: Size) -> tuple[list[float], list[float]]:
    idle = await asking.seconds_each(token, TOKEN_REQUEST, count=size.requests)
    async with SlowUploads(uploads, count=SLOW_UPLOADS, bytes_per_second=SLOW_BYTES_PER_SECOND):
        await asyncio.sleep(SETTLE_SECONDS)
        busy = await asking.seconds_each(token, TOKEN_REQUEST, count=size.requests)
    return idle, busy


def added_wait(folder: Path, sink: int, size: Size) -> Values:
    """P6: what the broker adds between a small file's last byte and its answer."""
    direct = Target("127.0.0.1", sink, "/v1/files/upload")
    with servers.broker(folder, sink) as broker:
        pairs = [
            (upload_one(direct, MIB).waited, upload_one(broker.target, MIB).waited)
            for _ in range(size.single_uploads)
        ]
    straight, through = (list(waits) for waits in zip(*pairs, strict=True))
    added = {
        name: _quantile(through, q) - _quantile(straight, q) for name, q in (("p50", 0.5), ("p99", 0.99))
    }
    return {"p50_ms": added["p50"] * 1000, "p99_ms": added["p99"] * 1000}


def start(folder: Path, sink: int, size: Size) -> Values:
    """P8: from start to ready. The very first makes the database, and does not count."""
    seconds = []
    for _ in range(1 + size.starts):
        begun = time.perf_counter()
        with servers.bare_broker(folder, sink):
            seconds.append(time.perf_counter() - begun)
    return {"seconds": min(seconds[1:]), "runs": seconds[1:]}


def _quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * q))]
