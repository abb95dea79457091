"""`python flaky_proxy.py UPSTREAM_PORT`: a proxy that fails in bursts, as an overloaded gateway does. Prints its port.

Of every 16 completions the 4th to 7th get a 503 and the 8th to 10th a reply cut in half; the rest, and every other
path, pass unharmed.
"""

import asyncio
import sys
from itertools import count

_UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy"
_completions = count(1)


async def message(reader: asyncio.StreamReader) -> bytes:
    """One HTTP message with a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head + await reader.readexactly(int(lengths[0]) if lengths else 0)


async def forward(asked: bytes, port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(asked)
    try:
        return await message(reader)
    finally:
        writer.close()


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    try:
        asked = await message(reader)
        place = next(_completions) % 16 if b" /v1/completions " in asked.split(b"\r\n")[0] else 0
        if 4 <= place <= 7:
            writer.write(_UNAVAILABLE)
        else:
            reply = await forward(asked, port)
            writer.write(reply[: len(reply) // 2] if 8 <= place <= 10 else reply)
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        return  # whoever was on the other side has left
    finally:
        writer.close()


async def main(port: int) -> None:
    server = await asyncio.start_server(lambda reader, writer: handle(reader, writer, port), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
