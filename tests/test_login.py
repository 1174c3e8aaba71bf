"""Connecting: every kind of credentials, and every failure at once and with its reason."""

import asyncio
import base64
import datetime
import hashlib
import ipaddress
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nkeys
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from natterjack.bus import Bus, Message
from natterjack.errors import ConfigError, ConnectError, CredentialsError, RefusedError
from natterjack.server import Server
from natterjack.testing import NatsServer, until

from .conftest import Quick

INFO = {"server_id": "X", "version": "2.10.0", "proto": 1, "headers": True, "max_payload": 1048576, "jetstream": True}


async def greet(server: Server) -> str:
    """Connect, and send something to oneself."""
    bus = await Bus.connect(server, principal="agent")
    try:
        heard: asyncio.Queue[bytes] = asyncio.Queue()

        async def hear(message: Message) -> None:
            heard.put_nowait(message.data)

        await bus.subscribe("hello", hear)
        await bus.publish("hello", b"there")
        return (await asyncio.wait_for(heard.get(), 5)).decode()
    finally:
        await bus.close()


def client_tasks() -> list[str]:
    return [repr(task) for task in asyncio.all_tasks() if "/nats/" in repr(task.get_coro())]


async def refusal(server: Server, timeout: float = 5.0) -> ConnectError:
    """Connect in vain, fast, and leave no task behind."""
    began = time.monotonic()
    with pytest.raises(ConnectError) as caught:
        await Bus.connect(server, principal="agent", timeout=timeout)
    assert time.monotonic() - began < 3
    await until(lambda: not client_tasks(), timeout=1)
    return caught.value


# Tokens, passwords, nkeys


async def test_token() -> None:
    with NatsServer('authorization { token: "right" }') as server:
        assert await greet(Server(server.url, token="right")) == "there"
        for wrong in (Server(server.url, token="wrong"), Server(server.url)):
            error = await refusal(wrong)
            assert isinstance(error, CredentialsError)
            assert "refuses these credentials" in str(error)
            assert "wrong" not in str(error)


async def test_user_and_password() -> None:
    with NatsServer('authorization { user: "me", password: "right" }') as server:
        assert await greet(Server(server.url, user="me", password="right")) == "there"
        assert isinstance(await refusal(Server(server.url, user="me", password="wrong")), CredentialsError)


def test_secrets_stay_out_of_texts() -> None:
    server = Server("nats://me:hidden@127.0.0.1:1", token="hidden", password="hidden", nkey="hidden")
    assert "hidden" not in str(server)
    assert str(server) == "nats://***@127.0.0.1:1"


def new_key(kind: int) -> nkeys.KeyPair:
    return nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), kind)))


def public(key: nkeys.KeyPair) -> str:
    return str(key.public_key.decode())


async def test_nkey_as_seed_and_as_file(tmp_path: Path) -> None:
    user, stranger = new_key(nkeys.PREFIX_BYTE_USER), new_key(nkeys.PREFIX_BYTE_USER)
    seed = bytes(user.seed).decode()
    (tmp_path / "user.nk").write_text(seed)
    with NatsServer(f"authorization {{ users: [ {{ nkey: {public(user)} }} ] }}") as server:
        assert await greet(Server(server.url, nkey=seed)) == "there"
        assert await greet(Server(server.url, nkey=str(tmp_path / "user.nk"))) == "there"
        assert isinstance(await refusal(Server(server.url, nkey=bytes(stranger.seed).decode())), CredentialsError)


async def test_unreadable_credentials_say_so(nats_server: NatsServer, tmp_path: Path) -> None:
    for server in (
        Server(nats_server.url, creds=str(tmp_path / "missing.creds")),
        Server(nats_server.url, nkey=str(tmp_path / "missing.nk")),
        Server(nats_server.url, nkey=str(tmp_path)),
        Server(nats_server.url, ca=str(tmp_path / "missing.pem")),
    ):
        error = await refusal(server)
        assert isinstance(error, CredentialsError)
        assert "cannot be read" in str(error)


async def test_malformed_credentials_say_so(tmp_path: Path) -> None:
    (tmp_path / "broken.creds").write_text("nothing of the kind")
    (tmp_path / "broken.nk").write_text("SUNOTHING")
    with NatsServer('authorization { token: "right" }') as server:
        for wrong in (
            Server(server.url, creds=str(tmp_path / "broken.creds")),
            Server(server.url, nkey=str(tmp_path / "broken.nk")),
            Server(server.url, nkey="SUNOTHING"),
        ):
            assert isinstance(await refusal(wrong), CredentialsError)


# User JWTs


def encode_jwt(claims: dict[str, Any], signer: nkeys.KeyPair) -> str:
    claims = claims | {"iat": int(time.time()), "iss": public(signer), "jti": ""}
    digest = hashlib.sha512(json.dumps(claims, separators=(",", ":")).encode()).digest()[:32]
    claims["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    parts = [
        json.dumps(part, separators=(",", ":")).encode() for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, claims)
    ]
    body = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    return (body + b"." + base64.urlsafe_b64encode(signer.sign(body)).rstrip(b"=")).decode()


def creds_file(path: Path, jwt: str, seed: str) -> str:
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    return str(path)


async def test_creds_file_with_a_user_jwt(tmp_path: Path) -> None:
    operator, account = new_key(nkeys.PREFIX_BYTE_OPERATOR), new_key(nkeys.PREFIX_BYTE_ACCOUNT)
    user = new_key(nkeys.PREFIX_BYTE_USER)
    limits = {"subs": -1, "data": -1, "payload": -1}
    account_limits = limits | {"imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
    operator_jwt = encode_jwt({"sub": public(operator), "nats": {"type": "operator", "version": 2}}, operator)
    account_claims: dict[str, Any] = {"type": "account", "version": 2, "limits": account_limits}
    account_jwt = encode_jwt({"sub": public(account), "nats": account_claims}, operator)
    user_claims: dict[str, Any] = {"sub": public(user), "nats": {"type": "user", "version": 2} | limits}
    config = (
        f"operator: {operator_jwt}\nresolver: MEMORY\nresolver_preload: {{ {public(account)}: {account_jwt} }}\n"
        f"system_account: {public(account)}\n"
    )
    seed = bytes(user.seed).decode()
    with NatsServer(config) as server:
        right = creds_file(tmp_path / "right.creds", encode_jwt(user_claims, account), seed)
        assert await greet(Server(server.url, creds=right)) == "there"
        for name, jwt in (
            ("expired", encode_jwt(user_claims | {"exp": int(time.time()) - 60}, account)),
            ("foreign", encode_jwt(user_claims, new_key(nkeys.PREFIX_BYTE_ACCOUNT))),
        ):
            error = await refusal(Server(server.url, creds=creds_file(tmp_path / name, jwt, seed)))
            assert isinstance(error, CredentialsError), name


# TLS


class Authority:
    """A certificate authority for one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        cert = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(cert.public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )

    def issue(self, name: str, purpose: x509.ObjectIdentifier) -> tuple[str, str]:
        """Return the paths of a new certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        cert = (
            self._builder(subject, key)
            .add_extension(address, critical=False)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        paths[0].write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return str(paths[0]), str(paths[1])


@pytest.mark.open_mode(reason="a certificate is all that is shown")
async def test_tls_both_ways(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server", ExtendedKeyUsageOID.SERVER_AUTH)
    my_cert, my_key = authority.issue("client", ExtendedKeyUsageOID.CLIENT_AUTH)
    config = f'tls {{ cert_file: "{cert}", key_file: "{key}", ca_file: "{authority.ca}", verify: true }}'
    with NatsServer(config) as server:
        assert await greet(Server(server.url, ca=str(authority.ca), cert=my_cert, key=my_key)) == "there"

        stranger = await refusal(Server(server.url, cert=my_cert, key=my_key))
        assert "no TLS connection" in str(stranger)
        assert "certificate verify failed" in str(stranger)

        await refusal(Server(server.url, ca=str(authority.ca)))  # without a certificate of one's own


async def test_a_secret_never_goes_to_a_server_without_tls(tmp_path: Path) -> None:
    ca = str(Authority(tmp_path).ca)
    seen = bytearray()

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO " + json.dumps(INFO | {"version": "2.15.0"}).encode() + b"\r\n")
        while data := await reader.read(1000):
            seen.extend(data)
        writer.close()

    async with listening(plain) as port:
        for server in (
            Server(f"nats://127.0.0.1:{port}", ca=ca, token="secret"),
            Server(f"tls://127.0.0.1:{port}", token="secret"),
        ):
            assert "offers no TLS" in str(await refusal(server))
    assert b"secret" not in seen


# Servers that are none, or the wrong ones


@asynccontextmanager
async def listening(handler: object) -> AsyncIterator[int]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)  # type: ignore[arg-type]
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_unreachable_server_says_what_to_do() -> None:
    error = await refusal(Server("nats://127.0.0.1:1"))
    assert type(error) is ConnectError
    assert "nats://127.0.0.1:1" in str(error)
    assert "natterjack broker run" in str(error)


async def test_silent_server_times_out() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with listening(silent) as port:
        error = await refusal(Server(f"nats://127.0.0.1:{port}"), timeout=0.2)
        assert "no NATS server answers" in str(error)


async def test_something_else_than_nats() -> None:
    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    async with listening(web) as port:
        assert "no NATS server answers" in str(await refusal(Server(f"nats://127.0.0.1:{port}")))


async def test_old_server_is_refused() -> None:
    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO " + json.dumps(INFO).encode() + b"\r\n")
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()

    async with listening(old) as port:
        error = await refusal(Server(f"nats://127.0.0.1:{port}"))
        assert "nats-server 2.10, but 2.12 or newer is needed" in str(error)


@pytest.mark.open_mode(reason="on a subject of which no right speaks")
async def test_second_server_of_a_cluster_will_do(nats_server: NatsServer) -> None:
    for _ in range(4):  # the order is shuffled
        assert await greet(Server(f"nats://127.0.0.1:1,{nats_server.url}")) == "there"


async def test_without_a_right_to_its_inbox_nobody_connects() -> None:
    config = 'authorization { users: [ { user: "me", password: "x", permissions: { subscribe: "other" } } ] }'
    with NatsServer(config) as server, pytest.raises(RefusedError, match=r"subscribe to '_INBOX\.agent"):
        await Bus.connect(Server(server.url, user="me", password="x"), principal="agent")


def test_a_url_that_is_none() -> None:
    with pytest.raises(ConfigError, match="no server URL"):
        Server("http://127.0.0.1:4222")


def test_a_token_and_a_folder_of_keys_are_one_too_many(quick: Quick) -> None:
    quick.env |= {"NATS_URL": "nats://127.0.0.1:1", "NATS_PREFIX": "CORE.API", "NATS_TOKEN": "x", "NATS_KEYS": "keys"}
    told = "NATS_TOKEN and NATS_KEYS both say who you are; unset one"
    assert told in quick.error("emit", "start.go", "{}", code=2)
    with pytest.raises(ConfigError, match=told):
        Server("nats://127.0.0.1:1", token="x", keys="keys")
    quick.env["NATS_TOKEN"] = ""  # as `up` gives it to its processes
    assert told not in quick.error("emit", "start.go", "{}", code=3)
