from logtrain.api import *  # noqa: F403  (a stub's way to name all of `__all__`)
