"""Tokens: what is minted verifies, and nothing else does, whatever somebody makes of it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from natterjack import Claims, ConfigError, TokenError, Tokens, keys
from natterjack.tokens import MAX_TOKEN, inspect

SECRET = "a secret of thirty-two bytes, or more"
RSA = rsa.generate_private_key(65537, 2048)
KEYS: dict[str, Any] = {
    "RS256": RSA,
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def private_pem(key: Any, password: bytes | None = None) -> str:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    return str(key.private_bytes(serialization.Encoding.PEM, form, encryption).decode())


def public_pem(key: Any) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return str(key.public_key().public_bytes(serialization.Encoding.PEM, form).decode())


def jwk(name: str, key: Any, **more: str) -> dict[str, Any]:
    kinds: dict[type, Any] = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    algorithm = next((kind for base, kind in kinds.items() if isinstance(key, base)), OKPAlgorithm)
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": name, **more}


def payload(**changed: Any) -> dict[str, Any]:
    whole = {"sub": "anna", "exp": int(time.time()) + 60, "aud": "tools", "iss": "office", **changed}
    return {name: value for name, value in whole.items() if value is not None}


def signed(values: dict[str, Any], key: Any = SECRET, algorithm: str = "HS256", **headers: Any) -> str:
    return jwt.encode(values, key, algorithm, headers)


def by_hand(header: Any, body: Any, key: bytes = SECRET.encode()) -> str:
    """What no library would sign."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, body)]
    first = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    mark = base64.urlsafe_b64encode(hmac.new(key, first, hashlib.sha256).digest()).rstrip(b"=")
    return (first + b"." + mark).decode()


async def refusal(tokens: Tokens, token: str) -> str:
    with pytest.raises(TokenError) as caught:
        await tokens.verify(token)
    assert str(caught.value) == f"the token is not valid: {caught.value.reason}"
    return caught.value.reason


@pytest.fixture
def office() -> Tokens:
    return Tokens(secret=SECRET, audience="tools", issuer="office")


# What is valid


async def test_what_is_minted_verifies(office: Tokens) -> None:
    before = time.time()
    token = office.mint("anna", roles=["writer", "reader"], scopes=["a:b", "c"], expires=90, claims={"team": [1]})
    claims = await office.verify(token)
    assert (claims.subject, {*claims.roles}, {*claims.scopes}) == ("anna", {"writer", "reader"}, {"a:b", "c"})
    assert before + 89 <= claims.expires <= time.time() + 90
    assert claims.values["team"] == [1]
    assert jwt.decode(token, SECRET, ["HS256"], audience="tools", issuer="office")["scope"] == "a:b c"


@pytest.mark.parametrize("algorithm", KEYS)
async def test_each_kind_of_key_has_its_algorithm(algorithm: str) -> None:
    minter, verifier = Tokens(private_key=private_pem(KEYS[algorithm])), Tokens(public_key=public_pem(KEYS[algorithm]))
    token = minter.mint("anna")
    assert jwt.get_unverified_header(token)["alg"] == algorithm
    assert (await verifier.verify(token)).subject == (await minter.verify(token)).subject == "anna"
    assert (minter.mints, verifier.mints) == (True, False)
    with pytest.raises(ConfigError, match="only verify"):
        verifier.mint("anna")


@pytest.mark.parametrize(
    ("claims", "roles", "scopes"),
    [
        ({}, set(), set()),
        ({"roles": "a b", "scope": "c d"}, {"a", "b"}, {"c", "d"}),
        ({"roles": ["a b"], "scp": ["c", "d"]}, {"a b"}, {"c", "d"}),
        ({"scopes": ["c"], "scp": ["d"]}, set(), {"c"}),
    ],
)
async def test_claims_of_other_issuers_are_understood(
    office: Tokens, claims: dict[str, Any], roles: set[str], scopes: set[str]
) -> None:
    found = await office.verify(signed(payload(**claims)))
    assert ({*found.roles}, {*found.scopes}) == (roles, scopes)


async def test_clocks_may_differ_a_little(office: Tokens) -> None:
    now = int(time.time())
    assert (await office.verify(signed(payload(exp=now - 10, nbf=now + 10)))).subject == "anna"
    strict = Tokens(secret=SECRET, audience="tools", issuer="office", leeway=0)
    assert "expired" in await refusal(strict, signed(payload(exp=now - 10)))


# What is not


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (lambda: signed(payload(exp=int(time.time()) - 100)), "expired"),
        (lambda: signed(payload(nbf=int(time.time()) + 100)), "not valid yet"),
        (lambda: signed(payload(iat=int(time.time()) + 100)), "not valid yet"),
        (lambda: signed(payload(aud="others")), "another audience"),
        (lambda: signed(payload(aud=None)), "no claim `aud`"),
        (lambda: signed(payload(iss="others")), "another issuer"),
        (lambda: signed(payload(iss=None)), "no claim `iss`"),
        (lambda: signed(payload(exp=None)), "no claim `exp`"),
        (lambda: signed(payload(sub=None)), "no claim `sub`"),
        (lambda: signed(payload(sub="")), "nobody"),
        (lambda: by_hand({"alg": "HS256"}, payload(sub=5)), "malformed"),
        (lambda: by_hand({"alg": "HS256"}, payload(exp="soon")), "malformed"),
        (lambda: by_hand({"alg": "HS256"}, b'{"sub": "anna", "exp": 1e999}'), "malformed"),
        (lambda: signed(payload(roles=5)), "no list of texts"),
        (lambda: signed(payload(roles=[{}])), "no list of texts"),
        (lambda: signed(payload(), "another secret of thirty-two bytes"), "signature"),
        (lambda: signed(payload(), SECRET * 2, "HS512"), "algorithm"),
        (lambda: signed(payload(), RSA, "RS256"), "algorithm"),
        (lambda: signed(payload(), None, "none"), "algorithm"),
        (lambda: by_hand({"alg": "nOnE"}, payload())[:-43], "algorithm"),
        (lambda: by_hand({"alg": "HS256", "crit": ["x"], "x": 1}, payload()), "malformed"),
        (lambda: by_hand({"alg": ["HS256"]}, payload()), "algorithm"),
        (lambda: by_hand({}, payload()), "algorithm"),
        (lambda: by_hand(b"[" * 5000, payload()), "malformed"),
        (lambda: by_hand({"alg": "HS256"}, b"[" * 5000), "malformed"),
        (lambda: by_hand({"alg": "HS256"}, b"5"), "malformed"),
        (lambda: by_hand({"alg": "HS256"}, b'{"sub": "\xff"}'), "malformed"),
        (lambda: "", "malformed"),
        (lambda: "..", "malformed"),
        (lambda: "ä.ö.ü", "malformed"),
        (lambda: "x" * 1_000_000, "too long"),
        (lambda: signed(payload(filler="x" * 1_000_000)), "too long"),
    ],
)
async def test_what_is_not_valid_is_refused_with_the_reason(
    office: Tokens, token: Callable[[], str], reason: str
) -> None:
    assert reason in await refusal(office, token())


async def test_a_public_key_is_no_secret() -> None:
    pem = public_pem(RSA)
    forged = by_hand({"alg": "HS256"}, payload(aud=None), pem.encode())
    assert "algorithm" in await refusal(Tokens(public_key=pem), forged)


async def test_without_an_audience_a_token_for_one_is_refused() -> None:
    assert "another audience" in await refusal(Tokens(secret=SECRET), signed(payload()))


@settings(deadline=None)
@given(st.data())
def test_no_changed_token_is_valid(data: st.DataObject) -> None:
    tokens = Tokens(secret=SECRET)
    token = tokens.mint("anna", roles=["writer"])
    place = data.draw(st.integers(0, len(token) - 1))
    changed = token[:place] + data.draw(st.characters()) + token[place + 1 :]
    try:
        claims = asyncio.run(tokens.verify(changed))
    except TokenError:
        return
    # The last character of base64 has bits that mean nothing.
    assert claims == asyncio.run(tokens.verify(token))
    assert changed[:-1] == token[:-1]


@settings(deadline=None)
@given(st.text(max_size=300) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_no_token(text: str) -> None:
    for tokens in (Tokens(secret=SECRET), Tokens(jwks={"keys": [jwk("a", RSA)]})):
        with pytest.raises(TokenError):
            asyncio.run(tokens.verify(text))


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=5)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["sub", "exp", "nbf", "iat", "aud", "iss", "roles", "scope"]), JSON))
def test_signed_nonsense_is_verified_or_refused(values: dict[str, Any]) -> None:
    token = by_hand({"alg": "HS256"}, values)
    try:
        claims = asyncio.run(Tokens(secret=SECRET).verify(token))
    except TokenError:
        return
    assert isinstance(claims, Claims)


# Keys


def test_a_short_secret_is_a_warning_and_no_good_for_others(caplog: pytest.LogCaptureFixture) -> None:
    tokens = Tokens(secret="my-secret-key")
    assert "has 13 bytes" in caplog.text
    with pytest.raises(ConfigError, match="made just now: ") as caught:
        tokens.check_exposed()
    good = str(caught.value).rpartition(" ")[2]
    caplog.clear()
    Tokens(secret=good).check_exposed()
    assert caplog.text == ""


async def test_a_short_secret_signs_as_others_sign_with_it() -> None:
    tokens = Tokens(secret="my-secret-key")
    assert (await tokens.verify(by_hand({"alg": "HS256"}, payload(aud=None), b"my-secret-key"))).subject == "anna"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "given: none"),
        ({"secret": SECRET, "jwks": {}}, "given: secret, jwks"),
        ({"secret": ""}, "is empty"),
        ({"secret": public_pem(RSA)}, "a PEM goes to"),
        ({"public_key": "x"}, "no PEM of a public key"),
        ({"public_key": private_pem(RSA)}, "no PEM of a public key"),
        ({"public_key": public_pem(rsa.generate_private_key(65537, 1024))}, "2048 bits or more"),
        ({"private_key": private_pem(ec.generate_private_key(ec.SECP256K1()))}, "EC (P-256"),
        ({"private_key": private_pem(RSA, b"password")}, "without a password"),
        ({"private_key": public_pem(RSA)}, "no PEM of a private key"),
        ({"jwks": {}}, "no JSON Web Key Set"),
        ({"jwks": {"keys": 5}}, "no JSON Web Key Set"),
        ({"jwks": "http://example.com/keys"}, "https://"),
        ({"jwks": "file:///etc/passwd"}, "https://"),
    ],
)
def test_a_wrong_key_is_told(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Tokens(**given)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"subject": ""}, "needs a subject"),
        ({"roles": "writer"}, r"write \['writer'\]"),
        ({"roles": [5]}, "5 is no role"),
        ({"scopes": ["a b"]}, "'a b' is no scope"),
        ({"expires": 0}, "positive"),
        ({"expires": float("inf")}, "positive"),
        ({"claims": {"sub": "root"}}, "'sub' cannot be given"),
        ({"claims": {"when": object()}}, "must be JSON"),
    ],
)
def test_what_cannot_be_claimed_is_told(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Tokens(secret=SECRET).mint(**{"subject": "anna", **arguments})


def test_inspecting_verifies_nothing() -> None:
    header, claims = inspect(by_hand({"alg": "HS256"}, {"sub": "eve"}, b"guess"))
    assert (header["alg"], claims) == ("HS256", {"sub": "eve"})
    with pytest.raises(TokenError):
        inspect("nothing")


# Key sets


class KeyServer(HTTPServer):
    """Serves a key set that a test changes."""

    keys: list[dict[str, Any]]
    status: int = 200
    asked: int = 0


class _Handler(BaseHTTPRequestHandler):
    server: KeyServer

    def do_GET(self) -> None:
        self.server.asked += 1
        body = json.dumps({"keys": self.server.keys}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def key_server() -> Iterator[KeyServer]:
    server = KeyServer(("127.0.0.1", 0), _Handler)
    server.keys = [jwk("first", KEYS["ES256"])]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetched(server: KeyServer) -> Tokens:
    return Tokens(jwks=f"http://127.0.0.1:{server.server_port}/keys")


def minted(algorithm: str, key_id: str | None) -> str:
    return Tokens(private_key=private_pem(KEYS[algorithm]), key_id=key_id).mint("anna")


async def test_keys_of_a_url_are_fetched_once_and_again_for_a_new_one(key_server: KeyServer) -> None:
    tokens = fetched(key_server)
    first = minted("ES256", "first")
    await asyncio.gather(*(tokens.verify(first) for _ in range(20)))
    assert key_server.asked == 1
    key_server.keys.append(jwk("second", KEYS["EdDSA"]))
    second = minted("EdDSA", "second")
    assert "key set does not have" in await refusal(tokens, second)  # at most twice a minute
    assert key_server.asked == 1
    tokens._keys._client.cooldown_duration = 0  # type: ignore[attr-defined]  # half a minute has passed
    assert (await tokens.verify(second)).subject == "anna"
    assert key_server.asked == 2
    assert (await tokens.verify(first)).subject == "anna"
    assert key_server.asked == 2


async def test_a_url_that_does_not_answer_is_left_alone_for_a_while(
    key_server: KeyServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    key_server.status = 500
    tokens = fetched(key_server)
    token = minted("ES256", "first")
    for _ in range(3):
        assert "key set does not have" in await refusal(tokens, token)
    assert key_server.asked == 1
    assert "cannot be fetched" in caplog.text
    key_server.status = 200
    monkeypatch.setattr(keys, "_RETRY", 0.0)
    tokens = fetched(key_server)
    assert (await tokens.verify(token)).subject == "anna"


async def test_a_key_set_is_held_to_what_it_says() -> None:
    secret = {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET.encode()).decode(), "kid": "secret"}
    given = [jwk("first", RSA), jwk("psa", RSA, alg="PS256"), jwk("crypt", RSA, use="enc"), secret]
    tokens = Tokens(jwks={"keys": given})
    values = payload(aud=None)
    assert (await tokens.verify(signed(values, RSA, "RS256", kid="first"))).subject == "anna"
    assert (await tokens.verify(signed(values, RSA, "PS256", kid="psa"))).subject == "anna"
    assert "algorithm" in await refusal(tokens, signed(values, RSA, "PS256", kid="first"))
    assert "algorithm" in await refusal(tokens, signed(values, RSA, "RS256", kid="psa"))
    for forged in (signed(values, RSA, "RS256", kid="crypt"), signed(values, SECRET, kid="secret")):
        assert "key set does not have" in await refusal(tokens, forged)
    assert "no `kid`" in await refusal(tokens, signed(values, RSA, "RS256"))
    assert "too long" in await refusal(tokens, "x" * (MAX_TOKEN + 1))
