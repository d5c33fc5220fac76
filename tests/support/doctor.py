"""``broker doctor`` on broken ways to Coze: servers that answer wrongly or not at all, resolvers that lie,
and a network of its own for what can't be had on loopback.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import json
import os
import select
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.message

from tests.support.authority import server_context
from tests.support.broker_process import COMMAND, clean_environment
from tests.support.dns_answers import Records, answer_to
from tests.support.waiting import wait_for

HOST = "coze.test"
CLONE_NEWNET = 0x4000_0000
OWN_NAMESPACE = f"doctor-{os.getpid()}-"
"""How the names begin of this process's; tests may run in several."""
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
ROOT = Path(__file__).parent.parent.parent

# --- running it -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Diagnosis:
    """What ``broker doctor --json`` said."""

    exit_code: int
    report: dict[str, Any]
    printed: str

    def __getitem__(self, step: str) -> dict[str, Any]:
        found: dict[str, Any] = next(each for each in self.report["steps"] if each["step"] == step)
        return found

    @property
    def statuses(self) -> dict[str, str]:
        return {each["step"]: each["status"] for each in self.report["steps"]}


def environment(folder: Path, coze: dict[str, str], **settings: str) -> dict[str, str]:
    """Of a machine with these settings and no others, proxies included."""
    clean = {k: v for k, v in clean_environment().items() if k.lower() not in PROXY_VARIABLES}
    clean = {k: v for k, v in clean.items() if not k.startswith("UPSTREAM_")}
    own = {"BROKER_DATA_DIR": str(folder / "data"), "PYTHONPATH": str(ROOT)}
    return {**clean, **own, **coze, **settings}


def run(
    env: dict[str, str], *arguments: str, cwd: Path, namespace: str = ""
) -> subprocess.CompletedProcess[str]:
    """``broker doctor``, in a namespace if one is named."""
    inside = ("ip", "netns", "exec", namespace) if namespace else ()
    command = [*inside, *COMMAND, "doctor", *arguments]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=90, check=False)


def diagnose(
    env: dict[str, str], *arguments: str, cwd: Path, timeout: str = "2", namespace: str = ""
) -> Diagnosis:
    """``broker doctor --json``; what it printed is JSON and nothing else."""
    done = run(env, "--json", "--timeout", timeout, *arguments, cwd=cwd, namespace=namespace)
    assert done.stderr == "", done.stderr
    diagnosis = Diagnosis(done.returncode, json.loads(done.stdout), done.stdout)
    assert diagnosis.report["exit_code"] == done.returncode
    return diagnosis


# --- servers ----------------------------------------------------------------------------------------------

Serve = Callable[[socket.socket], None]


@dataclass(frozen=True)
class Server:
    """One that listens on loopback; ``seen`` holds what ``serve`` put there."""

    port: int
    seen: list[bytes]


@contextlib.contextmanager
def serving(
    serve: Serve, host: str = "127.0.0.1", seen: list[bytes] | None = None, *, port: int = 0
) -> Iterator[Server]:
    """Does ``serve`` with each connection, in a thread of its own."""
    with serving_on(listening(host, port), serve, seen) as server:
        yield server


@contextlib.contextmanager
def serving_on(listener: socket.socket, serve: Serve, seen: list[bytes] | None = None) -> Iterator[Server]:
    """The same with a socket that listens already; closes it."""
    with listener:
        threading.Thread(target=_accept, args=(listener, serve), daemon=True).start()
        yield Server(listener.getsockname()[1], [] if seen is None else seen)
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def listening(host: str, port: int = 0, *, namespace: str = "") -> socket.socket:
    """In a namespace, if one is named. A socket stays in the network that it was made in, and a thread may be
    in another one than the rest.
    """

    def listen() -> socket.socket:
        if namespace:
            with Path("/run/netns", namespace).open() as network:
                assert ctypes.CDLL(None, use_errno=True).setns(network.fileno(), CLONE_NEWNET) == 0
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(listen).result()


def _accept(listener: socket.socket, serve: Serve) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.settimeout(15)
        threading.Thread(target=_served, args=(connection, serve), daemon=True).start()


def _served(connection: socket.socket, serve: Serve) -> None:
    with connection, contextlib.suppress(OSError):
        serve(connection)


def with_tls(pem: Path, inner: Serve) -> Serve:
    """``inner`` behind TLS with this certificate, however weak."""
    context = server_context(pem)

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as encrypted:
            inner(encrypted)

    return serve


def passing_on_to(url: str) -> Serve:
    """To a server on this machine; one request, then the end."""
    host, _, port = url.removeprefix("http://").partition(":")

    def serve(connection: socket.socket) -> None:
        pass_on(connection, host, int(port))

    return serve


def pass_on(connection: socket.socket, host: str, port: int) -> None:
    """Both directions, until either ends; in one thread, since two can't share a TLS connection."""
    with socket.create_connection((host, port)) as there:
        while True:
            ready, _, _ = select.select([connection, there], [], [], 15)
            for source in ready:
                data = source.recv(65536)
                if not data:
                    return
                (there if source is connection else connection).sendall(data)


def head_of(connection: socket.socket) -> bytes:
    """A request's head; what follows it in the same packets, too."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError("gone")
        data += piece
    return data


def saying(answer: bytes) -> Serve:
    """This answer to whatever comes."""

    def serve(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(answer)

    return serve


def never_answering(connection: socket.socket) -> None:
    """Take what comes until the other side leaves."""
    while connection.recv(65536):
        pass


def http_answer(body: bytes, content_type: str, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "Connection: close", *headers, "", ""]).encode() + body


# --- a resolver, and a network of its own --------------------------------------------------------------


@contextlib.contextmanager
def namespace(names: Records) -> Iterator[str]:
    """A network with nothing but loopback, and a resolver on it that answers by ``names``; needs root."""
    name = f"{OWN_NAMESPACE}{uuid.uuid4().hex[:8]}"
    settings = Path("/etc/netns") / name
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        settings.mkdir(parents=True)
        (settings / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        with _resolver(name, names):
            yield name
    finally:
        for path in settings.glob("*"):
            path.unlink()
        settings.rmdir()
        subprocess.run(["ip", "netns", "del", name], check=True)


def listening_in(namespace: str, address: str, port: int = 0) -> socket.socket:
    """A socket that listens in a namespace, on an address that the machine there then has."""
    subprocess.run(["ip", "-n", namespace, "addr", "add", f"{address}/32", "dev", "lo"], check=True)
    return listening(address, port, namespace=namespace)


def make_silent(namespace: str, address: str) -> None:
    """Packets from the namespace to an IPv4 address go out, and nothing comes back."""
    pair = f"link add v0 netns {namespace} type veth peer name v1 netns {namespace}"
    neighbours = ipaddress.ip_interface(f"{address}/24").network
    subprocess.run(["ip", *pair.split()], check=True)
    for command in (
        "link set v0 up",
        "link set v1 up",
        f"addr add {neighbours[1]}/24 dev v0",
        f"neigh add {address} lladdr 02:00:00:00:00:09 dev v0 nud permanent",
    ):
        subprocess.run(["ip", "-n", namespace, *command.split()], check=True)


@contextlib.contextmanager
def _resolver(namespace: str, names: Records) -> Iterator[None]:
    command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "tests.support.doctor"]
    with subprocess.Popen([*command, json.dumps(names)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            wait_for(process.stdout.readline)
            yield
        finally:
            process.terminate()


def _serve_dns(names: Records) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 53))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            query, sender = listener.recvfrom(4096)
            listener.sendto(answer_to(dns.message.from_wire(query), names).to_wire(), sender)


if __name__ == "__main__":
    _serve_dns(json.loads(sys.argv[1]))
