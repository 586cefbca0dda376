"""An authority of one's own, and the certificates that it signs: for a broker and its clients, whose names nobody else
can vouch for."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.errors import GenfleetError

AUTHORITY_DAYS = 3650
DAYS = 825
#: Clocks that are a little behind must not find a new certificate to be of the future.
_EARLIER = datetime.timedelta(hours=1)


class CertificateError(GenfleetError):
    """A certificate or its key cannot be read."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate and its private key, in PEM."""

    certificate: bytes
    key: bytes


def authority(name: str = "genfleet") -> Signed:
    """A new authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(f"{name} certificate authority")
    certificate = (
        _begun(subject, subject, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate, key)


def signed(by: Signed, name: str, hosts: tuple[str, ...] = ()) -> Signed:
    """A new certificate of that name: of a server that is reached by these names and addresses, or of a client.

    Raises:
        CertificateError: the authority cannot be read.
    """
    try:
        issuer = x509.load_pem_x509_certificate(by.certificate)
        issuer_key = load_pem_private_key(by.key, None)
    except ValueError as error:
        raise CertificateError(f"the authority cannot be read: {error}") from error
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise CertificateError("the authority's key is not one of genfleet's")
    key = ec.generate_private_key(ec.SECP256R1())
    use = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    # The servers of a cluster are each other's clients.
    uses = [use, ExtendedKeyUsageOID.CLIENT_AUTH] if hosts else [use]
    begun = (
        _begun(_name(name), issuer.subject, key.public_key(), DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if hosts:
        begun = begun.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    return _pem(begun.sign(issuer_key, hashes.SHA256()), key)


def hosts_of(certificate: bytes) -> tuple[set[str], datetime.datetime]:
    """By which names and addresses its server is reached, and when it ends.

    Raises:
        CertificateError: it cannot be read.
    """
    try:
        read = x509.load_pem_x509_certificate(certificate)
        names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise CertificateError(str(error)) from error
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    return addresses | set(names.get_values_for_type(x509.DNSName)), read.not_valid_after_utc


def _begun(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Signed:
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Signed(certificate.public_bytes(Encoding.PEM), private)
