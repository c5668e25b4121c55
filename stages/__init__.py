"""One script a stage: `python -m stages.<name>`, run by DVC in the order of dvc.yaml."""

import os

# Threads wait for each other by spinning. OpenMP's usual 300,000 turns make a training step on a busy machine many times as
# long; a tenth of them much less so, and is as fast where it is quiet. OpenMP reads this when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")
