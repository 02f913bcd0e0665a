"""Serves a page for the browser in front of any server of OpenAI's API.

    logtrain page --base_url URL

The parts are in serving/: browser.py puts the page together and folds logs, proxy.py sends its requests on.
"""

from dataclasses import dataclass

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.core.kinds import Config


@dataclass(frozen=True, kw_only=True)
class PageConfig(Config):
    """Serve a page for the browser, to talk to a model of any server of OpenAI's API about logs."""

    base_url: str
    """The server's address up to and with /v1, as http://localhost:8000/v1. Its key is taken from OPENAI_API_KEY."""
    host: str = "127.0.0.1"
    """Address to listen at. 127.0.0.1: this machine alone; 0.0.0.0: every network that it is in."""
    port: int = 8080
    """Port to listen at. 0: any that is free."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"port = {self.port} must be from 0 to 65,535")


def main(argv: list[str]) -> int:
    """Serve the page until Ctrl-C or SIGTERM; -> the exit status."""
    config = load(PageConfig, argv)
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ValueError(f"logtrain page needs {error.name}: pip install 'logtrain[serve]'") from None
    from logtrain.serving.proxy import bound_socket, page_app

    app = page_app(config.base_url, config.host)
    settings = uvicorn.Config(app, lifespan="off", ws="none", access_log=False, log_level="warning")
    with bound_socket(config.host, config.port) as bound:
        host = f"[{config.host}]" if ":" in config.host else config.host
        print(f"the page is at http://{host}:{bound.getsockname()[1]}/, in front of {config.base_url}", flush=True)
        uvicorn.Server(settings).run([bound])
    return 0


if __name__ == "__main__":
    run(main)
