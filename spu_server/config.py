"""Settings of the daemon: command line over environment over configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from spu_link.addresses import is_address
from spu_server.drivers.base import DriverOptions
from spu_server.drivers.process import ANSWER_SECONDS


class ServeSettings(BaseSettings):
    """What `spu-server serve` needs to know. Environment variables are ``SPU_LISTEN``, ``SPU_DRIVER`` and so on.

    Several addresses in ``SPU_LISTEN`` are separated by commas.
    """

    model_config = SettingsConfigDict(env_prefix="SPU_", extra="forbid", frozen=True)

    listen: Annotated[tuple[str, ...], NoDecode] = Field(("unix:/tmp/spu.sock",), min_length=1)
    driver: str = "emulator"
    clock: Literal["free", "stepped"] = "free"
    rate: float | None = Field(None, gt=0, allow_inf_nan=False)
    tau: float = Field(1e-6, gt=0, allow_inf_nan=False)
    seed: int = Field(0, ge=0, lt=2**63)
    cells: int = Field(DriverOptions.cells, ge=1)
    max_bytes: int = Field(DriverOptions.max_bytes, ge=1)
    compute: str = Field(DriverOptions.compute, pattern=r"^(cpu|cuda(:\d+)?)$")
    driver_deadline: float = Field(ANSWER_SECONDS, gt=0, allow_inf_nan=False)
    calibrate: bool = False
    driver_option: dict[str, str] = Field(default_factory=dict)
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
        return value

    @field_validator("rate")
    @classmethod
    def _fits_clock(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("clock") == "stepped":
            raise ValueError("a rate belongs to a free-running clock; a stepped clock moves only by advance")
        return value

    @property
    def driver_options(self) -> DriverOptions:
        """What the driver is opened with."""
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
            pydantic.ValidationError: naming each setting that is not what it must be.
            ValueError: when the file is no TOML.
        """

        class WithFile(cls):  # type: ignore[valid-type,misc]
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                **_: PydanticBaseSettingsSource,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                file = (TomlConfigSettingsSource(settings_cls, config),) if config else ()
                return init_settings, env_settings, *file

        settings: ServeSettings = WithFile(**{name: value for name, value in given.items() if value is not None})
        return settings
