"""logtrain: continual pretraining of Llama models, and what comes before and after it.

`import logtrain` offers the names of logtrain/api.py. That module, and torch with it, is imported when one is first
used.
"""

from importlib import import_module

API = {
    *("Answer", "ExportResult", "LoaderConfig", "LoraConfig", "Model", "OptimConfig", "ParallelConfig", "RunConfig"),
    *("SamplingConfig", "Split", "StepFacts", "TrainerConfig", "Training", "Turn", "load", "open_data", "score"),
}


def __getattr__(name: str) -> object:
    if name not in API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("logtrain.api"), name)


def __dir__() -> list[str]:
    return sorted(globals().keys() | API)
