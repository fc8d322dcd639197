import datetime as dt
import ssl
import stat

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from edgeflow.host import certs


@pytest.fixture
def made(tmp_path):
    ca_dir, secrets_dir = tmp_path / "ca", tmp_path / "secrets"
    secrets_dir.mkdir()
    certs.ensure_ca(ca_dir, "c-1")
    certs.ensure_pop_certificate(ca_dir, secrets_dir, "la")
    return ca_dir, secrets_dir


def load(file):
    return x509.load_pem_x509_certificate(file.read_bytes())


def test_certificate_names_the_pop(made):
    _, secrets_dir = made
    certificate = load(secrets_dir / "link.pem")
    assert [name.value for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["la"]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["la"]


def test_keys_are_private(made):
    ca_dir, secrets_dir = made
    for file in (ca_dir / "ca.key", secrets_dir / "link.key"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_second_time_changes_nothing(made):
    ca_dir, secrets_dir = made
    before = [(secrets_dir / name).read_bytes() for name in ("link.pem", "link.key", "ca.pem")]
    certs.ensure_ca(ca_dir, "c-1")
    certs.ensure_pop_certificate(ca_dir, secrets_dir, "la")
    assert [(secrets_dir / name).read_bytes() for name in ("link.pem", "link.key", "ca.pem")] == before


@pytest.mark.parametrize("damage", ["other CA", "other PoP", "near its end", "key lost"])
def test_certificate_that_does_not_serve_is_renewed(made, tmp_path, monkeypatch, damage):
    ca_dir, secrets_dir = made
    before = load(secrets_dir / "link.pem").serial_number
    pop = "la"
    if damage == "other CA":
        ca_dir = tmp_path / "ca2"
        certs.ensure_ca(ca_dir, "c-2")
    elif damage == "other PoP":
        pop = "ny"
    elif damage == "key lost":
        (secrets_dir / "link.key").unlink()
    else:
        monkeypatch.setattr(certs, "RENEW_DAYS", certs.POP_DAYS + 1)
    certs.ensure_pop_certificate(ca_dir, secrets_dir, pop)
    after = load(secrets_dir / "link.pem")
    assert after.serial_number != before
    after.verify_directly_issued_by(load(ca_dir / "ca.pem"))
    assert after.not_valid_after_utc > dt.datetime.now(dt.UTC) + dt.timedelta(days=365)


def test_python_accepts_the_chain_in_strict_mode(made):
    _, secrets_dir = made
    context = ssl.create_default_context(cafile=secrets_dir / "ca.pem")
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(secrets_dir / "link.pem", secrets_dir / "link.key")
    assert handshake(context, server, "la") is None
    assert isinstance(handshake(context, server, "ny"), ssl.SSLCertVerificationError)


def handshake(client_context, server_context, name):
    """A TLS handshake in memory; the client's error, if any."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(10):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                return error
    return None
