"""`workbench app | lab`: the app and the notebooks."""

import argparse

from workbench.cli.options import Parser

__all__ = ["add_app", "add_lab", "app", "lab"]


def add_app(parser: Parser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="default 7860")
    parser.add_argument("--model", action="append", default=[], help="a model to offer (repeatable)")
    browser = argparse.BooleanOptionalAction
    parser.add_argument("--browser", action=browser, default=None, help="open a browser")


def app(args: argparse.Namespace) -> int:
    """The app, until Ctrl-C."""
    from workbench.dashboard import launch

    launch(host=args.host, port=args.port, models=args.model, browser=args.browser)
    return 0


def add_lab(parser: Parser) -> None:
    from workbench.lab import add_options

    add_options(parser)


def lab(args: argparse.Namespace) -> int:
    from workbench.lab import start

    return start(folder=args.folder, port=args.port, browser=args.browser)
