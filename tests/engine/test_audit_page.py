# SPDX-License-Identifier: Apache-2.0
"""The audit page in a real browser, and its server under requests that no page of ours makes."""

import contextlib
import dataclasses
import http.client
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from florence2_jax.engine import audit
from florence2_jax.engine.auditing.desk import only_server
from florence2_jax.engine.auditing.server import MAX_BODY, AuditServer
from florence2_jax.engine.auditing.verdicts import VerdictLog
from florence2_jax.records.schema import (
    Grounding,
    Label,
    Question,
    Record,
    Region,
    Span,
    Text,
)
from florence2_jax.typing import UserError
from tests.engine.audit_workdir import NUM_FROZEN, frozen_workdir, region, said
from tests.viewing.browser import Tab, browser, program

ATTACKS = (
    "<img src=x onerror=window.attacked=1>",
    "</script><script>window.attacked=1</script>",
    "<svg/onload=window.attacked=1>",
    "\u202e{{constructor.constructor('window.attacked=1')()}}",
)


def hostile(record: Record) -> Record:
    word = Region(box=(4, 40, 60, 60), labels=(Label(text=ATTACKS[1], kind="text"),))
    return dataclasses.replace(
        record,
        texts=(Text(text=ATTACKS[0]),),
        regions=(region(ATTACKS[2]), word),
        groundings=(
            Grounding(
                text=f"\U0001f431 {ATTACKS[0]}!",
                spans=(Span(start=2, end=2 + len(ATTACKS[0]), boxes=((1, 1, 9, 9),)),),
            ),
        ),
        questions=(Question(question=ATTACKS[3], answers=(ATTACKS[1],)),),
    )


@contextlib.contextmanager
def serving(workdir: Path) -> Iterator[AuditServer]:
    with AuditServer(workdir) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: AuditServer, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Status and answer of a POST as the page makes it; headers given as None are left out."""
    port = server.server_address[1]
    sent: dict[str, Any] = {"Content-Type": "application/json", "X-Audit-Token": server.token}
    sent |= {"Host": f"127.0.0.1:{port}"} | headers
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.putrequest("POST", path, skip_host=True, skip_accept_encoding=True)
        for name, value in ({"Content-Length": str(len(data))} | sent).items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(data if len(data) <= MAX_BODY else None)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.fixture
def workdir(tmp_path) -> Path:
    return frozen_workdir(tmp_path)


# Without a browser.


def test_every_request_needs_the_token(workdir):
    with serving(workdir) as server:
        for path in ("/api/next", "/api/image", "/api/verdict", "/api/keep", "/api/skip"):
            for token in (None, "", "wrong", server.token[:-1], server.token + "x", "ÿ"):
                status, answer = ask(server, path, {"session": "s"}, **{"X-Audit-Token": token})
                assert status == 403 and "token" in answer["error"]
        assert ask(server, "/api/next", {"session": "s"})[0] == 200


def test_other_sites_in_the_same_browser_are_refused(workdir):
    with serving(workdir) as server:
        port = server.server_address[1]
        for headers in (
            {"Host": f"evil.example:{port}"},
            {"Host": "127.0.0.1:1"},
            {"Host": None},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": f"https://127.0.0.1:{port}"},
        ):
            assert ask(server, "/api/next", {"session": "s"}, **headers)[0] == 403, headers
        own = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}
        assert ask(server, "/api/next", {"session": "s"}, **own)[0] == 200


def test_requests_out_of_bounds_are_refused_and_nothing_is_written(workdir):
    with serving(workdir) as server:
        asked = ask(server, "/api/next", {"session": "s"})[1]["asked"]
        right = {"session": "s", "who": "Ada", "ruling": "accept"}
        right |= {"id": asked["id"], "key": asked["key"]}
        fix = right | {"ruling": "correct"}
        wrong = [
            (b"[" * 30_000, 400), (b"\xff{}", 400), ([1], 400), (None, 400), (b"x" * 70_000, 413),
            (right | {"id": "no"}, 400), (right | {"key": ["k"]}, 400), (right | {"who": " "}, 400),
            (right | {"who": "x" * 81}, 400), (right | {"ruling": "maybe"}, 400),
            (right | {"ruling": None}, 400), (fix, 400), (fix | {"text": "x" * 4001}, 400),
            (fix | {"text": "\x00"}, 400), (fix | {"text": 7}, 400), (fix | {"box": [1, 2]}, 400),
            (fix | {"box": [1, 2, float("nan"), 4]}, 400), (fix | {"box": [9, 9, 9, 20]}, 400),
            (fix | {"box": [70, 1, 90, 9]}, 400),
        ]  # fmt: skip
        for body, status in wrong:
            got, answer = ask(server, "/api/verdict", body)
            assert got == status and answer["error"], (str(body)[:99], got)
        assert ask(server, "/api/verdict", right, **{"Content-Type": "text/plain"})[0] == 415
        assert ask(server, "/api/other", {})[0] == 404
        assert ask(server, "/api/image", {"id": "../store.json"})[0] == 400
        assert not VerdictLog(workdir).path.exists()
        assert ask(server, "/api/verdict", right)[0] == 200
    assert [one.who for one in VerdictLog(workdir).read()] == ["Ada"]


def test_the_page_may_run_its_own_script_alone(workdir):
    with serving(workdir) as server:
        address = server.url.partition("/#")[0]
        for path, kind in (("/", "html"), ("/audit.js", "javascript"), ("/audit.css", "css")):
            with urllib.request.urlopen(f"{address}{path}", timeout=30) as answer:
                text, headers = answer.read().decode(), answer.headers
            assert kind in headers["Content-Type"]
            policy = headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
            assert server.token not in text
        with pytest.raises(urllib.error.HTTPError, match="404") as error:
            urllib.request.urlopen(f"{address}/../audit/frozen.json", timeout=30)
        error.value.close()


def test_many_people_at_once_lose_no_verdict_and_share_no_statement(tmp_path):
    workdir = frozen_workdir(tmp_path, count=40)
    audit.write_predictions(workdir, 1, said(workdir, *(region(f"a{k}") for k in range(15))))
    judged: list[tuple[str, str]] = []
    lock = threading.Lock()

    def work(server: AuditServer, name: str) -> None:
        while True:
            asked = ask(server, "/api/next", {"session": name})[1]["asked"]
            if asked is None:
                return
            place = {"id": asked["id"], "key": asked["key"]}
            body = place | {"session": name, "who": name, "ruling": "accept"}
            assert ask(server, "/api/verdict", body)[0] == 200
            with lock:
                judged.append((place["id"], place["key"]))

    with serving(workdir) as server:
        total = len(server.desk.queue)
        people = [threading.Thread(target=work, args=(server, f"p{k}")) for k in range(6)]
        for person in people:
            person.start()
        for person in people:
            person.join()
    assert total == NUM_FROZEN * 17 and len(judged) == len(set(judged)) == total
    verdicts = VerdictLog(workdir).read()
    assert {(one.item.id, one.item.key) for one in verdicts} == set(judged)
    assert len(verdicts) == total


def test_one_server_per_workdir(workdir):
    with (
        only_server(workdir),
        pytest.raises(UserError, match="another process serves"),
        only_server(workdir),
    ):
        pass
    with serving(workdir) as server:
        port = server.server_address[1]
        with pytest.raises(UserError, match=f"--port {port}: cannot listen"):
            AuditServer(workdir, port=port)


# In a browser.

needs_browser = pytest.mark.skipif(program() is None, reason="no Chromium to look with")
IDLE = "!document.body.classList.contains('busy')"


@pytest.fixture(scope="module")
def tabs() -> Iterator[tuple[Tab, Tab]]:
    with browser() as one, browser() as other:
        yield one, other


def begin(tab: Tab, server: AuditServer, who: str) -> None:
    tab.complaints.clear()
    tab.look(1200, 860)
    tab.call("Page.navigate", url="about:blank")
    tab.call("Page.navigate", url=server.url)
    tab.until("document.readyState === 'complete' && location.protocol === 'http:'")
    tab.value(f"document.getElementById('who').value = {json.dumps(who)}")
    tab.value("document.querySelector('#hello button').click()")
    tab.until(f"{IDLE} && document.getElementById('hello').hidden")


def shown(tab: Tab, element: str) -> str:
    return tab.value(f"document.getElementById('{element}').textContent")


def press(tab: Tab, *keys: str) -> None:
    for key in keys:
        tab.press(key)
        tab.until(IDLE)


def arrow(tab: Tab, key: str) -> None:
    tab.value(f"document.body.dispatchEvent(new KeyboardEvent('keydown', "
              f"{{key: '{key}', bubbles: true, cancelable: true}}))")  # fmt: skip
    tab.until(IDLE)


@needs_browser
def test_hostile_text_is_shown_as_text(tabs, tmp_path):
    workdir = frozen_workdir(tmp_path, change=hostile)
    tab, _ = tabs
    seen = set()
    with serving(workdir) as server:
        begin(tab, server, ATTACKS[0])
        for _ in range(len(server.desk.queue)):
            seen.add(shown(tab, "claim"))
            assert tab.value("document.querySelectorAll('main script, main img').length") == 1
            press(tab, "a")
        tab.until("!document.getElementById('nothing').hidden")
    question = f"{ATTACKS[3]}\n{ATTACKS[1]}"
    assert seen == {*ATTACKS[:3], f"\U0001f431 {ATTACKS[0]}!", question}
    assert tab.value("window.attacked === undefined")
    assert tab.complaints == []
    verdicts = VerdictLog(workdir).read()
    assert len(verdicts) == NUM_FROZEN * 5 and {one.who for one in verdicts} == {ATTACKS[0]}


@needs_browser
def test_everything_can_be_done_with_the_keyboard(tabs, workdir):
    tab, _ = tabs
    with serving(workdir) as server:
        begin(tab, server, "Ada")
        first = shown(tab, "place"), shown(tab, "claim")
        arrow(tab, "ArrowRight")
        assert (shown(tab, "place"), shown(tab, "claim")) != first
        press(tab, "r")
        arrow(tab, "ArrowLeft")
        assert "Ada rejected it" in shown(tab, "before")
        press(tab, "a")  # The other way, after all.
        press(tab, "?")
        tab.until("document.getElementById('help').open")
        press(tab, "a", "Escape")  # Keys do nothing behind the help.
        while tab.value("document.getElementById('claim').textContent !== 'cat'"):
            press(tab, "a")
        press(tab, "c")
        tab.value("document.getElementById('text').value = 'dog'")
        for name, value in (("x0", 10), ("y1", 33.5)):
            tab.value(f"document.getElementById('{name}').value = {value}")
            tab.value(f"document.getElementById('{name}').dispatchEvent(new Event('input'))")
        count = shown(tab, "count")
        tab.press("Enter")
        tab.until(f"{IDLE} && document.getElementById('count').textContent !== '{count}'")
        press(tab, "c", "Escape")
        assert tab.value("document.getElementById('editor').hidden")
    verdicts = VerdictLog(workdir).read()
    assert [one.ruling for one in verdicts[:2]] == ["reject", "accept"]
    assert verdicts[0].item == verdicts[1].item
    assert verdicts[-1].text == "dog" and verdicts[-1].box == (10, 8, 40, 33.5)
    assert tab.complaints == []


@needs_browser
def test_a_box_is_corrected_by_dragging(tabs, tmp_path):
    def one_box(record: Record) -> Record:
        return dataclasses.replace(record, texts=())

    workdir = frozen_workdir(tmp_path, change=one_box)
    tab, _ = tabs

    def drag(start: tuple[float, float], end: tuple[float, float]) -> None:
        frame = tab.value(
            "(r => [r.left, r.top, r.width])(document.getElementById('shapes')"
            ".getBoundingClientRect())"
        )
        for kind, (x, y) in (("Pressed", start), ("Moved", end), ("Released", end)):
            at = dict(x=frame[0] + x * frame[2] / 64, y=frame[1] + y * frame[2] / 64)
            button = dict(button="left", clickCount=1, buttons=int(kind != "Released"))
            tab.call("Input.dispatchMouseEvent", type=f"mouse{kind}", **at, **button)

    with serving(workdir) as server:
        begin(tab, server, "Ada")
        for moves in (
            [((40, 40), (50, 44))],  # The corner.
            [((20, 20), (24, 21))],  # The whole box.
            [((60, 60), (44, 50))],  # A new one.
        ):
            press(tab, "c")
            for move in moves:
                drag(*move)
            tab.value("document.querySelector('#editor button').click()")
            tab.until(f"{IDLE} && document.getElementById('editor').hidden")
    boxes = [one.box for one in VerdictLog(workdir).read()]
    expected = [(8, 8, 50, 44), (12, 9, 44, 41), (44, 50, 60, 60)]
    for box, wanted in zip(boxes, expected, strict=True):
        assert box == pytest.approx(wanted, abs=0.2)  # The mouse is on whole pixels of the screen.
    assert tab.complaints == []


@needs_browser
def test_two_browsers_share_the_work(tabs, workdir):
    with serving(workdir) as server:
        total = len(server.desk.queue)
        for tab, who in zip(tabs, ("Ada", "Bob"), strict=True):
            begin(tab, server, who)
        for _ in range(total // 2):
            places = {(shown(tab, "place"), shown(tab, "claim")) for tab in tabs}
            assert len(places) == 2
            for tab in tabs:
                press(tab, "a")
        for tab in tabs:
            assert shown(tab, "count").endswith(f"of {total} judged")
            assert tab.value("!document.getElementById('nothing').hidden")
            assert tab.complaints == []
    verdicts = VerdictLog(workdir).read()
    assert len({(one.item.id, one.item.key) for one in verdicts}) == len(verdicts) == total
    assert {one.who for one in verdicts} == {"Ada", "Bob"}


@needs_browser
def test_a_verdict_is_not_lost_when_the_server_is_gone(tabs, workdir):
    tab, _ = tabs
    with serving(workdir) as server:
        begin(tab, server, "Ada")
        claim = shown(tab, "place"), shown(tab, "claim")
        port, token = server.server_address[1], server.token
    press(tab, "a")
    assert "does not answer" in shown(tab, "message")
    assert (shown(tab, "place"), shown(tab, "claim")) == claim
    with AuditServer(workdir, port=port) as server:
        server.token = token
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        press(tab, "a")
        server.shutdown()
        thread.join()
    assert len(VerdictLog(workdir).read()) == 1
