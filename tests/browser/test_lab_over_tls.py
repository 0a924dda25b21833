"""A JupyterLab that speaks TLS, with a certificate that nobody signed, as on a course's own server."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from lab import Lab
from playwright.sync_api import Browser, Page, expect
from test_lab import CONNECT, ask, playing

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def make_certificate(path: Path) -> Path:
    """A key and its own signature, for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "notebooks")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def trusting(browser: Browser) -> Iterator[Page]:
    """A page whose user has said that the certificate is all right."""
    context = browser.new_context(ignore_https_errors=True, viewport={"width": 1100, "height": 1400})
    yield context.new_page()
    context.close()


def test_everything_goes_over_tls(trusting: Page, tmp_path: Path, shoot: Callable[..., Path]) -> None:
    """The kernel finds its server; its uploads and streams, the player over HTTPS and live, and the feed go encrypted."""
    lab = Lab(tmp_path, certificate=make_certificate(tmp_path / "server.pem"))
    page = trusting
    sockets: list[str] = []
    requests: list[str] = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    page.on("request", lambda request: requests.append(request.url))
    try:
        lab.start()
        lab.write(
            "tls.ipynb",
            CONNECT,
            "feed = client.notification_feed(height=180)\nfeed",
            "added = client.add(ipfs.samples.video(width=320, height=180, duration=8))\n"
            "whole = b''.join(client.stream(added)) == client.cat(added)",
            "client.play(added)",
            "live = client.play(added, transport='webrtc')\nlive",
        )
        lab.run_all(page, "tls.ipynb")
        assert ask(page, "whole") == "True"
        assert ask(page, "client.server.same_origin") == "True"
        root = page.locator(".jp-OutputArea .ipfs-feed")
        expect(root).to_have_attribute("data-state", "live")
        expect(root.get_by_role("listitem").filter(has_text="added").first).to_be_visible()
        player, other = (page.locator(".jp-OutputArea .ipfs-player").nth(index) for index in range(2))
        player.scroll_into_view_if_needed()
        expect(player).to_have_attribute("data-state", "ready")
        player.locator(".ipfs-player-big").click()
        playing(page)
        player.locator("video").click()
        other.scroll_into_view_if_needed()
        other.locator(".ipfs-player-big").click()
        expect(other.locator(".ipfs-player-link")).to_have_text("Live over WebRTC", timeout=20_000)
        shoot(page, "plays")
    finally:
        lab.stop()
    ours = [url for url in sockets if "/ws/" in url]
    assert any("/ws/webrtc" in url for url in ours)
    assert any("/ws/notifications" in url for url in ours)
    assert {url.partition(":")[0] for url in sockets} == {"wss"}
    assert {url.partition(":")[0] for url in requests} <= {"https", "data", "blob"}
