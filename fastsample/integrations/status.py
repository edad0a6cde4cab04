"""Which host libraries are installed, and where fastsample is on in this process."""

import sys
from importlib import metadata
from typing import NamedTuple

from fastsample.integrations import sglang, vllm


class IntegrationStatus(NamedTuple):
    """What is known of one host library.

    Attributes:
        host: its name, and that of its module in `fastsample.integrations`.
        version: which one is installed; None where none is.
        needs_host: whether the integration is of use only where the host is installed.
        on: whether fastsample is on; None where that is asked of an object, such as a model.
        step: what turns it on.
        where: the processes in which it is on or off.
    """

    host: str
    version: str | None
    needs_host: bool
    on: bool | None
    step: str
    where: str = "this process"

    @property
    def summary(self) -> str:
        """The status in words, without the name."""
        installed = f"{self.version} installed" if self.version else "not installed"
        if self.version is None and self.needs_host:
            return installed
        on = {True: f"on in {self.where}", False: f"off in {self.where}", None: "on or off for each object"}[self.on]
        return f"{installed}; {on}; the one step: {self.step}"


def integration_statuses() -> dict[str, IntegrationStatus]:
    """The status of every integration, by host, without importing any host."""
    # Not imported here: a module that was never imported has turned nothing on.
    flashinfer = sys.modules.get("fastsample.integrations.flashinfer")
    statuses = (
        IntegrationStatus(
            "flashinfer",
            _version("flashinfer-python"),
            False,
            flashinfer is not None and flashinfer.is_installed(),
            "fastsample.integrations.flashinfer.install()",
        ),
        IntegrationStatus(
            "sglang",
            sglang.installed_version(),
            True,
            sglang.status() is None,
            "installing fastsample beside SGLang",
            "SGLang's processes",
        ),
        IntegrationStatus(
            "transformers",
            _version("transformers"),
            True,
            None,
            "fastsample.integrations.transformers.enable(model)",
        ),
        IntegrationStatus(
            "vllm",
            vllm.installed_version(),
            True,
            vllm.status() is None,
            "installing fastsample beside vLLM",
            "vLLM's processes",
        ),
    )
    return {status.host: status for status in statuses}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
