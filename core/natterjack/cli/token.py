"""Tokens for callers over HTTP: `token mint|inspect|verify`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import orjson
import typer

from natterjack.cli.exits import CommandError, ExitCode
from natterjack.cli.options import JsonOption, read_span
from natterjack.cli.output import local, text_of, write, write_json
from natterjack.cli.run import run
from natterjack.tokens import Tokens
from natterjack.tokens import inspect as inspect_token

app = typer.Typer(no_args_is_help=True, help="Make and check the tokens (JWT) that callers over HTTP show.")

DEFAULT_KEY: Final = "env:NATTERJACK_TOKEN_KEY"
_MOMENTS: Final = ("exp", "nbf", "iat")

KeyOption = Annotated[
    str,
    typer.Option(
        "--key", metavar="WHERE", help="Where the key is, `env:NAME` or `file:PATH`: a secret, a PEM or a JWK set."
    ),
]
AudienceOption = Annotated[str | None, typer.Option("--audience", metavar="NAME", help="Whom it is for (`aud`).")]
IssuerOption = Annotated[str | None, typer.Option("--issuer", metavar="NAME", help="Who made it (`iss`).")]
TokenArgument = Annotated[str, typer.Argument(metavar="TOKEN", help="`-` reads standard input.")]


@app.command()
def mint(
    subject: Annotated[str, typer.Argument(metavar="NAME", help="Whom it speaks for.")],
    *,
    role: Annotated[list[str] | None, typer.Option("--role", metavar="ROLE", help="Repeat it for more.")] = None,
    scope: Annotated[list[str] | None, typer.Option("--scope", metavar="SCOPE", help="Repeat it for more.")] = None,
    claim: Annotated[
        list[str] | None, typer.Option("--claim", metavar="NAME=VALUE", help="A further claim: JSON, or else text.")
    ] = None,
    expires: Annotated[
        str, typer.Option("--expires", metavar="TIME", help="How long it is valid: 90s, 30m, 12h, 30d.")
    ] = "1h",
    key: KeyOption = DEFAULT_KEY,
    key_id: Annotated[str | None, typer.Option("--key-id", metavar="ID", help="Name of the key (`kid`).")] = None,
    audience: AudienceOption = None,
    issuer: IssuerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token, and print it."""
    tokens = Tokens.of(_named(key), key_id=key_id, audience=audience, issuer=issuer)
    claims = dict(map(_read_claim, claim or ()))
    lasts = read_span(expires)
    token = tokens.mint(subject, roles=role or (), scopes=scope or (), expires=lasts, claims=claims)
    write_json({"token": token, "claims": inspect_token(token)[1]}) if as_json else write(token)


@app.command()
def inspect(token: TokenArgument, *, as_json: JsonOption = False) -> None:
    """Show what a token says; anybody may have made it, nothing is verified."""
    header, claims = inspect_token(_read_token(token))
    if as_json:
        write_json({"header": header, "claims": claims})
        return
    write("not verified")
    _show({**header, **claims})


@app.command()
def verify(
    token: TokenArgument,
    *,
    key: KeyOption = DEFAULT_KEY,
    jwks: Annotated[str | None, typer.Option("--jwks", metavar="URL", help="Of a JWK set, instead of a key.")] = None,
    audience: AudienceOption = None,
    issuer: IssuerOption = None,
    leeway: Annotated[float, typer.Option("--leeway", metavar="SECONDS", min=0, help="That clocks may differ.")] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Check a token, and show what it says; exit code 1 if it is not valid."""
    if jwks:
        tokens = Tokens(jwks=jwks, audience=audience, issuer=issuer, leeway=leeway)
    else:
        tokens = Tokens.of(_named(key), audience=audience, issuer=issuer, leeway=leeway)
    claims = run(tokens.verify(_read_token(token)))
    if as_json:
        write_json({"claims": claims.values})
        return
    write("valid")
    _show(claims.values)


def _named(where: str) -> str:
    """Return where a key is; what is no such place may be the key itself, which stays untold."""
    if not where.startswith(("env:", "file:")):
        msg = "--key says where the key is, env:NAME or file:PATH, and is not the key itself, which others would see"
        raise CommandError(msg, ExitCode.USAGE)
    return where


def _read_claim(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        msg = f"{text!r} is no claim; write NAME=VALUE"
        raise typer.BadParameter(msg, param_hint="--claim")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value


def _read_token(text: str) -> str:
    return (sys.stdin.read() if text == "-" else text).strip()


def _show(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        moment = name in _MOMENTS and isinstance(value, int | float)
        write(f"{name:10}{_moment(value) if moment else text_of(value)}")


def _moment(seconds: float) -> str:
    try:
        left = (datetime.fromtimestamp(seconds, UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError, OSError):
        return text_of(seconds)
    return f"{local(seconds)} ({'in' if left > 0 else 'since'} {abs(left):,.0f} s)"
