"""A line of JSON for every test as it ends, so that a run that is killed leaves what it knew.

First ``{"selected": COUNT}``; then for each test ``{"started": TEST}``, and for its phases with something
to tell ``{"test": TEST, "outcome": "passed" | "failed" | "skipped", "seconds": S, "text": WHY}``.
"""

import json
from pathlib import Path


class Log:
    """A plugin of pytest that writes the file `path`."""

    def __init__(self, path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, "w", buffering=1)  # noqa: SIM115  (open until the process ends), a line at a time

    def write(self, **entry):
        self.file.write(json.dumps(entry) + "\n")

    def pytest_collection_finish(self, session):
        self.write(selected=len(session.items))

    def pytest_runtest_logstart(self, nodeid):
        self.write(started=nodeid)

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            why = report.longrepr  # of a skip (file, line, reason)
            text = why[2] if isinstance(why, tuple) else report.longreprtext
            self.write(
                test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 3), text=text
            )

    def pytest_collectreport(self, report):
        if report.failed:
            self.write(test=report.nodeid, outcome="failed", seconds=0, text=report.longreprtext)
