"""Refusals and failures in OpenAI's error format, with vLLM's names (vllm/entrypoints/serve/utils)."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

TYPES = {
    HTTPStatus.BAD_REQUEST: "BadRequestError",
    HTTPStatus.NOT_FOUND: "NotFoundError",
    HTTPStatus.METHOD_NOT_ALLOWED: "MethodNotAllowedError",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "RequestTooLargeError",
    HTTPStatus.TOO_MANY_REQUESTS: "RateLimitError",
    HTTPStatus.INTERNAL_SERVER_ERROR: "InternalServerError",
    HTTPStatus.SERVICE_UNAVAILABLE: "ServiceUnavailableError",
    HTTPStatus.GATEWAY_TIMEOUT: "TimeoutError",
}


class ApiError(Exception):
    """An answer that is an error. ``param`` is the field of the request that it is about."""

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        param: str | None = None,
        error_type: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.error_type = error_type or TYPES[status]
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        error = {
            "message": self.message,
            "type": self.error_type,
            "param": self.param,
            "code": self.status.value,
        }
        return {"error": error}


def bad_request(message: str, param: str | None = None) -> ApiError:
    """Return the error for a request that cannot be served as it is."""
    return ApiError(HTTPStatus.BAD_REQUEST, message, param)


def not_found(message: str, param: str | None = None) -> ApiError:
    """Return the error for what does not exist."""
    return ApiError(HTTPStatus.NOT_FOUND, message, param)


async def answer_error(request: Request, error: Exception) -> Response:
    """Answer with an ApiError."""
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status.value, error.headers)


async def answer_no_route(request: Request, error: Exception) -> Response:
    """Answer a request for a path that there is not."""
    missing = not_found(f"{request.method} {request.url.path}: there is no such path")
    return JSONResponse(missing.body(), missing.status.value)


async def answer_wrong_method(request: Request, error: Exception) -> Response:
    """Answer a request whose path takes other methods."""
    wrong = ApiError(
        HTTPStatus.METHOD_NOT_ALLOWED, f"{request.url.path} does not take {request.method} requests"
    )
    return JSONResponse(wrong.body(), wrong.status.value, getattr(error, "headers", None))


async def answer_failure(request: Request, error: Exception) -> Response:
    """Answer where the server itself has failed."""
    failure = ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")
    return JSONResponse(failure.body(), failure.status.value)
