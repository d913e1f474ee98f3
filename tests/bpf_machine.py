"""An interpreter of classic BPF (networking/filter.rst), and packets for it."""
# ruff: noqa: B023 - the interpreter's lambdas run at once

import socket
import struct

PORT = 62201
WORD = 0xFFFFFFFF


def run(program: bytes, packet: bytes, packet_type: int = 0) -> int:
    """Interpret classic BPF as the kernel does; a load past the end drops."""
    ops = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    a = x = pc = 0
    memory = [0] * 16

    def load(at, size):
        if at == 0xFFFFF004:
            return packet_type
        if at + size > len(packet):
            raise IndexError
        return int.from_bytes(packet[at : at + size], "big")

    try:
        while True:
            code, jt, jf, k = ops[pc]
            pc += 1
            kind, mode, size = code & 7, code & 0xE0, {0: 4, 8: 2, 16: 1}.get(code & 0x18)
            if kind == 0:
                a = {
                    0x00: lambda: k,
                    0x80: lambda: len(packet),
                    0x60: lambda: memory[k],
                    0x20: lambda: load(k, size),
                    0x40: lambda: load(x + k, size),
                }[mode]()
            elif kind == 1:
                x = {
                    0x00: lambda: k,
                    0x60: lambda: memory[k],
                    0xA0: lambda: (load(k, 1) & 0xF) * 4,
                }[mode]()
            elif kind == 2:
                memory[k] = a
            elif kind == 4:
                other = x if code & 8 else k
                a = {
                    0x00: lambda: a + other,
                    0x10: lambda: a - other,
                    0x20: lambda: a * other,
                    0x40: lambda: a | other,
                    0x50: lambda: a & other,
                    0xA0: lambda: a ^ other,
                    0x60: lambda: a << other,
                    0x70: lambda: a >> other,
                }[code & 0xF0]() & WORD
            elif kind == 5:
                other = x if code & 8 else k
                test = {0x00: None, 0x10: a == other, 0x30: a >= other, 0x40: bool(a & other)}
                found = test[code & 0xF0]
                pc += k if found is None else (jt if found else jf)
            elif kind == 6:
                return k
            else:
                x = a
    except IndexError:
        return 0


def syn(
    payload: bytes,
    version: int = 4,
    flags: int = 2,
    port: int = PORT,
    options: bytes = b"",
    extensions: bytes = b"",
    first: int = 6,
    fragment: int = 0,
) -> bytes:
    tcp = struct.pack("!HHIIBBHHH", 40_000, port, 1, 0, 0xA0, flags, 64_240, 0, 0) + bytes(20)
    body = tcp + payload
    if version == 4:
        head = 20 + len(options)
        ip = struct.pack("!BBHHHBBH", 0x40 | head // 4, 0, head + len(body), 0, fragment, 64, 6, 0)
        return ip + socket.inet_aton("192.0.2.2") + socket.inet_aton("192.0.2.1") + options + body
    return (
        struct.pack("!IHBB", 6 << 28, len(extensions + body), first, 64)
        + b"".join(
            socket.inet_pton(socket.AF_INET6, each) for each in ("2001:db8::2", "2001:db8::1")
        )
        + extensions
        + body
    )
