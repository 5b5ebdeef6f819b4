"""Core's own collectives over TCP: a hub thread in rank 0 adds up what every rank sends.

Every rank, rank 0 included, is a client of the hub. What crosses the wire is a fixed header and the raw
little-endian bytes of an array; nothing is executed on receipt. Meant for counts, small networks and
machines without a vendor's library, on a network that is trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnext_core.errors import BackendUnavailable, reason
from resnext_core.ranks.collectives import add_up, summand
from resnext_core.ranks.info import RankInfo

#: Seconds in which all ranks must have joined.
JOIN_TIMEOUT_S = 120.0
#: Seconds that one rank may be behind the others at a collective.
ROUND_TIMEOUT_S = 1800.0
#: Seconds without a sign of life from a peer's machine until it counts as lost; below the promised 30.
LOST_S = 20

_MAGIC = b"resnext1"
_HELLO = struct.Struct("<8s16sII")  # magic, digest of the job's name, rank, world
_HEADER = struct.Struct("<BBQ")  # kind, dtype, bytes of payload
_SUM, _BARRIER, _RESULT, _ABORT, _LEAVE = range(1, 6)
_NO_DTYPE = 0
_DTYPES = {1: "<i8", 2: "<f8", 3: "<f4"}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Frame:
    kind: int
    dtype: int = _NO_DTYPE
    payload: bytes | bytearray | memoryview = b""


class _LostRank(Exception):
    """A rank is gone; the message says which and how."""


class TcpCollectives:
    """The collectives of `rank` among ranks that meet at `host`:`port`, served by rank 0.

    A sum runs over ranks in order 0, 1, 2 …, so every rank gets the same bits every time. Not for several
    threads at once. A rank that dies makes every other raise BackendUnavailable naming it: at once when
    its process ends, within 30 s when its machine or network does.
    """

    def __init__(
        self,
        rank: RankInfo,
        host: str,
        port: int,
        *,
        job: str = "",
        join_timeout_s: float = JOIN_TIMEOUT_S,
        round_timeout_s: float = ROUND_TIMEOUT_S,
    ) -> None:
        """Join the group; returns when all ranks are there, raises BackendUnavailable when they are not."""
        deadline = time.monotonic() + join_timeout_s
        if rank.is_main:
            _Hub(_listen(host, port), rank.world, _job_digest(job), deadline, round_timeout_s).start()
        self._socket = _connect(host, port, deadline)
        self._arrivals = selectors.DefaultSelector()
        self._arrivals.register(self._socket, selectors.EVENT_READ)
        try:
            self._socket.sendall(_HELLO.pack(_MAGIC, _job_digest(job), rank.rank, rank.world))
            self.barrier()
        except BaseException:
            self._hang_up()
            raise

    def all_reduce_sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the sum of `values` over all ranks, see :class:`~resnext_core.ranks.collectives.Collectives`.

        Raises UsageError on what is no number, BackendUnavailable when a rank is lost or sends another shape.
        """
        own = summand(values)
        frame = _Frame(kind=_SUM, dtype=_CODES[own.dtype], payload=own.view(np.uint8).data)
        result = self._exchange(frame)
        return np.frombuffer(result.payload, dtype=own.dtype).reshape(values.shape)

    def barrier(self) -> None:
        """Return once every rank has called; raises BackendUnavailable when a rank is lost."""
        self._exchange(_Frame(kind=_BARRIER))

    def close(self) -> None:
        """Leave the group; a second call does nothing."""
        with contextlib.suppress(OSError):
            _send(self._socket, _Frame(kind=_LEAVE))
        self._hang_up()

    def _hang_up(self) -> None:
        self._arrivals.close()
        self._socket.close()

    def _exchange(self, frame: _Frame) -> _Frame:
        try:
            # What is already waiting can only be an abort; do not push a large array at a dead group.
            if not self._arrivals.select(0):
                _send(self._socket, frame)
            answer = _receive(self._socket)
        except (OSError, ValueError) as error:
            raise BackendUnavailable(
                f"lost rank 0, which connects the ranks ({error}); see its log"
            ) from error
        if answer.kind == _ABORT:
            raise BackendUnavailable(bytes(answer.payload).decode(errors="replace"))
        return answer


class _Hub(threading.Thread):
    """Adds up; lives in rank 0 until every rank has left or one is lost."""

    def __init__(
        self, listener: socket.socket, world: int, job: bytes, join_deadline: float, round_timeout_s: float
    ) -> None:
        super().__init__(name="resnext-collectives", daemon=True)
        self._listener, self._world, self._job = listener, world, job
        self._join_deadline, self._round_timeout_s = join_deadline, round_timeout_s
        self._peers: dict[int, socket.socket] = {}
        self._left: set[int] = set()
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        try:
            self._accept_all()
            while self._round():
                pass
        except _LostRank as lost:
            self._abort(str(lost))
        finally:
            self._selector.close()
            for peer in self._peers.values():
                peer.close()

    def _accept_all(self) -> None:
        with self._listener:
            while len(self._peers) < self._world:
                self._listener.settimeout(max(self._join_deadline - time.monotonic(), 0.001))
                try:
                    peer, _ = self._listener.accept()
                except OSError as error:
                    missing = [str(r) for r in range(self._world) if r not in self._peers]
                    raise _LostRank(f"rank {', '.join(missing)} did not join in time; see its log") from error
                rank = self._greet(peer)
                if rank is None:
                    peer.close()
                else:
                    self._peers[rank] = peer
                    self._selector.register(peer, selectors.EVENT_READ, rank)

    def _greet(self, peer: socket.socket) -> int | None:
        """Return the rank of a new connection, or None for a stranger, who is told so and sent away."""
        try:
            _prepare(peer)
            peer.settimeout(5)
            magic, job, rank, world = _HELLO.unpack(_read(peer, _HELLO.size))
            peer.settimeout(None)
            if (magic, job, world) == (_MAGIC, self._job, self._world) and rank < world:
                if rank not in self._peers:
                    return int(rank)
                problem = f"there is already a rank {rank}"
            else:
                problem = f"this is a group of {self._world} ranks of another job"
            _send(peer, _Frame(kind=_ABORT, payload=f"rank 0 refused this process: {problem}".encode()))
        except (OSError, ValueError):
            pass
        return None

    def _round(self) -> bool:
        """Serve one collective; False once every rank has left."""
        frames: dict[int, _Frame] = {}
        deadline = None
        while len(frames) < self._world:
            wait = None if deadline is None else max(deadline - time.monotonic(), 0)
            events = self._selector.select(wait)
            if not events:
                missing = [str(r) for r in range(self._world) if r not in frames]
                raise _LostRank(
                    f"rank {', '.join(missing)} kept the others waiting {self._round_timeout_s:g} s"
                )
            for key, _ in events:
                rank: int = key.data
                try:
                    frame = _receive(self._peers[rank])
                except (OSError, ValueError) as error:
                    raise _LostRank(f"rank {rank} was lost ({error}); see its log") from error
                if frame.kind == _LEAVE:
                    self._left.add(rank)
                    self._selector.unregister(self._peers[rank])
                else:
                    frames[rank] = frame
                    deadline = deadline or time.monotonic() + self._round_timeout_s
            if len(self._left) == self._world:
                return False
            if frames and self._left:
                raise _LostRank(f"rank {min(self._left)} left while the others went on; see its log")
        result = _add(frames)
        # Rank 0 last: it may end the process, and this thread with it, as soon as it has its answer.
        for rank in sorted(self._peers, reverse=True):
            try:
                _send(self._peers[rank], result)
            except OSError as error:
                raise _LostRank(f"rank {rank} was lost ({error}); see its log") from error
        return True

    def _abort(self, message: str) -> None:
        """Tell everyone, then read on until they hang up: closing on unread data could eat the message."""
        frame = _Frame(kind=_ABORT, payload=message.encode())
        for rank in sorted(self._peers, reverse=True):
            with contextlib.suppress(OSError):
                _send(self._peers[rank], frame)
        while self._selector.get_map():
            for key, _ in self._selector.select():
                peer = self._peers[key.data]
                try:
                    alive = bool(peer.recv(1 << 16))
                except OSError:
                    alive = False
                if not alive:
                    self._selector.unregister(peer)


def _add(frames: dict[int, _Frame]) -> _Frame:
    """Sum the frames of one collective in rank order; every rank must have called the same."""
    first = frames[0]
    for rank in range(1, len(frames)):
        other = frames[rank]
        if (other.kind, other.dtype, len(other.payload)) != (first.kind, first.dtype, len(first.payload)):
            raise _LostRank(f"rank {rank} and rank 0 called different collectives; a bug in the calling code")
    if first.kind == _BARRIER:
        return _Frame(kind=_RESULT)
    if first.dtype not in _DTYPES:
        raise _LostRank("rank 0 sent an unknown dtype; do all ranks run the same version?")
    dtype = np.dtype(_DTYPES[first.dtype])
    total = add_up([np.frombuffer(frames[rank].payload, dtype=dtype) for rank in range(len(frames))])
    return _Frame(kind=_RESULT, dtype=first.dtype, payload=total.tobytes())


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise BackendUnavailable(
            f"rank 0 cannot listen on {host}:{port}: {reason(error)}; set RESNEXT_MASTER"
        ) from error


def _connect(host: str, port: int, deadline: float) -> socket.socket:
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=5)
            _prepare(connection)
            return connection
        except OSError as error:
            if time.monotonic() > deadline:
                raise BackendUnavailable(
                    f"cannot reach rank 0 at {host}:{port}: {reason(error)}; see its log"
                ) from error
            time.sleep(0.05)


def _prepare(connection: socket.socket) -> None:
    """No delay for small messages, patience with slow ranks, and a quick word when a machine is gone."""
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", LOST_S // 2),
        ("TCP_KEEPINTVL", LOST_S // 4),
        ("TCP_KEEPCNT", 2),
        ("TCP_USER_TIMEOUT", LOST_S * 1000),
    ):
        if hasattr(socket, name):  # not every system has each of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(connection: socket.socket, frame: _Frame) -> None:
    connection.sendall(_HEADER.pack(frame.kind, frame.dtype, len(frame.payload)))
    if frame.payload:
        connection.sendall(frame.payload)


def _receive(connection: socket.socket) -> _Frame:
    """Read one frame; OSError when the connection broke, ValueError when it is not our protocol."""
    kind, dtype, length = _HEADER.unpack(_read(connection, _HEADER.size))
    if not _SUM <= kind <= _LEAVE:
        raise ValueError("not a message of resnext")
    return _Frame(kind=kind, dtype=dtype, payload=_read(connection, length))


def _read(connection: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view, done = memoryview(data), 0
    while done < length:
        count = connection.recv_into(view[done:])
        if count == 0:
            raise ConnectionError("connection closed")
        done += count
    return data


def _job_digest(job: str) -> bytes:
    return hashlib.blake2b(job.encode(), digest_size=16).digest()
