"""Errors as OpenAI's API gives them."""

from typing import Any


class ApiError(Exception):
    """A request that is answered by an error."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int = 0
    ):
        """`status`: of HTTP. `param`: the field that is wrong. `retry_after`: seconds after which another try is worth
        it.
        """
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the reply."""
        return {"Retry-After": str(self.retry_after)} if self.retry_after else {}

    def body(self) -> dict[str, Any]:
        """The JSON object of the reply."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def unavailable(message: str) -> ApiError:
    """The error of a request that a worker cannot answer now."""
    return ApiError(503, f"{message}; try again in some seconds", code="unavailable", retry_after=5)
