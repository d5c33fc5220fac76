"""nginx in front of the broker."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import needs
from tests.support.broker_process import stop
from tests.support.waiting import wait_for

MAIN = """
worker_processes 1; daemon off; error_log {folder}/error.log; pid {folder}/nginx.pid;
{user}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    include {folder}/site.conf;
}}
"""


@contextmanager
def running_nginx(folder: Path, site: str, port: int) -> Iterator[Path]:
    """nginx with the text of a site, which listens on ``port``; gives its folder."""
    folder.mkdir(parents=True)
    (folder / "site.conf").write_text(site)
    # Started by root, its workers would be somebody else, who may not write into the folder.
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=user))
    program = needs.executable("nginx", "/usr/sbin/nginx")
    command = [program, "-c", str(folder / "nginx.conf"), "-p", str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: process.poll() is not None or _listens(port))
        assert process.poll() is None, (folder / "log").read_text()
        yield folder
    finally:
        stop(process)


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
