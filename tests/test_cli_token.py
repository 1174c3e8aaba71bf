"""`token mint|inspect|verify`."""

import json
import time

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from natterjack.testing.command import Cli

SECRET = "a secret of thirty-two bytes, or more"


def test_a_token_is_minted_inspected_and_verified(quick: Cli) -> None:
    quick.env["NATTERJACK_TOKEN_KEY"] = SECRET
    token = quick.text(
        "token", "mint", "anna", "--role", "writer", "--role", "reader", "--scope", "tools", "--claim", "n=5"
    )
    assert 'roles     ["writer","reader"]' in quick.text("token", "verify", token)
    found = quick.json("token", "verify", "-", stdin=f"{token}\n")["claims"]
    assert (found["sub"], found["roles"], found["scope"], found["n"]) == ("anna", ["writer", "reader"], "tools", 5)
    assert abs(found["exp"] - time.time() - 3600) < 60
    shown = quick.text("token", "inspect", token)
    assert shown.startswith("not verified\nalg       HS256\n")
    assert "(in 3," in shown
    assert quick.json("token", "inspect", token)["header"]["alg"] == "HS256"


def test_a_token_that_is_not_valid_is_an_error(quick: Cli) -> None:
    quick.env["NATTERJACK_TOKEN_KEY"] = SECRET
    token = quick.json("token", "mint", "anna", "--audience", "tools", "--expires", "90s")["token"]
    assert quick.error("token", "verify", token, code=1) == "the token is not valid: it is for another audience"
    wanted = ("token", "verify", token, "--audience", "tools", "--issuer", "office")
    assert quick.error(*wanted, code=1).endswith("it has no claim `iss`")
    quick.env["NATTERJACK_TOKEN_KEY"] = SECRET[::-1]
    assert quick.error("token", "verify", token, "--audience", "tools", code=1).endswith("does not fit the key")
    assert quick.error("token", "inspect", "nothing", code=1) == "the token is not valid: it is malformed"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1_800), ("1.5h", 5_400), ("30d", 2_592_000)]
)
def test_how_long_it_is_valid_is_told_in_any_unit(quick: Cli, text: str, seconds: int) -> None:
    quick.env["NATTERJACK_TOKEN_KEY"] = SECRET
    claims = quick.json("token", "mint", "anna", "--expires", text, "--json")["claims"]
    assert claims["exp"] - claims["iat"] == seconds


@pytest.mark.parametrize("text", ["", "s", "5sm", "soon", "nan", "inf", "1e400d"])
def test_what_is_no_time_is_told(quick: Cli, text: str) -> None:
    quick.env["NATTERJACK_TOKEN_KEY"] = SECRET
    assert "write e.g. 90s, 30m, 12h or 30d" in quick.error("token", "mint", "anna", "--expires", text, code=2)


def test_keys_come_from_files(quick: Cli) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    quick.write(private_pem=private.decode(), public_pem=public.decode())
    token = quick.text("token", "mint", "anna", "--key", "file:private.pem", "--key-id", "first")
    assert quick.text("token", "verify", token, "--key", "file:public.pem").startswith("valid\nsub       anna")
    numbers = quick.json("token", "inspect", token)["header"]
    assert numbers == {"alg": "EdDSA", "kid": "first", "typ": "JWT"}
    from jwt.algorithms import OKPAlgorithm

    jwk = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": "first"}
    (quick.folder / "keys.json").write_text(json.dumps({"keys": [jwk]}))
    assert quick.json("token", "verify", token, "--key", "file:keys.json")["claims"]["sub"] == "anna"
    assert "only verify" in quick.error("token", "mint", "anna", "--key", "file:public.pem", code=2)


def test_a_key_that_is_not_there_is_told(quick: Cli, caplog: pytest.LogCaptureFixture) -> None:
    assert 'export NATTERJACK_TOKEN_KEY="$(openssl' in quick.error("token", "mint", "anna", code=2)
    assert "'missing.pem' cannot be read" in quick.error("token", "mint", "anna", "--key", "file:missing.pem", code=2)
    assert "env:NAME or file:PATH" in quick.error("token", "mint", "anna", "--key", SECRET, code=2)
    quick.write(broken_json="{")
    assert "is no JSON" in quick.error("token", "verify", "x", "--key", "file:broken.json", code=2)
    quick.env["NATTERJACK_TOKEN_KEY"] = "short"
    assert quick.text("token", "mint", "anna").count(".") == 2
    assert "has 5 bytes" in caplog.text
