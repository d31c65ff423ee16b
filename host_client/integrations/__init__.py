"""Where training frameworks meet a device; each module needs its framework installed."""
