"""The desk's routes: JSON in, JSON out, each a few lines around a method of `Desk`; and the server that runs them.

    GET  /                          the page; NAME of `PAGE_FILES` its parts
    GET  /api/desk                  images, predictor, categories
    POST /api/here                  a page says where it is; who else is
    GET  /api/images/N              one image, what is accepted and mined in it
    GET  /api/images/N/jpeg         its pixels, on the page's grid
    POST /api/images/N/answer       a prompt -> masks of the whole dial
    POST /api/images/N/everything   begins the search; GET: what it found
    POST /api/images/N/accept       also delete, relabel, review: one transaction each
    POST /api/propagate             begins to follow the objects of a video
    GET  /api/jobs/NAME             how far it is; POST: stop it

Errors are {"error": words}: 400 bad input, 403 a desk that only shows, 409 somebody else has the image, 410 a page that
was loaded for other images, 500 the disk.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from pipeline.errors import GrainmillError, InputError

from .desk import Desk, OtherImagesError, ReadOnlyError, TakenError
from .guard import TOO_LARGE, Guard, TooLargeError
from .messages import Accept, Ask, Delete, Here, Relabel, Review, read_message

LOOPBACK: Final = "127.0.0.1"
PAGE_FILES: Final = {
    "desk.css": "text/css",
    "api.js": "text/javascript",
    "stage.js": "text/javascript",
    "panel.js": "text/javascript",
    "desk.js": "text/javascript",
}
"""In `page/`; what they share with the report comes from `pipeline/templates`."""
SHARED_FILES: Final = {"report.css": "text/css", "report_masks.js": "text/javascript"}

Handler = Callable[[Request], Awaitable[Response]]


def create_app(desk: Desk, *, token: str, origins: list[str]) -> ASGIApp:
    """The guarded application of a desk.

    Args:
        desk: closed when the server ends.
        token: first part of every path.
        origins: under which it may be asked.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        desk.close()

    def number(request: Request) -> int:
        return int(request.path_params["number"])

    def get(path: str, work: Callable[[Request], Any]) -> Route:
        return Route(path, _answering(lambda request, body: work(request)), methods=["GET"])

    def post(path: str, work: Callable[[Request, bytes], Any]) -> Route:
        return Route(path, _answering(work), methods=["POST"])

    one = "/api/images/{number:int}"
    routes = [
        Route("/", _file("index.html", "text/html"), methods=["GET"]),
        *(Route(f"/{name}", _file(name, kind), methods=["GET"]) for name, kind in (PAGE_FILES | SHARED_FILES).items()),
        get("/api/desk", lambda request: desk.overview()),
        post("/api/here", lambda request, body: desk.here(read_message(body, Here))),
        get(one, lambda request: desk.image(number(request))),
        get(f"{one}/jpeg", lambda request: desk.jpeg(number(request))),
        post(f"{one}/answer", lambda request, body: desk.answer(number(request), read_message(body, Ask).prompt)),
        get(f"{one}/everything", lambda request: desk.everything(number(request))),
        post(f"{one}/everything", lambda request, body: desk.search_everything(number(request))),
        post(f"{one}/accept", lambda request, body: desk.accept(number(request), read_message(body, Accept))),
        post(f"{one}/delete", lambda request, body: desk.delete(number(request), read_message(body, Delete))),
        post(f"{one}/relabel", lambda request, body: desk.relabel(number(request), read_message(body, Relabel))),
        post(f"{one}/review", lambda request, body: desk.review(number(request), read_message(body, Review))),
        post("/api/propagate", lambda request, body: desk.propagate()),
        get("/api/jobs/{name}", lambda request: desk.job(request.path_params["name"])),
        post("/api/jobs/{name}", lambda request, body: desk.job(request.path_params["name"], stop=True)),
    ]
    return Guard(Starlette(routes=routes, lifespan=lifespan), token=token, origins=origins)


def _answering(work: Callable[[Request, bytes], Any]) -> Handler:
    """A handler that runs `work` in a thread, and says what went wrong."""

    async def handler(request: Request) -> Response:
        try:
            answer = await run_in_threadpool(work, request, await request.body())
        except TooLargeError:
            return _json({"error": TOO_LARGE}, 413)
        except GrainmillError as error:
            return _json({"error": str(error)}, _status(error))
        except Exception:
            logging.getLogger(__name__).exception("a request of the desk failed")
            return _json({"error": "it failed; the terminal says why"}, 500)
        return Response(answer, media_type="image/jpeg") if isinstance(answer, bytes) else _json(answer)

    return handler


def _status(error: GrainmillError) -> int:
    if isinstance(error, TakenError):
        return 409
    if isinstance(error, OtherImagesError):
        return 410
    if isinstance(error, ReadOnlyError):
        return 403
    return 400 if isinstance(error, InputError) else 500


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def _file(name: str, kind: str) -> Handler:
    folder = (
        resources.files("pipeline") / "templates" if name in SHARED_FILES else resources.files(__package__) / "page"
    )

    async def handler(request: Request) -> Response:
        return Response((folder / name).read_text(encoding="utf-8"), media_type=kind)

    return handler


# ---------------------------------------------------------------------------------------------------------------------
# Running it


def bound_socket(port: int) -> socket.socket:
    """A socket on the loopback address.

    Args:
        port: 0 for any that is free.

    Raises:
        InputError: it is taken.
    """
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((LOOPBACK, port))
        bound.listen()  # who opens the page while the server still begins waits, and is not refused
    except OSError as error:
        bound.close()
        raise InputError(f"--port {port}: {(error.strerror or str(error)).lower()}; choose another") from error
    return bound


def own_origins(port: int) -> list[str]:
    """Under which a browser on this machine finds it."""
    return [f"http://{LOOPBACK}:{port}", f"http://localhost:{port}"]


def serve(app: ASGIApp, bound: socket.socket) -> None:
    """Serves until Ctrl-C or SIGTERM."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
    )
    uvicorn.Server(config).run(sockets=[bound])
