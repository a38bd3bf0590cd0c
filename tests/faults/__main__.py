"""Run fault campaigns: python -m tests.faults [NAMES …] [--size FRACTION] [--sabotage fence] [--report FILE]"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.faults import report
from tests.faults.campaigns import CAMPAIGNS, carry_out
from tests.faults.result import Result
from tests.faults.system import started_servers


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description="Break a running system on purpose, and count the damage."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"campaigns, default all: {', '.join(CAMPAIGNS)}")
    parser.add_argument("--size", type=float, default=1.0, help="1 is the full size, about an hour on two cores")
    parser.add_argument(
        "--sabotage", choices=report.GUARDS, default="", help="switch a guard off: the campaign must then find damage"
    )
    parser.add_argument("--report", type=Path, help="write the figures there, as docs/reliability.md")
    parser.add_argument("--work", type=Path, help="keep data and logs there; default: a folder that is removed again")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(CAMPAIGNS):
        parser.error(f"there is no campaign {', '.join(sorted(unknown))}; there are {', '.join(CAMPAIGNS)}")
    work = arguments.work or Path(tempfile.mkdtemp(prefix="faults-", dir="/tmp"))
    work.mkdir(parents=True, exist_ok=True)
    work.chmod(0o711)
    results: list[Result] = []
    try:
        with started_servers(work) as servers:
            for result in carry_out(
                arguments.names or list(CAMPAIGNS), arguments.size, arguments.sabotage, servers, work
            ):
                results.append(result)
                show(result)
                if arguments.report:
                    report.write(arguments.report, results, arguments.size, arguments.sabotage)
    finally:
        if not arguments.work:
            shutil.rmtree(work, ignore_errors=True)
    return 0 if results and all(result.ok for result in results) else 1


def show(result: Result) -> None:
    width = max((len(figure.what) for figure in result.figures), default=0)
    for figure in result.figures:
        verdict = "" if not figure.must else "ok" if figure.holds else "NO"
        print(
            f"  {verdict:3} {figure.what:{width}}  {figure.value}"
            + (f"   (must: {figure.must})" if figure.must else "")
        )
    for remark in result.remarks:
        print(f"      {remark}")
    print(f"  {result.name}: {'holds' if result.ok else 'DOES NOT HOLD'} ({result.seconds:.0f} s)\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
