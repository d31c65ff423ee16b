"""Settings of the daemon: command line over environment over configuration file."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from spu_link.addresses import is_address
from spu_server.drivers.base import DriverOptions
from spu_server.drivers.deadline import ANSWER_SECONDS


class BadSettings(ValueError):
    """Settings that the daemon cannot start with.

    Attributes:
        problems: for each, where it was made (``--rate``, ``SPU_RATE``, ``rate in spu.toml``), and words that go on
            from there.
    """

    remedy: ClassVar[str] = "correct the option, environment variable or line of the file that the message names"

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(where + words for where, words in problems))
        self.problems = problems


def named(options: Sequence[str]) -> dict[str, str]:
    """Return options NAME=VALUE by name.

    Raises:
        ValueError: naming the one that is not of this form.
    """
    for option in options:
        if "=" not in option.lstrip("="):
            raise ValueError(f"{option!r} is not NAME=VALUE")
    return dict(option.split("=", 1) for option in options)


class ServeSettings(BaseSettings):
    """Settings of `spu-server serve`. Environment variables are ``SPU_LISTEN``, ``SPU_DRIVER`` and so on.

    Several addresses in ``SPU_LISTEN``, and several NAME=VALUE in ``SPU_DRIVER_OPTION``, are separated by commas.
    """

    model_config = SettingsConfigDict(env_prefix="SPU_", extra="forbid", frozen=True)

    listen: Annotated[tuple[str, ...], NoDecode] = Field(("unix:/tmp/spu.sock",), min_length=1)
    driver: str = "emulator"
    clock: Literal["free", "stepped"] = "free"
    rate: float | None = Field(None, gt=0, le=1e15, allow_inf_nan=False)
    tau: float = Field(1e-6, ge=1e-15, le=1e15, allow_inf_nan=False)
    seed: int = Field(0, ge=0, lt=2**63)
    cells: int = Field(DriverOptions.cells, ge=1, lt=2**63)
    max_bytes: int = Field(DriverOptions.max_bytes, ge=1, lt=2**63)
    compute: str = Field(DriverOptions.compute, pattern=r"^(cpu|cuda(:\d+)?)$")
    driver_deadline: float = Field(ANSWER_SECONDS, gt=0, le=1e6, allow_inf_nan=False)
    calibrate: bool = False
    driver_option: Annotated[dict[str, str], NoDecode] = Field(default_factory=dict)
    record: Path | None = None
    insecure_remote: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("listen", mode="before")
    @classmethod
    def _by_commas(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("listen")
    @classmethod
    def _known_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            if not is_address(address):
                raise ValueError(f"{address!r} is neither unix:PATH nor HOST:PORT")
            if value.count(address) > 1 and not address.endswith(":0"):
                raise ValueError(f"{address!r} is listed twice")
        return value

    @field_validator("rate")
    @classmethod
    def _fits_clock(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("clock") == "stepped":
            raise ValueError("a rate belongs to a free-running clock; a stepped clock moves only by advance")
        return value

    @field_validator("driver_option", mode="before")
    @classmethod
    def _by_names(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return json.loads(value) if value.startswith("{") else named(value.split(","))

    @property
    def driver_options(self) -> DriverOptions:
        """Return the options that the driver is opened with."""
        return DriverOptions(
            self.seed,
            self.tau,
            self.cells,
            self.max_bytes,
            self.compute,
            clock=self.clock,
            rate=self.rate,
            settings=self.driver_option,
        )

    @classmethod
    def load(cls, config: Path | None, **given: Any) -> ServeSettings:
        """Settings from the options given on the command line, the environment and a TOML file, in this order.

        Args:
            config: TOML file with the same names as the options; None for none.
            given: options; those that are None count as not given.

        Raises:
            BadSettings: when the file cannot be read, or settings are not what they must be.
        """
        options = {name: value for name, value in given.items() if value is not None}
        file = _read(config) if config else {}

        class WithFile(cls):  # type: ignore[valid-type,misc]
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                **_: PydanticBaseSettingsSource,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                return init_settings, env_settings, InitSettingsSource(settings_cls, file)

        try:
            settings: ServeSettings = WithFile(**options)
        except ValidationError as error:
            known = ", ".join(sorted(cls.model_fields))
            raise BadSettings([_problem(one, options, config, known) for one in error.errors()]) from None
        return settings


def _read(config: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(config.read_bytes().decode())
    except UnicodeDecodeError as error:
        reason = f"it is not UTF-8 text (byte {error.start})"
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, RecursionError) as error:
        reason = f"it is not TOML: {error}"
    raise BadSettings([(str(config), f" cannot be read: {reason}")])


def _problem(error: ErrorDetails, options: Mapping[str, Any], config: Path | None, known: str) -> tuple[str, str]:
    """Return the place of a bad setting, and what is wrong with it."""
    name, *inner = map(str, error["loc"])
    variable = next((key for key in os.environ if key.upper() == f"SPU_{name}".upper()), "")
    if name in options and all(key in options[name] for key in inner[:1]):
        where = f"--{name}".replace("_", "-")
    elif variable:
        where = variable
    else:
        where = f"{'.'.join([name, *inner])} in {config}"
    if error["type"] == "extra_forbidden":
        return where, f" is not a setting; there are {known}"
    if "error" in error.get("ctx", {}):  # of a validator here, which names the value
        return where, f": {error['ctx']['error']}"
    return where, f" is {error['input']!r}: {error['msg']}"
