import ssl

from edgeflow.sdk.trust import trusted


def test_an_http_address_believes_nobody():
    context = trusted("http://127.0.0.1:1")
    assert context.get_ca_certs() == [] and context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname


def test_the_authorities_are_read_once():
    context = trusted("https://example.com")
    assert context.get_ca_certs() and context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
    assert trusted("HTTPS://example.org") is context
