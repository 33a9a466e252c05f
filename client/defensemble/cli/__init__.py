"""The command line: one command, verbs in the order of the flow.

Only click is imported here and at the top of each verb's module: `--help` and `--version` answer at once, without numpy, tritonclient or
the sibling packages, which an installation may not have.
"""

from __future__ import annotations

import io
import sys
import warnings
from typing import Any

import click

from .._version import __version__
from .commands import (
    build_engine,
    demo,
    doctor,
    ensemble,
    export,
    export_report,
    fuse,
    import_onnx,
    predict,
    probe,
    profile,
    serve,
    train,
)
from .notes import warnings_as_notes
from .os_errors import text_from_os_error
from .verb import VerbGroup

# Which pip extra brings a sibling, and the base class of its errors.
_SIBLINGS = {
    "defensemble_training": "TrainingError",
    "defensemble_repository.errors": "RepositoryError",  # exports' too
    "defensemble_server": "ServerError",
}
_EXTRAS = {
    "torch": "train",
    "safetensors": "train",
    "sklearn": "train",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "yaml": "export",
}


class _Commands(VerbGroup):
    """Turns what users can mend into `Error: ...` and exit status 1; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings_as_notes():
                return super().invoke(ctx)
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").split(".")[0])
            if extra is None:
                raise
            raise click.ClickException(f"this needs the package '{error.name}': pip install 'defensemble[{extra}]'") from error
        except BrokenPipeError:
            raise  # who reads our output has had enough, as `head` has: click ends without a word
        except OSError as error:
            raise _shown(text_from_os_error(error, ctx.invoked_subcommand)) from error
        except Exception as error:
            if isinstance(error, _users_errors()):
                raise _shown(str(error)) from error
            raise


def _shown(text: str) -> click.ClickException:
    """An error as it is printed: what it quotes may be of any length."""
    from defensemble_repository.texts import shortened

    return click.ClickException(shortened(text))


def _users_errors() -> tuple[type[Exception], ...]:
    """The bases of the errors that the packages loaded so far raise on purpose."""
    from .._exceptions import DefensembleError

    loaded = [getattr(sys.modules[package], base) for package, base in _SIBLINGS.items() if package in sys.modules]
    return (DefensembleError, *loaded)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="defensemble")
def cli() -> None:
    r"""Train defective CNNs, serve them through NVIDIA Triton as one averaging ensemble, call and probe it.

    \b
    Examples:
      defensemble demo                                  # all of it, small, in about a minute
      defensemble train --keep 0.3 checkpoints/a.safetensors
      defensemble export checkpoints/*.safetensors --repository model_repository
      defensemble serve model_repository
      defensemble predict http://localhost:8000 image.png
      defensemble ensemble weight ensemble keep0.3=2
      defensemble probe noise http://localhost:8000 --data digits
    """


for _verb in (train, export, import_onnx, fuse, export_report, build_engine, profile, serve, predict, ensemble, probe, doctor, demo):
    cli.add_command(_verb.command)


def main() -> None:
    """Entry point of the `defensemble` script."""
    # A path that is no UTF-8 is printed as it is; most locales' standard output raises an error instead, after the work is done.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")
    # The reader of images reports what is damaged; Pillow's warnings of what it passes over, such as a corrupt EXIF block, add nothing.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    cli(prog_name="defensemble")
