"""fastsample inside SGLang: a plugin that SGLang finds by its entry point and loads in each of its processes.

Installed beside SGLang there is nothing to call: `pyproject.toml` names `register` under `sglang.srt.plugins`. It hooks
SGLang's sampler (fastsample/integrations/sglang/sampler.py) and hands it the seeds of the requests (seeds.py), by
SGLang's own registry of hooks. `FASTSAMPLE_SGLANG=0` in the environment leaves SGLang as it is.

This module imports without SGLang, so that what it decides can be asked anywhere.
"""

import logging
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from fastsample.integrations.plugin import Plugin

plugin = Plugin(
    host="SGLang",
    variable="FASTSAMPLE_SGLANG",
    # SGLang numbers its releases in the third place, and its samplers change between them.
    oldest=(0, 5, 22),
    too_new=(0, 5, 24),
    group="sglang.srt.plugins",
    # A user's own set-up of SGLang's log may show the loggers below its name alone.
    logger=logging.getLogger("sglang.srt.plugins.fastsample"),
)


def register() -> None:
    """Make SGLang sample with fastsample, in this process; what SGLang calls before it applies its plugins' hooks.

    The first draw says so in one line of SGLang's log. With a version of SGLang that this was not written for it does
    nothing but warn, once, and with FASTSAMPLE_SGLANG=0 nothing at all.
    """
    if not plugin.switched_on():
        return

    import sglang

    reason = plugin.unsupported(sglang.__version__)
    if reason is not None:
        plugin.warn_once(f"leaves SGLang's sampling alone: {reason}")
        return
    try:
        from fastsample.integrations.sglang import sampler, seeds
    except (ImportError, AttributeError) as error:
        plugin.warn_once(f"leaves SGLang's sampling alone: SGLang {sglang.__version__} has other parts ({error})")
        return
    sampler.register_hooks()
    seeds.register_hooks()


@cache
def say_on() -> None:
    """Say in SGLang's log, once in a process, that fastsample draws its tokens; most of its processes never draw."""
    import sglang

    plugin.logger.info(
        "fastsample draws the tokens of SGLang %s (%s=0 turns it off)", sglang.__version__, plugin.variable
    )


def installed_version() -> str | None:
    """The version of SGLang in this environment, found without importing it; None where there is none."""
    try:
        return version("sglang")
    except PackageNotFoundError:
        return None


def status() -> str | None:
    """Why SGLang would not sample with fastsample in this environment; None where it would."""
    # As SGLang reads it: "" allows every plugin, but " " and "," allow none.
    allowed = os.environ.get("SGLANG_PLUGINS", "")
    excluding = "SGLANG_PLUGINS" if allowed and "fastsample" not in map(str.strip, allowed.split(",")) else None
    return plugin.obstacle(installed_version(), excluding)
