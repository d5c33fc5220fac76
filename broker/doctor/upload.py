"""Step ``upload``: one byte to Coze, for whoever asks for it."""

from __future__ import annotations

from broker.doctor.calling import CallFailedError, Reply, ask, shown
from broker.doctor.credential import BETWEEN, NOT_COZE, NOT_PERMITTED, REFUSED_CODES
from broker.doctor.finding import Finding, failed, ok
from broker.doctor.http import facts_of
from broker.doctor.way import Way
from broker.upstream.coze import UPLOAD_PATH

FILE = ("doctor.csv", b"1", "text/csv")
OUT_OF_CREDIT = {"4011", "4019", "4020", "4022", "4027", "4028"}


async def examine(way: Way) -> Finding:
    """With the credential of the step before. Is not repeated: it may have gone through."""
    token = way.tokens.get("server", "")
    try:
        reply = await ask(way.coze, "POST", UPLOAD_PATH, token=token, files={"file": FILE})
    except CallFailedError as error:
        means = "The file may be there or not."
        return failed(f"no answer: {error.sentence}", means, "Try again.", code=error.code, cause=error.cause)
    return judged(reply)


def judged(reply: Reply) -> Finding:
    """What Coze made of it."""
    facts = facts_of(reply)
    data = (reply.body or {}).get("data")
    file_id = data.get("id") if isinstance(data, dict) else None
    if reply.code == "0" and reply.status < 300 and isinstance(file_id, str):  # noqa: PLR2004 - HTTP's own
        file_id = shown(file_id)
        return ok(f"file_id {file_id}, {reply.seconds * 1000:.0f} ms", **facts, file_id=file_id)
    found = f"Coze refuses the file ({reply})"
    if reply.code == NOT_PERMITTED:
        do = "Give the app or token the permission uploadFile, in Coze's console."
        return failed(found, "The credential may not upload.", do, **facts)
    if reply.code in REFUSED_CODES:
        return failed(found, "The credential is refused.", "See the step credential.", **facts)
    if reply.code in OUT_OF_CREDIT:
        return failed(found, "The account's credit or plan is used up.", "See the account at Coze.", **facts)
    if not reply.is_cozes:
        return failed(f"the answer is {reply} ({reply.sender})", NOT_COZE, BETWEEN, **facts)
    return failed(found, "Coze did not take it.", "Ask Coze's support, with the logid.", **facts)
