"""Settings of a device, in a daemon or in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from spu_server.drivers.base import DriverOptions, GeneralOptions


def named(options: Sequence[str]) -> dict[str, str]:
    """Return options NAME=VALUE by name.

    Raises:
        ValueError: naming the one that is not of this form.
    """
    for option in options:
        if "=" not in str(option).lstrip("="):
            raise ValueError(f"{option!r} is not NAME=VALUE")
    return dict(option.split("=", 1) for option in options)


def by_name(given: Any) -> Any:
    """Return values by name from a list of NAME=VALUE, or from a text: of them with commas, or of JSON.

    Raises:
        ValueError: for another text, and a list of anything else.
    """
    if isinstance(given, str):
        return json.loads(given) if given.startswith("{") else named(given.split(","))
    return named(given) if isinstance(given, list) else given


class DeviceSettings(GeneralOptions):
    """Settings of a device: options of ``spu-server serve`` and of ``connect("inproc:")``."""

    driver: str = Field(default="emulator", description="Driver of the device; `spu-server drivers` lists them.")
    driver_option: Annotated[dict[str, str], BeforeValidator(by_name)] = Field(
        default={},
        description="NAME=VALUE, one of the driver's own options; repeatable.",
        json_schema_extra={"show_default": "none"},
    )
    calibrate: bool = Field(
        default=False,
        description="Let the device calibrate itself whenever its driver is opened: now, and after each restart.",
    )
    record: Path | None = Field(
        default=None,
        description="Folder for a log of every driver call, uploads and readings included, for `tngd replay`.",
        json_schema_extra={"show_default": "no log", "file_okay": False},
    )

    @field_validator("rate")
    @classmethod
    def _fits_clock(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("clock") == "stepped":
            raise ValueError("a rate belongs to a free-running clock; a stepped clock moves only by advance")
        return value

    @property
    def driver_options(self) -> DriverOptions:
        """Return the options that the driver is opened with."""
        general = self.model_dump(include=set(GeneralOptions.model_fields))
        return DriverOptions(**general, settings=self.driver_option)


def problem_of(error: ErrorDetails, known: str) -> str:
    """Return what is wrong with a setting, in words that go on from where it was made; `known`: the settings."""
    if error["type"] == "extra_forbidden":
        return f" is not a setting; there are {known}"
    if "error" in error.get("ctx", {}):  # of a validator here, which names the value
        return f": {error['ctx']['error']}"
    return f" is {error['input']!r}: {error['msg']}"
