"""The web application: which path is answered by what."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.routing import Route

from sim.serve.backend import Backend
from sim.serve.endpoints import Endpoints
from sim.serve.errors import ApiError, answer_error, answer_failure, answer_no_route, answer_wrong_method


def make_app(backend: Backend) -> Starlette:
    """Return the application in front of ``backend``, whose time passes while the application runs."""
    return Starlette(
        routes=_routes(backend),
        lifespan=lambda app: _time_passes(backend),
        exception_handlers={
            ApiError: answer_error,
            404: answer_no_route,
            405: answer_wrong_method,
            Exception: answer_failure,
        },
    )


def _routes(backend: Backend) -> list[Route]:
    endpoints = Endpoints(backend)
    routes = [
        Route("/v1/completions", endpoints.completions, methods=["POST"]),
        Route("/v1/chat/completions", endpoints.chat_completions, methods=["POST"]),
        Route("/v1/models", endpoints.models),
        Route("/health", endpoints.health),
        Route("/metrics", endpoints.metrics),
        Route("/generate", endpoints.generate, methods=["POST"]),
        Route("/swap_stats", endpoints.swap_stats),
        Route("/reset_swap_stats", endpoints.reset_swap_stats, methods=["POST"]),
    ]
    load, unload = endpoints.load_lora_adapter, endpoints.unload_lora_adapter
    if not backend.config.serve.lora_updating_allowed:
        load = unload = endpoints.no_lora_updating
    return [
        *routes,
        Route("/v1/load_lora_adapter", load, methods=["POST"]),
        Route("/v1/unload_lora_adapter", unload, methods=["POST"]),
    ]


@asynccontextmanager
async def _time_passes(backend: Backend) -> AsyncIterator[None]:
    passing = asyncio.create_task(backend.run())
    yield
    passing.cancel()
    with suppress(asyncio.CancelledError):
        await passing
