"""Who is at the other end of a Unix socket, as the kernel says (unix(7), SO_PEERCRED)."""

import socket
import struct

__all__ = ["peer_of"]


def peer_of(connection: socket.socket) -> str:
    """Return who is at the other end of a Unix socket: `uid 1000`."""
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return f"uid {uid}"
