"""The command `fastsample`: `fastsample doctor` examines the installation, `fastsample bench` measures it."""

import argparse
import importlib
import sys
from collections.abc import Sequence

import fastsample
from fastsample import doctor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        arguments: the command line without the program's name; None takes it from `sys.argv`.

    Returns:
        The exit status: 0, or 1 when a check failed.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="fastsample", description=__doc__)
    parser.add_argument("--version", action="version", version=f"fastsample {fastsample.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("doctor", help="what is built and usable, why not, and whether the backends agree here")
    commands.add_parser("bench", help="measure sampling on this machine (fastsample bench --help)", add_help=False)
    if given[:1] == ["bench"]:
        # Its options are its own, --help among them.
        return _bench(given[1:])
    parser.parse_args(given)
    return doctor.main()


def _bench(arguments: list[str]) -> int:
    try:
        bench = importlib.import_module("fastsample.benchmarks.bench")
    except ModuleNotFoundError as error:
        print(
            f"fastsample bench needs the package {error.name}: install the extra that brings it with "
            'pip install "fastsample[bench]"',
            file=sys.stderr,
        )
        return 1
    status: int | None = bench.main(arguments)
    return status or 0
