"""`workbench app | lab`: the app and the notebooks."""

import argparse

from workbench.cli.options import Parser

__all__ = ["add_app", "add_lab", "app", "lab"]


def add_app(parser: Parser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="default 7860")
    parser.add_argument("--model", action="append", default=[], help="a model to offer (repeatable)")
    parser.add_argument("--device", default=None, help="where models run: cpu (default), cuda, cuda:1 or auto")
    parser.add_argument("--dtype", default=None, help="float32, bfloat16, ... (default: float32 on a CPU)")
    browser = argparse.BooleanOptionalAction
    parser.add_argument("--browser", action=browser, default=None, help="open a browser")
    own = "what visitors have to know (default: a random one beyond this machine)"
    parser.add_argument("--token", metavar="TEXT", default=None, help=own)
    parser.add_argument("--no-token", dest="token", action="store_const", const="", help="let everyone in")
    frame = "let pages of that origin show the app in a frame (repeatable)"
    parser.add_argument("--allow-frame", metavar="ORIGIN", action="append", default=[], help=frame)


def app(args: argparse.Namespace) -> int:
    """The app, until Ctrl-C."""
    from workbench.dashboard import launch

    safety = {"token": args.token, "allow_frame": args.allow_frame}
    where = {"device": args.device, "dtype": args.dtype}
    launch(host=args.host, port=args.port, models=args.model, browser=args.browser, **where, **safety)
    return 0


def add_lab(parser: Parser) -> None:
    from workbench.cli.lab import add_options

    add_options(parser)


def lab(args: argparse.Namespace) -> int:
    from workbench.cli.lab import start

    return start(folder=args.folder, port=args.port, browser=args.browser)
