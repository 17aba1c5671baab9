"""`workbench list | doctor`: what there is, and what of it works here."""

import argparse

from workbench.cli.options import Parser, print_json

__all__ = ["add_doctor", "add_list", "doctor", "list_members"]


def add_list(parser: Parser) -> None:
    from workbench.report.catalogue import KINDS

    parser.add_argument("what", choices=KINDS)
    parser.add_argument("name", nargs="?", help="show the parameters of this one")


def list_members(args: argparse.Namespace) -> int:
    """Names with a line each; with a name, its parameters with bounds and defaults."""
    from workbench.report.catalogue import about, listing

    print(about(args.what, args.name) if args.name else listing(args.what))
    return 0


def add_doctor(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--quick", action="store_true", help="leave out the self-tests of the kernels")


def doctor(args: argparse.Namespace) -> int:
    """Versions, devices, and what each operation runs here; exit code 1 where a self-test fails."""
    from workbench.report import doctor

    found = doctor.doctor(args.quick)
    if args.json:
        print_json(found)
    else:
        print(doctor.report(found))
    return 0 if found["passed"] else 1
