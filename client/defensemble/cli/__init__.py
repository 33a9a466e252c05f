"""The command line: one command, with verbs in the order of the flow.

This package and the modules of verbs import click and the standard library only: `--help` and `--version` take a tenth of a second, without
numpy, tritonclient or the sibling packages, which an installation may lack.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import click
import cloup

from .._version import __version__
from .commands import (
    build_engine,
    completion,
    demo,
    doctor,
    ensemble,
    export,
    export_report,
    fuse,
    import_onnx,
    load,
    predict,
    probe,
    profile,
    report,
    serve,
    status,
    train,
)
from .notes import logger, warnings_as_notes
from .os_errors import text_from_os_error
from .verb import VerbGroup

INTERRUPTED = 130  # exit status after SIGINT, as a shell reports it: 128 + 2

# The bases of the errors that the sibling packages raise on purpose.
_BASE_ERRORS = {
    "defensemble_training": "TrainingError",
    "defensemble_repository.errors": "RepositoryError",  # exports' too
    "defensemble_server": "ServerError",
    "defensemble_ops": "BuildError",
}
# The pip extra that installs a package.
_EXTRAS = {
    "torch": "train",
    "safetensors": "train",
    "sklearn": "train",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "yaml": "export",
    "hdrh": "load",
}


class _RootGroup(VerbGroup):
    """Prints errors that users can fix as `Error: ...`, with exit status 1; any other exception is a bug and keeps its traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line, and exit with status 130 if it was interrupted."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        status = 1
        try:
            returned = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            status = returned if isinstance(returned, int) else 0
            sys.stdout.flush()  # Python's own flush at exit would print a traceback
        except click.Abort as error:
            if _was_interrupted(error):
                click.echo("interrupted", err=True)
                status = INTERRUPTED
        except click.ClickException as error:
            _show_shortened(error)
            status = INTERRUPTED if _was_interrupted(error) else error.exit_code
        except BrokenPipeError:
            status = 1
        except OSError as error:  # of the root's own output, such as `--help`, or of the flush
            _show_shortened(click.ClickException(text_from_os_error(error, None)))
            status = 1
        _discard_unwritten_output()
        sys.exit(status)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings_as_notes():
                return super().invoke(ctx)
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").split(".")[0])
            if extra is None:
                raise
            raise click.ClickException(
                f"the package '{error.name}' is not installed, which this command needs. Run pip install 'defensemble[{extra}]'."
            ) from error
        except BrokenPipeError:
            raise  # the reader of our output ended, as `head` does: click exits silently
        except OSError as error:
            raise _error_to_print(text_from_os_error(error, ctx.invoked_subcommand), error) from error
        except Exception as error:
            if isinstance(error, _expected_errors()):
                raise _error_to_print(str(error), error) from error
            raise


def _discard_unwritten_output() -> None:
    """Discard output that cannot be written: Python flushes it once more at exit, and would end with status 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions that led to this one, the latest first."""
    cause = error.__cause__ or error.__context__
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _was_interrupted(error: BaseException) -> bool:
    return any(isinstance(cause, KeyboardInterrupt) for cause in _causes(error))


def _error_to_print(text: str, error: Exception) -> click.ClickException:
    """Return an error to print; log its causes, such as gRPC's own text, which `--verbose` prints."""
    for cause in _causes(error):
        logger.debug("caused by %s: %s", type(cause).__qualname__, cause)
    return click.ClickException(text)


def _show_shortened(error: click.ClickException) -> None:
    """Print an error without the middle of lines that are too long: it may quote a value of any length."""
    from defensemble_repository.texts import shortened

    from .._printable import printable

    text = io.StringIO()
    error.show(text)
    click.echo(printable(shortened(text.getvalue())), err=True, nl=False)


def _expected_errors() -> tuple[type[Exception], ...]:
    """Return the bases of the errors that the packages loaded so far raise on purpose."""
    from .._exceptions import DefensembleError

    loaded = [getattr(sys.modules[package], base) for package, base in _BASE_ERRORS.items() if package in sys.modules]
    return (DefensembleError, *loaded)


@cloup.group(
    cls=_RootGroup,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    sections=[
        cloup.Section(
            "Train and export",
            [module.command for module in (train, export, import_onnx, fuse, export_report, build_engine, profile)],
        ),
        cloup.Section("Serve and call", [module.command for module in (serve, status, predict, ensemble, load, probe, report)]),
        cloup.Section("Getting started", [module.command for module in (demo, doctor, completion)]),
    ],
)
@click.version_option(__version__, prog_name="defensemble")
def cli() -> None:
    r"""Train defective CNNs, serve them with NVIDIA Triton as an averaging ensemble, call the ensemble and measure its robustness.

    \b
    Examples:
      defensemble demo          # the whole flow in about a minute
      defensemble train --keep 0.3 checkpoints/a.safetensors
      defensemble export checkpoints/*.safetensors
      defensemble serve
      defensemble predict image.png
      defensemble probe noise http://localhost:8000 --dataset digits
      defensemble load http://localhost:8000 --slo p99=50ms
    """


def _open_closed_streams() -> None:
    """Replace standard streams that are closed, which Python represents by None: standard input is empty, and to print is an OSError.

    Else the next file or socket would get their descriptors, too.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            flags = os.O_WRONLY if name == "stderr" else os.O_RDONLY  # of standard output, so that a result is not lost silently
            # Without a buffer, which Python would flush once more at its end.
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.open(os.devnull, flags), mode), write_through=True))


def main() -> None:
    """Run the command line of this process."""
    _open_closed_streams()
    # Print paths that are not UTF-8 as they are; in most locales standard output would raise an error after the work is done.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")
    # Our reader of images reports damage; Pillow's warnings about what it ignores, such as a corrupt EXIF block, add nothing.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    cli(prog_name="defensemble")
