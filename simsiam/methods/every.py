"""Every method of pretraining, by the name that `method` in params.yaml gives it, which is that of its file.

What a training with one of them depends on is that one's code, and not that there are others (`simsiam.code`).
"""

from simsiam.methods.barlow_twins import BarlowTwins
from simsiam.methods.byol import BYOL
from simsiam.methods.fastsiam import FastSiam
from simsiam.methods.method import Method
from simsiam.methods.moco import MoCo
from simsiam.methods.simclr import SimCLR
from simsiam.methods.simsiam import SimSiam
from simsiam.methods.supervised import Supervised
from simsiam.methods.swav import SwAV
from simsiam.methods.vicreg import VICReg

METHODS: dict[str, type[Method]] = {
    "simsiam": SimSiam,
    "fastsiam": FastSiam,
    "simclr": SimCLR,
    "byol": BYOL,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    "swav": SwAV,
    "moco": MoCo,
    "supervised": Supervised,
}
