"""A bucket seen by somebody else: a few calls of S3 with a signature made here, not by the program under test.

    bucket = Bucket(server, "ledger").make()
    bucket.put("a/b", b"...")
    bucket.keys("a/")
"""

import datetime
import hashlib
import hmac
import http.client
import re
import urllib.parse
import xml.etree.ElementTree

from s3_servers import ACCESS_KEY, SECRET_KEY


def sign(method, host, path, query, body, key=ACCESS_KEY, secret=SECRET_KEY, service="s3", region="us-east-1", more=None):
    """The headers that a request needs (AWS Signature Version 4); more are headers in lower case."""
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    digest = hashlib.sha256(body).hexdigest()
    headers = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": now, **(more or {})}
    headers = dict(sorted(headers.items()))
    names = ";".join(headers)
    canonical = "\n".join([method, path, query, *(f"{k}:{v}" for k, v in headers.items()), "", names, digest])
    scope = f"{now[:8]}/{region}/{service}/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    signature = ("AWS4" + secret).encode()
    for part in (*scope.split("/"), text):
        signature = hmac.new(signature, part.encode(), hashlib.sha256).digest()
    headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={names}, Signature={signature.hex()}"
    return headers


def texts(body, name):
    """The texts of all elements of that name, whatever their namespace."""
    return [e.text or "" for e in xml.etree.ElementTree.fromstring(body).iter() if e.tag.rpartition("}")[2] == name]


class Bucket:
    """One bucket of a server."""

    def __init__(self, server, name):
        self.server, self.name = server, name

    def call(self, method, key="", body=b"", wanted=(200, 204), more=None, **query):
        """One request; the body of the answer, AssertionError if its status is none of wanted."""
        path = urllib.parse.quote(f"/{self.name}/{key}" if key else f"/{self.name}")
        query = "&".join(f"{urllib.parse.quote(k, safe='')}={urllib.parse.quote(v, safe='')}" for k, v in sorted(query.items()))
        conn = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            conn.request(method, path + ("?" + query if query else ""), body,
                         sign(method, self.server.address, path, query, body, more=more))
            answer = conn.getresponse()
            content = answer.read()
        finally:
            conn.close()
        assert answer.status in wanted, f"{method} {path}?{query}: {answer.status} {content[:500]!r}"
        return content

    def make(self, lock=False):
        """Make the bucket, with Object Lock if asked."""
        self.call("PUT", more={"x-amz-bucket-object-lock-enabled": "true"} if lock else None)
        return self

    def get(self, key):
        return self.call("GET", key)

    def put(self, key, body):
        self.call("PUT", key, body)

    def remove(self, key):
        self.call("DELETE", key)

    def objects(self, prefix=""):
        """{key: size} of the objects whose keys begin with prefix."""
        found, more = {}, {}
        while True:
            page = self.call("GET", **{"list-type": "2", "prefix": prefix, **more})
            found.update(zip(texts(page, "Key"), map(int, texts(page, "Size")), strict=True))
            if texts(page, "IsTruncated") != ["true"]:
                return found
            more = {"continuation-token": texts(page, "NextContinuationToken")[0]}

    def segments(self):
        """{key: size} of the packed segments."""
        return {key: size for key, size in self.objects().items() if re.search(r"/segments/[^/]+$", "/" + key)}

    def empty(self):
        for key in self.objects():
            self.remove(key)

    def allow_reading(self, account):
        """A policy by which account may read and list, and nothing more (versitygw)."""
        here = f"arn:aws:s3:::{self.name}"
        policy = ('{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":["%s"],"Action":["s3:GetObject","s3:ListBucket"],'
                  '"Resource":["%s","%s/*"]}]}' % (account, here, here))
        self.call("PUT", body=policy.encode(), policy="")


def session(server, policy, seconds=3600):
    """Keys of a session that may do what policy says: id, secret, token (MinIO)."""
    body = urllib.parse.urlencode({"Action": "AssumeRole", "Version": "2011-06-15", "DurationSeconds": seconds, "Policy": policy}).encode()
    conn = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = sign("POST", server.address, "/", "", body, service="sts")
    conn.request("POST", "/", body, {**headers, "content-type": "application/x-www-form-urlencoded"})
    answer = conn.getresponse()
    content = answer.read()
    conn.close()
    assert answer.status == 200, content
    return tuple(texts(content, name)[0] for name in ("AccessKeyId", "SecretAccessKey", "SessionToken"))
