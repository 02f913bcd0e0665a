"""logtrain: continual pretraining of Llama models, and what comes before and after it.

`import logtrain` brings the names of logtrain/api.py, and imports what is behind them once one is used.
"""

from importlib import import_module


def __getattr__(name: str) -> object:
    api = None if name.startswith("_") else import_module("logtrain.api")
    if api is None or name not in api.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module("logtrain.api").__all__})
