"""Clients that mean no good: slow, silent, many, malformed, and large; the service answers others meanwhile."""

from __future__ import annotations

import json
import socket
import struct
import zlib
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from resnext_serve.errors import Refused
from resnext_serve.protocol import parse_infer
from serve_cases import SIZE, Running, photo, running


def dial(service: Running, sent: bytes = b"") -> socket.socket:
    found = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    found.sendall(sent)
    return found


def rest(connection: socket.socket) -> bytes:
    """Return what the service still sends before it closes."""
    found = b""
    try:
        while block := connection.recv(65536):
            found += block
    except ConnectionResetError:
        pass
    return found


def test_a_header_that_never_ends_is_cut_off(model: Path) -> None:
    with running({"resnext": model}, idle=0.3) as service:
        for sent in (b"", b"GET", b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-Slow: "):
            with closing(dial(service, sent)) as connection:
                assert rest(connection).startswith(b"HTTP/1.1 408"), sent
        assert service.get("/v2").status_code == 200


def test_a_slow_second_header_is_cut_off(model: Path) -> None:
    with running({"resnext": model}, idle=0.3) as service:
        with closing(dial(service, b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")) as connection:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            connection.sendall(b"GET /v2")
            assert rest(connection).endswith(
                b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
        with closing(dial(service, b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\nGET /v2")) as connection:
            assert rest(connection).count(b"HTTP/1.1 200") == 1  # and then it closes


def test_a_header_within_its_time_is_answered_piece_by_piece(model: Path) -> None:
    with running({"resnext": model}, idle=30) as service, closing(dial(service)) as connection:
        for byte in b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n":
            connection.sendall(bytes([byte]))
        assert rest(connection).startswith(b"HTTP/1.1 200")


def test_a_body_that_never_comes_is_cut_off(model: Path) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc"
    with running({"resnext": model}, timeout=0.3) as service:
        with closing(dial(service, head)) as connection:
            assert connection.recv(65536).startswith(b"HTTP/1.1 408")
        assert service.get("/v2").status_code == 200


def test_a_client_that_goes_away_is_forgotten(model: Path) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc"
    with running({"resnext": model}) as service:
        for _ in range(20):
            dial(service, head).close()
        assert service.post("/predict", photo()).status_code == 200


@pytest.mark.parametrize("length", [b"-1", b"9" * 30, b"x", b"1, 2"])
def test_a_length_that_is_none(service: Running, length: bytes) -> None:
    head = (
        b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: " + length + b"\r\n\r\n"
    )
    with closing(dial(service, head)) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert rest(connection)[9:12] in (b"400", b"413", b"")
    assert service.get("/v2").status_code == 200


def test_idle_connections_up_to_the_limit_and_beyond(model: Path) -> None:
    with running({"resnext": model}, connections=60, idle=60) as service, ExitStack() as stack:
        for _ in range(55):
            stack.enter_context(closing(dial(service)))
        assert service.get("/v2").status_code == 200
        for _ in range(20):
            stack.enter_context(closing(dial(service)))
        refused = dial(service, b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        stack.enter_context(closing(refused))
        assert rest(refused).startswith(b"HTTP/1.1 503")


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few kilobytes that states (width, height)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def test_bombs_are_refused_before_a_pixel_is_decoded(service: Running) -> None:
    before = psutil.Process().memory_info().rss
    for sides in ((50_000, 50_000), (2**31 - 1, 1), (10_000, 10_000)):
        answer = service.post("/predict", bomb(*sides))
        assert answer.status_code == 422
        assert "is more than" in answer.json()["error"] or "broken" in answer.json()["error"]
    assert psutil.Process().memory_info().rss - before < 100e6


def test_paths_name_nothing(service: Running) -> None:
    for path in (
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page/index.html",
        "//etc/passwd",
        "/v2/models/..%2f..",
        "/page.css/../app.py",
    ):
        head = (
            f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )  # as it is: clients tidy paths
        with closing(dial(service, head)) as connection:
            answer = rest(connection)
        assert answer.startswith(b"HTTP/1.1 404"), path
        assert b"root:" not in answer


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
inputs = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["images", "x"]) | json_values,
        "shape": st.lists(st.integers(-1, 70), max_size=5) | json_values,
        "datatype": st.sampled_from(["UINT8", "BYTES", "FP32"]) | json_values,
        "data": st.lists(st.integers(-1, 256) | st.text(max_size=4), max_size=6) | json_values,
        "parameters": st.fixed_dictionaries(
            {}, optional={"binary_data_size": st.integers(-1, 40) | json_values}
        )
        | json_values,
    },
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(inputs, max_size=2) | json_values},
    optional={
        "id": json_values,
        "parameters": json_values,
        "outputs": st.lists(json_values, max_size=3) | json_values,
    },
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    document=requests | json_values,
    tail=st.binary(max_size=40),
    with_length=st.booleans(),
    wrong=st.integers(-3, 3),
)
def test_no_request_is_anything_but_parsed_or_refused(
    document: Any, tail: bytes, with_length: bool, wrong: int
) -> None:
    head = json.dumps(document).encode()
    length = str(len(head) + wrong) if with_length else None
    try:
        found = parse_infer(head + (tail if with_length else b""), length, size=SIZE, most_images=64)
    except Refused as error:
        refused = error
    else:
        assert found.pixels is not None or found.files
        return
    assert refused.status == 400
    assert "\n" not in refused.message


@pytest.mark.slow
def test_memory_does_not_grow_over_twenty_thousand_requests(model: Path) -> None:
    process = psutil.Process()
    with running({"resnext": model}) as service:
        bodies = [photo(1), photo(2, kind="PNG"), b"text", bomb(20_000, 20_000)]
        sizes = []
        for round_ in range(10):
            for number in range(2000):
                service.post("/predict", bodies[number % len(bodies)])
            sizes.append(process.memory_info().rss)
            print(f"{2000 * (round_ + 1)} requests: {sizes[-1] / 1e6:.1f} MB")
        assert sizes[-1] - sizes[2] < 10e6
