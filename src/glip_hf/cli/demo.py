# Copyright 2026 The glip_hf authors. MIT licence.
"""`glip demo`: a page in the browser."""

import argparse
import socket
import threading

from ..values_glip import shown
from .common import SHIPPED_MODEL, CliError, add_device_arguments, add_model_argument, load_model, number

HELP = "try a model in the browser"
DESCRIPTION = """\
Serve a page for the browser: choose an image, type class names or a caption, see the boxes.

  glip demo                       the small model that comes with the package
  glip demo --model DIR --open    any converted model

It needs the extra `demo`, listens on this machine alone unless --host says otherwise, and ends with Ctrl-C."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_model_argument(add, default=str(SHIPPED_MODEL))
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s; 0.0.0.0: reachable from the network)")
    add("--port", type=number("port", int, 1, 65535), help="TCP port (default: the first free one from 7860 on)")
    add("--open", action="store_true", help="open the page in the browser")
    add_device_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from .._extras import require

    require("gradio", "demo")  # before a model is loaded for nothing, as is
    check_address(arguments.host, arguments.port)
    from ..demo_page import build_page

    model, processor = load_model(arguments.model, arguments.device, arguments.dtype, arguments.runtime)
    page = build_page(model, processor, scenes=arguments.model == str(SHIPPED_MODEL))
    _, address, _ = page.launch(
        server_name=arguments.host,
        server_port=arguments.port,
        inbrowser=arguments.open,
        share=False,  # whatever the environment says: a tunnel would make the page public
        prevent_thread_lock=True,
        quiet=True,
    )
    try:
        print(f"{address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def check_address(host: str, number: int | None) -> None:
    """Raise a CliError if no program can listen there."""
    try:
        (family, *_), *_ = socket.getaddrinfo(host, number or 0, type=socket.SOCK_STREAM)
        socket.create_server((host, number or 0), family=family).close()
    except OSError as error:
        given, free = f"--host {shown(host)}", ""
        if number is not None:
            given, free = f"{given} --port {number}", ", and a free port or none"
        raise CliError(
            f"{given}: nothing can listen there ({error.strerror}); choose an address of this machine{free}"
        ) from None
