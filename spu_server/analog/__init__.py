"""Models of a real device, as pure mathematics: no gRPC, no asyncio, no clock.

`dynamics` moves cells under a drift matrix that need not be symmetric; the other modules are what a board adds to it,
one file each, composed by `hardware.AnalogBoard`.
"""
