"""Answers requests of OpenAI's API with a model of this machine.

    logtrain serve --model DIR

docs/serve.md shows how it is asked. The parts are in serving/: app.py has the paths, schema.py what requests may hold,
asking.py and replies.py what they become and what comes back, pool.py the worker processes, engine.py what one of them
does.
"""

import asyncio

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.serving.config import ServeConfig


def main(argv: list[str]) -> int:
    """Serve as the flags say; -> the exit status, once SIGTERM or Ctrl-C has asked for the end and running answers are
    complete.
    """
    config = load(ServeConfig, argv)
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(f"logtrain serve needs {error.name}: pip install 'logtrain[serve]'") from None
    from logtrain.serving.listening import serve  # after the flags: it brings torch

    return asyncio.run(serve(config))


if __name__ == "__main__":
    run(main)
