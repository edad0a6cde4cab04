"""Functions that no graph of torch.compile can hold."""

import functools
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


def outside_of_graphs(reason: str) -> Callable[[_Function], _Function]:
    """A decorator: `torch.compiler.disable(reason=reason)`, put off until there is a compiler.

    torch.compiler.disable imports the compiler at once. That took half of the time of importing fastsample (measured
    with `python -X importtime`), and it imports Triton, for which a free-threaded Python turns its GIL on.
    """

    def decorate(function: _Function) -> _Function:
        disabled: Callable[..., Any] | None = None

        @functools.wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal disabled
            if disabled is None:
                if "torch._dynamo" not in sys.modules:
                    return function(*arguments, **named)
                disabled = torch.compiler.disable(function, reason=reason)
            return disabled(*arguments, **named)

        # As torch.compiler.disable marks what it returns; without them a broken graph would be told another reason.
        run._torchdynamo_disable = True  # type: ignore[attr-defined]
        run._torchdynamo_disable_msg = reason  # type: ignore[attr-defined]
        _pass_over(run.__code__)  # type: ignore[attr-defined]
        return run  # type: ignore[return-value]

    return decorate


def _pass_over(code: CodeType) -> None:
    """Have the compiler leave alone a function and what it calls, which it would compile where a graph broke for it.

    It passes over what torch.compiler.disable returns by the file that this is in. What it does for other code is not
    public, but there before the compiler is imported; in a torch without it `run` would only be compiled, in vain.
    """
    evaluation = torch._C._dynamo.eval_frame
    if hasattr(evaluation, "set_code_exec_strategy"):
        action = evaluation._FrameAction
        evaluation.set_code_exec_strategy(code, evaluation._FrameExecStrategy(action.SKIP, action.SKIP))
