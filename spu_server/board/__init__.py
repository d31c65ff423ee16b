"""The reference board's byte link: frames, messages, registers, and the two ends that speak them. No I/O here.

`transports` moves the bytes, `spu_server.drivers.board` is the driver, `spu_server.board.simulator` the other end.
"""
