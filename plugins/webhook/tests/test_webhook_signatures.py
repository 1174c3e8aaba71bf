"""Signatures: the vectors of the senders' own documentation, properties, and what is refused."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natterjack import ConfigError
from natterjack_webhook.signatures import Given, Hmac, Name, Verifier, sign_standard, standard_key

NOW = 1_700_000_000


def verdict(verifier: Verifier, headers: Mapping[str, str], body: bytes, now: float = NOW) -> str | None:
    """`none` where there is no signature, why it is refused, or None."""
    found = verifier.read(headers)
    return "none" if found is None else verifier.refusal(found, body, now)


# docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries, "Testing the webhook payload validation"
GITHUB = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
# docs.slack.dev/authentication/verifying-requests-from-slack
SLACK = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"
SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
    b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
    b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
    b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)
# The test vector of Standard Webhooks 1.0, github.com/standard-webhooks
STANDARD = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": "1614265330",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
STANDARD_BODY = b'{"test": 2432232314}'


def test_githubs_own_example() -> None:
    verifier = Verifier("github", ["It's a Secret to Everybody"], 1)
    assert verdict(verifier, {"x-hub-signature-256": GITHUB}, b"Hello, World!") is None
    assert "fits none" in str(verdict(verifier, {"x-hub-signature-256": GITHUB}, b"Hello, World"))


def test_slacks_own_example() -> None:
    verifier = Verifier("slack", ["8f742231b10e8888abcd99yyyzzz85a5"], 120)
    headers = {"x-slack-signature": SLACK, "x-slack-request-timestamp": "1531420618"}
    assert verdict(verifier, headers, SLACK_BODY, 1531420618) is None
    assert "it was signed 121 s ago" in str(verdict(verifier, headers, SLACK_BODY, 1531420618 + 121))
    assert "it was signed -121 s ago" in str(verdict(verifier, headers, SLACK_BODY, 1531420618 - 121))
    later = headers | {"x-slack-request-timestamp": "1531420619"}
    assert "fits none" in str(verdict(verifier, later, SLACK_BODY, 1531420618))


def test_the_example_of_standard_webhooks() -> None:
    verifier = Verifier("standard", [STANDARD_SECRET], 120)
    assert verdict(verifier, STANDARD, STANDARD_BODY, 1614265330) is None
    assert "ago" in str(verdict(verifier, STANDARD, STANDARD_BODY))
    assert sign_standard([STANDARD_SECRET], STANDARD["webhook-id"], 1614265330, STANDARD_BODY) == STANDARD


def test_what_stripes_own_library_signs() -> None:
    # Its documentation has no vector with a secret; this header is by stripe-python 16.1.0.
    header = "t=1492774577,v1=4ee5e8d695c9619e003fd480d3d51700d924e29697337d379a6ef6e06e703ab4"
    verifier, body = Verifier("stripe", ["whsec_test_secret"], 120), b'{"id":"evt_1","type":"charge.succeeded"}'
    assert verdict(verifier, {"stripe-signature": header}, body, 1492774600) is None
    both = f"t=1492774577,v1={'0' * 64},v1={header[-64:]},v0={'0' * 64}"
    assert verdict(verifier, {"stripe-signature": both}, body, 1492774600) is None
    assert "ago" in str(verdict(verifier, {"stripe-signature": header}, body))


# Properties


def signed(scheme: Name | Hmac, secret: str, body: bytes, time: int) -> dict[str, str]:
    """The headers of a request, made independently of what is tested."""

    def mac(content: bytes, algorithm: str = "sha256", key: bytes = secret.encode()) -> bytes:
        return hmac.new(key, content, getattr(hashlib, algorithm)).digest()

    if isinstance(scheme, Hmac):
        digest = mac(body, scheme.algorithm)
        text = digest.hex() if scheme.encoding == "hex" else b64encode(digest).decode()
        return {scheme.header.lower(): scheme.prefix + text}
    if scheme == "github":
        return {"x-hub-signature-256": "sha256=" + mac(body).hex()}
    if scheme == "stripe":
        return {"stripe-signature": f"t={time},v1={mac(b'%d.' % time + body).hex()}"}
    if scheme == "slack":
        digest = mac(b"v0:%d:" % time + body)
        return {"x-slack-signature": "v0=" + digest.hex(), "x-slack-request-timestamp": str(time)}
    digest = mac(b"m1.%d." % time + body)
    return {
        "webhook-id": "m1",
        "webhook-timestamp": str(time),
        "webhook-signature": "v1," + b64encode(digest).decode(),
    }


SCHEMES: list[Name | Hmac] = ["github", "stripe", "slack", "standard"]
SCHEMES += [
    Hmac(header="X-Sig", algorithm="sha512", encoding="base64"),
    Hmac(header="X-Sig", algorithm="sha1", prefix="sha1="),
]
schemes = st.sampled_from(SCHEMES)
secrets = st.text(min_size=1).filter(lambda text: not text.startswith("whsec_"))


@given(schemes, secrets, st.binary(max_size=200), st.integers(-120, 120))
def test_what_is_signed_is_genuine(scheme: Name | Hmac, secret: str, body: bytes, age: int) -> None:
    headers = signed(scheme, secret, body, NOW - age)
    assert verdict(Verifier(scheme, [secret], 120), headers, body) is None
    assert verdict(Verifier(scheme, ["other", secret], 120), headers, body) is None


@given(schemes, secrets, secrets, st.binary(max_size=200), st.binary(max_size=200))
def test_another_secret_or_body_is_refused(
    scheme: Name | Hmac, secret: str, other: str, body: bytes, changed: bytes
) -> None:
    headers = signed(scheme, secret, body, NOW)
    # HMAC fills a short key up with zeros: such keys are one.
    same = secret.encode().rstrip(b"\0") == other.encode().rstrip(b"\0")
    assert (verdict(Verifier(scheme, [other], 120), headers, body) is None) == same
    assert (verdict(Verifier(scheme, [secret], 120), headers, changed) is None) == (body == changed)


@given(schemes, st.binary(max_size=50), st.integers(121, 10**9), st.sampled_from([1, -1]))
def test_what_is_too_old_or_from_the_future_is_refused(scheme: Name | Hmac, body: bytes, age: int, sign: int) -> None:
    timed = scheme in ("stripe", "slack", "standard")
    headers = signed(scheme, "s", body, NOW - sign * age)
    assert (verdict(Verifier(scheme, ["s"], 120), headers, body) is not None) == timed


headers = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=100)


@given(schemes, headers, headers, headers, st.binary(max_size=50))
def test_any_headers_are_refused_and_break_nothing(
    scheme: Name | Hmac, one: str, two: str, three: str, body: bytes
) -> None:
    names = ["x-hub-signature-256", "stripe-signature", "x-slack-signature", "x-sig", "webhook-signature"]
    given = dict.fromkeys(names, one)
    given |= {"x-slack-request-timestamp": two, "webhook-timestamp": two, "webhook-id": three}
    assert verdict(Verifier(scheme, ["secret"], 120), given, body) is not None


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_each_part_is_wanted(scheme: Name | Hmac) -> None:
    verifier, whole = Verifier(scheme, ["s"], 120), signed(scheme, "s", b"x", NOW)
    for name in whole:
        assert verdict(verifier, {key: value for key, value in whole.items() if key != name}, b"x") == "none"
    assert verdict(verifier, {}, b"x") == "none"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "t=,v1=00",
        "v1=00",
        "t=1",
        f"t={NOW}",
        f"t={NOW},v1=",
        f"t={NOW},v1=xyz",
        f"t={NOW},t={NOW + 1},v1=GOOD",
        f"t= {NOW},v1=GOOD",
        f"t=+{NOW},v1=GOOD",
        f"t={NOW},v0=GOOD",
        "t=" + "9" * 5000 + ",v1=GOOD",
        "t=²,v1=GOOD",
    ],
)
def test_malformed_headers_of_stripe(header: str) -> None:
    good = signed("stripe", "s", b"x", NOW)["stripe-signature"].partition("v1=")[2]
    headers = {"stripe-signature": header.replace("GOOD", good)}
    assert "fits none" in str(verdict(Verifier("stripe", ["s"], 120), headers, b"x"))


def test_a_signature_for_each_secret_while_they_are_exchanged() -> None:
    sent = sign_standard([STANDARD_SECRET, "new"], "m1", NOW, b"x")
    for secret in (STANDARD_SECRET, "new"):
        assert verdict(Verifier("standard", [secret], 120), sent, b"x") is None
    assert verdict(Verifier("standard", ["third"], 120), sent, b"x") is not None


@pytest.mark.parametrize("secret", ["whsec_", "whsec_hunter2!", "whsec_hunter2"])
def test_a_secret_that_is_no_base64(secret: str) -> None:
    with pytest.raises(ConfigError, match="no base64") as caught:
        standard_key(secret)
    assert "hunter2" not in str(caught.value)


def test_all_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, Any]] = []
    compare = hmac.compare_digest

    def count(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr("natterjack_webhook.signatures.hmac.compare_digest", count)
    right = hmac.new(b"a", b"x", hashlib.sha256).digest()
    assert Verifier("github", ["a", "b"], 1).refusal(Given((right, b"", b"no")), b"x", NOW) is None
    assert len(compared) == 6
