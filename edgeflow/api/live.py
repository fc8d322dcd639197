"""`/live/{namespace}/{channel}`: a page that shows the newest picture or text of a channel.

What it is: one self-contained HTML file without data; everything it shows it fetches itself, with the token from the address's fragment.
What must stay true: the token never reaches the server as part of an address; nothing is loaded from elsewhere; what an event carries is never
run as a script (pictures are blob URLs in <img>, text is textContent).
"""

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from edgeflow.core.channels import check_filter

router = APIRouter()

PAGE = (Path(__file__).parent / "live.html").read_text()


def _hashes(tag: str) -> str:
    """CSP sources of the page's inline <tag> blocks."""
    blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    return " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" for block in blocks
    )


HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hashes('script')}; style-src {_hashes('style')}; connect-src 'self'; img-src blob: data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@router.get("/live/{namespace}/{path:path}", include_in_schema=False)
async def live_page(namespace: str, path: str) -> HTMLResponse:
    """The page. It is the same for every channel and reads the channel from its own address."""
    check_filter(f"{namespace}/{path}")
    return HTMLResponse(PAGE, headers=HEADERS)
