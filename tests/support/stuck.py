"""logtrain.cpt, of which rank 1 never gets the rows of the step that the environment names in STUCK_AT."""

import os
import time

from logtrain.cpt import main as main_of_cpt
from logtrain.data.loader import Loader, Step


def main(argv: list[str]) -> int:
    at = Loader.at

    def stuck(self: Loader, step: int) -> Step:
        if self.rank == 1 and step == int(os.environ["STUCK_AT"]):
            time.sleep(600)
        return at(self, step)

    Loader.at = stuck
    return main_of_cpt(argv)
