"""`grainmill annotate`: people at work with the dial, on a page of their own machine."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    import socket

    from model.predict.segment_inputs import Taken

ANSWERS = "Who answers"
PAGE = "The page"
GOES_ON = "the same command goes on with what was accepted"
TOKEN_VARIABLE = "GRAINMILL_DESK_TOKEN"
MIN_TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class AnnotateFlags:
    """What is annotated, with which predictor, and where the masks go."""

    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGES]...",
            help="A folder of images, images, or a pattern in quotes; a run or a release, whose mined masks are then "
            "reviewed; or a video: a file that OpenCV reads, or with --as video a folder of frames. Default: the "
            "photographs of demo/.",
            show_default=False,
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where what is accepted goes, at that moment: log.jsonl and annotations.json (COCO, with the "
            "granularity). The same command goes on there. Needed, but with --read-only.",
            show_default=False,
        ),
    ] = None
    category: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Offered from the start; repeat it for several. Default: `object`."),
    ] = None
    taken: Annotated[
        str | None,
        typer.Option("--as", metavar="images|video", help="What a folder is. Default: images; files by their ending."),
    ] = None
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="CKPT",
            help="Of `grainmill train`: a file, or a run's directory. Or SAM 2.1's own weights, which know no "
            "granularity. `tree`: the masks that `mine --wholes stable` finds in an image. Default: the kept student "
            "if there is one (`--checkpoint kept` of `segment`), else demo/student if it is there, else tree.",
            rich_help_panel=ANSWERS,
        ),
    ] = None
    base: Annotated[
        str | None,
        typer.Option(
            metavar="CKPT",
            help="SAM 2.1's weights under an adapter's checkpoint. Default: where they were when it was trained.",
            rich_help_panel=ANSWERS,
        ),
    ] = None
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N. Default: a GPU if there is one.", rich_help_panel=ANSWERS)
    ] = None
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Of the page, at the loopback address. Default: the last one of DIR, or any that is free.",
            rich_help_panel=PAGE,
        ),
    ] = None
    browser: Annotated[
        bool,
        typer.Option(help="Open the page in a browser. Default: yes, where there is a screen.", rich_help_panel=PAGE),
    ] = True
    read_only: Annotated[
        bool,
        typer.Option(
            "--read-only",
            help="A desk to look at: clicks are answered and nothing is accepted; it writes nothing. For a public "
            "demonstration. Default: off.",
            rich_help_panel=PAGE,
        ),
    ] = False
    origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="As in https://desk.example.org: where a proxy of yours shows the page; others are refused. "
            f"Repeatable. The token of the URL is then best your own: the environment's {TOKEN_VARIABLE}. Default: "
            "this machine alone.",
            rich_help_panel=PAGE,
        ),
    ] = None


def run(flags: AnnotateFlags) -> None:
    """Opens a page on which people click, turn the dial and accept masks.

    grainmill annotate photos/ --checkpoint RUN --output annotated/

    grainmill annotate 'photos/*.jpg' --output annotated/ --category cat --category dog
    """
    from pipeline.console import note
    from pipeline.errors import InputError

    _expect_the_extra()
    if (flags.output is None) != flags.read_only:
        raise InputError("expected --output DIR, where what is accepted goes, or --read-only, and not both")
    if flags.taken not in (None, "images", "video"):
        raise InputError(f"--as {flags.taken}: expected images or video")

    others = [_origin(each) for each in flags.origin or ()]
    own_token = _own_token()

    from model.desk.answers import open_predictor
    from model.desk.desk import Desk
    from model.desk.images import DEMO, VideoFrames, open_images
    from model.desk.server import bound_socket, create_app, own_origins, serve
    from model.desk.store import Address, Store, new_token
    from model.desk.video import VideoTracker

    images = open_images(flags.images or [], taken=cast("Taken | None", flags.taken))
    predictor = open_predictor(flags.checkpoint, base=flags.base, device=flags.device, demo=DEMO)
    with contextlib.ExitStack() as opened:
        store, tracker, last = None, None, Address(new_token(), 0)
        if flags.output is not None:
            store = opened.enter_context(contextlib.closing(Store(flags.output, lists=images.kind == "mined")))
            last = store.address()
            if isinstance(images, VideoFrames):
                tracker = VideoTracker(images, flags.output, predictor.checkpoint, base=flags.base, device=flags.device)
        bound = opened.enter_context(bound_socket(flags.port) if flags.port else _last_or_free(last.port))
        address = Address(own_token or last.token, bound.getsockname()[1])
        if store is not None:
            store.keep_address(address)
        desk = Desk(images, predictor, store, categories=flags.category or ("object",), tracker=tracker)
        app = create_app(desk, token=address.token, origins=[*own_origins(address.port), *others])
        note(f"{len(images.names)} images of {images.title}, answered by {predictor.name}")
        if store is not None:
            note(f"{sum(len(each.masks) for each in store.state.images.values())} masks accepted so far")
        url = f"http://127.0.0.1:{address.port}/{address.token}/"
        print(f"{url}\nOnly who has this whole address can open the page. Ctrl-C ends it.", flush=True)
        if flags.browser and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            import webbrowser

            webbrowser.open(url)
        serve(app, bound)


def _expect_the_extra() -> None:
    from importlib.util import find_spec

    from pipeline.errors import InputError

    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise InputError("the desk needs Starlette and uvicorn: pip install 'grainmill[app]'")


def _own_token() -> str | None:
    from pipeline.errors import InputError

    token = os.environ.get(TOKEN_VARIABLE)
    if token is not None and (
        len(token) < MIN_TOKEN or not token.isascii() or not token.replace("-", "").replace("_", "").isalnum()
    ):
        raise InputError(f"{TOKEN_VARIABLE}: expected at least {MIN_TOKEN} letters, digits, - and _")
    return token


def _origin(url: str) -> str:
    """What a browser sends as the origin of a page at this address.

    Raises:
        InputError: it is none, or a token would travel there in the clear.
    """
    from urllib.parse import urlsplit

    from pipeline.errors import InputError

    wrong = InputError(f"--origin {url}: expected https://HOST or https://HOST:PORT")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:  # as of http://[ and of :x
        raise wrong from error
    rest = parts.path.strip("/") or parts.query or parts.fragment
    if parts.scheme not in _PORTS or not host or rest or "@" in parts.netloc:
        raise wrong
    if parts.scheme == "http" and host not in ("localhost", "127.0.0.1", "::1"):
        raise InputError(f"--origin {url}: without TLS everybody on the way reads the token; use https")
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}" + ("" if port in (None, _PORTS[parts.scheme]) else f":{port}")


_PORTS = {"http": 80, "https": 443}
"""What a browser leaves out of an origin."""


def _last_or_free(port: int) -> socket.socket:
    from model.desk.server import bound_socket
    from pipeline.errors import InputError

    try:
        return bound_socket(port)
    except InputError:
        return bound_socket(0)
