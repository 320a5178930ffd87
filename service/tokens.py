"""Bearer tokens: who may do what with which models. `python -m service.tokens new NAME` makes one.

The file holds no token but the SHA-256 of each: a token is 256 random bits, so that nothing slower is needed.

    [tokens.nightly-batch]
    sha256 = "..."
    allow = ["infer", "read"]
    models = ["mnist-*"]
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from service.errors import PermissionDenied, Unauthenticated
from service.polling import Changes

log = logging.getLogger(__name__)

INFER, READ, ADMIN = GROUPS = ("infer", "read", "admin")

_MAX_BYTES = 1 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SCHEME = "bearer "


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What the bearer of one token may do: groups of methods, with the models whose names match a pattern."""

    name: str
    groups: frozenset[str]
    models: tuple[str, ...] = ("*",)

    def allows(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.models)

    def require_group(self, group: str) -> None:
        """Raises PermissionDenied."""
        if group not in self.groups:
            allowed = ", ".join(sorted(self.groups))
            raise PermissionDenied("METHOD_NOT_ALLOWED", f"the token {self.name} allows {allowed}; this is {group}")

    def require_model(self, model: str) -> None:
        """Raises PermissionDenied, whether there is such a model or not."""
        if not self.allows(model):
            raise PermissionDenied(
                "MODEL_NOT_ALLOWED",
                f"the token {self.name} allows models like {', '.join(self.models)}; this is {model[:64]!r}",
            )


class Tokens:
    """The tokens of a file, which is read again when it changes. Raises as `read`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changes = Changes([path])
        self._grants = read(path)

    def look(self) -> None:
        """Take a file that has changed; one that cannot be used is told in the log, and the old tokens stay."""
        if not self._changes.settled():
            return
        try:
            self._grants = read(self._path)
        except (OSError, ValueError) as error:
            log.error("the tokens stay as they were", extra={"file": str(self._path), "reason": str(error)})
            return
        log.info("tokens read", extra={"file": str(self._path), "tokens": len(self._grants)})

    def authenticate(self, authorization: str | None) -> Grant:
        """`authorization`: the header, `Bearer ...`. Raises Unauthenticated."""
        if authorization is None:
            raise Unauthenticated("NO_TOKEN", "a token is asked for: authorization: Bearer ...")
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise Unauthenticated("BAD_TOKEN", "authorization: must be Bearer and a token")
        digest = hashlib.sha256(authorization[len(_SCHEME) :].encode()).digest()
        found = None
        # All are compared, each in constant time: how long it takes tells nothing.
        for known, grant in self._grants:
            if hmac.compare_digest(known, digest):
                found = grant
        if found is None:
            raise Unauthenticated("UNKNOWN_TOKEN", "the token is not known")
        return found


def read(path: Path) -> list[tuple[bytes, Grant]]:
    """The grants of a file, each with the digest of its token. Raises OSError, or ValueError with the rule."""
    with open(path, "rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"must have at most {_MAX_BYTES} bytes")
    try:
        tables = tomllib.loads(content.decode())
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    tokens = tables.pop("tokens", None)
    if tables or not isinstance(tokens, dict) or not tokens:
        raise ValueError("must have tables [tokens.NAME], at least one, and nothing else")
    grants = [_grant(name, facts) for name, facts in tokens.items()]
    if len({digest for digest, _ in grants}) != len(grants):
        raise ValueError("two tokens have the same sha256")
    return grants


def _grant(name: str, facts: Any) -> tuple[bytes, Grant]:
    def rule(holds: bool, text: str) -> None:
        if not holds:
            raise ValueError(f"tokens.{name[:64]}: {text}")

    rule(bool(_NAME.fullmatch(name)), "a name has lower-case letters, digits and .-_, at most 63")
    rule(isinstance(facts, dict), "must be a table")
    unknown = facts.keys() - {"sha256", "allow", "models"}
    rule(not unknown, f"knows sha256, allow and models; got {', '.join(sorted(unknown))}")
    digest, allow, models = facts.get("sha256"), facts.get("allow"), facts.get("models", ["*"])
    rule(isinstance(digest, str) and bool(_SHA256.fullmatch(digest)), "sha256: 64 lower-case hexadecimal digits")
    rule(
        isinstance(allow, list) and bool(allow) and set(map(str, allow)) <= set(GROUPS),
        f"allow: a list of {', '.join(GROUPS)}; got {allow}",
    )
    rule(
        isinstance(models, list) and bool(models) and all(isinstance(pattern, str) for pattern in models),
        f"models: a list of patterns such as mnist-*; got {models}",
    )
    return bytes.fromhex(digest), Grant(name=name, groups=frozenset(allow), models=tuple(models))


def table(name: str, token: str, *, allow: Iterable[str], models: Iterable[str]) -> str:
    """The lines of a token in the file. Raises ValueError where they would be refused."""
    facts = {"sha256": hashlib.sha256(token.encode()).hexdigest(), "allow": [*allow], "models": [*models]}
    _grant(name, facts)
    # A list of strings is written alike in JSON and TOML.
    return f'[tokens."{name}"]\n' + "".join(f"{key} = {json.dumps(value)}\n" for key, value in facts.items())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m service.tokens",
        description="Make tokens for --tokens FILE. A token is printed once and not kept; the file has its SHA-256.",
    )
    new = parser.add_subparsers(dest="command", required=True).add_parser("new", help="make a token")
    new.add_argument("name", metavar="NAME", help="whose it is; shown in errors, never secret")
    new.add_argument(
        "--allow",
        metavar="GROUP",
        action="append",
        choices=GROUPS,
        help="infer, read or admin; infer and read if left out",
    )
    new.add_argument("--models", metavar="PATTERN", action="append", help="such as 'mnist-*'; all if left out")
    new.add_argument("--file", metavar="FILE", type=Path, help="add it to this file; else its lines go to stderr")
    given = parser.parse_args(arguments)
    token = "hg_" + secrets.token_urlsafe(32)
    try:
        lines = table(given.name, token, allow=given.allow or [INFER, READ], models=given.models or ["*"])
        if given.file is None:
            print(lines, file=sys.stderr)
        else:
            _add(given.file, given.name, lines)
    except OSError as error:
        print(f"service.tokens: {given.file}: {error.strerror}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"service.tokens: {error}", file=sys.stderr)
        return 1
    print(token)
    return 0


def _add(path: Path, name: str, lines: str) -> None:
    """Raises OSError or ValueError."""
    if path.exists() and any(grant.name == name for _, grant in read(path)):
        raise ValueError(f"{path}: has a token {name} already; remove its lines first")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with open(descriptor, "a") as file:
        file.write(("\n" if file.tell() else "") + lines)


if __name__ == "__main__":
    sys.exit(main())
