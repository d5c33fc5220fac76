"""cozepy, unmodified, finds a Coze here."""

import gc
import time
from collections.abc import Callable, Iterator

import pytest
from cozepy import Coze, CozeAPIError, JWTOAuthApp, TokenAuth

from broker.sandbox.credentials import AppCredentials
from broker.sandbox.launch import SandboxProcess

pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.usefixtures("_collected")]


@pytest.fixture
def _collected() -> Iterator[None]:
    """cozepy leaves its connections open: they are collected here, where the warning is ignored."""
    yield
    gc.collect()


def jwt_app(sandbox: SandboxProcess, app: AppCredentials) -> JWTOAuthApp:
    return JWTOAuthApp(
        client_id=app.client_id,
        private_key=app.private_key_pem,
        public_key_id=app.public_key_id,
        base_url=sandbox.base_url,
    )


def test_it_exchanges_uploads_and_retrieves(sandbox: SandboxProcess) -> None:
    token = jwt_app(sandbox, sandbox.credentials.server_app).get_access_token(ttl=300)
    assert abs(token.expires_in - (time.time() + 300)) < 5
    coze = Coze(auth=TokenAuth(token.access_token), base_url=sandbox.base_url)
    uploaded = coze.files.upload(file=("标题.csv", b"1,2"))
    assert (uploaded.bytes, uploaded.file_name) == (3, "标题.csv")
    assert coze.files.retrieve(file_id=uploaded.id).id == uploaded.id


def test_it_reads_the_refusals(sandbox: SandboxProcess, order: Callable[..., None]) -> None:
    coze = Coze(auth=TokenAuth(sandbox.credentials.api_token), base_url=sandbox.base_url)
    for content, name, code in ((b"", "a.csv", 4300), (b"1", "a.txt", 4303), (b"words", "a.png", 4000)):
        with pytest.raises(CozeAPIError) as raised:
            coze.files.upload(file=(name, content))
        assert raised.value.code == code
        assert raised.value.logid
    order(status=503, code=5000)
    with pytest.raises(CozeAPIError):
        coze.files.upload(file=("a.csv", b"1"))


def test_it_reads_a_foreign_kid(sandbox: SandboxProcess) -> None:
    stranger = AppCredentials("1", "nobody", sandbox.credentials.server_app.private_key_pem)
    with pytest.raises(CozeAPIError, match="kid not been registred") as raised:
        jwt_app(sandbox, stranger).get_access_token()
    assert raised.value.logid
