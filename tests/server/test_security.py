"""Who may connect, who may call, which codecs they may use, and what never reaches a log."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from raw_wire import CODE, call_status, compress_messages, decompress_messages, details, features, talk
from silent_network import Network

from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc
from mpcompress_server.app import Server
from mpcompress_server.auth import Tokens, read_tokens
from mpcompress_server.settings import Settings, SettingsError, load_settings

ALICE, BOB, ROOT = "alice-0123456789abcdef", "bob-0123456789abcdef", "root-0123456789abcdef"
CODECS = [
    {"id": "store", "family": "test_bytes"},
    {"id": "store-again", "family": "test_bytes"},
    {"id": "other", "family": "test_bytes", "options": {"salt": "other"}},
]


def _bearer(token):
    return (("authorization", f"Bearer {token}"),)


def _replace(path, text):
    """A new file of the same name: what an editor or a mounted secret does."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.chmod(0o600)
    fresh.replace(path)


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens.txt"
    digest = hashlib.sha256(BOB.encode()).hexdigest()
    path.write_text(
        f"# who may do what\n\nalice:{ALICE}:store\nbob:sha256-{digest}:store*, other\nroot:{ROOT}:@admin\n"
    )
    path.chmod(0o600)
    return path


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def tls(authority, tmp_path):
    """Settings of a TLS listener for localhost."""
    return _issue(authority, tmp_path)


def _issue(authority, folder):
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    cert, key = folder / "server.pem", folder / "server.key"
    _replace(cert, "".join(pem.bytes().decode() for pem in leaf.cert_chain_pems))
    _replace(key, leaf.private_key_pem.bytes().decode())
    return {"cert": str(cert), "key": str(key)}


def _dial(server, authority, client=None):
    key, chain = None, None
    if client is not None:
        key, chain = client.private_key_pem.bytes(), b"".join(pem.bytes() for pem in client.cert_chain_pems)
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes(), key, chain)
    # A pool of its own: else a second channel shares the first one's connection, and there is no handshake.
    return grpc.aio.secure_channel(server.address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])


# ------------------------------------------------------------------------------------------------------- tokens


async def test_a_call_needs_a_known_token(start_server, connect, tokens, logs):
    channel = connect(await start_server(CODECS, auth={"tokens": str(tokens)}))
    stub = pb_grpc.CompressionServiceStub(channel)
    for metadata in [
        (),
        _bearer("nobody-0123456789abcdef"),
        _bearer(ALICE[:-1]),
        _bearer(hashlib.sha256(BOB.encode()).hexdigest()),
        (("authorization", ALICE),),
        (("authorization", f"Basic {ALICE}"),),
        (*_bearer(ALICE), *_bearer(ALICE)),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListCodecs(pb.ListCodecsRequest(), metadata=metadata)
        assert caught.value.code() == CODE.UNAUTHENTICATED
        assert call_status(caught.value)["reason"] == "UNAUTHENTICATED"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await talk(channel, compress_messages(1, features(4)), metadata=metadata)
        assert caught.value.code() == CODE.UNAUTHENTICATED
    reflect = reflection_pb2_grpc.ServerReflectionStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [r async for r in reflect.ServerReflectionInfo([reflection_pb2.ServerReflectionRequest(list_services="")])]
    assert caught.value.code() == CODE.UNAUTHENTICATED
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert {"UNAUTHENTICATED"} == {record["reason"] for record in logs if record["event"] == "call refused"}


async def test_an_item_needs_permission_for_its_codec(start_server, connect, tokens):
    channel = connect(await start_server(CODECS, auth={"tokens": str(tokens)}))
    stub = pb_grpc.CompressionServiceStub(channel)
    messages = [
        m for i, codec in enumerate(("store", "other", "nope")) for m in compress_messages(i, features(4), codec)
    ]
    mine = await talk(channel, messages, metadata=_bearer(ALICE))
    assert mine[0].payload == features(4).tobytes()
    for item in (1, 2):  # what is forbidden and what does not exist look alike
        found = details(mine[item].error)
        assert (found["code"], found["reason"]) == (CODE.PERMISSION_DENIED, "PERMISSION_DENIED")
    bobs = await talk(channel, messages, metadata=_bearer(BOB))
    assert bobs[1].error is None
    assert details(bobs[2].error)["code"] == CODE.PERMISSION_DENIED
    for token, ids in [(ALICE, ["store"]), (BOB, ["other", "store", "store-again"]), (ROOT, [])]:
        answer = await stub.ListCodecs(pb.ListCodecsRequest(), metadata=_bearer(token))
        assert [info.codec_id for info in answer.codecs] == ids
    # Units: the codec that would decode counts, not the name that the unit has.
    unit = bobs[1].result.unit
    unit.codec_id = "store"
    got = await talk(channel, decompress_messages(1, unit, bobs[1].payload), "Decompress", metadata=_bearer(ALICE))
    assert details(got[1].error)["code"] == CODE.PERMISSION_DENIED
    unit = mine[0].result.unit
    got = await talk(channel, decompress_messages(1, unit, mine[0].payload), "Decompress", metadata=_bearer(ALICE))
    assert np.array_equal(got[1].arrays()["h_hat"], features(4))
    unit.fingerprint, unit.codec_id = b"12345678", "other"
    got = await talk(channel, decompress_messages(1, unit, mine[0].payload), "Decompress", metadata=_bearer(ALICE))
    assert details(got[1].error)["code"] == CODE.PERMISSION_DENIED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [p async for p in stub.GetCodecFile(pb.GetCodecFileRequest(codec_id="other"), metadata=_bearer(ALICE))]
    assert caught.value.code() == CODE.PERMISSION_DENIED


async def test_a_changed_file_counts_at_once(start_server, connect, tokens, logs):
    channel = connect(await start_server(CODECS, auth={"tokens": str(tokens)}))
    call = pb_grpc.CompressionServiceStub(channel).Compress(metadata=_bearer(ALICE))
    await call.write(compress_messages(1, features(4))[0])
    assert (await call.read()).WhichOneof("event") == "result"
    before = tokens.read_text()
    _replace(tokens, before.replace(f"alice:{ALICE}:store", f"alice:{ALICE}:other"))
    for item, codec, event in [(2, "store", "error"), (3, "other", "result")]:
        await call.write(compress_messages(item, features(4), codec)[0])
        assert (await call.read()).WhichOneof("event") == event
    # A file with a mistake changes nothing; the log names its line and not what is in it.
    _replace(tokens, f"alice {ALICE}\n")
    await call.write(compress_messages(4, features(4), "other")[0])
    assert (await call.read()).WhichOneof("event") == "result"
    # A token that is gone ends with the stream that it opened.
    _replace(tokens, before.replace("alice", "#alice"))
    await call.write(compress_messages(5, features(4), "other")[0])
    assert details((await call.read()).error)["code"] == CODE.PERMISSION_DENIED
    call.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await talk(channel, compress_messages(1, features(4)), metadata=_bearer(ALICE))
    assert caught.value.code() == CODE.UNAUTHENTICATED
    (record,) = [record for record in logs if record["event"] == "tokens not reloaded: those from before stay"]
    assert "line 1" in record["error"]
    assert ALICE not in repr(logs)
    assert BOB not in repr(logs)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("alice", "line 2: not NAME:TOKEN:CODECS"),
        (f"al ice:{ALICE}:*", "line 2: not NAME"),
        ("alice:short:*", "line 2: the token is neither"),
        ("alice:sha256-abc:*", "line 2: the token is neither"),
        (f"alice:{ALICE}:store,", "line 2: the codecs"),
        (f"alice:{ALICE}:", "line 2: the codecs"),
        (f"alice:{ALICE}:@root", "line 2: the codecs"),
        (f"alice:{ALICE}:*\nbob:{ALICE}:*", "line 3: this token is there twice"),
    ],
)
def test_mistakes_in_the_token_file(tmp_path, line, words):
    path = tmp_path / "tokens"
    path.write_text(f"# a comment\n{line}\n")
    with pytest.raises(SettingsError) as caught:
        read_tokens(path)
    message = str(caught.value)
    assert message.startswith("auth.tokens: ")
    assert words in message
    assert ALICE not in message
    assert "short" not in message


def test_what_a_file_grants(tokens, logs):
    alice, bob, root = read_tokens(tokens)
    assert (alice.name, bob.name, root.name) == ("alice", "bob", "root")
    assert bob.digest == hashlib.sha256(BOB.encode()).digest()
    assert [alice.allows(codec) for codec in ("store", "store-again", "other")] == [True, False, False]
    assert [bob.allows(codec) for codec in ("store", "store-again", "other", "others")] == [True, True, True, False]
    assert (root.admin, root.allows("store"), bob.admin) == (True, False, False)
    assert alice.digest.hex() not in repr(alice)
    assert not logs
    tokens.chmod(0o644)
    assert len(Tokens(tokens)) == 3
    assert logs[-1]["log_level"] == "warning"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("listen = '0.0.0.0:1'\n[auth]\ntokens = 't'", "auth.tokens: they would travel unencrypted to 0.0.0.0:1"),
        ("listen = 'feature-host:1'\n[auth]\ntokens = 't'", "auth.tokens: "),
        ("listen = '[::]:1'\n[auth]\ntokens = 't'", "auth.tokens: "),
        ("[tls]\ncert = 'x'", "tls: key is missing"),
        ("[tls]\nkey = 'x'", "tls: cert is missing"),
        ("[tls]\nclient_ca = 'x'", "tls: client_ca without cert"),
        ("[tls]\ncret = 'x'", "tls.cret: unknown key"),
        ("[connections]\nmax_metadata_bytes = 10", "connections.max_metadata_bytes: "),
        ("[connections]\nmax_age_s = -1", "connections.max_age_s: "),
        ("[metrics]\nlisten = 'x'", "metrics.listen: 'x' is no HOST:PORT"),
    ],
)
def test_settings_that_are_refused(tmp_path, text, message):
    path = tmp_path / "server.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    assert str(caught.value).removeprefix(f"{path}: ").startswith(message)


@pytest.mark.parametrize(
    "text",
    [
        "listen = '0.0.0.0:1'\n[auth]\ntokens = 't'\nallow_plaintext = true",
        "listen = '0.0.0.0:1'\n[auth]\ntokens = 't'\n[tls]\ncert = 'c'\nkey = 'k'",
        "listen = '[::1]:1'\n[auth]\ntokens = 't'",
        "listen = 'localhost:1'\n[auth]\ntokens = 't'",
        "listen = 'unix:/run/s'\n[auth]\ntokens = 't'",
    ],
)
def test_settings_that_keep_tokens_secret(tmp_path, text):
    path = tmp_path / "server.toml"
    path.write_text(text)
    assert load_settings(path).auth.tokens == str(tmp_path / "t")


# ---------------------------------------------------------------------------------------------------------- TLS


async def test_tls_and_renewed_certificates(start_server, connect, authority, tls, tmp_path, logs):
    server = await start_server(tls=tls)
    async with _dial(server, authority) as channel:
        assert (await talk(channel, compress_messages(1, features(4))))[1].payload == features(4).tobytes()
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # plaintext
        await talk(connect(server), compress_messages(1, features(4)))
    assert caught.value.code() == CODE.UNAVAILABLE
    stranger = trustme.CA()
    async with _dial(server, stranger) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await talk(channel, compress_messages(1, features(4)))
    _issue(stranger, tmp_path)
    async with _dial(server, stranger) as channel:
        assert (await talk(channel, compress_messages(1, features(4))))[1].error is None
    # Half of a renewal: the pair from before goes on.
    _replace(tmp_path / "server.key", authority.issue_cert("localhost").private_key_pem.bytes().decode())
    async with _dial(server, stranger) as channel:
        assert (await talk(channel, compress_messages(1, features(4))))[1].error is None
    assert [r["event"] for r in logs if r["event"].startswith("certificate")] == [
        "certificate renewed",
        "certificate not renewed",
    ]
    assert "PRIVATE" not in repr(logs)


async def test_mutual_tls(start_server, authority, tls, tmp_path):
    clients = trustme.CA()
    (tmp_path / "clients.pem").write_bytes(clients.cert_pem.bytes())
    server = await start_server(tls={**tls, "client_ca": str(tmp_path / "clients.pem")})
    for client, welcome in [
        (clients.issue_cert("edge-7@example.org"), True),
        (None, False),
        (trustme.CA().issue_cert("edge-8@example.org"), False),
    ]:
        async with _dial(server, authority, client) as channel:
            if welcome:
                assert (await talk(channel, compress_messages(1, features(4))))[1].error is None
            else:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await talk(channel, compress_messages(1, features(4)))
                assert caught.value.code() == CODE.UNAVAILABLE


@pytest.mark.parametrize(
    ("broken", "content", "words"),
    [
        ("cert", None, "tls.cert: "),
        ("key", None, "tls.key: "),
        ("client_ca", None, "tls.client_ca: "),
        ("cert", "no PEM", "tls.cert: "),
        ("key", "no PEM", "tls.key: "),
        ("key", "another", "tls.key: "),
        ("client_ca", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "tls.client_ca: "),
    ],
)
def test_certificates_that_do_not_work(authority, tls, tmp_path, broken, content, words):
    (tmp_path / "clients.pem").write_bytes(authority.cert_pem.bytes())
    tls = {**tls, "client_ca": str(tmp_path / "clients.pem")}
    path = tmp_path / f"broken-{broken}"
    if content == "another":
        content = trustme.CA().issue_cert("localhost").private_key_pem.bytes().decode()
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError) as caught:
        Server(Settings.model_validate({"tls": {**tls, broken: str(path)}, "codecs": []}))
    message = str(caught.value)
    assert message.startswith(words)
    assert str(path) in message
    assert "\n" not in message


# -------------------------------------------------------------------------------------------------- connections


async def test_metadata_has_a_bound(start_server, connect):
    channel = connect(await start_server(connections={"max_metadata_bytes": 2048}))
    assert (await talk(channel, compress_messages(1, features(4)), metadata=(("x-note", "a" * 1024),)))[1].result
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await talk(channel, compress_messages(1, features(4)), metadata=(("x-note", "a" * 4096),))
    assert caught.value.code() == CODE.RESOURCE_EXHAUSTED


async def test_connections_end_at_their_age_and_calls_with_their_grace(start_server, connect):
    channel = connect(await start_server(connections={"max_age_s": 0.2, "max_age_grace_s": 0.2}))
    call = pb_grpc.CompressionServiceStub(channel).Compress()
    await call.write(compress_messages(1, features(4))[0])
    assert (await call.read()).WhichOneof("event") == "result"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() == CODE.UNAVAILABLE
    # The next call gets a new connection.
    assert (await talk(channel, compress_messages(1, features(4))))[1].error is None


async def test_a_client_that_pings_too_often_is_sent_away(start_server):
    server = await start_server(connections={"min_ping_interval_s": 60.0})
    options = [
        ("grpc.keepalive_time_ms", 10),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    async with grpc.aio.insecure_channel(server.address, options=options) as channel:
        call = pb_grpc.CompressionServiceStub(channel).Compress()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() == CODE.UNAVAILABLE
    assert re.search("(?i)ping", caught.value.details())


async def test_a_client_that_fell_silent_gives_back_what_it_reserved(start_server):
    """However long it had been idle: gRPC by itself would look after it once a minute only."""
    server = await start_server(connections={"keepalive_time_s": 0.5, "keepalive_timeout_s": 0.5})
    network = Network(server.address)
    try:
        async with grpc.aio.insecure_channel(network.address) as channel:
            call = pb_grpc.CompressionServiceStub(channel).Compress()
            await call.write(compress_messages(1, features(4), chunk=16)[0])
            while not server.servicer.budget.used:
                await asyncio.sleep(0.01)
            await asyncio.sleep(4)  # longer than several pings take
            assert server.servicer.budget.used
            network.silence()
            async with asyncio.timeout(30):
                while server.servicer.budget.used:
                    await asyncio.sleep(0.01)
            call.cancel()
    finally:
        network.close()


# --------------------------------------------------------------------------------------------------------- logs


def test_no_secret_in_what_the_command_writes(authority, tls, tokens, tmp_path):
    """The real command, chatty, with good and bad callers, broken files and a bad start: its log is searched."""
    config, port_file = tmp_path / "server.toml", tmp_path / "port"
    text = 'plugins = ["mpc_test_codecs"]\n[[codecs]]\nid = "store"\nfamily = "test_bytes"\n'
    text += f'[auth]\ntokens = "{tokens.name}"\n[tls]\ncert = "server.pem"\nkey = "server.key"\n'
    config.write_text(text)
    command = [sys.executable, "-m", "mpcompress_server", "serve", "--config", str(config)]
    command += [
        "--listen",
        "127.0.0.1:0",
        "--port-file",
        str(port_file),
        "--log-level",
        "debug",
        "--log-format",
        "json",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "GRPC_VERBOSITY": "info"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    key = (tmp_path / "server.key").read_text()
    lines = []

    def read_until(event):
        for line in process.stderr:
            lines.append(line)
            if f'"event": "{event}' in line:
                return

    try:
        read_until("ready")
        credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        with grpc.secure_channel(port_file.read_text().strip(), credentials) as channel:
            stub = pb_grpc.CompressionServiceStub(channel)
            assert [info.codec_id for info in _list(stub, ALICE)] == ["store"]
            with pytest.raises(grpc.RpcError):
                _list(stub, "wrong-0123456789abcdef")
            named = (*_bearer(ALICE), ("x-request-id", "edge-7/42"))
            list(stub.Compress(iter(compress_messages(1, features(4), "other")), metadata=named))
            _replace(tokens, f"alice:{ALICE}:store\nbroken {BOB}\n")
            _list(stub, ALICE)
            (tmp_path / "server.key").write_text(key.replace("PRIVATE", "BROKEN"))
        with pytest.raises(grpc.RpcError), grpc.secure_channel(port_file.read_text().strip(), credentials) as channel:
            _list(pb_grpc.CompressionServiceStub(channel), "wrong-0123456789abcdef")
        process.send_signal(signal.SIGHUP)
        read_until("reloaded")
        process.terminate()
        lines += process.stderr.readlines()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    lines.append(subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60).stderr)
    log = "".join(lines)
    for event in ("call refused", "tokens not reloaded", "item failed", "certificate not renewed", "reloaded"):
        assert event in log
    # One JSON object a line; what is about a call says which.
    told = [json.loads(line) for line in lines if line.startswith("{")]
    assert all({"event", "level", "timestamp"} <= line.keys() for line in told)
    assert [line["request_id"] for line in told if line["event"] == "item failed"] == ["edge-7/42"]
    assert all(line["request_id"] for line in told if line["event"] == "call refused")
    assert "line 2" in lines[-1]
    assert "auth.tokens" in lines[-1]
    body = key.splitlines()[1]
    for secret in (ALICE, BOB, ROOT, "wrong-0123456789abcdef", hashlib.sha256(BOB.encode()).hexdigest(), body):
        assert secret not in log


def _list(stub, token):
    return stub.ListCodecs(pb.ListCodecsRequest(), metadata=_bearer(token)).codecs
