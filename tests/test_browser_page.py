"""The broker's own page in a real Chromium, as a person uses it."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, expect

from broker.demo import PNG
from tests.support import needs
from tests.support.broker_process import Broker, clean_environment, run_command, running_broker
from tests.support.browser import Tab, chromium, tab
from tests.support.sandbox_control import SandboxControl

UPLOAD = "/v1/files/upload"
LARGE = b"a,b\n1,2\n" * 1_250_000
PHONE = {"width": 360, "height": 740}
AXE = Path(__file__).parent / "clients" / "node_modules" / "axe-core" / "axe.min.js"

# What a person can have seen: each row, at each frame.
WATCH_FRAMES = """
window.frames_seen = [];
requestAnimationFrame(function look() {
  for (const row of document.querySelectorAll('[data-testid="file-row"]')) {
    const id = row.querySelector('[data-testid="file-id"]');
    window.frames_seen.push({
      percent: row.querySelector('progress').value,
      words: row.querySelector('.percent').textContent,
      file_id: id.checkVisibility() ? id.textContent : '',
    });
  }
  requestAnimationFrame(look);
});
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def page_broker(
    session_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    """A broker that gives its page a key, which must be of the broker's own origin."""
    folder = tmp_path_factory.mktemp("page")
    data = folder / "data"
    data.mkdir(mode=0o700)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {**clean_environment(), **session_sandbox.environment, "BROKER_DATA_DIR": str(data)}
    command = ("keys", "create", "--name", "page", "--publishable", f"--origin=http://127.0.0.1:{port}")
    done = run_command(*command, environment=environment)
    found = re.search(r"cub_pk_\w+", done.stdout)
    assert found, done.stderr
    settings = {"PORT": str(port), "BROKER_PAGE_PUBLISHABLE_KEY": found.group()}
    with running_broker(folder, session_sandbox.environment, **settings) as broker:
        yield broker


@pytest.fixture
def broker(page_broker: Broker, sandbox: SandboxControl) -> Broker:
    return page_broker


class UploadPage:
    """The page, open in a tab."""

    def __init__(self, opened: Tab, broker: Broker, folder: Path) -> None:
        self.tab, self.page, self.folder = opened, opened.page, folder
        self.page.add_init_script(WATCH_FRAMES)
        self.page.goto(broker.url)
        expect(self.page.locator("#service")).not_to_have_text("Asking the broker…")

    def choose(self, *files: tuple[str, bytes]) -> Locator:
        """Choose files by name and content; the row of the last."""
        for name, content in files:
            (self.folder / name).write_bytes(content)
        self.page.get_by_test_id("file-input").set_input_files([self.folder / name for name, _ in files])
        return self.row(files[-1][0])

    def row(self, name: str) -> Locator:
        named = self.page.get_by_test_id("file-name").get_by_text(name, exact=True)
        return self.page.get_by_test_id("file-row").filter(has=named)

    @property
    def frames(self) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = self.page.evaluate("window.frames_seen")
        return seen

    def is_wider_than_its_window(self) -> bool:
        root = "document.documentElement"
        return bool(self.page.evaluate(f"{root}.scrollWidth > {root}.clientWidth"))


@pytest.fixture
def context_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """How the tab is; a test may set it with an indirect parameter."""
    options: dict[str, Any] = getattr(request, "param", {})
    return options


@pytest.fixture
def page(
    browser: Browser, broker: Broker, sandbox: SandboxControl, context_options: dict[str, Any], folder: Path
) -> Iterator[UploadPage]:
    """The page; whatever a test does with it, it talks to the broker and Coze alone and keeps nothing."""
    with tab(browser, **context_options) as opened:
        page = UploadPage(opened, broker, folder)
        yield page
        assert opened.own_complaints == []
        assert opened.origins <= {broker.url, sandbox.url}
        assert_keeps_no_secret(opened)


def assert_keeps_no_secret(opened: Tab) -> None:
    """Credentials travel in headers, and what is on the disk of whoever uses the page is nothing."""
    for request in opened.requests:
        assert not re.search(r"cub_|eyJ|czs_|token=", request.url), request.url
    stores = "[localStorage.length, sessionStorage.length, document.cookie, location.search, location.hash]"
    assert opened.page.evaluate(stores) == [0, 0, "", "", ""]
    assert opened.page.evaluate("indexedDB.databases()") == []


def state(row: Locator, name: str) -> None:
    expect(row).to_have_attribute("data-state", name, timeout=15_000)


def file_id(row: Locator) -> str:
    state(row, "done")
    return row.get_by_test_id("file-id").inner_text()


def assert_stored(row: Locator, sandbox: SandboxControl, content: bytes) -> dict[str, Any]:
    """The row's ``file_id`` is that of these bytes; what Coze has of them."""
    stored = sandbox.file(file_id(row))
    assert stored["sha256"] == hashlib.sha256(content).hexdigest()
    return stored


# --- the two routes -------------------------------------------------------------------------------


def test_a_small_file_goes_direct(page: UploadPage, sandbox: SandboxControl) -> None:
    row = page.choose(("small.png", PNG))
    stored = assert_stored(row, sandbox, PNG)
    assert stored["client_id"] == sandbox.environment["COZE_BROWSER_OAUTH_CLIENT_ID"]
    expect(row.get_by_test_id("route")).to_have_text("Direct to Coze")
    expect(row.get_by_test_id("route-reason")).to_have_text("small and not sensitive")
    expect(page.page.locator("#tally")).to_have_text("1 of 1 done")
    assert sandbox.url in page.tab.origins
    assert page.tab.complaints == []


def test_a_large_file_goes_through_the_broker(page: UploadPage, sandbox: SandboxControl) -> None:
    row = page.choose(("large.csv", LARGE))
    stored = assert_stored(row, sandbox, LARGE)
    assert stored["client_id"] == sandbox.environment["COZE_JWT_OAUTH_CLIENT_ID"]
    expect(row.get_by_test_id("route")).to_have_text("Through the broker")
    expect(row.get_by_test_id("route-reason")).to_have_text("too large for the direct route")
    assert sandbox.url not in page.tab.origins
    assert page.tab.complaints == []


def test_a_sensitive_file_goes_through_the_broker(page: UploadPage, sandbox: SandboxControl) -> None:
    page.page.get_by_label("Sensitive").check()
    row = page.choose(("small.png", PNG))
    assert_stored(row, sandbox, PNG)
    expect(row.get_by_test_id("route")).to_have_text("Through the broker")
    expect(row.get_by_test_id("route-reason")).to_have_text("marked as sensitive")
    assert sandbox.url not in page.tab.origins


def test_the_route_can_be_chosen(page: UploadPage, sandbox: SandboxControl) -> None:
    page.page.get_by_text("Advanced").click()
    page.page.get_by_label("Route", exact=True).select_option("proxy")
    row = page.choose(("small.png", PNG))
    assert_stored(row, sandbox, PNG)
    expect(row.get_by_test_id("route-reason")).to_have_text("chosen under Advanced")


def test_a_fallback_is_said(page: UploadPage, sandbox: SandboxControl) -> None:
    sandbox.fail(path=UPLOAD, cors=False, times=1)
    row = page.choose(("small.png", PNG))
    assert_stored(row, sandbox, PNG)
    expect(row.get_by_test_id("route")).to_have_text("Through the broker")
    expect(row.get_by_test_id("route-reason")).to_have_text("fallback: the browser could not reach Coze")


# --- progress and cancelling ----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [("direct.csv", 4_000_000), ("proxy.csv", 10_000_000)])
def test_progress_grows_and_is_not_ahead_of_the_file_id(
    page: UploadPage, sandbox: SandboxControl, name: str, size: int
) -> None:
    """With Coze taking its time over the answer, all is sent and it is still not done."""
    sandbox.fail(path=UPLOAD, delay_seconds=0.6)
    page.tab.slow_down(size * 2)
    row = page.choose((name, LARGE[:size]))
    expect(row.get_by_test_id("status")).to_have_text("All sent, waiting for the file_id", timeout=15_000)
    expect(row.locator("progress")).to_have_js_property("value", 99)
    id_ = file_id(row)
    percents = [frame["percent"] for frame in page.frames]
    assert percents == sorted(percents)
    assert len(set(percents)) > 4
    assert {frame["file_id"] for frame in page.frames if frame["percent"] < 100} == {""}
    assert {frame["file_id"] for frame in page.frames if frame["percent"] == 100} == {id_}
    assert all(frame["words"] == f"{frame['percent']} %" for frame in page.frames)


@pytest.mark.parametrize(("name", "size"), [("direct.csv", 4_000_000), ("proxy.csv", 10_000_000)])
def test_an_upload_is_cancelled_midway(
    page: UploadPage, broker: Broker, sandbox: SandboxControl, name: str, size: int
) -> None:
    page.tab.slow_down(1_000_000)
    row = page.choose((name, LARGE[:size]))
    expect(row.locator(".percent")).to_have_text(re.compile(r"[1-9]\d? %"))
    sandbox.wait_for(lambda: any(event["body_bytes"] for event in sandbox.events(kind="upload")))
    row.get_by_role("button", name=f"Cancel: {name}").click()
    state(row, "cancelled")
    (event,) = sandbox.wait_for(lambda: sandbox.events(kind="upload", method="POST", outcome="aborted"))
    assert event["file_id"] is None
    assert sandbox.events(kind="upload", outcome="stored") == []
    if name == "proxy.csv":
        broker.last_record("/proxy/upload", code="client_left", status=499)
    expect(row.get_by_test_id("retry")).to_be_visible()


def test_a_cancelled_upload_can_be_taken_up_again(page: UploadPage, sandbox: SandboxControl) -> None:
    page.tab.slow_down(100_000)
    row = page.choose(("small.csv", LARGE[:1_000_000]))
    row.get_by_test_id("cancel").click()
    state(row, "cancelled")
    page.tab.slow_down(-1)
    row.get_by_test_id("retry").click()
    assert_stored(row, sandbox, LARGE[:1_000_000])


def test_many_files_are_sent_three_at_a_time(page: UploadPage, sandbox: SandboxControl) -> None:
    sandbox.fail(path=UPLOAD, delay_seconds=0.3)
    files = [(f"{number}.csv", b"a,b\n%d,2\n" % number) for number in range(7)]
    page.choose(*files)
    expect(page.page.get_by_test_id("status").get_by_text("Waiting", exact=True)).to_have_count(4)
    ids = {assert_stored(page.row(name), sandbox, content)["id"] for name, content in files}
    assert len(ids) == 7
    expect(page.page.locator("#tally")).to_have_text("7 of 7 done")
    page.page.get_by_role("button", name="Clear finished").click()
    expect(page.page.get_by_test_id("file-row")).to_have_count(0)


# --- errors ---------------------------------------------------------------------------------------


def test_a_refusal_is_a_sentence_with_a_code_and_an_id(
    page: UploadPage, sandbox: SandboxControl, subtests: pytest.Subtests
) -> None:
    for name, sensitive, code in (
        ("1.txt", False, "file_type_refused · HTTP 415"),
        ("2.txt", True, "file_type_refused · HTTP 415"),
        ("3.png", False, "coze_4000 · HTTP 200"),
        ("4.png", True, "file_content_mismatch · HTTP 415"),
    ):
        with subtests.test(name):
            page.page.get_by_label("Sensitive").set_checked(sensitive)
            row = page.choose((name, b"neither of a type that Coze takes nor a picture"))
            state(row, "failed")
            expect(row.locator(".error-text")).to_have_text(
                re.compile(r"^(Coze|Files|The file) .*(type|name|content).*[.?]$")
            )
            expect(row.locator(".error-print")).to_have_text(re.compile(rf"^{code} · request \w{{20,}}$"))
            expect(row.get_by_test_id("retry")).to_be_hidden()
            expect(row.get_by_test_id("file-id")).to_be_hidden()


def test_an_empty_file_is_refused_before_anything_is_sent(page: UploadPage) -> None:
    row = page.choose(("empty.csv", b""))
    state(row, "failed")
    expect(row.locator(".error-text")).to_have_text("The file is empty.")
    expect(row.locator(".error-print")).to_have_text("empty_file")
    assert page.tab.asked("/token") == []


def test_after_trouble_a_person_can_try_again(page: UploadPage, sandbox: SandboxControl) -> None:
    page.page.get_by_label("Sensitive").check()
    sandbox.fail(path=UPLOAD, code=5000)
    row = page.choose(("small.png", PNG))
    state(row, "failed")
    expect(row.get_by_test_id("error")).to_contain_text("upstream_failed · HTTP 502")
    sandbox.heal()
    row.get_by_role("button", name="Try again").click()
    assert_stored(row, sandbox, PNG)
    expect(row.get_by_test_id("error")).to_be_hidden()


def test_a_name_is_text_and_nothing_else(page: UploadPage, sandbox: SandboxControl) -> None:
    name = "<img src=x onerror=alert(1)>.png"
    row = page.choose((name, PNG))
    stored = assert_stored(row, sandbox, PNG)
    assert stored["file_name"] == name
    expect(row.get_by_test_id("file-name")).to_have_text(name)
    assert row.locator("img").count() == 0


# --- hands ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "context_options", [{"permissions": ["clipboard-read", "clipboard-write"]}], indirect=True
)
def test_the_keyboard_is_enough(page: UploadPage, sandbox: SandboxControl, folder: Path) -> None:
    (folder / "small.png").write_bytes(PNG)
    tab_to(page, page.page.get_by_test_id("file-input"))
    with page.page.expect_file_chooser() as chooser:
        page.page.keyboard.press("Enter")
    chooser.value.set_files(folder / "small.png")
    row = page.row("small.png")
    id_ = file_id(row)
    copy = row.get_by_role("button", name="Copy: small.png")
    tab_to(page, copy)
    page.page.keyboard.press("Enter")
    expect(copy.or_(row.get_by_role("button", name="Copied"))).to_have_text("Copied")
    assert page.page.evaluate("navigator.clipboard.readText()") == id_
    expect(row.get_by_test_id("status")).to_have_text("file_id copied")


def tab_to(page: UploadPage, wanted: Locator) -> None:
    """Press Tab until it has the focus, which must be visible."""
    for _ in range(20):
        page.page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            outlined = "element => getComputedStyle(element.closest('label') ?? element).outlineStyle"
            assert wanted.evaluate(outlined) == "solid"
            return
    raise AssertionError("Tab does not lead there")


def test_files_can_be_dropped(page: UploadPage, sandbox: SandboxControl) -> None:
    content = "a,b\n1,2\n"
    transfer = page.page.evaluate_handle(
        """content => {
            const transfer = new DataTransfer();
            for (const name of ['1.csv', '2.csv']) transfer.items.add(new File([content], name));
            return transfer;
        }""",
        content,
    )
    zone = page.page.get_by_test_id("drop-zone")
    zone.dispatch_event("dragover", {"dataTransfer": transfer})
    expect(zone).to_have_class("drop over")
    zone.dispatch_event("drop", {"dataTransfer": transfer})
    expect(zone).to_have_class("drop")
    for name in ("1.csv", "2.csv"):
        assert_stored(page.row(name), sandbox, content.encode())


def test_a_drop_beside_the_zone_does_not_leave_the_page(page: UploadPage, broker: Broker) -> None:
    transfer = page.page.evaluate_handle("() => new DataTransfer()")
    page.page.locator("h1").dispatch_event("drop", {"dataTransfer": transfer})
    expect(page.page.get_by_test_id("file-row")).to_have_count(0)
    assert page.page.url == f"{broker.url}/"


# --- a page without a key -------------------------------------------------------------------------


def test_without_a_key_of_its_own_the_page_asks_for_one(
    browser: Browser, session_broker: Broker, sandbox: SandboxControl, folder: Path
) -> None:
    with tab(browser) as opened:
        page = UploadPage(opened, session_broker, folder)
        row = page.choose(("small.png", PNG))
        expect(row.get_by_test_id("status")).to_have_text("Waiting for a publishable key")
        field = page.page.get_by_label("Publishable key")
        expect(field).to_be_focused()

        field.fill("cub_pk_mistyped")
        field.press("Enter")
        expect(row.get_by_test_id("error")).to_contain_text("invalid_credential · HTTP 401")

        field.fill(session_broker.publishable_key)
        row.get_by_role("button", name="Try again").click()
        assert_stored(row, sandbox, PNG)
        assert opened.own_complaints == []
        assert_keeps_no_secret(opened)


# --- looks ----------------------------------------------------------------------------------------

LOOKS = [
    pytest.param({"color_scheme": scheme, "viewport": size}, id=f"{scheme}, {size['width']} px")
    for scheme in ("light", "dark")
    for size in (PHONE, {"width": 1100, "height": 900})
]


def with_rows(page: UploadPage, sandbox: SandboxControl) -> None:
    """One row done, one failed, one under way; with a name that does not break."""
    long = "NoLineBreakFindsAPlaceInThisName" * 5 + ".png"
    state(page.choose((long, PNG)), "done")
    state(page.choose(("notes.txt", b"text")), "failed")
    sandbox.fail(path=UPLOAD, never_answer=True)
    expect(page.choose(("slow.csv", b"1")).locator("progress")).to_have_js_property("value", 99)


@pytest.mark.parametrize("context_options", LOOKS, indirect=True)
def test_it_fits_and_everyone_can_use_it(page: UploadPage, sandbox: SandboxControl) -> None:
    """No scrolling sideways, and nothing that axe finds, empty and with rows, all opened."""
    assert_accessible(page)
    assert not page.is_wider_than_its_window()
    page.page.get_by_text("Advanced").click()
    with_rows(page, sandbox)
    assert_accessible(page)
    assert not page.is_wider_than_its_window()


def assert_accessible(page: UploadPage) -> None:
    if not AXE.exists():
        needs.missing("axe-core is not installed: npm ci in tests/clients")
    # As a debugger's script: the page's policy would not let it in otherwise.
    page.page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.page.evaluate("axe.run()")
    broken = [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]]
    assert broken == []


# --- the documentation ----------------------------------------------------------------------------


def test_the_documentation_comes_from_this_host_alone(browser: Browser, broker: Broker) -> None:
    with tab(browser) as opened:
        opened.page.goto(f"{broker.url}/docs")
        expect(opened.page.locator(".opblock-post", has_text="/token").first).to_be_visible()
        opened.page.locator(".opblock-post [data-path='/token']").click()
        expect(opened.page.get_by_text("Mint just before you send")).to_be_visible()
        assert opened.origins == {broker.url}
        assert opened.complaints == []
