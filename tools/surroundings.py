"""Run a small program in many environments: ``python tools/surroundings.py [PART OF A NAME ...]``.

The table is in ``tests/integration/surroundings.py``; some rows need root. About a second and a half each.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.integration.surroundings import ROWS, run


def main() -> None:
    rows = [row for row in ROWS if not row.root or os.geteuid() == 0]
    wanted = sys.argv[1:]
    if wanted:
        rows = [row for row in rows if any(part in row.name for part in wanted)]
    failed = 0
    with ThreadPoolExecutor(2) as pool:
        for row, wrong in zip(rows, pool.map(run, rows), strict=True):
            print("WRONG" if wrong else "right", row.name, *wrong, sep="\n    " if wrong else "  ", flush=True)
            failed += bool(wrong)
    print(f"{len(rows) - failed} of {len(rows)} were right")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
