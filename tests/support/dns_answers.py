"""What a DNS server of the tests says, over whichever transport."""

from __future__ import annotations

from collections.abc import Mapping

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

Records = Mapping[str, list[str] | str]
"""By name: addresses, or the name of an error. Unknown names don't exist."""


def answer_to(
    question: dns.message.Message, records: Records, aliases: Mapping[str, str] | None = None
) -> dns.message.Message:
    """The answer to one question; ``aliases`` are names that are another's (CNAME)."""
    answer = dns.message.make_response(question)
    answer.flags |= dns.flags.RA
    asked = question.question[0]
    name, kind = name_of(question), kind_of(question)
    if aliases and name in aliases:
        answer.answer.append(dns.rrset.from_text(asked.name, 60, "IN", "CNAME", f"{aliases[name]}."))
        name = aliases[name]
    found = records.get(name, "NXDOMAIN")
    if isinstance(found, str):
        answer.set_rcode(dns.rcode.from_text(found))
        return answer
    fitting = [address for address in found if (":" in address) == (kind == "AAAA")]
    if fitting:
        answer.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", kind, *fitting))
    return answer


def name_of(question: dns.message.Message) -> str:
    """The name that is asked for, without the last dot."""
    return question.question[0].name.to_text(omit_final_dot=True)


def kind_of(question: dns.message.Message) -> str:
    """The kind of record that is asked for: ``A``, ``AAAA`` …"""
    return dns.rdatatype.to_text(question.question[0].rdtype)
