"""The commands of `kf` and how they fail: one line that says what is wrong, exit code 2 for bad input, 1 otherwise."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..errors import KernelFusionError
from . import bench, explain, fusion, generate, info, selfcheck

_BAD_INPUT = ("invalid_argument", "not_implemented")


class _Commands(typer.core.TyperGroup):
    """Turns the library's errors into a line on stderr, here so that a test's runner sees it too."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KernelFusionError as error:
            print(f"kf: {error.message}", file=sys.stderr)
            raise typer.Exit(2 if error.code in _BAD_INPUT else 1) from error
        except BrokenPipeError:  # `kf ... | head`
            sys.stderr.close()
            raise typer.Exit(0) from None


app = typer.Typer(
    cls=_Commands,
    help="Fused transformer kernels: what this machine offers, what runs and why, and what fusion gains.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command("info")(info.info)
app.command("explain")(explain.explain)
app.command("selfcheck")(selfcheck.selfcheck)
app.command("generate")(generate.generate)
app.add_typer(bench.app, name="bench")
app.add_typer(fusion.app, name="fusion")


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"kf {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def main() -> None:
    app(prog_name="kf")
