"""What a request begins with, from a URL and headers as a user wrote them; and forms."""

from __future__ import annotations

import pytest

from infermesh.transports.http.form import form
from infermesh.transports.http.message import Origin, head, origin_of
from infermesh.types import Audio


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://gpu-0:8000/v1", Origin(False, "gpu-0", 8000)),
        ("http://GPU_0/v1", Origin(False, "gpu_0", 80)),
        ("https://api.example.com/v1", Origin(True, "api.example.com", 443)),
        ("https://[::1]:8443/v1?api-version=1", Origin(True, "::1", 8443)),
        ("https://user:secret@gpu-0/v1", Origin(True, "gpu-0", 443)),
        ("https://bücher.example/v1", Origin(True, "xn--bcher-kva.example", 443)),
    ],
)
def test_where_requests_go(url: str, expected: Origin) -> None:
    assert origin_of(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        *("http://gpu-0:port/v1", "http://gpu-0:99999/v1", "http://:8000/v1", "http://[::1/v1", "ftp://gpu-0/v1"),
        *("http://[fe80::1%eth0]:8000/v1", "http://gpu 0/v1", "http://ü..x/v1"),
    ],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match="no URL that can be asked"):
        origin_of(url.replace("//", "//me:hunter2@"))


def lines(url: str, headers: dict[str, str] | None = None, forwarded: bool = False) -> list[str]:
    return head(url, headers or {}, forwarded=forwarded).decode().split("\r\n")


def test_a_head() -> None:
    assert lines("http://gpu-0:8000/v1/x?a=b%20c", {"Accept": "a/b", "x-team": "blue ü\t1"}) == [
        "POST /v1/x?a=b%20c HTTP/1.1",
        "host: gpu-0:8000",
        "accept: a/b",
        "x-team: blue ü\t1",
        "content-length: ",
    ]
    assert lines("https://gpu-0", {"Host": "other"})[:2] == ["POST / HTTP/1.1", "host: other"]


def test_what_is_not_ascii_in_a_url() -> None:
    assert lines("https://bücher.example:8443/ü b?x=ä y#part")[:2] == [
        "POST /%C3%BC%20b?x=%C3%A4%20y HTTP/1.1",
        "host: xn--bcher-kva.example:8443",
    ]


def test_a_user_and_a_password_in_a_url() -> None:
    """They are sent as such, unless there is a key."""
    url = "http://me:a%3Ab%40c@gpu-0/v1"
    assert lines(url)[1:3] == ["host: gpu-0", "authorization: Basic bWU6YTpiQGM="]
    assert lines(url, {"authorization": "Bearer k"})[1:3] == ["host: gpu-0", "authorization: Bearer k"]
    assert lines(url, forwarded=True)[0] == "POST http://gpu-0/v1 HTTP/1.1"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("x-team", "blue\r\nx: y", "the header 'x-team' is not text on one line"),
        ("x-team", "blue\0", "the header 'x-team' is not text on one line"),
        ("authorization", "Bearer sk-1\n", "the key, or the header 'authorization', is not text on one line"),
        ("x team", "blue", "the header 'x team' cannot be set"),
        ("Content-Length", "7", "the header 'content-length' cannot be set"),
        ("transfer-encoding", "chunked", "the header 'transfer-encoding' cannot be set"),
    ],
)
def test_headers_that_cannot_be_sent(name: str, value: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^the ") as caught:
        head("http://gpu-0/v1", {name: value})
    assert str(caught.value) == said


def test_a_form() -> None:
    made = form({"model": ["m"], "granularities[]": ["a", "b"]}, Audio(b"RIFF", 'a "b"\r\nü.wav'))
    kind, _, boundary = made.content_type.partition("; boundary=")
    assert kind == "multipart/form-data"
    parts = b"".join(made.pieces).split(f"--{boundary}\r\n".encode())
    assert parts[0] == b""
    assert parts[1] == b'content-disposition: form-data; name="model"\r\n\r\nm\r\n'
    assert [part.rpartition(b"\r\n\r\n")[2] for part in parts[2:4]] == [b"a\r\n", b"b\r\n"]
    disposition, kind, _, *rest = parts[4].decode().split("\r\n")
    assert disposition == 'content-disposition: form-data; name="file"; filename="a %22b%22%0D%0Aü.wav"'
    assert kind.startswith("content-type: audio/")
    assert rest == ["RIFF", f"--{boundary}--", ""]
    assert b"content-type: application/octet-stream" in form({}, Audio(b"", "clip")).pieces[0]
