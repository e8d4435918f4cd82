"""Who may ask the app of `infermesh view`: a token, the right host, the right site; and what its pages may do."""

from __future__ import annotations

import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.error import HTTPError

import pytest

from infermesh.cli.view import opened
from infermesh.pages.app.access import Access, is_loopback
from tests.pages.serving import Served, served
from tests.support import COMMAND_S, command, environment, here


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    outputs = tmp_path_factory.mktemp("outputs")
    (outputs / "secret").write_text("not for anybody")
    with served(outputs) as found:
        yield found


def test_without_the_token_nothing_is_shown(app: Served) -> None:
    for path in ("/", "/overview/x", "/api/sql/x", "/events/x", "/nothing"):
        reply = app.ask(path, trusted=False)
        assert reply.status == 401
        assert "infermesh view" in reply.text
    assert app.ask("/?token=wrong", trusted=False).status == 401
    assert app.ask("/?token=", trusted=False).status == 401
    assert app.ask("/", trusted=False, Cookie=f"{app.access.cookie}={app.access.token}").status == 401


def test_the_token_is_traded_for_a_cookie_and_leaves_the_address(app: Served) -> None:
    reply = app.ask(f"/?q=x&token={app.access.token}", trusted=False)
    assert reply.status == 303
    assert reply.headers["Location"] == "/?q=x"
    (cookie,) = SimpleCookie(reply.headers["Set-Cookie"]).values()
    assert cookie.key == f"infermesh-{app.access.port}"
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Lax", "/")
    assert app.access.token not in reply.headers["Set-Cookie"]
    assert app.ask("/", trusted=False, Cookie=f"{cookie.key}={cookie.value}").status == 200


def test_the_trade_leads_nowhere_else(app: Served) -> None:
    reply = app.ask(f"//example.org/?token={app.access.token}", trusted=False)
    assert reply.headers["Location"] == "/example.org/"


def test_a_script_sends_the_token(app: Served) -> None:
    assert app.ask("/", trusted=False, Authorization=f"Bearer {app.access.token}").status == 200
    assert app.ask("/", trusted=False, Authorization=f"Basic {app.access.token}").status == 401


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1.example.org", "", "127.0.0.1", "127.0.0.1:1", "[::1]"])
def test_a_name_that_was_rebound_is_refused(app: Served, host: str) -> None:
    port = app.access.port
    for name in (host, f"{host}:{port}") if host == "example.org" else (host,):
        assert app.ask("/", Host=name).status == 403


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]"])
def test_the_machines_own_names_are_answered(app: Served, name: str) -> None:
    assert app.ask("/", Host=f"{name}:{app.access.port}").status == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_may_lead_here_and_ask_nothing(app: Served, site: str) -> None:
    assert app.ask("/", Sec_Fetch_Site=site).status == 200  # a link that is followed
    for path in ("/api/overview/x", "/api/export/x?sql=select+1", "/api/row/0/x", "/events/x"):
        assert app.ask(path, Sec_Fetch_Site=site).status == 403
        assert app.ask(path, Sec_Fetch_Site="same-origin").status == 404
    assert app.ask("/api/sql/x", "POST", b"{}", Sec_Fetch_Site=site).status == 403
    assert app.ask("/api/sql/x", "POST", b"{}", Origin="http://127.0.0.1:1").status == 403
    assert app.ask("/api/sql/x", "POST", b"{}", Origin=f"http://{app.host}").status == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(app: Served, method: str) -> None:
    assert app.ask("/", method).status == 405


def test_each_page_has_a_policy_of_its_own(app: Served) -> None:
    nonces = set()
    for _ in range(2):
        reply = app.get("/")
        policy = reply.headers["Content-Security-Policy"]
        (nonce,) = set(re.findall(r"'nonce-([\w-]+)'", policy))
        nonces.add(nonce)
        assert policy.startswith("default-src 'none'; script-src 'nonce-")
        assert "unsafe" not in policy
        assert {"base-uri 'none'", "frame-ancestors 'none'", "form-action 'self'"} <= set(policy.split("; "))
        loaded = [at for tag, at in reply.read.elements if (tag == "script" and "src" in at) or tag == "link"]
        assert {at.get("nonce", nonce) for at in loaded} == {nonce}
        assert not [at for tag, at in reply.read.elements if "style" in at or any(name[:2] == "on" for name in at)]
    assert len(nonces) == 2
    for path in ("/", "/overview/nothing"):
        headers = app.get(path).headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_nothing_outside_of_outputs_is_shown(app: Served) -> None:
    for path in ("/static/../access.py", "/static/page.html.jinja", "/overview/../secret", "/overview/%2e%2e/secret"):
        assert app.get(path).status == 404
    for path in ("/overview/secret", "/overview//etc", "/sweep/..", "/overview/%00", "/overview/a%2f..%2fsecret"):
        assert app.get(path).status == 404
    files = {at.get("src") or at.get("href") for tag, at in app.get("/").read.elements if tag in ("script", "link")}
    for file in files - {None, "data:,"}:
        reply = app.ask(str(file), trusted=False)
        assert reply.status == 200
        assert "immutable" in reply.headers["Cache-Control"]


def test_an_address_that_others_reach_has_to_be_allowed(tmp_path: Path) -> None:
    refused = here("view", "--host", "0.0.0.0", "--no-open", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--allow-remote" in refused.stderr
    assert "ssh -L" in refused.stderr
    assert here("view", "--no-open", cwd=tmp_path).returncode == 1  # there is no outputs/
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "x")] == [
        *[True] * 3,
        *[False] * 3,
    ]


def test_what_is_named_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("outputs/lab/one", "outputs/sweep/0", "elsewhere/two"):
        Path(name).mkdir(parents=True)
        (Path(name) / "run.duckdb").touch()
    Path("outputs/sweep/multirun.yaml").touch()
    outputs = Path("outputs")
    assert opened(None, outputs) == ("/", outputs)
    assert opened("outputs/lab/one", outputs) == ("/overview/lab/one", outputs)
    assert opened("outputs/sweep", outputs) == ("/sweep/sweep", outputs)
    assert opened("outputs/lab", outputs) == ("/?q=lab", outputs)
    assert opened("elsewhere/two", outputs) == ("/overview/two", Path("elsewhere"))


def test_an_app_for_others_answers_to_addresses_and_its_own_name() -> None:
    everywhere = Access("0.0.0.0", 80)
    assert everywhere.answers_to("10.1.2.3:80")
    assert everywhere.answers_to("[fe80::1]:80")
    assert not everywhere.answers_to("example.org:80")
    assert Access("10.1.2.3", 80).answers_to("10.1.2.3:80")
    assert not Access("10.1.2.3", 80).answers_to("10.9.9.9:80")


def test_the_command_prints_an_address_that_works_and_ends_at_a_signal(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    with subprocess.Popen(
        command("view", "--no-open"), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            with urllib.request.build_opener(urllib.request.HTTPCookieProcessor()).open(address, timeout=20) as page:
                assert "token" not in page.url
                assert b"There is no run yet" in page.read()
            with pytest.raises(HTTPError, match="401"):
                urllib.request.urlopen(address.partition("?")[0], timeout=20)
            process.send_signal(signal.SIGINT)
            assert process.wait(COMMAND_S) == 0
        finally:
            process.kill()
