"""``python -m isotherm.bench FILE ...`` shows what `isotherm bench NAME --json` wrote, and then the targets
that fall short, of all files. Exit 0, whatever they say."""

import json
import sys
from pathlib import Path

from isotherm.bench.figures import Report
from isotherm.bench.show import show_report, show_shortfalls, wide_console


def show_files(files: list[str]) -> int:
    """Shows the reports in ``files``; the exit code."""
    reports = [Report.from_dict(json.loads(Path(file).read_text())) for file in files]
    console = wide_console()
    for report in reports:
        show_report(report, console)
    show_shortfalls(reports, console)
    return 0


if __name__ == "__main__":
    sys.exit(show_files(sys.argv[1:]))
