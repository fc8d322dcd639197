"""Tokens: one line of text that is whole or refused, and a question and an answer that only their holder reads."""

from dataclasses import replace
from pathlib import Path

import pytest

from edgeflow.errors import BadRequest, BadToken
from edgeflow.host import certs
from edgeflow.host.errors import HostError
from edgeflow.host.invitation import Invitation, fingerprint, new_secret, parse_invitation, seal, unseal

MADE = Invitation("i1", new_secret(), "c-1", "chicago", "http://10.0.0.1:8101", "ab" * 32, 1_800_000_000_000, "dallas")


def test_a_token_comes_back_as_it_was() -> None:
    assert parse_invitation(f" {MADE.text()}\n") == MADE
    assert parse_invitation(replace(MADE, pop="").text()).pop == ""


def test_a_token_that_is_not_whole_is_refused() -> None:
    text = MADE.text()
    for wrong in ("", "rubbish", text[:-1], text[:40], text.replace(text[20], "-", 1), text.removeprefix("ef")):
        with pytest.raises(BadToken, match="token"):
            parse_invitation(wrong)


def test_only_the_holder_reads_what_was_sealed_and_only_as_what_it_is() -> None:
    sealed = seal(MADE.secret, MADE.id, "question", {"pop": "dallas"})
    assert unseal(MADE.secret, MADE.id, "question", sealed) == {"pop": "dallas"}
    assert MADE.secret not in sealed and "dallas" not in sealed
    changed = ("A" if sealed[30] != "A" else "B").join((sealed[:30], sealed[31:]))
    for secret, id, direction, text in (
        (new_secret(), MADE.id, "question", sealed),
        (MADE.secret, "i2", "question", sealed),
        (MADE.secret, MADE.id, "answer", sealed),
        (MADE.secret, MADE.id, "question", changed),
        (MADE.secret, MADE.id, "question", "no base64 !"),
        (MADE.secret, MADE.id, "question", ""),
    ):
        with pytest.raises(BadToken):
            unseal(secret, id, direction, text)


def test_a_request_is_signed_for_whom_it_names(tmp_path: Path) -> None:
    certs.ensure_ca(tmp_path / "ca", "c-1")
    ca, ca_key = (tmp_path / "ca" / "ca.pem").read_bytes(), (tmp_path / "ca" / "ca.key").read_bytes()
    key, request = certs.new_request("dallas")
    certificate, valid_ms = certs.sign_request(ca, ca_key, "dallas", request)
    assert valid_ms % 1000 == 0
    place = tmp_path / "dallas"
    place.mkdir()
    (place / "link.key").write_bytes(key)
    (place / "link.pem").write_bytes(certificate)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "ca.pem").write_bytes(ca)
    certs.ensure_ca(elsewhere, "c-1")
    assert not (elsewhere / "ca.key").exists(), "who joined makes no CA of its own"
    certs.ensure_pop_certificate(elsewhere, place, "dallas")
    assert (place / "link.pem").read_bytes() == certificate
    (place / "link.pem").write_bytes(b"damaged")
    with pytest.raises(HostError, match="key of the cluster's CA is not here"):
        certs.ensure_pop_certificate(elsewhere, place, "dallas")
    with pytest.raises(BadRequest, match="'ny'"):
        certs.sign_request(ca, ca_key, "ny", request)
    with pytest.raises(BadRequest, match="cannot be read"):
        certs.sign_request(ca, ca_key, "ny", b"rubbish")


def test_a_fingerprint_is_of_the_certificate_not_of_its_line_ends() -> None:
    assert fingerprint(b"-----BEGIN\nabc\n") == fingerprint(b"-----BEGIN\r\nabc") != fingerprint(b"-----BEGIN\nabd\n")
