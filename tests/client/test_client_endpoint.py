"""TLS, mutual TLS and tokens against real TLS servers; arguments and environment; and no secret in any text."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pytest
import trustme
from scripted_server import ScriptedServicer, store

from mpcompress_client import (
    AccessDeniedError,
    AsyncCompressionClient,
    CodedUnit,
    CompressionClient,
    InvalidRequestError,
    RetryPolicy,
    ServerUnavailableError,
    TlsConfig,
)
from mpcompress_client.endpoint import is_loopback, resolve
from mpcompress_client.retry import NEVER
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc

CODE = grpc.StatusCode
SECRET = "s3cret-t0ken"
ITEM = np.arange(4, dtype=np.int32)
IMPATIENT = RetryPolicy(attempts=2, initial_backoff_s=0.01)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MPCOMPRESS_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(authority) -> Iterator[Callable[..., str]]:
    """Starts TLS servers that store items, and want a token, or a client certificate; gives their addresses."""
    servers: list[grpc.Server] = []

    def start(
        token: str | None = None,
        mutual: bool = False,
        name: str = "localhost",
        tls: bool = True,
        port: int = 0,
        signed_by: trustme.CA = authority,
    ) -> str:
        def guarded(requests, context):
            start.peers += context.auth_context().get("x509_subject_alternative_name", [])
            given = dict(context.invocation_metadata()).get("authorization")
            if token is not None and given != f"Bearer {token_of(token)}":
                context.abort(CODE.UNAUTHENTICATED, "no valid token")
            yield from store(requests, context)

        server = grpc.server(futures.ThreadPoolExecutor(4))
        pb_grpc.add_CompressionServiceServicer_to_server(ScriptedServicer(compress=guarded), server)
        if tls:
            issued = signed_by.issue_cert(name)
            chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
            credentials = grpc.ssl_server_credentials(
                [(issued.private_key_pem.bytes(), chain)],
                root_certificates=signed_by.cert_pem.bytes() if mutual else None,
                require_client_auth=mutual,
            )
            port = server.add_secure_port(f"localhost:{port}", credentials)
        else:
            port = server.add_insecure_port("localhost:0")
        server.start()
        servers.append(server)
        return f"localhost:{port}"

    def token_of(token: str) -> str:
        return start.tokens.get(token, token)  # type: ignore[attr-defined]

    def stop() -> None:
        for server in servers:
            server.stop(0).wait()

    start.tokens, start.peers, start.stop = {}, [], stop  # type: ignore[attr-defined]
    yield start
    stop()


def write_client_files(authority: trustme.CA, folder: Path, name: str = "device", only: Sequence[str] = ()) -> None:
    """Writes PEM files of the authority and of a client with that name; with `only` just these of them."""
    issued = authority.issue_cert(name)
    contents = {
        "ca": authority.cert_pem.bytes(),
        "cert": b"".join(part.bytes() for part in issued.cert_chain_pems),
        "key": issued.private_key_pem.bytes(),
    }
    for part in only or contents:
        (folder / f"{part}.new").write_bytes(contents[part])
        (folder / f"{part}.new").replace(folder / f"{part}.pem")


@pytest.fixture
def files(authority, tmp_path) -> dict[str, str]:
    """PEM files of the authority and of a client."""
    write_client_files(authority, tmp_path)
    return {name: str(tmp_path / f"{name}.pem") for name in ("ca", "cert", "key")}


# ---------------------------------------------------------------------------------------------------- connections


async def test_tls_with_a_token(secure, files, authority):
    target = secure(token=SECRET)
    for ca in (files["ca"], authority.cert_pem.bytes(), authority.cert_pem.bytes().decode()):
        with CompressionClient(target, tls=TlsConfig(ca=ca), token=SECRET) as client:
            assert isinstance(client.compress(ITEM, codec="x"), CodedUnit)
    async with AsyncCompressionClient(target, tls=TlsConfig(ca=files["ca"]), token=SECRET) as client:
        assert isinstance(await client.compress(ITEM, codec="x"), CodedUnit)
    with (
        CompressionClient(target, tls=TlsConfig(ca=files["ca"])) as client,
        pytest.raises(AccessDeniedError, match="token_file=, or set MPCOMPRESS_TOKEN_FILE"),
    ):
        client.compress(ITEM, codec="x")


def test_mutual_tls(secure, files):
    target = secure(mutual=True)
    with CompressionClient(target, tls=TlsConfig(**files)) as client:
        assert isinstance(client.compress(ITEM, codec="x"), CodedUnit)
    with (
        CompressionClient(target, tls=TlsConfig(ca=files["ca"]), retry=IMPATIENT) as client,
        pytest.raises(ServerUnavailableError),
    ):
        client.compress(ITEM, codec="x")


def test_everything_from_the_environment(secure, files, monkeypatch, tmp_path):
    token_file = tmp_path / "token"
    token_file.write_text(f"{SECRET}\n")
    monkeypatch.setenv("MPCOMPRESS_TARGET", secure(token=SECRET, mutual=True))
    monkeypatch.setenv("MPCOMPRESS_TOKEN_FILE", str(token_file))
    monkeypatch.setenv("MPCOMPRESS_TIMEOUT_S", "17.5")
    for name, path in files.items():
        monkeypatch.setenv(f"MPCOMPRESS_TLS_{name.upper()}", path)
    with CompressionClient() as client:
        assert client.timeout_s == 17.5
        assert isinstance(client.compress(ITEM, codec="x"), CodedUnit)
    # An argument wins over its variable, and an empty variable is none.
    monkeypatch.setenv("MPCOMPRESS_TLS_CA", "")
    monkeypatch.setenv("MPCOMPRESS_TLS_CERT", "")
    monkeypatch.setenv("MPCOMPRESS_TLS_KEY", "")
    with CompressionClient(secure(tls=False), timeout_s=3, token="other") as client:
        assert client.timeout_s == 3
        assert isinstance(client.compress(ITEM, codec="x"), CodedUnit)


def test_a_token_file_is_read_again_when_it_changes(secure, tmp_path):
    path = tmp_path / "token"
    path.write_text("first")
    target = secure(token="now", tls=False)
    secure.tokens["now"] = "first"
    with CompressionClient(target, token_file=path) as client:
        client.compress(ITEM, codec="x")
        secure.tokens["now"] = "second-token"
        with pytest.raises(AccessDeniedError):
            client.compress(ITEM, codec="x")
        path.write_text("second-token")
        client.compress(ITEM, codec="x")
        path.unlink()
        with pytest.raises(InvalidRequestError, match="cannot read the token file"):
            client.compress(ITEM, codec="x")


def test_renewed_certificates_are_taken_up_without_a_new_client(secure, files, authority, tmp_path):
    target = secure(mutual=True)
    with CompressionClient(target, tls=TlsConfig(**files)) as client:
        client.compress(ITEM, codec="x")
        stream = client.compress_many(itertools.repeat(ITEM, 40), codec="x", look_ahead=1)
        next(stream)
        # The certificate without its key: what was there before goes on.
        write_client_files(authority, tmp_path, "renewed", only=["cert"])
        client.compress(ITEM, codec="x")
        write_client_files(authority, tmp_path, "renewed")
        client.compress(ITEM, codec="x")
        assert secure.peers == [b"device", b"device", b"device", b"renewed"]
        # The stream ends over the connection that it has, which is then closed.
        assert len(list(stream)) == 39
        assert len(secure.peers) == 4
        client.compress(ITEM, codec="x")
        assert len(client._lines.drain()) == 1


async def test_renewed_certificates_asyncio(secure, files, authority, tmp_path):
    target = secure(mutual=True)
    async with AsyncCompressionClient(target, tls=TlsConfig(**files)) as client:
        await client.compress(ITEM, codec="x")
        stream = client.compress_many(itertools.repeat(ITEM, 40), codec="x", look_ahead=1)
        await anext(aiter(stream))
        write_client_files(authority, tmp_path, "renewed")
        await client.compress(ITEM, codec="x")
        assert secure.peers == [b"device", b"device", b"renewed"]
        assert len([unit async for unit in stream]) == 39
        await client.compress(ITEM, codec="x")
        assert len(client._lines.drain()) == 1


def test_another_authority_is_taken_up_on_reconnect(secure, files, tmp_path):
    target = secure(mutual=True)
    other = trustme.CA()
    with CompressionClient(target, tls=TlsConfig(**files), retry=IMPATIENT) as client:
        client.compress(ITEM, codec="x")
        secure.stop()
        secure(mutual=True, port=int(target.rpartition(":")[2]), signed_by=other)
        with pytest.raises(ServerUnavailableError):
            client.compress(ITEM, codec="x", timeout_s=5)
        write_client_files(other, tmp_path)
        assert isinstance(client.compress(ITEM, codec="x"), CodedUnit)


def test_a_key_of_another_certificate_is_told_at_once(files, authority, tmp_path):
    write_client_files(authority, tmp_path, only=["key"])
    with pytest.raises(InvalidRequestError, match="do not fit together"):
        CompressionClient("localhost:1", tls=TlsConfig(**files))


@pytest.mark.parametrize(
    ("server", "client", "words"),
    [
        ({}, {"tls": True}, "not trusted"),
        ({"tls": False}, {"tls": True}, "does not talk TLS"),
        ({"name": "elsewhere"}, {"ca": True}, "another name"),
        ({}, {}, "TLS right"),
    ],
)
def test_messages_say_what_to_do_when_tls_does_not_fit(secure, files, server, client, words):
    target = secure(**server)
    tls = TlsConfig(ca=files["ca"]) if client.get("ca") else client.get("tls")
    with (
        CompressionClient(target, tls=tls, retry=IMPATIENT) as connected,
        pytest.raises(ServerUnavailableError, match=words),
    ):
        connected.compress(ITEM, codec="x")


def test_a_server_name_of_its_own(secure, files, monkeypatch):
    target = secure(name="elsewhere")
    with CompressionClient(target, tls=TlsConfig(ca=files["ca"], server_name="elsewhere")) as client:
        assert isinstance(client.compress(ITEM, codec="x"), CodedUnit)
    monkeypatch.setenv("MPCOMPRESS_TLS_CA", files["ca"])
    monkeypatch.setenv("MPCOMPRESS_TLS_NAME", "elsewhere")
    with CompressionClient(target) as client:
        assert isinstance(client.compress(ITEM, codec="x"), CodedUnit)


# ------------------------------------------------------------------------------------------------------ arguments


HERE = "localhost:1 127.0.0.1:1 127.8.8.8:1 [::1]:1 unix:/tmp/x unix:///x dns:///localhost:1 ipv4:127.0.0.1:1 "
HERE += "ipv6:[::1]:1 LOCALHOST:1 localhost"
ELSEWHERE = "example.org:1 10.0.0.1:1 localhost.example.org:1 127.0.0.1.nip.io:1 [2001:db8::1]:1 0.0.0.0:1 dns:///x:1 "
ELSEWHERE += "dns://8.8.8.8/localhost:1 ipv4:127.0.0.1:1,10.0.0.1:1 xds:///localhost vsock:1:1"


@pytest.mark.parametrize("target", HERE.split())
def test_loopback(target):
    assert is_loopback(target)


@pytest.mark.parametrize("target", ELSEWHERE.split())
def test_no_loopback(target):
    assert not is_loopback(target)
    with pytest.raises(InvalidRequestError, match=r"not sent to .* in plain text: use TLS"):
        CompressionClient(target, token=SECRET)
    CompressionClient(target, token=SECRET, tls=True).close()


ARGUMENTS = {
    "two tokens": ({"token": "a", "token_file": "b"}, {}, "not both"),
    "empty token": ({"token": ""}, {}, "token is empty"),
    "spaced token": ({"token": "a b"}, {}, "holds spaces"),
    "no token file": ({"token_file": "/nowhere/token"}, {}, "cannot read the token file /nowhere/token"),
    "a header injected": ({"token": "a\r\nx: y"}, {}, "holds spaces"),
    "tls and credentials": ({"tls": True, "credentials": grpc.ssl_channel_credentials()}, {}, "not both"),
    "tls of a string": ({"tls": "yes"}, {}, "tls is a TlsConfig"),
    "no ca file": ({"tls": TlsConfig(ca="/nowhere/ca.pem")}, {}, "cannot read tls.ca, '/nowhere/ca.pem'"),
    "ca is no pem": ({"tls": TlsConfig(ca=b"x")}, {}, "hold no PEM"),
    "retry": ({"retry": 3}, {}, "RetryPolicy or None"),
    "variable token file": ({}, {"TOKEN_FILE": "/nowhere"}, "cannot read the token file /nowhere"),
    "variable timeout": ({}, {"TIMEOUT_S": "soon"}, "MPCOMPRESS_TIMEOUT_S: timeout_s is a number"),
    "variable ca": ({}, {"TLS_CA": "/nowhere"}, "cannot read tls.ca"),
    "cert without ca": ({}, {"TLS_CERT": "x", "TLS_KEY": "x"}, "need MPCOMPRESS_TLS_CA"),
    "cert without key": ({}, {"TLS_CA": "system", "TLS_CERT": "x"}, "both MPCOMPRESS_TLS_CERT and MPCOMPRESS_TLS_KEY"),
    "variable target": ({}, {"TARGET": "https://x:1"}, "without https://: use 'x:1' and tls=True"),
    "plain text from the environment": ({}, {"TARGET": "x:1", "TOKEN_FILE": __file__}, "holds spaces"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("kind", [CompressionClient, AsyncCompressionClient])
def test_arguments_that_cannot_be_used(kind, name, monkeypatch):
    arguments, variables, words = ARGUMENTS[name]
    for variable, value in variables.items():
        monkeypatch.setenv(f"MPCOMPRESS_{variable}", value)
    with pytest.raises(InvalidRequestError, match=words.replace("(", r"\(")):
        kind(**arguments)


def test_a_channel_brings_its_own_credentials(scripted, monkeypatch):
    with grpc.insecure_channel(scripted(compress=store)) as channel:
        with pytest.raises(InvalidRequestError, match="its own TLS and token"):
            CompressionClient("x:1", channel=channel, token=SECRET)
        monkeypatch.setenv("MPCOMPRESS_TOKEN_FILE", "/nowhere")
        with CompressionClient("x:1", channel=channel) as client:
            assert isinstance(client.compress(ITEM, codec="x"), CodedUnit)


def test_plain_text_on_this_machine_bypasses_proxies(tmp_path):
    def options(**arguments):
        defaults = {"tls": None, "credentials": None, "token": None, "token_file": None, "timeout_s": None}
        return dict(
            resolve(
                **{"target": "localhost:1", **defaults, **arguments},
                own_channel=False,
                options=(("grpc.keepalive_time_ms", 5),),
                policy=NEVER,
                environment={},
            ).options
        )

    assert options(token="x")["grpc.enable_http_proxy"] == 0
    assert "grpc.enable_http_proxy" not in options()
    assert options()["grpc.keepalive_time_ms"] == 5
    assert options()["grpc.enable_retries"] == 0


# -------------------------------------------------------------------------------------------------------- secrets


def test_no_secret_in_any_text(secure, files, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    key = (tmp_path / "key.pem").read_text()
    texts = []
    config = TlsConfig(ca=files["ca"], cert=files["cert"], key=key)
    client = CompressionClient(secure(token="another"), tls=config, token=SECRET, retry=IMPATIENT)
    with client, contextlib.suppress(AccessDeniedError):
        texts += [repr(config), repr(client), repr(client._endpoint), str(vars(client._endpoint)["token"])]
        client.compress(ITEM, codec="x")
    for arguments in (
        {"token": f"{SECRET} x"},
        {"token": SECRET, "target": "example.org:1"},
        {"tls": TlsConfig(cert=files["cert"], key="\n".join(key.splitlines()[1:-1]))},
        {"tls": TlsConfig(cert=files["cert"], key=key.encode()[30:-30])},
    ):
        try:
            CompressionClient(**arguments)
        except InvalidRequestError:
            texts.append(traceback.format_exc())
    assert len(texts) == 8
    hidden = [SECRET, *key.splitlines()[1:-1]]
    assert not [secret for secret in hidden for text in [*texts, caplog.text] if secret in text]
