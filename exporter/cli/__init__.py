"""The command line: arguments -> spec -> pipeline -> exit code. Only this package prints.

Exit codes: 0 done and proven; 2 usage error; 3 an input cannot be read; 4 export or build failed;
5 not proven; 130 interrupted; 143 terminated.
"""

from __future__ import annotations

import importlib.metadata
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import getdoc
from pathlib import Path
from types import FrameType

from cyclopts import App, CycloptsError, Parameter

from exporter.cli import (
    advise,
    bench,
    build,
    config_file,
    doctor,
    evaluate,
    explain,
    export,
    inspect,
    label,
    ladder,
    lint,
    predict,
    push,
    sweep,
    triton,
    tune_precision,
    verify,
)
from exporter.cli.terminal import Output, accept_any_text, say, show_trace
from exporter.errors import TsformerError, UsageError
from exporter.errors.install import is_ours, missing_package
from exporter.errors.machine import of_the_machine
from exporter.machine.cores import limit_threads
from exporter.report.escape import one_line

INTERNAL_EXIT = 4
_AGAIN_SECONDS = 0.02  # until a signal that came inside a finalizer is taken again
ENDINGS = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}


def _shown_default(value: object) -> str | None:
    """Return the default of an option for its help; none where the option is absent by default."""
    return None if value is None or value is False or value == () else str(value)


app = App(
    name="tsformer",
    default_parameter=Parameter(show_default=_shown_default),
    help="Export a video transformer to ONNX and TensorRT, with proof that it is the same model.",
    version_flags=["--version"],
    help_format="plaintext",
    help_epilogue=f"A file can set options: {config_file.FILE} in the current directory, or "
    f"{config_file.OPTION} PATH. It has one table for each command. The command line overrides it.",
    version=lambda: importlib.metadata.version("tsformer"),
    console=Output(),
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # `main` returns its exit code
)
app.register_install_completion_command()


def _reflowed(command: Callable[..., int]) -> str:
    """Join the lines of each paragraph and of each argument in a command's docstring.

    cyclopts keeps the line breaks of the source; the help breaks lines at the terminal's width.
    """
    return re.sub(r"(?<=\S)\n(?=\S)|\n {8,}(?=\S)", " ", getdoc(command) or "")


def _examples(text: str) -> str:
    """Extract the examples from a docstring; cyclopts omits them from the help."""
    found = re.search(r"^Examples:\n(.*?)(?=^\w|\Z)", text, re.DOTALL | re.MULTILINE)
    return f"Examples:\n{found[1].rstrip()}" if found else ""


for command in (
    export.export,
    build.build,
    verify.verify,
    bench.bench,
    inspect.inspect,
    lint.lint,
    predict.predict,
    explain.explain,
    evaluate.evaluate,
    label.label,
    ladder.ladder,
    tune_precision.tune_precision,
    sweep.sweep,
    advise.advise,
    triton.triton,
    push.push,
    doctor.doctor,
):
    command.__doc__ = _reflowed(command)
    app.command(command, help_epilogue=_examples(command.__doc__))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    received: list[int] = []
    used = None
    accept_any_text()
    limit_threads()  # before torch is imported
    try:
        with _noting_signals(received):
            argv, used = config_file.use_options(app, argv)
            code = app(argv, exit_on_error=False, print_error=False) or 0
            return say(used, code) if used else code
    except (Exception, KeyboardInterrupt) as error:
        # An interrupted import or trace can raise any error, so the signal decides the exit code.
        if received or isinstance(error, KeyboardInterrupt):
            how, code = ENDINGS[signal.Signals(received[0]) if received else signal.SIGINT]
            # Code that keeps partial results says so in its KeyboardInterrupt.
            told = isinstance(error, KeyboardInterrupt) and str(error)
            return say(f"{how}: {told or 'nothing was left behind'}", code)
        return _fail(error, argv, used)


@contextmanager
def _noting_signals(received: list[int]) -> Iterator[None]:
    """Let SIGTERM clean up as Ctrl-C does, and record the signal that arrived."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if received:
            return  # a second signal must not interrupt the clean-up
        if _in_finalizer(frame):  # Python ignores what a finalizer raises
            again = threading.Timer(_AGAIN_SECONDS, signal.raise_signal, (number,))
            again.daemon = True
            again.start()
            return
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows signal handlers in the main thread only
        return
    before = {number: signal.getsignal(number) for number in ENDINGS}
    caught = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    try:
        for number in caught:
            signal.signal(number, interrupt)
        yield
    finally:
        for number in caught:
            signal.signal(number, before[number])


def _in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def _usage_remedy(argv: Sequence[str]) -> str:
    """Say what to do after an argument that is not valid: a file may look like an option."""
    file = next((word for word in argv if word.startswith("-") and Path(word).exists()), None)
    return f"write the file as ./{file}" if file else "see tsformer --help"


def _fail(error: Exception, argv: Sequence[str], used: str | None = None) -> int:
    if "--debug" in argv:
        show_trace(error)
    if isinstance(error, CycloptsError):
        error = UsageError(one_line(error).removesuffix("."), remedy=_usage_remedy(argv))
    if isinstance(error, ModuleNotFoundError) and not is_ours(error.name):
        error = missing_package(str(error.name), "this command")
    error = of_the_machine(error)
    if isinstance(error, TsformerError):
        wrong = error.exit_code in (2, 3)  # perhaps in that file: one line says both
        if used and not wrong:
            say(used, 0)
        hint = f" ({used})" if used and wrong else ""
        return say(f"{error.stage}: {error}{hint}", error.exit_code)
    # This is a defect of tsformer.
    what = f"internal: {type(error).__name__}: {one_line(error)[:300]}"
    return say(f"{what}; run with --debug for the trace", INTERNAL_EXIT)
