"""The body of a request, as JSON and within limits."""

import json
from http import HTTPStatus

from starlette.requests import Request

from sim.serve.errors import ApiError, bad_request


async def read_json(request: Request, max_bytes: int) -> object:
    """Return the JSON value of a request's body.

    Raises ApiError: 413 above ``max_bytes``, before the rest is read; 400 for what is not JSON.
    """
    media_type = request.headers.get("content-type", "").lower().split(";", maxsplit=1)[0].strip()
    if media_type != "application/json":
        raise bad_request("Unsupported Media Type: Only 'application/json' is allowed")
    body = await _read(request, max_bytes)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is not valid JSON: {error}") from error


async def _read(request: Request, max_bytes: int) -> bytes:
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body is larger than {max_bytes} bytes (serve.max_request_bytes)",
        headers={"Connection": "close"},
    )
