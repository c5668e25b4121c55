"""Studies: points of params.yaml through the stages, their tables and figures."""

import stages  # noqa: F401  # before torch is loaded, since it says how threads wait
