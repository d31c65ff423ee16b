"""Settings of the daemon: command line over environment over configuration file."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, SettingsConfigDict

from spu_link.addresses import is_address
from spu_server.device_settings import DeviceSettings, problem_of
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


class ServeSettings(DeviceSettings, BaseSettings):
    """Settings of `spu-server serve`. Environment variables are ``SPU_LISTEN``, ``SPU_DRIVER`` and so on.

    Several addresses in ``SPU_LISTEN``, and several NAME=VALUE in ``SPU_DRIVER_OPTION``, are separated by commas.
    """

    model_config = SettingsConfigDict(env_prefix="SPU_", enable_decoding=False)

    listen: tuple[str, ...] = Field(
        default=("unix:/tmp/spu.sock",),
        min_length=1,
        description="Address to listen on, unix:PATH (mode 0600) or HOST:PORT (port 0: any free one); repeatable.",
        json_schema_extra={"show_default": "unix:/tmp/spu.sock"},
    )
    driver_deadline: float = Field(
        default=ANSWER_SECONDS,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="Timeout of a driver's answer, beyond what it announces, after which it counts as hung, s.",
    )
    insecure_remote: bool = Field(
        default=False,
        description="Allow addresses that other machines can reach, without authentication or encryption.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Min severity of what is logged to standard error."
    )

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
                cls, settings_cls: Any, init_settings: Any, env_settings: Any, **_: Any
            ) -> tuple[Any, ...]:
                return init_settings, env_settings, InitSettingsSource(settings_cls, file)

        try:
            settings: ServeSettings = WithFile(**options)
        except ValidationError as error:
            raise BadSettings([_problem(problem, options, config) for problem in error.errors()]) from None
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


def _problem(error: ErrorDetails, options: Mapping[str, Any], config: Path | None) -> tuple[str, str]:
    """Return the place of a bad setting, and what is wrong with it."""
    name, *inner = map(str, error["loc"])
    variable = next((key for key in os.environ if key.upper() == f"SPU_{name}".upper()), "")
    if name in options and all(key in options[name] for key in inner[:1]):
        where = f"--{name}".replace("_", "-")
    elif variable:
        where = variable
    else:
        where = f"{'.'.join([name, *inner])} in {config}"
    return where, problem_of(error, ", ".join(sorted(ServeSettings.model_fields)))
