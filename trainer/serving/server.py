"""The server: HTTP in, one answer at a time out. Ends after the request that is under way."""

from __future__ import annotations

import ipaddress
import json
import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from autoft.errors import OptionError, harmless
from autoft.trainer.serving.answer import ClientGone, answer, prompt_of
from autoft.trainer.serving.models import Served
from autoft.trainer.serving.protocol import Question, Reply, RequestError, error_body, model_object, question_of

MOST_BYTES = 16 * 2**20  # of a request's body; assumption: more than any context holds
IDLE_S = 60.0  # a connection that sends or takes nothing for so long is closed
MODELS, CHAT = "/v1/models", "/v1/chat/completions"
GONE = (BrokenPipeError, ConnectionError, TimeoutError, ClientGone)

Log = Callable[[str], None]


class Server(socketserver.ThreadingTCPServer):
    """A thread a connection, one generation at a time.

    It has its address from the beginning, takes requests from `start` to `stop`, and is closed as a context manager.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        """Raises: OptionError when the address cannot be had."""
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.models: Mapping[str, Served] = {}
        self.log: Log = lambda _: None
        self.created = int(time.time())
        self.is_local = is_loopback(host)
        self.is_ending = False
        self._generating = threading.Lock()
        self._open_requests = 0
        self._changed = threading.Condition()
        super().__init__((host, port), Handler, bind_and_activate=False)
        try:
            self.server_bind()
        except (OSError, OverflowError) as error:
            self.server_close()
            raise OptionError(
                f"{host}:{port}: {getattr(error, 'strerror', None) or error}",
                fix=f"--port {port + 1}, or another --host",
            ) from None

    @property
    def url(self) -> str:
        """Of the API."""
        host, port = self.server_address[:2]
        host = str(host)
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"

    def start(self, models: Mapping[str, Served], log: Log) -> None:
        """Take requests for `models` in a thread of its own. log: called with a line a request, from any thread."""
        self.models, self.log = models, log
        self.server_activate()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def stop(self) -> None:
        """End after the requests that are answered now; those that wait are refused."""
        self.is_ending = True
        self.shutdown()
        with self._changed:
            self._changed.wait_for(lambda: not self._open_requests)

    @contextmanager
    def request(self) -> Iterator[None]:
        """`stop` waits until the block ends."""
        with self._changed:
            self._open_requests += 1
        try:
            yield
        finally:
            with self._changed:
                self._open_requests -= 1
                self._changed.notify_all()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The one generation of this moment. Raises: RequestError when the server ends."""
        with self._generating:
            if self.is_ending:
                raise RequestError("the server is shutting down", status=503)
            yield

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Of a connection, not of a request: nothing to answer on."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    server_version = "autoft"
    sys_version = ""

    def do_GET(self) -> None:
        """List the models, or one."""
        with self._answering():
            path = unquote(urlsplit(self.path).path).rstrip("/")
            models = {name: model_object(name, self.server.created) for name in self.server.models}
            name = path.removeprefix(f"{MODELS}/")
            if path == MODELS:
                self._send(200, {"object": "list", "data": list(models.values())})
            elif path != name and name in models:
                self._send(200, models[name])
            elif path != name:
                raise RequestError(f"model {name}: not served", status=404, param="model", code="model_not_found")
            else:
                self._refuse_path(path)

    def do_POST(self) -> None:
        """Answer a conversation."""
        with self._answering():
            body = self._body()
            path = urlsplit(self.path).path.rstrip("/")
            if path != CHAT:
                self._refuse_path(path)
            question = question_of(_parsed(body), list(self.server.models))
            served = self.server.models[question.model]
            ids = prompt_of(served, question)
            with self.server.turn():
                if self._is_gone():
                    raise ClientGone
                self._answer(served, question, ids)

    def _answer(self, served: Served, question: Question, ids: list[int]) -> None:
        reply = Reply(question.model)
        if not question.stream:
            done = answer(served, question, ids, on_text=lambda _: None, is_gone=self._is_gone)
            self._send(200, reply.whole(done))
            return
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Connection", "close")
        self.end_headers()
        self._has_begun = True
        self._event(reply.chunk({"role": "assistant", "content": ""}))
        done = answer(
            served,
            question,
            ids,
            on_text=lambda text: self._event(reply.chunk({"content": text})),
            is_gone=self._is_gone,
        )
        self._event(reply.chunk({}, done.finish_reason))
        if question.include_usage:
            self._event(reply.usage(done))
        self.wfile.write(b"data: [DONE]\n\n")

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """What goes wrong in the block is the answer, if there is still a client to give it to."""
        self._has_begun = False
        began = time.monotonic()
        with self.server.request():
            try:
                self._check_host()
                yield
                outcome = "200"
            except RequestError as error:
                outcome = f"{error.status} {error}"
                with suppress(*GONE):
                    self._send(error.status, error.body)
            except GONE:
                self.close_connection = True
                outcome = "client gone"
            except Exception as error:  # noqa: BLE001 - a request that fails ends no server
                reason = " ".join(str(error).split())[:200]
                outcome = f"500 {type(error).__name__}: {reason}"
                with suppress(*GONE):
                    self._fail(error_body(outcome.removeprefix("500 "), kind="server_error"))
        line = f"{self.command} {self.path}: {outcome}, {time.monotonic() - began:.1f} s"
        self.server.log(harmless(line, one_line=True))

    def _fail(self, body: dict[str, Any]) -> None:
        if self._has_begun:
            self._event(body)
        else:
            self._send(500, body)

    def _check_host(self) -> None:
        """Raises: RequestError where a web page has pointed a name of its own at this machine (DNS rebinding)."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if self.server.is_local and not (host and is_loopback(host)):
            self.close_connection = True
            raise RequestError("Host: not this machine's own name", status=403)

    def _body(self) -> bytes:
        """Raises: RequestError for one that is not JSON by its headers, without a length, or too long."""
        length = self.headers.get("Content-Length", "")
        self.close_connection = True  # until all of the body is read
        if not length.isdecimal():
            raise RequestError("Content-Length: missing", status=411)
        if int(length) > MOST_BYTES:
            raise RequestError(f"the body has {int(length):,} bytes, at most {MOST_BYTES:,} are taken", status=413)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ClientGone
        self.close_connection = self.headers.get("Connection", "").lower() == "close"
        # what a web page of another site may send unasked is text or a form
        if self.headers.get_content_type() != "application/json":
            raise RequestError("Content-Type: not application/json")
        return body

    def _refuse_path(self, path: str) -> None:
        raise RequestError(f"{path or '/'}: not served. Served: GET {MODELS}, POST {CHAT}", status=404)

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def _event(self, body: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())

    def _is_gone(self) -> bool:
        """Whether the client has closed the connection: asked of the socket, without taking anything from it."""
        try:
            readable, _, _ = select.select([self.connection], [], [], 0)
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses, in OpenAI's form."""
        self.close_connection = True
        self._send(code, error_body(message or HTTPStatus(code).phrase))

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are logged once they are answered."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}") from None
