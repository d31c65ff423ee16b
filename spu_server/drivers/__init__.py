"""Drivers: what stands between the daemon and a device, real or emulated. Found by entry point."""
