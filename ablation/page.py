"""Put the study on the pipeline's page: python -m ablation.page"""

import sys
from pathlib import Path

from simsiam.params import Params
from stages.common import main
from stages.report import STAGES, report


def page(params: Params, root: Path) -> None:
    """Write reports/index.html anew, where `dvc repro` has made what else is on it."""
    if all((root / f"reports/metrics/{stage}.json").exists() for stage in STAGES):
        report(params, root)
    else:
        print(
            "page: the study is in reports/study/; `dvc repro` runs the rest of the page and puts it there", file=sys.stderr
        )


if __name__ == "__main__":
    main(page)
