"""The cluster's own certificate authority and one certificate per PoP.

What it is: the trust behind PoP links (mutual TLS): whoever shows a certificate of this CA is the PoP its common name says.
What it is not: TLS for clients; those talk to loopback or to a proxy of the operator's choice.
What must stay true: keys are 0600, and those of PoPs never leave the machine that made them; a certificate about to end is renewed at the next start
where the CA's key is.
"""

import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgeflow.errors import BadRequest
from edgeflow.host.errors import HostError
from edgeflow.host.files import Owner, ensure_dir, write_file

CA_DAYS = 3650
POP_DAYS = 825
RENEW_DAYS = 60


def ensure_ca(ca_dir: Path, cluster: str) -> None:
    """Make `ca.pem` and `ca.key` in `ca_dir` unless they are there."""
    ensure_dir(ca_dir)
    if (ca_dir / "ca.pem").exists():  # without the key where the PoPs joined a cluster that was made elsewhere
        return
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"edgeflow {cluster}")])
    certificate = (
        _builder(name, name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_file(ca_dir / "ca.key", _private_pem(key))
    write_file(ca_dir / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def ensure_pop_certificate(ca_dir: Path, secrets_dir: Path, pop: str, *, owner: Owner | None = None) -> None:
    """Make `link.pem`, `link.key` and a copy of `ca.pem` in `secrets_dir`; renewed when of another CA or near their end."""
    ca = x509.load_pem_x509_certificate((ca_dir / "ca.pem").read_bytes())
    write_file(secrets_dir / "ca.pem", (ca_dir / "ca.pem").read_bytes(), owner=owner)
    if _still_good(secrets_dir, pop, ca, days=RENEW_DAYS):
        return
    if not (ca_dir / "ca.key").exists():
        if _still_good(secrets_dir, pop, ca, days=0):
            return  # who has the CA's key is elsewhere; it is good for some time
        raise HostError(
            f"The certificate of PoP {pop} has run out or is damaged, and the key of the cluster's CA is not here.",
            hint=f"`edgeflow pops leave {pop} --force` at another PoP, then join again with a new token.",
        )
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _signed(ca_dir, ca, pop, key.public_key())
    write_file(secrets_dir / "link.key", _private_pem(key), owner=owner)
    write_file(secrets_dir / "link.pem", certificate.public_bytes(serialization.Encoding.PEM), owner=owner)


def new_request(pop: str) -> tuple[bytes, bytes]:
    """(private key, request for a certificate) of a new PoP, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, pop)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return _private_pem(key), request.public_bytes(serialization.Encoding.PEM)


def sign_request(ca_pem: bytes, ca_key_pem: bytes, pop: str, request_pem: bytes) -> tuple[bytes, int]:
    """(certificate, from when on it is valid in ms) for who made the request. Raises BadRequest for a request that is not one of that PoP."""
    try:
        request = x509.load_pem_x509_csr(request_pem)
        key = request.public_key()
        names = [str(name.value) for name in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        is_good = request.is_signature_valid and isinstance(key, ec.EllipticCurvePublicKey) and names == [pop]
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadRequest(f"the request for a certificate cannot be read: {error}") from None
    if not is_good or not isinstance(key, ec.EllipticCurvePublicKey):
        raise BadRequest(f"the request for a certificate is not one of {pop!r}")
    certificate = _sign(x509.load_pem_x509_certificate(ca_pem), ca_key_pem, pop, key)
    valid_ms = int(certificate.not_valid_before_utc.timestamp()) * 1000
    return certificate.public_bytes(serialization.Encoding.PEM), valid_ms


def _signed(ca_dir: Path, ca: x509.Certificate, pop: str, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
    return _sign(ca, (ca_dir / "ca.key").read_bytes(), pop, key)


def _sign(ca: x509.Certificate, ca_key_pem: bytes, pop: str, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
    ca_key = serialization.load_pem_private_key(ca_key_pem, password=None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise TypeError("the CA's key is not an elliptic curve key")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, pop)])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]  # a PoP both dials and answers
    return (
        _builder(subject, ca.subject, key, POP_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(pop)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _still_good(secrets_dir: Path, pop: str, ca: x509.Certificate, *, days: int) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate((secrets_dir / "link.pem").read_bytes())
        key = serialization.load_pem_private_key((secrets_dir / "link.key").read_bytes(), password=None)
        certificate.verify_directly_issued_by(ca)
    except Exception:  # whatever is wrong with the old one, the answer is a new one
        return False
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    end = certificate.not_valid_after_utc
    return (
        key.public_key() == certificate.public_key()
        and [name.value for name in names] == [pop]
        and end - dt.datetime.now(dt.UTC) > dt.timedelta(days=days)
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))  # PoPs' clocks differ
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
