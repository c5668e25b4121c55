"""Put the study on the pipeline's page: python -m ablation.page"""

import sys
from pathlib import Path

from simsiam.params import Params
from stages.common import main
from stages.report import STAGES, write_page


def page(params: Params, root: Path) -> None:
    """Write reports/index.html anew, where `dvc repro` has made what else is on it."""
    needed = [root / f"reports/metrics/{stage}.json" for stage in STAGES] + [root / "reports/settings.yaml"]
    if all(path.exists() for path in needed):
        write_page(params, root)
    else:
        print(
            "page: the study is in reports/study/; `dvc repro` runs the rest of the page and puts it there", file=sys.stderr
        )


if __name__ == "__main__":
    main(page)
