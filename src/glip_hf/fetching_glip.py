# Copyright 2026 The glip_hf authors. MIT licence.
"""Files behind URLs, within limits: size, total time and redirects, and from public addresses only.

Environment variables lift the limits: `GLIP_URL_MAX_MB` (100 megabytes), `GLIP_URL_TIMEOUT` (60 seconds for the whole
download) and `GLIP_URL_PRIVATE=1` (addresses of this machine and of private networks).
"""

import contextlib
import http.client
import ipaddress
import os
import socket
import threading
import urllib.parse
import urllib.request
from typing import Any

MAX_REDIRECTS = 5
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address in the last four bytes


def setting(name: str, default: float) -> float:
    """A positive number from an environment variable; a ValueError for anything else."""
    text = os.environ.get(name) or default
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not value > 0:
        raise ValueError(f"the environment variable {name}={text!r:.50} is not a positive number")
    return value


def fetch(url: str, timeout: float | None = None) -> bytes:
    """The content of an http(s) URL; an OSError, ValueError or http.client.HTTPException for what cannot be fetched or
    exceeds a limit, which is named. `timeout` is in seconds for everything, redirects included."""
    megabytes = setting("GLIP_URL_MAX_MB", 100)
    seconds = setting("GLIP_URL_TIMEOUT", 60) if timeout is None else timeout
    limit = int(megabytes * 1e6)
    connections, opener = _Connections(), urllib.request.OpenerDirector()  # the usual opener reads files and FTP, too
    redirects = urllib.request.HTTPRedirectHandler()
    redirects.max_redirections = MAX_REDIRECTS
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        redirects,
        connections,
    ):
        opener.add_handler(handler)
    watch = threading.Timer(seconds, connections.end)
    watch.daemon = True
    watch.start()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "glip_hf"})
        with opener.open(request, timeout=seconds) as response:
            length = int(response.headers.get("Content-Length") or 0)
            content = b"" if length > limit else response.read(limit + 1)
    except Exception:
        if not connections.ended:
            raise
    finally:
        watch.cancel()
        connections.close()
    if connections.ended:  # whatever it looked like to the reader
        raise ValueError(f"it took longer than {seconds:g} s; the environment variable GLIP_URL_TIMEOUT allows more")
    if max(length, len(content)) > limit:
        raise ValueError(f"it is larger than {megabytes:g} MB; the environment variable GLIP_URL_MAX_MB allows more")
    return content


class _Connections(urllib.request.HTTPSHandler):
    """Connects to public addresses only, and ends all of its connections at once."""

    http_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self) -> None:
        super().__init__()
        self.ended, self._sockets = False, []

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._checked(http.client.HTTPConnection, request), request)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._checked(http.client.HTTPSConnection, request), request)

    def _checked(self, kind: type[http.client.HTTPConnection], request: urllib.request.Request) -> Any:
        """Makes connections that check where they lead."""
        target = urllib.parse.urlsplit(request.full_url)
        proxied = target.netloc != request.host
        if proxied:  # a proxy is the user's choice, and may know hosts that this machine does not
            with contextlib.suppress(socket.gaierror):
                _addresses(target.hostname, target.port or target.scheme)

        def connect(address: tuple[str, int], timeout: float, source: Any = None) -> socket.socket:
            if self.ended:
                raise TimeoutError("out of time")
            # To the very addresses that were checked: another look-up could give others.
            places = [address] if proxied else _addresses(*address)
            for place in places:
                try:
                    connection = socket.create_connection(place, timeout, source)
                    break
                except OSError:
                    if place == places[-1]:
                        raise
            self._sockets.append(connection.dup())  # TLS takes the first one over
            return connection

        def make(host: str, **options: Any) -> http.client.HTTPConnection:
            connection = kind(host, **options)
            connection._create_connection = connect
            return connection

        return make

    def end(self) -> None:
        """End all connections; whoever reads from them sees that they have been closed."""
        self.ended = True
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Release what is left of the connections."""
        for connection in self._sockets:
            connection.close()


def _addresses(host: str | None, port: int | str) -> list[tuple[str, int]]:
    """The addresses of a host; a ValueError if one of them is not public."""
    places = list(dict.fromkeys(info[4][:2] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
    for text, _ in places:
        address = ipaddress.ip_address(text)
        if address in NAT64:
            address = ipaddress.IPv4Address(address.packed[-4:])
        is_public = address.is_global and not address.is_multicast
        if not is_public and os.environ.get("GLIP_URL_PRIVATE") != "1":
            raise ValueError(
                f"{host} is {text}, an address of this machine or of a private network; the environment variable "
                "GLIP_URL_PRIVATE=1 allows these"
            )
    return places
