"""Clients that cost almost nothing, so that what is measured is the daemon: plain sockets, prepared bytes."""

import selectors
import socket
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Address = int | Path
Microseconds = np.ndarray[Any, np.dtype[Any]]


def connect(address: Address) -> socket.socket:
    """Connect to a TCP port of this machine or to a Unix socket."""
    if isinstance(address, Path):
        found = socket.socket(socket.AF_UNIX)
        found.connect(str(address))
        return found
    found = socket.create_connection(("127.0.0.1", address))
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


class Wire:
    """One keep-alive HTTP/1.1 connection over a plain socket."""

    def __init__(self, address: Address, kind: str = "application/json") -> None:
        self.socket = connect(address)
        self._kind = kind

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Send one request and return status and body of its answer."""
        self.send(path, body)
        return self.receive()

    def send(self, path: str, body: bytes) -> None:
        """Send one request."""
        head = f"POST {path} HTTP/1.1\r\nHost: b\r\nContent-Type: {self._kind}\r\nContent-Length: {len(body)}"
        self.socket.sendall(head.encode() + b"\r\n\r\n" + body)

    def receive(self) -> tuple[int, bytes]:
        """Return status and body of the next answer."""
        data = self.socket.recv(65536)
        while b"\r\n\r\n" not in data:
            data += self.socket.recv(65536)
        head_bytes, _, rest = data.partition(b"\r\n\r\n")
        length = int(head_bytes.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(rest) < length:
            rest += self.socket.recv(65536)
        return int(head_bytes.split(b" ")[1]), rest


def latencies_us(wire: Wire, path: str, bodies: Sequence[bytes]) -> Microseconds:
    """Return the latency in microseconds of each request, one after the other; every one must succeed."""
    found = np.zeros(len(bodies))
    for number, data in enumerate(bodies):
        begun_ns = time.perf_counter_ns()
        status, answer = wire.post(path, data)
        found[number] = (time.perf_counter_ns() - begun_ns) / 1e3
        if status != 200:
            raise RuntimeError(f"{path} -> {status}: {answer.decode()}")
    return found


def requests_per_s(address: Address, paths: Sequence[str], body: Callable[[int], bytes], count: int) -> float:
    """Return the rate of `count` requests on each path, a connection a path, one request in flight on each."""
    wires = [Wire(address) for _ in paths]
    bodies = [body(number) for number in range(count)]
    sent = [1] * len(wires)
    with selectors.DefaultSelector() as selector:
        for place, wire in enumerate(wires):
            selector.register(wire.socket, selectors.EVENT_READ, place)
        begun_s = time.perf_counter()
        for wire, path in zip(wires, paths, strict=True):
            wire.send(path, bodies[0])
        left = count * len(wires)
        while left:
            for key, _ in selector.select():
                place = key.data
                status, answer = wires[place].receive()
                if status != 200:
                    raise RuntimeError(f"{paths[place]} -> {status}: {answer.decode()}")
                left -= 1
                if sent[place] < count:
                    wires[place].send(paths[place], bodies[sent[place]])
                    sent[place] += 1
        return count * len(wires) / (time.perf_counter() - begun_s)


class StreamWire:
    """One WebSocket connection (RFC 6455) whose frames are prepared beforehand."""

    def __init__(self, address: Address, path: str) -> None:
        self.socket = connect(address)
        head = f"GET {path} HTTP/1.1\r\nHost: b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        head += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        self.socket.sendall(head.encode())
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.socket.recv(1)
        if not data.startswith(b"HTTP/1.1 101"):
            raise RuntimeError(data.decode())
        self._rest = b""

    @staticmethod
    def frame(body: bytes, *, binary: bool) -> bytes:
        """Return one masked frame; a mask of zeros costs the server what any other does, and us nothing."""
        length = (
            struct.pack("!BH", 0x80 | 126, len(body)) if len(body) < 65536 else struct.pack("!BQ", 255, len(body))
        )
        return bytes([0x82 if binary else 0x81]) + length + bytes(4) + body

    def messages(self) -> list[bytes]:
        """Wait for data and return the messages that are complete."""
        self._rest += self.socket.recv(262144)
        found: list[bytes] = []
        while len(self._rest) >= 2:
            length, start = self._rest[1] & 127, 2
            if length == 126:
                length, start = struct.unpack_from("!H", self._rest, 2)[0], 4
            if len(self._rest) < start + length:
                break
            if self._rest[0] & 15 == 8:
                raise RuntimeError(f"closed: {self._rest[start : start + length]!r}, after {found}")
            found.append(self._rest[start : start + length])
            self._rest = self._rest[start + length :]
        return found

    def messages_per_s(self, frames: Sequence[bytes], acknowledged: Callable[[Sequence[bytes]], int]) -> float:
        """Send all frames, at most 512 ahead of their acknowledgement, and return their rate.

        `acknowledged` tells of the messages of one read how many frames all answers so far cover.
        """
        burst, window, done, sent = 32, 512, 0, 0
        begun_s = time.perf_counter()
        while done < len(frames):
            while sent < len(frames) and sent - done + burst <= window:
                self.socket.sendall(b"".join(frames[sent : sent + burst]))
                sent += burst
            done = max(done, acknowledged(self.messages()))
        return len(frames) / (time.perf_counter() - begun_s)
