"""A proxy in front of an S3 server: it counts what passes, and answers in the server's place where a test wants that.

The Host header goes through as it is, since it is signed. answer is a function of (method, path) that returns None,
or (status, headers, body) to be sent in the server's place, which then never heard of the request. spoil is one that
gets what the server answered too, after it did what it was asked for, and returns what to send; None breaks the connection.
"""

import contextlib
import datetime
import http.client
import http.server
import threading


class Proxy:
    """Listens on a port of its own until close; as a context manager until the block ends."""

    def __init__(self, server):
        self.server, self.answer, self.spoil = server, None, None
        self.mutex = threading.Lock()
        self.reset()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_):
                pass

            def do_GET(self):
                proxy.pass_on(self)

            do_PUT = do_HEAD = do_DELETE = do_POST = do_GET

        self.listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.listener.daemon_threads = True
        self.listener.handle_error = lambda *_: None  # a node that is killed
        self.port = self.listener.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.listener.serve_forever, args=(0.05,), daemon=True).start()

    def reset(self):
        """Forget what passed so far."""
        self.requests = []  # (method, path, status, bytes of the answer's body)

    def moved(self):
        """How many requests were answered, and how many bytes their bodies had."""
        with self.mutex:
            return len(self.requests), sum(size for *_, size in self.requests)

    def pass_on(self, request):
        """Answer one request."""
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        given = self.answer and self.answer(request.command, request.path)
        try:
            given = given or self.ask(request, body)
            if self.spoil:
                given = self.spoil(request.command, request.path, given)
            if given is None:
                raise OSError("spoiled")
            status, headers, content = given
        except (OSError, http.client.HTTPException):
            request.close_connection = True
            return
        with self.mutex:
            self.requests.append((request.command, request.path, status, len(content)))
        with contextlib.suppress(OSError):
            request.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    request.send_header(name, value)
            length = headers.get("Content-Length") if request.command == "HEAD" else len(content)
            if status not in (204, 304):
                request.send_header("Content-Length", str(length or 0))
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(content)

    def ask(self, request, body):
        """The server's answer: status, headers, body."""
        conn = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            conn.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name.lower() not in ("connection", "expect"):
                    conn.putheader(name, value)
            conn.endheaders(body or None)
            answer = conn.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            conn.close()

    def close(self):
        self.listener.shutdown()
        self.listener.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def error(status, code, message="", **fields):
    """An answer of S3's own form."""
    fields = {"Code": code, "Message": message or code, **fields, "RequestId": "4442587FB7D0A2F9"}
    body = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error>%s</Error>" % "".join(f"<{k}>{v}</{k}>" for k, v in fields.items())
    return status, {"Content-Type": "application/xml"}, body.encode()


def skewed(by):
    """A server whose clock is by seconds ahead, or behind: it refuses every request as S3 does."""
    def answer(method, path):
        now = datetime.datetime.now(datetime.timezone.utc)
        status, headers, body = error(403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.",
                                      RequestTime=now.strftime("%Y%m%dT%H%M%SZ"),
                                      ServerTime=(now + datetime.timedelta(seconds=by)).strftime("%Y-%m-%dT%H:%M:%SZ"),
                                      MaxAllowedSkewMilliseconds=900000)
        headers["Date"] = (now + datetime.timedelta(seconds=by)).strftime("%a, %d %b %Y %H:%M:%S GMT")
        return status, headers, body
    return answer
