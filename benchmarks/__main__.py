"""`python benchmarks COMMAND`: runs, their reports and their goals. `pytest benchmarks` measures, too."""

from __future__ import annotations

import argparse
import importlib
import sys

#: The module of each command, which is imported where it is chosen, and what it does.
COMMANDS = {
    "run": ("gpu.run", "the network's layers on a GPU, within a deadline; on a CPU pytest does it"),
    "report": ("report.publish", "tables and plots of a run, for the terminal and for the documentation"),
    "goals": ("report.verdicts", "the numbers to reach, of a run or of what is measured now on the CPU"),
    "against": ("report.against", "an earlier commit beside this version on the CPU, layer by layer"),
    "sample": ("measure.sample", "one process of `against`"),
    "tune": ("gpu.tune", 'every backend checked and timed on a GPU, the table that "auto" follows'),
    "profile": ("gpu.profile", "where the time of a layer goes on a GPU, kernel by kernel"),
    "sanitize": ("gpu.sanitize", "compute-sanitizer over all operators"),
    "test": ("gpu.tests", "the tests that concern a GPU, within a deadline"),
    "learn": ("measure.learning", "that the network learns: a short training beside what costs nothing"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, purpose) in COMMANDS.items():
        chosen = name in sys.argv[1:2]
        found = importlib.import_module(module) if chosen else None
        command = commands.add_parser(
            name,
            help=purpose,
            description=found.__doc__ if found else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if found:
            found.add_options(command)
            command.set_defaults(parser=command, main=found.main)
    options, others = parser.parse_known_args()
    if "others" in options:
        options.others = others
    elif others:
        options.parser.error(f"unrecognized arguments: {' '.join(others)}")
    options.main(options.parser, options)


if __name__ == "__main__":
    main()
