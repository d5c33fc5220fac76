"""Starting and stopping the sandbox."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from broker.sandbox import config
from broker.sandbox.credentials import generate
from broker.sandbox.launch import in_subprocess
from broker.sandbox.records import Records
from broker.sandbox.serve import in_thread, loopback_address


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.com", ""])
def test_only_loopback_will_do(host: str) -> None:
    with pytest.raises(ValueError, match="loopback"):
        loopback_address(host)


@pytest.mark.parametrize(
    ("host", "address"), [("localhost", "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), ("::1", "::1")]
)
def test_loopback_in_all_its_names(host: str, address: str) -> None:
    assert str(loopback_address(host)) == address


def test_the_command_refuses_another_address() -> None:
    command = [sys.executable, "-m", "broker.sandbox", "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "loopback" in done.stderr


def test_keys_are_private_and_fit_the_environment(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    with in_subprocess("--credentials-dir", str(directory)) as running:
        environment = running.environment
        assert set(environment) == {
            "COZE_API_BASE",
            "COZE_API_TOKEN",
            *(f"COZE_{app}_OAUTH_CLIENT_ID" for app in ("JWT", "BROWSER")),
            *(f"COZE_{app}_OAUTH_PUBLIC_KEY_ID" for app in ("JWT", "BROWSER")),
            *(f"COZE_{app}_OAUTH_PRIVATE_KEY_FILE_PATH" for app in ("JWT", "BROWSER")),
        }
        assert environment["COZE_API_BASE"] == running.base_url
        server_key = Path(environment["COZE_JWT_OAUTH_PRIVATE_KEY_FILE_PATH"])
        assert server_key.read_text() == running.credentials.server_app.private_key_pem
    assert directory.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in directory.iterdir()] == [0o600, 0o600]


def test_keys_without_a_directory_go_with_the_process() -> None:
    with in_subprocess() as running:
        key_file = Path(running.environment["COZE_BROWSER_OAUTH_PRIVATE_KEY_FILE_PATH"])
        assert key_file.stat().st_mode & 0o777 == 0o600
    assert not key_file.parent.exists()


def test_a_config_file_takes_the_place_of_fresh_credentials(tmp_path: Path) -> None:
    file = tmp_path / "sandbox.json"
    file.write_text(
        json.dumps({"tokens": [{"token": "sat_1", "permissions": ["uploadFile"]}], "cors": False})
    )
    command = [sys.executable, "-m", "broker.sandbox", "--port", "0", "--config", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        base_url = process.stdout.readline().strip().removeprefix("COZE_API_BASE=")
        response = httpx.post(
            f"{base_url}/v1/files/upload",
            headers={"authorization": "Bearer sat_1"},
            files={"file": ("a.csv", b"1")},
        )
        process.terminate()
    assert response.json()["code"] == 0
    assert process.returncode == 0


def test_a_config_file_with_unknown_fields_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sandbox.json"
    file.write_text('{"max_bytes": 1}')
    with pytest.raises(ValueError, match="max_bytes"):
        config.load(file, audience="127.0.0.1")


def test_the_audience_is_the_bound_address_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "sandbox.json"
    file.write_text("{}")
    assert config.load(file, audience="127.0.0.1:1").audience == "127.0.0.1:1"
    file.write_text('{"audience": "api.coze.cn"}')
    assert config.load(file, audience="127.0.0.1:1").audience == "api.coze.cn"


def test_a_thread_serves_and_stops() -> None:
    with in_thread() as running:
        assert httpx.get(f"{running.base_url}/_sandbox/files").json() == {"files": []}
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{running.base_url}/_sandbox/files")


def test_secrets_do_not_print() -> None:
    accepted, credentials = generate("127.0.0.1")
    shown = repr(accepted) + repr(credentials)
    assert credentials.api_token not in shown
    assert "PRIVATE KEY" not in shown


def test_records_forget_the_oldest() -> None:
    records: Records[int] = Records(2)
    for number in range(3):
        records.put(str(number), number)
    assert list(records) == [1, 2]
    assert records.find("0") is None
